"""Rows of any member of a corpus, in memory that does not grow with the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import zarr
from scipy import sparse

from terrazzo.arrays import Ints
from terrazzo.corpus.shards import FlatArray, KeptChunks, gather, open_flat

PIECE = 2**14  # rows whose places are read at a time


KEPT_PIECES = 512  # and as many stay in memory: at most 64 MB, whatever the size of the corpus


KEPT_BYTES = 2**28  # of decoded chunks; windows of a slice overlap, and come again in every epoch


KEPT_OPEN = 4096  # members; each with the places of its chunks, 32 bytes a chunk of 16,384 counts


@dataclass(frozen=True)
class _Matrix:
    """Open arrays of one member; ``dtype``: what its counts are read as."""

    data: FlatArray | zarr.Array
    indices: FlatArray | zarr.Array
    indptr: FlatArray | zarr.Array
    n_genes: int
    dtype: np.dtype


class RowReader:
    """Rows of any member of a corpus, in memory that does not grow with the corpus.

    Parameters
    ----------
    place
        From a member's id to the folder of its matrix and its number of genes.
    """

    def __init__(self, place: Callable[[str], tuple[Path, int]]) -> None:
        self._place, self._kept = place, KeptChunks(KEPT_BYTES)
        self._open = lru_cache(KEPT_OPEN)(self._open_member)  # safe to call from several threads
        self._piece = lru_cache(KEPT_PIECES)(self._read_piece)

    def take(self, id: str, rows: Ints, *, once: bool = False) -> sparse.csr_matrix:
        """Return rows of a member in the order asked for; see :meth:`terrazzo.corpus.Corpus.take`.

        ``once``: a pass over many rows, of which nothing is kept for the next time.
        """
        if len(rows) and not (np.diff(rows) > 0).all():
            wanted, back = np.unique(rows, return_inverse=True)
            return self.take(id, wanted, once=once)[back]
        matrix, kept = self._open(id), None if once else self._kept
        first, last = self._bounds(id, rows)
        new = (
            np.flatnonzero(first[1:] != last[:-1]) + 1
        )  # rows that do not lie right behind the one before
        starts, stops = (
            first[np.append(0, new)[: len(first)]],
            last[np.append(new, len(last))[: len(last)] - 1],
        )
        data = gather(matrix.data, starts, stops, matrix.dtype, kept)
        indices = gather(matrix.indices, starts, stops, np.int32, kept)
        pointer = np.zeros(len(rows) + 1, dtype=np.int32 if len(data) < 2**31 else np.int64)
        np.cumsum(last - first, out=pointer[1:])
        out = sparse.csr_matrix(
            (data, indices, pointer), shape=(len(rows), matrix.n_genes), copy=False
        )
        out.has_sorted_indices = True
        out.has_canonical_format = True
        return out

    def _bounds(self, id: str, rows: Ints) -> tuple[Ints, Ints]:
        """Return where the values of sorted rows start and stop."""
        numbers = rows // PIECE
        cuts = np.append(0, np.flatnonzero(np.diff(numbers)) + 1)[: len(rows)]
        first, last = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
        for low, high in zip(cuts.tolist(), [*cuts[1:].tolist(), len(rows)], strict=False):
            number = int(numbers[low])
            piece, local = self._piece(id, number), rows[low:high] - number * PIECE
            first[low:high], last[low:high] = piece[local], piece[local + 1]
        return first, last

    def _read_piece(self, id: str, number: int) -> Ints:
        indptr = self._open(id).indptr
        start, stop = number * PIECE, min((number + 1) * PIECE + 1, indptr.shape[0])
        return gather(indptr, np.array([start]), np.array([stop]), np.int64)

    def _open_member(self, id: str) -> _Matrix:
        path, n_genes = self._place(id)
        data, indices, indptr = (open_flat(path / name) for name in ("data", "indices", "indptr"))
        dtype = np.dtype(np.float64 if data.dtype == np.float64 else np.float32)
        return _Matrix(data, indices, indptr, n_genes, dtype)
