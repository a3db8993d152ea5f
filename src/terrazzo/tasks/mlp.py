"""Heads: small fully connected networks that turn an embedding into scores of classes or into values."""

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
from terrazzo.tasks.readouts import MLPConfig, Readout, State

ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}


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
            raise ConfigError(
                f"a head's sizes are {', '.join(map(str, sizes))}; each must be at least 1."
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}."
            )
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; it must lie in [0, 1).")
        steps: list[nn.Module] = []
        for wide, narrow in pairwise(sizes[:-1]):
            steps += [nn.Linear(wide, narrow), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*steps, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return scores or values, ``(n, output_dim)``, of vectors ``(n, input_dim)``."""
        return self.layers(vectors)


RARE = 1e-6  # least frequency of which a logarithm is taken


BETTER = 0.99  # training goes on while the loss falls by 1 % in so many epochs as patience says


class MLPReadout(Readout):
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
        self._target_shift, self._target_scale = np.zeros(self.n_outputs), np.ones(self.n_outputs)
        if self.kind == "values":
            self._target_shift, self._target_scale = (
                y.mean(axis=0, dtype=float),
                y.std(axis=0, dtype=float),
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._module = self._new(x.shape[1])
            self._train(*self._tensors(x, y), *self._tensors(x_val, y_val))
        self._module.eval()

    def _new(self, input_dim: int) -> LabelHead:
        config = self.config
        return LabelHead(
            input_dim, self.n_outputs, config.hidden, config.activation, config.dropout
        )

    def _tensors(self, x: AnyFloats, y: NDArray[Any]) -> tuple[Tensor, Tensor]:
        if (
            self.kind == "values"
        ):  # a constant column has sd 0: learned as zeros, answered with its mean
            y = (y - self._target_shift) / np.where(self._target_scale > 0, self._target_scale, 1.0)
        target = torch.from_numpy(
            np.asarray(y, dtype=np.int64 if self.kind == "classes" else np.float32)
        )
        return torch.from_numpy(np.ascontiguousarray(x)), target

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.kind == "classes":
            return F.cross_entropy(scores, target)
        if self.kind == "proportions":
            return F.kl_div(scores.log_softmax(-1), target, reduction="batchmean")
        return F.mse_loss(scores, target)

    def _trivial(self, y: Tensor) -> Tensor:
        """Return the scores that always answer with the mean: zeros of standardized values, else log frequencies."""
        if self.kind == "values":
            return torch.zeros(self.n_outputs)
        mean = (F.one_hot(y, self.n_outputs).float() if self.kind == "classes" else y).mean(dim=0)
        return mean.clamp_min(RARE).log()

    def _start(self, trivial: Tensor) -> None:
        """Let the head answer trivially until it learns: it need not find the mean first, and forgets nothing."""
        last = cast("nn.Linear", self._module.layers[-1])
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(trivial)

    def _train(self, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> None:
        config, module = self.config, self._module
        trivial = self._trivial(y)
        self._start(trivial)
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        watched, floor = (
            bool(len(x_val)),
            config.floor * float(self._loss(trivial.expand(len(y), -1), y)),
        )
        best = counted = self._loss_of(x_val, y_val) if watched else np.inf
        kept, waited = _copy(module), 0
        most = (
            -(-config.max_steps // max(-(-len(x) // config.batch_size), 1))
            if config.max_steps
            else config.max_epochs
        )
        for _ in range(min(config.max_epochs, most)):
            loss = self._epoch(x, y, optimizer)
            if watched:
                loss = self._loss_of(x_val, y_val)
                if loss < best:
                    best, kept = loss, _copy(module)
            counted, waited = (loss, 0) if loss < counted * BETTER else (counted, waited + 1)
            if waited >= config.patience or loss < floor:
                break
        if watched:
            module.load_state_dict(kept)

    @torch.no_grad()
    def _loss_of(self, x: Tensor, y: Tensor) -> float:
        self._module.eval()
        return float(self._loss(self._module(x), y))

    def _epoch(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Run through all rows once; returns their mean loss."""
        self._module.train()
        total = 0.0
        for rows in torch.randperm(len(x)).split(self.config.batch_size):
            optimizer.zero_grad()
            loss = self._loss(self._module(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / max(len(x), 1)

    @torch.no_grad()
    def _outputs(self, x: AnyFloats) -> NDArray[Any]:
        scores = self._module(torch.from_numpy(np.ascontiguousarray(x)))
        if self.kind == "values":
            return scores.numpy() * self._target_scale + self._target_shift
        return scores.softmax(-1).numpy()

    def _state(self) -> State:
        weights = {f"module.{k}": v.numpy() for k, v in self._module.state_dict().items()}
        return {"target_shift": self._target_shift, "target_scale": self._target_scale, **weights}

    def _load(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._target_shift, self._target_scale = state["target_shift"], state["target_scale"]
        if self._target_shift.shape != (self.n_outputs,) or self._target_scale.shape != (
            self.n_outputs,
        ):
            raise ValueError("target_shift and target_scale have another number of columns")
        with torch.random.fork_rng(devices=[]):  # making a module draws its start
            self._module = self._new(self.input_dim)
        weights = {
            k.removeprefix("module."): torch.tensor(v)
            for k, v in state.items()
            if k.startswith("module.")
        }
        try:
            self._module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self._module.eval()


def _copy(module: LabelHead) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
