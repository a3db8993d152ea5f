"""What a trained SE(2) Transformer must beat: constant answers, and a ridge regression on rings of neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.nn.se2 import CELL
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
    mean, covariance
        Of the vectors of all cells, ``(d,)`` and ``(d, d)``.
    """

    ridge: Tensor
    mean_cell: Tensor
    mean_distance: float
    mean: Tensor
    covariance: Tensor


def references(packs: Iterable[ScenePack]) -> References:
    """Collect the answers on one pass over training sub-slices, as they are masked in training."""
    gram: Tensor | None = None
    n, total, pairs, moments = 0, 0.0, 0, torch.zeros(0)
    for pack in packs:
        cells = with_constant(pack.features[pack.types == CELL]).double()
        moments = cells.T @ cells if not len(moments) else moments + cells.T @ cells
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
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    mean_cell = (gram[-1, size:] / max(n, 1)).float()
    return References(weights, mean_cell, total / max(pairs, 1), mean.float(), covariance.float())


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
