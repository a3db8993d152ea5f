"""Read-outs: what turns vectors into classes, values or proportions; k-NN, linear, and the MLPs of the papers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from terrazzo.arrays import AnyFloats
from terrazzo.errors import ConfigError

Kind = Literal["classes", "values", "proportions"]


State = dict[str, NDArray[Any]]


ALPHAS = tuple(10.0**power for power in range(-1, 6))  # of the ridge; the validation rows choose


NEVER = (
    -1e9
)  # score of a class that no training row has; finite, so that a saved read-out can be checked


CONSTANT = (
    1e-6  # a column whose sd is below this share of its mean is rounding noise and is not blown up
)


CHUNK = 2**16  # rows predicted at a time


@dataclass(frozen=True)
class MLPConfig:
    """Settings of an MLP trained with AdamW.

    Attributes
    ----------
    hidden, activation, dropout
        As in :class:`terrazzo.tasks.mlp.LabelHead`.
    learning_rate, weight_decay, batch_size, max_epochs
        Of the optimizer, AdamW; it is Adam where ``weight_decay`` is 0.
    max_steps
        Ends training on many rows before ``max_epochs``; 0: no limit.
    patience, floor
        Training ends where the loss has not fallen by 1 % in so many epochs, or is below this share of the loss of the
        trivial answer, the training rows' mean.
    early_stopping
        True: that loss is the validation rows', and the weights of its best epoch are restored. False: it is the mean
        training loss of an epoch; validation rows are training rows like all others.
    standardize
        Inputs are standardized with mean and sd of the training rows.
    """

    hidden: tuple[int, ...] = (256, 256)
    activation: str = "leaky_relu"
    dropout: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 256
    max_epochs: int = 500
    max_steps: int = 0
    patience: int = 10
    early_stopping: bool = True
    floor: float = 1e-3
    standardize: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive(self, "learning_rate", "batch_size", "max_epochs", "patience")
        if self.max_steps < 0:
            raise ConfigError(
                f"max_steps of a head is {self.max_steps!r}; it must be at least 0 (0: no limit)."
            )


@dataclass(frozen=True)
class KNNConfig:
    """Settings of the mean answer of the nearest training rows, Euclidean; k = 10 is ST as images (section 4)."""

    neighbors: int = 10
    standardize: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive(self, "neighbors")


@dataclass(frozen=True)
class LinearConfig:
    """Settings of logistic regression (``C``, ``max_iter``), and of ridge regression for values and proportions.

    The penalty of the ridge, one of ``ALPHAS``, is the one with the least squared error on the validation rows.
    """

    C: float = 0.1
    max_iter: int = 300
    standardize: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive(self, "C", "max_iter")


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} of a head is {getattr(config, name)!r}; it must be above 0.")


HeadConfig = MLPConfig | KNNConfig | LinearConfig


HEADS: dict[str, HeadConfig] = {
    "mlp3": MLPConfig(),  # SToFM, C.2: three layers, LeakyReLU, early stopping; the rest is ours
    # ST as images, section 4. When training ends is ours, to stay affordable: on a fifth of a Visium slice the floor is
    # reached after some 1,000 steps; only vectors that do not tell the classes apart go on to 10,000
    "mlp512": MLPConfig(
        (512, 256, 128),
        "relu",
        weight_decay=0.0,
        batch_size=32,
        max_epochs=800,
        max_steps=10_000,
        patience=20,
        early_stopping=False,
    ),
    "knn": KNNConfig(),
    "linear": LinearConfig(),
}


_TYPES: dict[str, type[HeadConfig]] = {"mlp": MLPConfig, "knn": KNNConfig, "linear": LinearConfig}


def head_config(head: str | HeadConfig) -> HeadConfig:
    """Return the settings of a head given by name.

    Raises
    ------
    ConfigError
        No such head.
    """
    if not isinstance(head, str):
        return head
    if head not in HEADS:
        raise ConfigError(
            f"head is {head!r}; it must be one of {', '.join(HEADS)}, or settings such as MLPConfig()."
        )
    return HEADS[head]


def head_record(head: str | HeadConfig) -> dict[str, Any]:
    """Return a head's settings as JSON-able dict; :func:`head_from_record` reads it back."""
    config = head_config(head)
    kind = next(name for name, cls in _TYPES.items() if isinstance(config, cls))
    return {
        "type": kind,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()},
    }


def head_from_record(record: Mapping[str, Any]) -> HeadConfig:
    """Read what :func:`head_record` wrote.

    Raises
    ------
    ConfigError
        Not such a record.
    """
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k != "type"
    }
    try:
        return _TYPES[record["type"]](**values)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the settings of the head are not those of terrazzo ({error})."
        ) from error


