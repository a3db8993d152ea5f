"""Principal directions of values whose second moments were summed up slice by slice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_VALUE = 1e-4  # of the largest singular value: directions of nothing
DIGITS = 6  # the last bits differ from call to call, by where arrays lie in memory; stored vectors go by every bit


def principal_directions(moment: Floats, k: int) -> tuple[Floats, Floats]:
    """Return the first k principal directions.

    Parameters
    ----------
    moment
        ``(m, m)``: mean of ``x x^T`` over rows whose columns have mean 0.
    k
        Directions wanted.

    Returns
    -------
    ``(m, k)``, orthonormal columns by falling variance, and the variances ``(k,)``; both may be shorter. Signs and the
    last digits do not depend on the solver.
    """
    variance, vectors = np.linalg.eigh(moment)
    variance, vectors = np.maximum(variance[::-1][:k], 0), vectors[:, ::-1][:, :k]
    vectors = vectors * np.sign((vectors**3).sum(axis=0))  # the solver's sign is chance
    kept = variance > LEAST_VALUE**2 * variance.max(initial=0)
    return vectors[:, kept].round(DIGITS), variance[kept].round(DIGITS)
