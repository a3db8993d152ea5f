"""A cell as a ranked list of genes (SToFM section A.1): tokens straight from sparse counts, never a dense matrix."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.sparse import merge_columns

TARGET_SUM = np.float32(10_000.0)


@dataclass(frozen=True)
class Tokens:
    """Token sequences of many cells, one after the other, without ``<cls>``.

    Attributes
    ----------
    flat
        int32, all tokens.
    offsets
        int64 ``(n_cells + 1,)``: cell ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.
    """

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell, int64 ``(n_cells,)``."""
        return np.diff(self.offsets)

    def __getitem__(self, cell: int) -> NDArray[np.int32]:
        return self.flat[self.offsets[cell] : self.offsets[cell + 1]]

    def take(self, cells: NDArray[np.int64]) -> Tokens:
        """Return the sequences of these cells, in this order."""
        lengths = self.lengths[cells]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(self.offsets[cells] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Tokens(self.flat[source], offsets)

    def digests(self) -> NDArray[np.uint64]:
        """Return a 64-bit digest of each cell's sequence: equal sequences, equal digests, in any slice."""
        raw, bounds = self.flat.tobytes(), self.offsets * self.flat.itemsize
        out = [
            int.from_bytes(hashlib.blake2b(raw[a:b], digest_size=8).digest(), "little")
            for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        return np.array(out, dtype=np.uint64)


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
    _fill(counts.indptr, counts.indices, counts.data, totals, column_token, column_median, offsets, flat)
    return Tokens(flat, offsets)


def merge_tokens(counts: sparse.csr_matrix, token: NDArray[np.int32]) -> tuple[sparse.csr_matrix, NDArray[np.int32]]:
    """Sum columns that share a token into the first of them, whose alone the token then is (upstream repeats it)."""
    matched = np.flatnonzero(token >= 0)
    _, first, inverse = np.unique(token[matched], return_index=True, return_inverse=True)
    if len(first) == len(matched):
        return counts, token
    target = np.arange(len(token))
    target[matched] = matched[first][inverse]
    alone = np.full_like(token, -1)
    alone[matched[first]] = token[matched[first]]
    return merge_columns(counts, target, len(token)), alone


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
