"""Heads: small fully connected networks that turn an embedding into scores of classes or into values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from terrazzo.errors import ConfigError

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
            raise ConfigError(f"a head's sizes are {', '.join(map(str, sizes))}; each must be at least 1.")
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; it must lie in [0, 1).")
        steps: list[nn.Module] = []
        for wide, narrow in pairwise(sizes[:-1]):
            steps += [nn.Linear(wide, narrow), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*steps, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return scores or values, ``(n, output_dim)``, of vectors ``(n, input_dim)``."""
        return self.layers(vectors)
