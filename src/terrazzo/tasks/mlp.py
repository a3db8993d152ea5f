"""MLP heads: fully connected networks that turn an embedding into scores of classes or into values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.arrays import AnyFloats
from terrazzo.errors import ConfigError
from terrazzo.tasks.heads import Head, MLPConfig, State

__all__ = ["ACTIVATIONS", "LabelHead", "MLPHead"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}
RARE = 1e-6  # least frequency of which a logarithm is taken
BETTER = 0.99  # training goes on while the loss falls by 1 % within ``patience`` epochs


class LabelHead(nn.Module):
    """Fully connected layers with an activation between them, none after the last.

    Two hidden sizes make the three-layer head with LeakyReLU of SToFM (C.2); ``(512, 256, 128)`` with ReLU is the MLP
    of ST as images (section 4).

    Parameters
    ----------
    input_dim, output_dim
        Width of the embedding; number of classes or values.
    hidden
        Width of each hidden layer; none makes one linear map.
    activation
        ``"leaky_relu"`` or ``"relu"``.
    dropout
        Share of hidden units dropped in training.

    Raises
    ------
    ConfigError
        A size below 1, an unknown activation, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [input_dim, *hidden, output_dim]
        if min(sizes) < 1:
            shown = ", ".join(map(str, sizes))
            raise ConfigError(f"a head's sizes are {shown}; each must be at least 1.")
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation is {activation!r}; it must be one of {known}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; it must be in [0, 1).")
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes[:-1]):
            layers.append(nn.Linear(wide, narrow))
            layers.append(ACTIVATIONS[activation]())
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(sizes[-2], sizes[-1]))
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return scores or values, ``(n, output_dim)``, of vectors ``(n, input_dim)``."""
        return self.layers(vectors)


class MLPHead(Head):
    """A :class:`LabelHead` and its training.

    Classes are learned with cross-entropy, proportions as softmax with the Kullback-Leibler divergence, values with
    the squared error of targets standardized column by column with the training rows' mean and sd, and mapped back.
    Training starts from the trivial answer, the mean of the training rows.
    """

    config: MLPConfig

    @property
    def needs_validation(self) -> bool:
        """Early stopping looks at them."""
        return self.config.early_stopping

    def _fit(
        self, x: AnyFloats, y: NDArray[Any], x_val: AnyFloats, y_val: NDArray[Any], seed: int
    ) -> None:
        if self.kind == "values":
            self._target_shift = y.mean(axis=0, dtype=float)
            self._target_scale = y.std(axis=0, dtype=float)
        else:
            self._target_shift = np.zeros(self.n_outputs)
            self._target_scale = np.ones(self.n_outputs)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._module = self._new(x.shape[1])
            vectors, targets = self._tensors(x, y)
            validation = self._tensors(x_val, y_val)
            self._train(vectors, targets, *validation)
        self._module.eval()

    def _new(self, input_dim: int) -> LabelHead:
        config = self.config
        return LabelHead(
            input_dim,
            self.n_outputs,
            config.hidden,
            config.activation,
            config.dropout,
        )

    def _tensors(self, x: AnyFloats, y: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return vectors and targets for training; values standardized."""
        if self.kind == "values":
            # a constant column has sd 0: learned as zeros, predicted as its mean
            scale = np.where(self._target_scale > 0, self._target_scale, 1.0)
            y = (y - self._target_shift) / scale
        dtype = np.int64 if self.kind == "classes" else np.float32
        targets = torch.from_numpy(np.asarray(y, dtype=dtype))
        vectors = torch.from_numpy(np.ascontiguousarray(x))
        return vectors, targets

    def _loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        if self.kind == "classes":
            return F.cross_entropy(scores, targets)
        if self.kind == "proportions":
            return F.kl_div(scores.log_softmax(-1), targets, reduction="batchmean")
        return F.mse_loss(scores, targets)

    def _trivial(self, y: Tensor) -> Tensor:
        """Return the scores that always predict the mean: zeros of standardized values, else log frequencies."""
        if self.kind == "values":
            return torch.zeros(self.n_outputs)
        if self.kind == "classes":
            y = F.one_hot(y, self.n_outputs).float()
        return y.mean(dim=0).clamp_min(RARE).log()

    def _start(self, trivial: Tensor) -> None:
        """Let the head start from the trivial answer, so that it need not learn the mean first."""
        last = cast("nn.Linear", self._module.layers[-1])
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(trivial)

    def _train(self, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> None:
        """Train until the loss no longer falls: of the validation rows where there are any, whose best epoch counts."""
        config = self.config
        module = self._module
        trivial = self._trivial(y)
        self._start(trivial)
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        trivial_loss = self._loss(trivial.expand(len(y), -1), y)
        least_loss = config.floor * float(trivial_loss)
        has_validation = bool(len(x_val))
        best = self._loss_of(x_val, y_val) if has_validation else np.inf
        best_weights = _copy(module)
        compared = best  # the loss that must fall by 1 %
        waited = 0
        for _ in range(self._most_epochs(len(x))):
            loss = self._epoch(x, y, optimizer)
            if has_validation:
                loss = self._loss_of(x_val, y_val)
                if loss < best:
                    best = loss
                    best_weights = _copy(module)
            if loss < compared * BETTER:
                compared = loss
                waited = 0
            else:
                waited += 1
            if waited >= config.patience or loss < least_loss:
                break
        if has_validation:
            module.load_state_dict(best_weights)

    def _most_epochs(self, n_rows: int) -> int:
        """Return the number of epochs after which training ends."""
        config = self.config
        if not config.max_steps:
            return config.max_epochs
        steps_an_epoch = max(-(-n_rows // config.batch_size), 1)
        enough = -(-config.max_steps // steps_an_epoch)
        return min(config.max_epochs, enough)

    @torch.no_grad()
    def _loss_of(self, x: Tensor, y: Tensor) -> float:
        self._module.eval()
        return float(self._loss(self._module(x), y))

    def _epoch(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Run through all rows once; returns their mean loss."""
        self._module.train()
        total = 0.0
        order = torch.randperm(len(x))
        for rows in order.split(self.config.batch_size):
            optimizer.zero_grad()
            scores = self._module(x[rows])
            loss = self._loss(scores, y[rows])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / max(len(x), 1)

    @torch.no_grad()
    def _outputs(self, x: AnyFloats) -> NDArray[Any]:
        vectors = torch.from_numpy(np.ascontiguousarray(x))
        scores = self._module(vectors)
        if self.kind == "values":
            return scores.numpy() * self._target_scale + self._target_shift
        return scores.softmax(-1).numpy()

    def _state(self) -> State:
        state: State = {
            "target_shift": self._target_shift,
            "target_scale": self._target_scale,
        }
        for name, weight in self._module.state_dict().items():
            state[f"module.{name}"] = weight.numpy()
        return state

    def _load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._target_shift = state["target_shift"]
        self._target_scale = state["target_scale"]
        expected = (self.n_outputs,)
        if self._target_shift.shape != expected or self._target_scale.shape != expected:
            raise ValueError("target_shift and target_scale have another number of columns")
        with torch.random.fork_rng(devices=[]):  # making a module draws random weights
            self._module = self._new(self.input_dim)
        weights = {}
        for name, value in state.items():
            if name.startswith("module."):
                weights[name.removeprefix("module.")] = torch.tensor(value)
        try:
            self._module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self._module.eval()


def _copy(module: LabelHead) -> dict[str, Tensor]:
    """Return copies of a module's weights."""
    weights = {}
    for name, value in module.state_dict().items():
        weights[name] = value.clone()
    return weights
