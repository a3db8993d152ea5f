"""Cells as ranked lists of genes (SToFM section A.1): tokens straight from sparse counts, never a dense matrix."""

from __future__ import annotations

import numba
import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Int32s
from terrazzo.models.sequences import Tokens, merge_tokens
from terrazzo.processes import is_fork

__all__ = ["rank_tokens"]

TARGET_SUM = np.float32(10_000.0)


def rank_tokens(
    counts: sparse.csr_matrix,
    column_token: Int32s,
    column_median: Floats,
    max_length: int = 2048,
) -> Tokens:
    """Rank each cell's genes by expression relative to the gene's median.

    Counts are divided by the cell's total (over all genes, also those outside the vocabulary), times 10,000, divided by
    the gene's non-zero median; expressed genes are sorted, largest first, ties in column order.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_genes)``, non-negative.
    column_token
        int32 ``(n_genes,)``: token of each column, -1 for none. Columns that share a token are summed.
    column_median
        float64 ``(n_genes,)``: non-zero median of each column's gene.
    max_length
        Longest sequence with ``<cls>`` in front, so that a cell has at most ``max_length - 1`` tokens.
    """
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64))
    totals = totals.ravel()
    counts, column_token = merge_tokens(counts, column_token)
    most = max_length - 1
    count_lengths = _lengths_serial if is_fork() else _lengths
    fill = _fill_serial if is_fork() else _fill
    lengths = count_lengths(counts.indptr, counts.indices, counts.data, column_token, most)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    offsets = offsets.astype(np.int64)
    flat = np.empty(offsets[-1], dtype=np.int32)
    fill(
        counts.indptr,
        counts.indices,
        counts.data,
        totals,
        column_token,
        column_median,
        offsets,
        flat,
    )
    return Tokens(flat, offsets)


@numba.njit(parallel=True, cache=True)
def _lengths(indptr, indices, data, token, most):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n = len(indptr) - 1
    out = np.zeros(n, dtype=np.int64)
    for i in numba.prange(n):
        length = 0
        for p in range(indptr[i], indptr[i + 1]):
            if token[indices[p]] >= 0 and data[p] > 0:
                length += 1
        out[i] = min(length, most)
    return out


@numba.njit(parallel=True, cache=True)
def _fill(indptr, indices, data, totals, token, median, offsets, flat):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in numba.prange(len(indptr) - 1):
        start = indptr[i]
        stop = indptr[i + 1]
        values = np.empty(stop - start)
        tokens = np.empty(stop - start, dtype=np.int32)
        length = 0
        for p in range(start, stop):
            column = indices[p]
            if token[column] >= 0 and data[p] > 0:
                # the published order and width of operations (float32, then float64): near ties fall the same way
                relative = np.float32(data[p]) / np.float32(totals[i]) * TARGET_SUM
                values[length] = -(np.float64(relative) / median[column])
                tokens[length] = token[column]
                length += 1
        order = np.argsort(values[:length], kind="mergesort")
        first = offsets[i]
        for j in range(offsets[i + 1] - first):
            flat[first + j] = tokens[order[j]]


# In a forked process numba's threads do not run: GNU's OpenMP ends the process when they are asked for. Without a cache
# on disk: that does not tell these from those with threads.
_lengths_serial = numba.njit(_lengths.py_func)
_fill_serial = numba.njit(_fill.py_func)
