"""How a member of a corpus is asked for things: its columns in a model's vocabulary, and any of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.corpus.shards import FlatArray, KeptChunks, gather, open_flat
from terrazzo.genes import Vocabulary
from terrazzo.genes.matching import GeneTable

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus

Ints = NDArray[np.int64]
Columns = tuple[NDArray[np.int32], NDArray[np.float64]]  # token and median of each column of a member
Match = Callable[[str], Columns]

SAMPLE_ROWS = 256  # rows on which the coverage of a member is measured
PIECE = 2**14  # rows whose places are read at a time
KEPT_PIECES = 512  # and as many stay in memory: at most 64 MB, whatever the size of the corpus
KEPT_BYTES = 2**28  # of decoded chunks; windows of a slice overlap, and come again in every epoch
KEPT_OPEN = 4096  # members; each with the places of its chunks, 32 bytes a chunk of 16,384 counts


@dataclass(frozen=True)
class _Sampled:
    """A member as :class:`~terrazzo.genes.counted.Counted`: its gene names, and the counts of a few of its cells."""

    name: str
    organism: str
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    counts: sparse.csr_matrix
    is_counts: bool = True

    @property
    def n_cells(self) -> int:
        return int(self.counts.shape[0])

    @property
    def n_genes(self) -> int:
        return len(self.gene_ids)

    @cached_property
    def total_counts(self) -> np.ndarray:
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()


def member_match(corpus: Corpus, vocabulary: Vocabulary, *, orthologs: GeneTable | None = None) -> Match:
    """Return a function from a member's id to the token and median of each of its columns.

    A member is matched once, from its gene names; the coverage floor is checked on a few of its rows, never on the
    whole slice. Members with the same genes share the arrays.

    Parameters
    ----------
    corpus, vocabulary
        Members, and the genes that the model knows.
    orthologs
        As in :meth:`terrazzo.genes.Vocabulary.match`.

    Raises
    ------
    GeneError
        (When called.) The member does not meet the vocabulary.
    """
    found: dict[str, Columns] = {}
    shared: dict[bytes, Columns] = {}
    table = corpus.manifest.set_index("id")

    def match(member: str) -> Columns:
        if member not in found:
            got = vocabulary.match(_sampled(corpus, table, member), orthologs=orthologs)
            mark = hashlib.sha256(got.column_token.tobytes() + got.column_median.tobytes()).digest()
            found[member] = shared.setdefault(mark, (got.column_token, got.column_median))
        return found[member]

    return match


def shares_known(corpus: Corpus, vocabulary: Vocabulary, members: Sequence[str]) -> NDArray[np.float64]:
    """Return the share of each member's counts that lies on genes of the vocabulary, measured on a few of its rows."""
    table = corpus.manifest.set_index("id")
    return np.array([vocabulary.coverage(_sampled(corpus, table, name)).share_counts for name in members])


def _sampled(corpus: Corpus, table: pd.DataFrame, member: str) -> _Sampled:
    organism = "gene_organism" if "gene_organism" in table else "organism"  # of the genes, after ortholog mapping
    n = int(table.at[member, "n_cells"])
    start = max(0, (n - SAMPLE_ROWS) // 2)
    rows = corpus.rows(member, start, min(n, start + SAMPLE_ROWS))
    return _Sampled(member, str(table.at[member, organism]), *corpus.genes(member), rows)


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
        new = np.flatnonzero(first[1:] != last[:-1]) + 1  # rows that do not lie right behind the one before
        starts, stops = first[np.append(0, new)[: len(first)]], last[np.append(new, len(last))[: len(last)] - 1]
        data = gather(matrix.data, starts, stops, matrix.dtype, kept)
        indices = gather(matrix.indices, starts, stops, np.int32, kept)
        pointer = np.zeros(len(rows) + 1, dtype=np.int32 if len(data) < 2**31 else np.int64)
        np.cumsum(last - first, out=pointer[1:])
        out = sparse.csr_matrix((data, indices, pointer), shape=(len(rows), matrix.n_genes), copy=False)
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


def columns_by_token(counts: sparse.csr_matrix, token: NDArray[np.int32], n_tokens: int) -> sparse.csr_matrix:
    """Return counts with the vocabulary's tokens as columns, CSR ``(n_cells, n_tokens)``.

    Parameters
    ----------
    counts
        CSR ``(n_cells, n_genes)``.
    token
        int32 ``(n_genes,)``: token of each column. Counts without one (-1) are left out, those that share one summed.
    n_tokens
        Tokens of the vocabulary, special ones included.
    """
    known = token[counts.indices] >= 0
    pointer = np.concatenate([[0], np.cumsum(known)])[counts.indptr]
    parts = (counts.data[known], token[counts.indices[known]], pointer)
    out = sparse.csr_matrix(parts, shape=(counts.shape[0], n_tokens))
    out.sum_duplicates()
    return out
