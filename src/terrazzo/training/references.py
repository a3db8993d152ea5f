"""What a trained SE(2) Transformer must beat: moments of the cell vectors, and a regression on rings of neighbours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.training.batches import ScenePack

RIDGE = 1e-3  # of the mean variance of the rings
MOST = 50_000  # hidden cells that the regression is fitted on


@dataclass(frozen=True)
class References:
    """Statistics of the stored cell vectors of the training slices.

    Attributes
    ----------
    mean, covariance
        ``(d,)`` over all cells, and ``(d, d)`` within slices.
    ridge
        ``(rings * d + 1, d)``: weights that predict a hidden cell's vector from the rings around it; the last row is
        the constant.
    """

    mean: Tensor
    covariance: Tensor
    ridge: Tensor


def moments(features_of_slices: Iterable[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Return mean ``(d,)`` and covariance within slices ``(d, d)``, read one slice at a time."""
    total, square, n = np.zeros(1), np.zeros(1), 0
    for features in features_of_slices:
        values = np.asarray(features, dtype=np.float64)
        centred = values - values.mean(axis=0)
        total, square, n = total + values.sum(axis=0), square + centred.T @ centred, n + len(values)
    return torch.from_numpy(total / n).float(), torch.from_numpy(square / n).float()


def ridge(packs: Iterable[ScenePack]) -> Tensor:
    """Fit the regression on one pass over training sub-slices, as they are masked in training."""
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
