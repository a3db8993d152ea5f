"""Reference answers from training sub-slices: constants and a ridge regression that an SE(2) Transformer must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from terrazzo.systems.stofm.masking import MaskedSubSlices
from terrazzo.systems.stofm.subslices import CELL

__all__ = ["References", "fit_references", "with_constant"]

RIDGE = 1e-3  # of the mean variance of the rings
MOST_CELLS = 50_000  # hidden cells that the regression is fitted on


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


def fit_references(packs: Iterable[MaskedSubSlices]) -> References:
    """Fit the answers in one pass over training sub-slices, as they are masked in training."""
    moments: Tensor | None = None
    products: Tensor | None = None
    n_cells = 0
    total_distance = 0.0
    n_distances = 0
    for pack in packs:
        is_cell = pack.types == CELL
        cells = with_constant(pack.features[is_cell]).double()
        moments = _plus(moments, cells.T @ cells)
        predictors = with_constant(pack.rings).double()
        target = pack.features[pack.predicted].double()
        gram = predictors.T @ predictors
        cross = predictors.T @ target
        products = _plus(products, torch.cat([gram, cross], dim=1))
        total_distance += sum(float(part.double().sum()) for part in pack.true_distance)
        n_distances += sum(part.numel() for part in pack.true_distance)
        n_cells += len(predictors)
        if n_cells >= MOST_CELLS:
            break
    if moments is None or products is None:
        raise ValueError("no sub-slices to learn from")
    size = len(products)
    target_sum = products[-1, size:]  # the last predictor is the constant
    mean_cell = (target_sum / max(n_cells, 1)).float()
    mean_distance = total_distance / max(n_distances, 1)
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    return References(_ridge(products), mean_cell, mean_distance, mean.float(), covariance.float())


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def _ridge(products: Tensor) -> Tensor:
    """Return the weights of a ridge regression from products of predictors with themselves and with targets."""
    size = len(products)
    gram = products[:, :size]
    identity = torch.eye(size, dtype=torch.float64)
    penalty = RIDGE * products.diagonal().mean() * identity
    return torch.linalg.solve(gram + penalty, products[:, size:]).float()


def with_constant(rings: Tensor) -> Tensor:
    """Append a column of ones."""
    return torch.cat([rings, rings.new_ones(len(rings), 1)], dim=1)
