"""What a trained SE(2) Transformer must beat: a ridge regression on rings of neighbours."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from terrazzo.training.batches import ScenePack

RIDGE = 1e-3  # of the mean variance of the rings
MOST = 50_000  # hidden cells that the regression is fitted on


def ridge(packs: Iterable[ScenePack]) -> Tensor:
    """Fit the regression on one pass over training sub-slices, as they are masked in training.

    Returns
    -------
    ``(rings * d + 1, d)``: weights that predict a hidden cell's vector from the rings around it; the last row is the
    constant.
    """
    gram: Tensor | None = None
    n = 0
    for pack in packs:
        x = with_constant(pack.rings).double()
        y = pack.features[pack.predicted].double()
        parts = torch.cat([x.T @ x, x.T @ y], dim=1)
        gram = parts if gram is None else gram + parts
        n += len(x)
        if n >= MOST:
            break
    if gram is None:
        raise ValueError("no sub-slices to fit on")
    size = len(gram)
    left = gram[:, :size] + RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    return torch.linalg.solve(left, gram[:, size:]).float()


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
