"""Heads: small models that turn vectors into classes, values or proportions; k-NN, linear, and the papers' MLPs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from terrazzo.arrays import AnyFloats, Floats, Ints, Vectors
from terrazzo.config import from_dict
from terrazzo.errors import ConfigError, shortened
from terrazzo.tasks.penalty import Ridge, choose_ridge

__all__ = [
    "HEADS",
    "Head",
    "HeadConfig",
    "KNNConfig",
    "KNNHead",
    "Kind",
    "LinearConfig",
    "LinearHead",
    "MLPConfig",
    "State",
    "head_config",
    "head_from_record",
    "head_record",
    "nearest_proportions",
    "statistics",
]

Kind = Literal["classes", "values", "proportions"]
State = dict[str, NDArray[Any]]

ALPHAS = tuple(10.0**power for power in range(-1, 6))  # of the ridge; the validation rows choose
DEFAULT_ALPHA = 1.0  # without validation rows
NEVER = (
    -1e9
)  # score of a class that no training row has; finite, so that saved heads can be checked
CONSTANT = 1e-6  # a column whose sd is a smaller share of its mean is rounding noise: not scaled up
CHUNK = 2**16  # rows predicted at a time


_MOST_LAYERS = 64
_WIDEST = 2**14


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
        trivial answer, which is the training rows' mean.
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
        if len(self.hidden) > _MOST_LAYERS or max(self.hidden, default=0) > _WIDEST:
            raise ConfigError(
                f"hidden of a head is {shortened(self.hidden)}; it may have {_MOST_LAYERS} layers of {_WIDEST:,}."
            )
        if self.max_steps < 0:
            raise ConfigError(
                f"max_steps of a head is {self.max_steps!r}; it must be at least 0 (0: no limit)."
            )


@dataclass(frozen=True)
class KNNConfig:
    """Settings of the mean of the nearest training rows, Euclidean; k = 10 is ST as images (section 4)."""

    neighbors: int = 10
    standardize: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive(self, "neighbors")


@dataclass(frozen=True)
class LinearConfig:
    """Settings of logistic regression (``C``, ``max_iter``), and of ridge regression for values and proportions.

    The penalty of the ridge, one of ``ALPHAS``, is the one with the least squared error on the validation rows; that of
    :meth:`LinearHead.fit_by_units` is chosen by held-out units.
    """

    C: float = 0.1
    max_iter: int = 300
    standardize: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        _check_positive(self, "C", "max_iter")


def _check_positive(config: object, *names: str) -> None:
    """Refuse settings that are not above 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{name} of a head is {value!r}; it must be above 0.")


HeadConfig = MLPConfig | KNNConfig | LinearConfig

HEADS: dict[str, HeadConfig] = {
    # SToFM, C.2: three layers, LeakyReLU, early stopping; the paper leaves the rest open
    "mlp3": MLPConfig(),
    # ST as images, section 4. The paper does not say when training ends; these limits keep it affordable: on a fifth of
    # a Visium slice the floor is reached after some 1,000 steps; only vectors that do not separate the classes go on
    # to 10,000
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
    """Return the settings of a head by its name; settings are returned as they are.

    Raises
    ------
    ConfigError
        No such head.
    """
    if not isinstance(head, str):
        return head
    if head not in HEADS:
        known = ", ".join(HEADS)
        raise ConfigError(
            f"head is {head!r}; it must be one of {known}, or settings such as MLPConfig()."
        )
    return HEADS[head]


def head_record(head: str | HeadConfig) -> dict[str, Any]:
    """Return a head's settings as JSON-able dict; :func:`head_from_record` reads it back."""
    config = head_config(head)
    record: dict[str, Any] = {}
    for name, config_type in _TYPES.items():
        if isinstance(config, config_type):
            record["type"] = name
    for name, value in asdict(config).items():
        record[name] = list(value) if isinstance(value, tuple) else value
    return record


def head_from_record(record: Mapping[str, Any]) -> HeadConfig:
    """Read what :func:`head_record` wrote.

    Raises
    ------
    ConfigError
        Not such a record.
    """
    where = "the settings of the head"
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} are not a mapping.")
    kind = record.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ConfigError(f"{where} are not those of terrazzo (type {shortened(kind)}).")
    settings = {name: value for name, value in record.items() if name != "type"}
    config: HeadConfig = from_dict(_TYPES[kind], settings, where)
    return config


