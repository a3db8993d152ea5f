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
from terrazzo.corpus.shards import ChunkCache, FlatArray, gather, open_flat

__all__ = ["RowReader"]

POINTER_ROWS = 2**14  # rows whose places are read at a time
CACHED_POINTERS = (
    512  # of these pieces stay in memory: at most 64 MB, whatever the size of the corpus
)
CACHED_BYTES = 2**28  # of decoded chunks; windows of a slice overlap, and come again in every epoch
OPEN_MEMBERS = 4096  # each with the places of its chunks, 32 bytes a chunk of 16,384 counts


@dataclass(frozen=True)
class _Matrix:
    """Open arrays of one member."""

    data: FlatArray | zarr.Array
    indices: FlatArray | zarr.Array
    indptr: FlatArray | zarr.Array
    n_genes: int
    has_doubles: bool  # a count exceeds 2**24


class RowReader:
    """Reader of rows of any member of a corpus; several threads may share it.

    Parameters
    ----------
    locate
        From a member's id to the folder of its matrix and its number of genes.
    """

    def __init__(self, locate: Callable[[str], tuple[Path, int]]) -> None:
        self._locate = locate
        self._chunks = ChunkCache(CACHED_BYTES)
        self._open = lru_cache(OPEN_MEMBERS)(self._open_member)
        self._pointers = lru_cache(CACHED_POINTERS)(self._read_pointers)

    def take(self, id: str, rows: Ints, *, once: bool = False) -> sparse.csr_matrix:
        """Return rows of a member in the order of ``rows``; see :meth:`terrazzo.corpus.Corpus.take`.

        ``once``: a pass over many rows, of which nothing is cached for the next time.
        """
        steps = np.diff(rows)
        if (steps <= 0).any():
            unique, position = np.unique(rows, return_inverse=True)
            return self.take(id, unique, once=once)[position]
        matrix = self._open(id)
        cache = None if once else self._chunks
        first, last = self._bounds(id, rows)
        starts, stops = _stretches(first, last)
        data_type = np.float64 if matrix.has_doubles else np.float32
        data = gather(matrix.data, starts, stops, data_type, cache)
        indices = gather(matrix.indices, starts, stops, np.int32, cache)
        pointer_type = np.int32 if len(data) < 2**31 else np.int64
        indptr = np.zeros(len(rows) + 1, dtype=pointer_type)
        np.cumsum(last - first, out=indptr[1:])
        shape = (len(rows), matrix.n_genes)
        out = sparse.csr_matrix((data, indices, indptr), shape=shape, copy=False)
        out.has_sorted_indices = True
        out.has_canonical_format = True
        return out

    def _bounds(self, id: str, rows: Ints) -> tuple[Ints, Ints]:
        """Return where the values of sorted rows start and stop."""
        first = np.empty(len(rows), dtype=np.int64)
        last = np.empty(len(rows), dtype=np.int64)
        pieces = rows // POINTER_ROWS
        done = 0
        while done < len(rows):
            piece = int(pieces[done])
            stop = int(np.searchsorted(pieces, piece, side="right"))
            part = slice(done, stop)
            local = rows[part] - piece * POINTER_ROWS
            indptr = self._pointers(id, piece)
            first[part] = indptr[local]
            last[part] = indptr[local + 1]
            done = stop
        return first, last

    def _read_pointers(self, id: str, piece: int) -> Ints:
        """Return the row pointers of a piece of a member, and the one behind it."""
        indptr = self._open(id).indptr
        start = piece * POINTER_ROWS
        stop = start + POINTER_ROWS + 1
        return np.asarray(indptr[start:stop], dtype=np.int64)

    def _open_member(self, id: str) -> _Matrix:
        path, n_genes = self._locate(id)
        data = open_flat(path / "data")
        return _Matrix(
            data=data,
            indices=open_flat(path / "indices"),
            indptr=open_flat(path / "indptr"),
            n_genes=n_genes,
            has_doubles=data.dtype == np.float64,
        )


def _stretches(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return starts and stops of the values of rows; rows that follow each other on disk are one stretch."""
    if not len(first):
        return first, last
    follows = first[1:] == last[:-1]
    new = np.flatnonzero(~follows)
    starts = np.append(first[0], first[new + 1])
    stops = np.append(last[new], last[-1])
    return starts, stops
