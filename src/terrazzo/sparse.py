"""Compressed rows: their canonical form, and columns summed."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

FLOAT32_EXACT = 2**24  # the largest integer up to which float32 holds every integer


def canonical(csr: sp.csr_matrix) -> sp.csr_matrix:
    """Sort, sum duplicates, drop explicit zeros (in place) and return the narrowest exact dtype.

    float32, or float64 where an absolute value exceeds 2**24; indices int32 where they fit.
    """
    csr.sum_duplicates()
    csr.eliminate_zeros()
    largest = max(abs(float(csr.data.max())), abs(float(csr.data.min()))) if csr.nnz else 0.0
    dtype = np.float64 if FLOAT32_EXACT < largest < np.inf else np.float32
    index = np.int32 if max(csr.nnz, csr.shape[1]) < np.iinfo(np.int32).max else np.int64
    parts = (
        csr.data.astype(dtype, copy=False),
        csr.indices.astype(index, copy=False),
        csr.indptr.astype(index),
    )
    out = sp.csr_matrix(parts, shape=csr.shape, copy=False)
    out.has_sorted_indices = True
    out.has_canonical_format = True
    return out


def merge_columns(csr: sp.csr_matrix, column: np.ndarray, n_columns: int) -> sp.csr_matrix:
    """Sum columns that go to the same place.

    Parameters
    ----------
    csr
        (n, g), canonical.
    column
        int64 (g,), the new column of each old one, all in ``range(n_columns)``.
    n_columns
        Number of columns of the result.
    """
    parts = (csr.data.astype(np.float64), column[csr.indices], csr.indptr.copy())
    return canonical(sp.csr_matrix(parts, shape=(csr.shape[0], n_columns)))
