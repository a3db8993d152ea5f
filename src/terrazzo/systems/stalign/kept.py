"""Parts of ST-Align that keep what its inputs know: frozen components, and maps that correlate two sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KEPT", "Components", "Heads"]

KEPT = 50  # components of a frozen feature that are kept at most


class Components(nn.Module):
    """Principal components of a frozen feature, not whitened, in the first columns of a vector of width ``dim``.

    Nothing here is trained. Features that are narrow enough stay as they are, since they are components already; of
    wider ones :meth:`fit` sets the directions, which are random before.
    """

    loadings: Tensor
    scale: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        n_kept = min(width, KEPT, dim)
        self.narrow = n_kept == width
        self.n_empty = dim - n_kept
        loadings = torch.eye(width)
        if not self.narrow:
            loadings = torch.randn(width, n_kept) / width**0.5
        self.register_buffer("loadings", loadings)
        self.register_buffer("scale", torch.ones(()))

    def fit(self, loadings: Tensor, scale: float) -> None:
        """Set directions, ``(width, k)`` with k up to the number kept, and the factor of the components."""
        self.loadings.zero_()
        self.loadings[:, : loadings.shape[1]] = loadings
        self.scale.fill_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(n, dim)`` of ``(n, width)``; the columns after the components are 0."""
        components = features @ self.loadings * self.scale
        return F.pad(components, (0, self.n_empty))


class Heads(nn.Module):
    """Linear maps of two sides to the space in which they are contrasted.

    Parameters
    ----------
    width
        Of both sides.
    dim
        Of the space.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, dim)
        self.second = nn.Linear(width, dim)

    def fit(self, first: Tensor, second: Tensor, means: tuple[Tensor, Tensor]) -> None:
        """Set both maps, ``(width, k)`` with k up to ``dim``, of sides of these means, ``(width,)``."""
        for part, weight, mean in zip(
            (self.first, self.second), (first, second), means, strict=True
        ):
            part.weight.data.zero_()
            part.weight.data[: weight.shape[1]] = weight.T
            part.bias.data.copy_(-(part.weight.data @ mean))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(n, dim)`` of both sides."""
        return self.first(first), self.second(second)