class Head(ABC):
    """Base of all heads: fitted to vectors with targets, and predicts for other vectors.

    Parameters
    ----------
    config
        Its settings.
    kind
        ``"classes"``: targets are int64 codes ``(n,)``. ``"values"``: floats ``(n, n_outputs)``. ``"proportions"``:
        the same, rows that sum to one, as do those of the prediction.
    n_outputs
        Number of classes, or of columns.
    """

    def __init__(self, config: HeadConfig, kind: Kind, n_outputs: int) -> None:
        self.config = config
        self.kind = kind
        self.n_outputs = n_outputs
        self.shift = np.zeros(0)
        self.scale = np.ones(0)

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
        x_train = np.asarray(x)
        y_train = np.asarray(y)
        x_validation = np.asarray(x_val)
        y_validation = np.asarray(y_val)
        if not self.needs_validation:
            x_train = np.concatenate([x_train, x_validation])
            y_train = np.concatenate([y_train, y_validation])
            x_validation = x_train[:0]
            y_validation = y_train[:0]
        self._learn_scale(x_train)
        self._fit(
            self._standardized(x_train),
            y_train,
            self._standardized(x_validation),
            y_validation,
            seed,
        )
        return self

    def outputs(self, x: ArrayLike) -> Vectors:
        """Return probabilities of classes, values, or proportions, ``(n, n_outputs)``."""
        vectors = np.asarray(x)
        parts = [np.zeros((0, self.n_outputs))]
        for start in range(0, len(vectors), CHUNK):
            rows = vectors[start : start + CHUNK]
            parts.append(self._outputs(self._standardized(rows)))
        return np.concatenate(parts).astype(np.float32)

    def predict(self, x: ArrayLike) -> NDArray[Any]:
        """Return codes of classes, int64 ``(n,)``; or values or proportions, float32 ``(n, n_outputs)``."""
        outputs = self.outputs(x)
        if self.kind == "classes":
            return outputs.argmax(axis=1).astype(np.int64)
        return outputs

    def predict_proba(self, x: ArrayLike) -> Vectors:
        """Return the probability of each class, ``(n, n_outputs)``.

        Raises
        ------
        ConfigError
            It does not predict classes.
        """
        if self.kind != "classes":
            raise ConfigError(
                f"this head predicts {self.kind}, which have no probabilities; use predict."
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
        self.shift = state["shift"]
        self.scale = state["scale"]
        shape = self.shift.shape
        if len(shape) != 1 or shape != self.scale.shape:
            raise ValueError(f"shift {shape} and scale {self.scale.shape} do not belong together")
        self._load(state)
        return self

    def _learn_scale(self, x: NDArray[Any]) -> None:
        """Take mean and sd of the training rows, where inputs are standardized."""
        if self.config.standardize:
            self.shift, self.scale = statistics(x)
            return
        n_columns = x.shape[1]
        self.shift = np.zeros(n_columns)
        self.scale = np.ones(n_columns)

    def _standardized(self, x: NDArray[Any]) -> Vectors:
        if not self.config.standardize:
            return x.astype(np.float32)
        centered = x - self.shift
        return (centered / self.scale).astype(np.float32)

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


class KNNHead(Head):
    """The mean of the nearest training rows; votes where the targets are classes."""

    config: KNNConfig

    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None:
        self._x = x
        self._y = y

    def _outputs(self, x: AnyFloats) -> NDArray[Any]:
        from sklearn.neighbors import NearestNeighbors

        k = min(self.config.neighbors, len(self._x))
        tree = NearestNeighbors(n_neighbors=k).fit(self._x)
        neighbors = tree.kneighbors(x, return_distance=False)
        targets = self._y
        if self.kind == "classes":
            targets = np.eye(self.n_outputs)[targets]
        total: Any = 0
        for column in neighbors.T:
            total = total + targets[column].astype(np.float64)
        return total / k

    def _state(self) -> State:
        return {"x": self._x, "y": self._y}

    def _load(self, state: Mapping[str, NDArray[Any]]) -> None:
        x = state["x"]
        y = state["y"]
        n_rows = len(x)
        is_classes = self.kind == "classes"
        expected = (n_rows,) if is_classes else (n_rows, self.n_outputs)
        if not n_rows or x.shape != (n_rows, self.input_dim) or y.shape != expected:
            raise ValueError(f"x {x.shape} and y {y.shape} do not belong together")
        if is_classes:
            exists = (y >= 0) & (y < self.n_outputs)
            if not exists.all():
                raise ValueError("y holds codes of classes that do not exist")
        self._x = x
        self._y = y


class LinearHead(Head):
    """Logistic regression for classes; ridge for values, and for proportions with the nearest point that is one."""

    config: LinearConfig
    ridge: Ridge | None = None  # of fit_by_units

    @property
    def needs_validation(self) -> bool:
        """Only the penalty of the ridge is chosen."""
        return self.kind != "classes"

    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None:
        wide = x.astype(np.float64)
        if self.kind == "classes":
            self._fit_classes(wide, y)
        else:
            self._fit_values(wide, y, x_val.astype(np.float64), y_val)

    def fit_by_units(self, x: ArrayLike, y: ArrayLike, units: Ints) -> Self:
        """Fit a ridge to values; its penalty is chosen by held-out units, with the constant among the candidates.

        Parameters
        ----------
        x, y
            ``(n, d)`` and ``(n, n_outputs)``.
        units
            int64 ``(n,)``: patient, slice or place of each row; see :func:`terrazzo.tasks.penalty.choose_ridge`.

        Raises
        ------
        ConfigError
            The head predicts no values.
        """
        if self.kind != "values":
            raise ConfigError(f"this head predicts {self.kind}; a ridge by held-out units, values.")
        rows = np.asarray(x)
        self._learn_scale(rows)
        standardized = self._standardized(rows).astype(np.float64)
        targets = np.asarray(y, dtype=np.float64)
        ridge = choose_ridge(standardized, targets, units)
        self._weight = ridge.weight
        self._bias = ridge.bias
        self.ridge = ridge
        return self

    def _fit_classes(self, x: AnyFloats, y: NDArray[Any]) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        present = np.unique(y)
        self._weight = np.zeros((x.shape[1], self.n_outputs))
        self._bias = np.full(self.n_outputs, NEVER)
        self._bias[present] = 0.0
        if len(present) < 2:
            return
        model = LogisticRegression(C=self.config.C, max_iter=self.config.max_iter)
        with warnings.catch_warnings():
            # 300 steps are the protocol; what they reach is used
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        # of two classes sklearn keeps one row, for the second
        classes = present[-1:] if len(present) == 2 else present
        self._weight[:, classes] = model.coef_.T
        self._bias[classes] = model.intercept_

    def _fit_values(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any]
    ) -> None:
        from sklearn.linear_model import Ridge

        if not len(x_val):
            best = Ridge(alpha=DEFAULT_ALPHA).fit(x, y)
        else:
            fits = [Ridge(alpha=alpha).fit(x, y) for alpha in ALPHAS]
            errors = []
            for fit in fits:
                difference = fit.predict(x_val) - y_val
                errors.append(np.square(difference).sum())
            best = fits[int(np.argmin(errors))]
        self._weight = best.coef_.reshape(self.n_outputs, -1).T
        self._bias = np.atleast_1d(best.intercept_)

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
        weight = state["weight"]
        bias = state["bias"]
        weight_fits = weight.shape == (self.input_dim, self.n_outputs)
        if not weight_fits or bias.shape != (self.n_outputs,):
            raise ValueError(f"weight {weight.shape} and bias {bias.shape} do not belong together")
        self._weight = weight
        self._bias = bias


def statistics(x: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return mean and sd of each column, float64 ``(d,)``; 1 for the sd of a column that is constant."""
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    sd = wide.std(axis=0)
    varies = sd > CONSTANT * np.abs(mean) + 1e-30
    return mean, np.where(varies, sd, 1.0)


def nearest_proportions(values: NDArray[Any]) -> NDArray[Any]:
    """Return for each row the nearest one, Euclidean, that is non-negative and sums to one.

    The projection onto the simplex: a common shift is taken off and what is negative is cut (Held et al., 1974).
    """
    falling = -np.sort(-values, axis=1)
    counts = np.arange(1, values.shape[1] + 1)
    excess = (np.cumsum(falling, axis=1) - 1) / counts
    n_positive = (falling > excess).sum(axis=1, keepdims=True)
    shift = np.take_along_axis(excess, n_positive - 1, axis=1)
    return np.maximum(values - shift, 0.0)
