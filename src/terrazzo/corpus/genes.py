"""How a member of a corpus is asked for things: its columns in a model's vocabulary, and any of its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.genes import Vocabulary
from terrazzo.genes.matching import GeneTable

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


Columns = tuple[
    NDArray[np.int32], NDArray[np.float64]
]  # token and median of each column of a member


Match = Callable[[str], Columns]


SAMPLE_ROWS = 256  # rows on which the coverage of a member is measured


@dataclass(frozen=True)
class _Sampled:
    """A member as :class:`~terrazzo.genes.matching.Counted`: its gene names, and the counts of a few of its cells."""

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


def member_match(
    corpus: Corpus, vocabulary: Vocabulary, *, orthologs: GeneTable | None = None
) -> Match:
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


def shares_known(
    corpus: Corpus, vocabulary: Vocabulary, members: Sequence[str]
) -> NDArray[np.float64]:
    """Return the share of each member's counts that lies on genes of the vocabulary, measured on a few of its rows."""
    table = corpus.manifest.set_index("id")
    return np.array(
        [vocabulary.coverage(_sampled(corpus, table, name)).share_counts for name in members]
    )


def _sampled(corpus: Corpus, table: pd.DataFrame, member: str) -> _Sampled:
    organism = (
        "gene_organism" if "gene_organism" in table else "organism"
    )  # of the genes, after ortholog mapping
    n = int(table.at[member, "n_cells"])
    start = max(0, (n - SAMPLE_ROWS) // 2)
    rows = corpus.rows(member, start, min(n, start + SAMPLE_ROWS))
    return _Sampled(member, str(table.at[member, organism]), *corpus.genes(member), rows)


def columns_by_token(
    counts: sparse.csr_matrix, token: NDArray[np.int32], n_tokens: int
) -> sparse.csr_matrix:
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
