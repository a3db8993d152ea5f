"""CSR matrices: their canonical form, and columns or rows that are summed."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from terrazzo.arrays import Ints

__all__ = ["FLOAT32_EXACT", "canonical", "merge_columns", "merge_rows"]

FLOAT32_EXACT = 2**24  # the largest integer up to which float32 holds every integer
INT32_MAX = 2**31 - 1


def canonical(csr: sp.csr_matrix) -> sp.csr_matrix:
    """Sort, sum duplicates, drop explicit zeros (in place) and return the narrowest exact dtype.

    float32, or float64 where an absolute value exceeds 2**24; indices int32 where they fit.
    """
    csr.sum_duplicates()
    csr.eliminate_zeros()
    _, n_columns = csr.shape
    largest = _largest(csr)
    needs_float64 = FLOAT32_EXACT < largest < np.inf
    data_type = np.float64 if needs_float64 else np.float32
    fits_int32 = max(csr.nnz, n_columns) < INT32_MAX
    index_type = np.int32 if fits_int32 else np.int64
    data = csr.data.astype(data_type, copy=False)
    indices = csr.indices.astype(index_type, copy=False)
    indptr = csr.indptr.astype(index_type)
    out = sp.csr_matrix((data, indices, indptr), shape=csr.shape, copy=False)
    out.has_sorted_indices = True
    out.has_canonical_format = True
    return out


def _largest(csr: sp.csr_matrix) -> float:
    """Return the largest absolute value; 0 for a matrix without values."""
    if csr.nnz == 0:
        return 0.0
    highest = float(csr.data.max())
    lowest = float(csr.data.min())
    return max(abs(highest), abs(lowest))


def merge_columns(csr: sp.csr_matrix, column: Ints, n_columns: int) -> sp.csr_matrix:
    """Sum columns that become one.

    Parameters
    ----------
    csr
        (n, g), canonical.
    column
        int64 (g,), the new column of each old one, all in ``range(n_columns)``.
    n_columns
        Number of columns of the result.
    """
    n_rows, _ = csr.shape
    data = csr.data.astype(np.float64)
    indices = column[csr.indices]
    indptr = csr.indptr.copy()
    merged = sp.csr_matrix((data, indices, indptr), shape=(n_rows, n_columns))
    return canonical(merged)


def merge_rows(csr: sp.csr_matrix, row: Ints, n_rows: int) -> sp.csr_matrix:
    """Sum rows that become one; returns ``csr`` itself where every row stays where it is.

    Parameters
    ----------
    csr
        (n, g).
    row
        int64 (n,), the new row of each old one, all in ``range(n_rows)``.
    n_rows
        Number of rows of the result.
    """
    n = len(row)
    old_row = np.arange(n)
    if n == n_rows and np.array_equal(row, old_row):
        return csr
    ones = np.ones(n, csr.dtype)
    members = sp.csr_matrix((ones, (row, old_row)), shape=(n_rows, n))
    return sp.csr_matrix(members @ csr)
