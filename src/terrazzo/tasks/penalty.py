"""The penalty of a ridge regression, chosen on rows of patients, slices or places that it was not fitted to.

The mean of the training rows is a candidate like any penalty. Errors are compared with that mean's on the same rows,
and the worst ratio over all held-out units decides: a penalty that gains on one patient and loses on another is not
taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from terrazzo.arrays import Floats, Ints

__all__ = ["CONSTANT", "PENALTIES", "Ridge", "choose_ridge", "ridge_weights"]

PENALTIES = tuple(10.0**power for power in range(5, -2, -1))  # a column; the strongest first

CONSTANT = float("inf")  # penalty of the mean of the training rows

_LEAST_ERROR = 1e-12  # of the mean, below which a held-out unit cannot tell penalties apart


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted ridge regression.

    Attributes
    ----------
    weight
        float64 ``(d, m)``.
    bias
        float64 ``(m,)``.
    penalty
        Chosen, a column of the input; ``CONSTANT``: all weights are 0.
    ratio
        Squared error on the held-out units, as a share of the mean's, of the unit where it is largest; 1 of the mean.
    """

    weight: Floats
    bias: Floats
    penalty: float
    ratio: float


def choose_ridge(
    x: Floats, y: Floats, units: Ints, penalties: Sequence[float] = PENALTIES
) -> Ridge:
    """Fit a ridge regression whose penalty is chosen by held-out units.

    Parameters
    ----------
    x, y
        float64 ``(n, d)`` and ``(n, m)``.
    units
        int64 ``(n,)``: the patient, slice or place of each row. Each is held out once.
    penalties
        Candidates beside the constant, the strongest first, each times ``d``.
    """
    mean = y.mean(axis=0)
    ratios = _worst_ratios(x, y, units, penalties)
    best = int(np.argmin(ratios))  # of equals the strongest
    if best == 0:
        constant = np.zeros((x.shape[1], y.shape[1]))
        return Ridge(constant, mean, CONSTANT, 1.0)
    penalty = penalties[best - 1]
    center = x.mean(axis=0)
    (weight,) = ridge_weights(x - center, y - mean, [penalty])
    bias = mean - center @ weight
    return Ridge(weight, bias, penalty, float(ratios[best]))


def _worst_ratios(x: Floats, y: Floats, units: Ints, penalties: Sequence[float]) -> Floats:
    """Return the largest ratio of the error to the mean's over held-out units: of the mean, then of each penalty."""
    worst = np.zeros(1 + len(penalties))
    worst[0] = 1.0
    for unit in np.unique(units):
        is_held_out = units == unit
        if is_held_out.all():
            return np.append(1.0, np.full(len(penalties), np.inf))
        learned_x = x[~is_held_out]
        learned_y = y[~is_held_out]
        center = learned_x.mean(axis=0)
        mean = learned_y.mean(axis=0)
        held_out_x = x[is_held_out] - center
        residual = y[is_held_out] - mean
        error_of_mean = np.square(residual).sum()
        if error_of_mean <= _LEAST_ERROR:
            continue
        weights = ridge_weights(learned_x - center, learned_y - mean, penalties)
        for number, weight in enumerate(weights, start=1):
            error = np.square(held_out_x @ weight - residual).sum()
            worst[number] = max(worst[number], error / error_of_mean)
    if not worst[1:].any():  # no unit could tell
        worst[1:] = np.inf
    return worst


def ridge_weights(x: Floats, y: Floats, penalties: Sequence[float]) -> list[Floats]:
    """Return the weights for each penalty, of rows and targets whose mean is 0; by the smaller of the two products."""
    n_rows, n_columns = x.shape
    is_wide = n_columns > n_rows
    product = x @ x.T if is_wide else x.T @ x
    right = y if is_wide else x.T @ y
    diagonal = np.diag_indices(len(product))
    weights = []
    for penalty in penalties:
        penalized = product.copy()
        penalized[diagonal] += penalty * n_columns
        solved = linalg.solve(penalized, right, assume_a="pos")
        weights.append(x.T @ solved if is_wide else solved)
    return weights
