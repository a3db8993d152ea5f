"""A cell as a ranked list of genes (SToFM section A.1): tokens straight from sparse counts, never a dense matrix."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.models.sequences import Tokens, merge_tokens

TARGET_SUM = np.float32(10_000.0)


def rank_tokens(
    counts: sparse.csr_matrix,
    column_token: NDArray[np.int32],
    column_median: NDArray[np.float64],
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
        Longest sequence with ``<cls>`` in front, so that at most ``max_length - 1`` genes are kept.
    """
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    counts, column_token = merge_tokens(counts, column_token)
    kept = _count_kept(counts.indptr, counts.indices, counts.data, column_token, max_length - 1)
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    flat = np.empty(offsets[-1], dtype=np.int32)
    _fill(
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
def _count_kept(indptr, indices, data, token, limit):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    n = len(indptr) - 1
    out = np.zeros(n, dtype=np.int64)
    for i in numba.prange(n):
        kept = 0
        for p in range(indptr[i], indptr[i + 1]):
            if token[indices[p]] >= 0 and data[p] > 0:
                kept += 1
        out[i] = min(kept, limit)
    return out


@numba.njit(parallel=True, cache=True)
def _fill(indptr, indices, data, totals, token, median, offsets, flat):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in numba.prange(len(indptr) - 1):
        start, stop = indptr[i], indptr[i + 1]
        values = np.empty(stop - start)
        found = np.empty(stop - start, dtype=np.int32)
        kept = 0
        for p in range(start, stop):
            column = indices[p]
            if token[column] >= 0 and data[p] > 0:
                # the published order and width of operations (float32, then float64): near ties fall the same way
                relative = np.float32(data[p]) / np.float32(totals[i]) * TARGET_SUM
                values[kept] = -(np.float64(relative) / median[column])
                found[kept] = token[column]
                kept += 1
        order = np.argsort(values[:kept], kind="mergesort")
        for j in range(offsets[i + 1] - offsets[i]):
            flat[offsets[i] + j] = found[order[j]]
