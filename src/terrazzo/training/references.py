"""What a trained SE(2) Transformer must beat: constant answers, and a ridge regression on rings of neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.training.batches import ScenePack

RIDGE = 1e-3  # of the mean variance of the rings
MOST = 50_000  # hidden cells that the regression is fitted on


@dataclass(frozen=True)
class References:
    """Answers that need no SE(2) Transformer, from training slices.

    Attributes
    ----------
    ridge
        ``(rings * d + 1, d)``: weights that predict a hidden cell's vector from the rings around it; the last row is
        the constant.
    mean_cell
        ``(d,)``: mean vector of hidden cells.
    mean_distance
        Mean of the distances to be recovered; 0 where none are.
    """

    ridge: Tensor
    mean_cell: Tensor
    mean_distance: float


def references(packs: Iterable[ScenePack]) -> References:
    """Collect the answers on one pass over training sub-slices, as they are masked in training."""
    gram: Tensor | None = None
    n, total, pairs = 0, 0.0, 0
    for pack in packs:
        x = with_constant(pack.rings).double()
        y = pack.features[pack.predicted].double()
        parts = torch.cat([x.T @ x, x.T @ y], dim=1)
        gram = parts if gram is None else gram + parts
        total += sum(float(d.double().sum()) for d in pack.true_distance)
        pairs += sum(d.numel() for d in pack.true_distance)
        n += len(x)
        if n >= MOST:
            break
    if gram is None:
        raise ValueError("no sub-slices to learn from")
    size = len(gram)
    left = gram[:, :size] + RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    weights = torch.linalg.solve(left, gram[:, size:]).float()
    return References(weights, (gram[-1, size:] / max(n, 1)).float(), total / max(pairs, 1))


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
