"""Genes of the members of a corpus: their columns in a model's vocabulary, and how much of them it knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import sparse

from terrazzo.arrays import Floats, Int32s
from terrazzo.corpus.store import Corpus
from terrazzo.expression import median_depth
from terrazzo.genes import Vocabulary
from terrazzo.genes.matching import GeneTable

__all__ = [
    "Columns",
    "Match",
    "columns_by_token",
    "median_depths",
    "member_match",
    "shares_known",
]

Columns = tuple[Int32s, Floats]  # token and median of each column of a member
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
    def total_counts(self) -> Floats:
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
        (When called.) Too few genes of the member are in the vocabulary.
    """
    by_member: dict[str, Columns] = {}
    by_content: dict[bytes, Columns] = {}
    table = corpus.manifest.set_index("id")

    def match(member: str) -> Columns:
        if member not in by_member:
            matched = vocabulary.match(_sample(corpus, table, member), orthologs=orthologs)
            content = matched.column_token.tobytes() + matched.column_median.tobytes()
            columns = (matched.column_token, matched.column_median)
            digest = hashlib.sha256(content).digest()
            by_member[member] = by_content.setdefault(digest, columns)
        return by_member[member]

    return match


def shares_known(corpus: Corpus, vocabulary: Vocabulary, members: Sequence[str]) -> Floats:
    """Return the share of each member's counts that is on genes of the vocabulary, measured on a few of its rows."""
    table = corpus.manifest.set_index("id")
    shares = []
    for member in members:
        coverage = vocabulary.coverage(_sample(corpus, table, member))
        shares.append(coverage.share_counts)
    return np.array(shares)


def median_depths(corpus: Corpus, members: Sequence[str]) -> Floats:
    """Return the median counts of a cell with counts of each member, 0 without one, measured on a few of its rows."""
    table = corpus.manifest.set_index("id")
    depths = []
    for member in members:
        depths.append(median_depth(_sample(corpus, table, member).total_counts))
    return np.array(depths)


def _sample(corpus: Corpus, table: pd.DataFrame, member: str) -> _Sampled:
    """Return a member's genes and the counts of a few cells in its middle."""
    # the organism of the genes, which is not that of the tissue after ortholog mapping
    column = "gene_organism" if "gene_organism" in table else "organism"
    n_cells = int(table.at[member, "n_cells"])
    start = max(0, (n_cells - SAMPLE_ROWS) // 2)
    counts = corpus.rows(member, start, min(n_cells, start + SAMPLE_ROWS))
    gene_ids, gene_symbols = corpus.genes(member)
    return _Sampled(member, str(table.at[member, column]), gene_ids, gene_symbols, counts)


def columns_by_token(counts: sparse.csr_matrix, token: Int32s, n_tokens: int) -> sparse.csr_matrix:
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
    n_known_before = np.concatenate([[0], np.cumsum(known)])
    data = counts.data[known]
    indices = token[counts.indices[known]]
    indptr = n_known_before[counts.indptr]
    out = sparse.csr_matrix((data, indices, indptr), shape=(counts.shape[0], n_tokens))
    out.sum_duplicates()
    return out