class Readout(ABC):
    """Something that is fitted to vectors and answers for others.

    Parameters
    ----------
    config
        Its settings.
    kind
        ``"classes"``: targets are int64 codes ``(n,)``. ``"values"``: floats ``(n, n_outputs)``. ``"proportions"``:
        the same, rows that sum to one, as do those of the answer.
    n_outputs
        Number of classes, or of columns.
    """

    type: ClassVar[str]

    def __init__(self, config: HeadConfig, kind: Kind, n_outputs: int) -> None:
        self.config, self.kind, self.n_outputs = config, kind, n_outputs
        self.shift, self.scale = np.zeros(0), np.ones(0)

    @property
    def input_dim(self) -> int:
        """Width of the vectors that it was fitted to; 0 before."""
        return len(self.shift)

    def fit(
        self, x: ArrayLike, y: ArrayLike, x_val: ArrayLike, y_val: ArrayLike, seed: int = 0
    ) -> Self:
        """Fit to training rows ``(n, d)`` and their targets; validation rows stop or choose where a head needs that.

        Every statistic is that of the training rows; a head without use for validation rows trains on them, too. The
        global random generators are left alone.
        """
        x, x_val, y, y_val = np.asarray(x), np.asarray(x_val), np.asarray(y), np.asarray(y_val)
        if not self.needs_validation:
            x, y = np.concatenate([x, x_val]), np.concatenate([y, y_val])
            x_val, y_val = x[:0], y[:0]
        self.shift, self.scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
        if self.config.standardize:
            self.shift, self.scale = statistics(x)
        self._fit(self._ready(x), y, self._ready(x_val), y_val, seed)
        return self

    def outputs(self, x: ArrayLike) -> NDArray[np.float32]:
        """Return probabilities of classes, values, or proportions, ``(n, n_outputs)``."""
        vectors = np.asarray(x)
        parts = [
            self._outputs(self._ready(vectors[i : i + CHUNK]))
            for i in range(0, len(vectors), CHUNK)
        ]
        return np.concatenate([np.zeros((0, self.n_outputs)), *parts]).astype(np.float32)

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """Return codes of classes, int64 ``(n,)``; or values or proportions, float32 ``(n, n_outputs)``."""
        found = self.outputs(x)
        return found.argmax(axis=1).astype(np.int64) if self.kind == "classes" else found

    def predict_proba(self, x: ArrayLike) -> NDArray[np.float32]:
        """Return the probability of each class, ``(n, n_outputs)``.

        Raises
        ------
        ConfigError
            It does not answer with classes.
        """
        if self.kind != "classes":
            raise ConfigError(
                f"this read-out answers with {self.kind}, which have no probabilities; use predict."
            )
        return self.outputs(x)

    def state(self) -> State:
        """Return all that was learned, as arrays by name."""
        return {"shift": self.shift, "scale": self.scale, **self._state()}

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Take back what :meth:`state` returned.

        Raises
        ------
        KeyError, ValueError
            Arrays are missing, or of another shape.
        """
        self.shift, self.scale = state["shift"], state["scale"]
        if self.shift.ndim != 1 or self.shift.shape != self.scale.shape:
            raise ValueError(
                f"shift {self.shift.shape} and scale {self.scale.shape} do not belong together"
            )
        self._load(state)
        return self

    def _ready(self, x: NDArray[Any]) -> NDArray[np.float32]:
        if not self.config.standardize:
            return x.astype(np.float32)
        return ((x - self.shift) / self.scale).astype(np.float32)

    @property
    def needs_validation(self) -> bool:
        """Whether the validation rows stop or choose something."""
        return False

    @abstractmethod
    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None: ...

    @abstractmethod
    def _outputs(self, x: AnyFloats) -> NDArray[Any]: ...

    @abstractmethod
    def _state(self) -> State: ...

    @abstractmethod
    def _load(self, state: Mapping[str, NDArray[Any]]) -> None: ...


class KNNReadout(Readout):
    """The mean answer of the nearest training rows; votes where the targets are classes."""

    config: KNNConfig

    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None:
        self._x, self._y = x, y

    def _outputs(self, x: AnyFloats) -> NDArray[Any]:
        from sklearn.neighbors import NearestNeighbors

        finder = NearestNeighbors(n_neighbors=min(self.config.neighbors, len(self._x))).fit(self._x)
        near = finder.kneighbors(x, return_distance=False)
        answers = np.eye(self.n_outputs)[self._y] if self.kind == "classes" else self._y
        return sum(answers[column].astype(np.float64) for column in near.T) / near.shape[1]

    def _state(self) -> State:
        return {"x": self._x, "y": self._y}

    def _load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._x, self._y = state["x"], state["y"]
        wanted = (len(self._x),) if self.kind == "classes" else (len(self._x), self.n_outputs)
        if (
            self._x.ndim != 2
            or self._x.shape[1] != self.input_dim
            or self._y.shape != wanted
            or not len(self._x)
        ):
            raise ValueError(f"x {self._x.shape} and y {self._y.shape} do not belong together")
        if self.kind == "classes" and not ((self._y >= 0) & (self._y < self.n_outputs)).all():
            raise ValueError("y names classes that there are not")


class LinearReadout(Readout):
    """Logistic regression for classes; ridge for values, and for proportions with the nearest point that is one."""

    config: LinearConfig

    @property
    def needs_validation(self) -> bool:
        """Only the penalty of the ridge is chosen."""
        return self.kind != "classes"

    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None:
        fit = self._fit_classes if self.kind == "classes" else self._fit_values
        fit(x.astype(np.float64), y, x_val.astype(np.float64), y_val)

    def _fit_classes(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any]
    ) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        present = np.unique(y)
        self._weight = np.zeros((x.shape[1], self.n_outputs))
        self._bias = np.full(self.n_outputs, NEVER)
        self._bias[present] = 0.0
        if len(present) < 2:
            return
        model = LogisticRegression(C=self.config.C, max_iter=self.config.max_iter)
        with (
            warnings.catch_warnings()
        ):  # 300 steps are the protocol; the answer is used as it is then
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        rows = (
            present[-1:] if len(present) == 2 else present
        )  # of two classes sklearn keeps one row, for the second
        self._weight[:, rows], self._bias[rows] = model.coef_.T, model.intercept_

    def _fit_values(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any]
    ) -> None:
        from sklearn.linear_model import Ridge

        fits = [Ridge(alpha=alpha).fit(x, y) for alpha in (ALPHAS if len(x_val) else (1.0,))]
        errors = [
            np.square(fit.predict(x_val) - y_val).sum() if len(x_val) else 0.0 for fit in fits
        ]
        best = fits[int(np.argmin(errors))]
        self._weight, self._bias = (
            best.coef_.reshape(self.n_outputs, -1).T,
            np.atleast_1d(best.intercept_),
        )

    def _outputs(self, x: AnyFloats) -> NDArray[Any]:
        scores = x.astype(np.float64) @ self._weight + self._bias
        if self.kind == "values":
            return scores
        if self.kind == "proportions":
            return nearest_proportions(scores)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _state(self) -> State:
        return {"weight": self._weight, "bias": self._bias}

    def _load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._weight, self._bias = state["weight"], state["bias"]
        if self._weight.shape != (self.input_dim, self.n_outputs) or self._bias.shape != (
            self.n_outputs,
        ):
            raise ValueError(
                f"weight {self._weight.shape} and bias {self._bias.shape} do not belong together"
            )


def statistics(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sd of each column, float64 ``(d,)``; 1 for the sd of a column that is constant."""
    wide = x.astype(np.float64)
    shift, sd = wide.mean(axis=0), wide.std(axis=0)
    return shift, np.where(sd > CONSTANT * np.abs(shift) + 1e-30, sd, 1.0)


def nearest_proportions(values: NDArray[Any]) -> NDArray[Any]:
    """Return for each row the nearest one, Euclidean, that is non-negative and sums to one.

    The projection onto the simplex: a common shift is taken off and what is negative is cut (Held et al., 1974).
    """
    down = -np.sort(-values, axis=1)
    excess = (np.cumsum(down, axis=1) - 1) / np.arange(1, values.shape[1] + 1)
    last = (down > excess).sum(axis=1, keepdims=True) - 1
    return np.maximum(values - np.take_along_axis(excess, last, axis=1), 0.0)


def make(head: str | HeadConfig, kind: Kind, n_outputs: int) -> Readout:
    """Return a read-out that is not fitted yet, by name (``HEADS``) or by its settings.

    Raises
    ------
    ConfigError
        No such head.
    """
    config = head_config(head)
    if isinstance(config, KNNConfig):
        return KNNReadout(config, kind, n_outputs)
    if isinstance(config, LinearConfig):
        return LinearReadout(config, kind, n_outputs)
    from terrazzo.tasks.mlp import MLPReadout

    return MLPReadout(config, kind, n_outputs)
