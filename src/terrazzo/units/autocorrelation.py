"""How much a gene's value in one place says about its neighbours'."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

NEAREST = 6  # neighbours of a place
GENES = 2000  # that are made dense at a time


def spatial_autocorrelation(values: sparse.csr_matrix, coords: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the correlation of each column with the mean of its 6 nearest neighbours, ``(genes,)``.

    Parameters
    ----------
    values
        CSR ``(n, genes)``: expression, one row a place.
    coords
        ``(n, 2)``: where the places lie.

    Returns
    -------
    Between -1 and 1; 0 for a gene that does not vary.
    """
    n = len(coords)
    k = min(NEAREST + 1, n)
    _, index = cKDTree(coords).query(coords, k=[*range(1, k + 1)], workers=-1)
    rows = np.repeat(np.arange(n), k - 1)
    weight = np.full(len(rows), 1 / max(k - 1, 1))
    mean = sparse.csr_matrix((weight, (rows, index[:, 1:].ravel())), shape=(n, n))
    out = np.zeros(values.shape[1])
    for start in range(0, len(out), GENES):
        own = values[:, start : start + GENES]
        around = np.asarray((mean @ own).todense())
        mine = own.toarray()
        mine, around = mine - mine.mean(axis=0), around - around.mean(axis=0)
        scale = np.sqrt((mine**2).sum(axis=0) * (around**2).sum(axis=0))
        out[start : start + GENES] = (mine * around).sum(axis=0) / np.maximum(scale, 1e-12)
    return out
