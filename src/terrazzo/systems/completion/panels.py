"""Counts of the genes of a model in one slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Int32s, Ints
from terrazzo.sparse import merge_columns

__all__ = ["Counted", "Panel", "numbered", "panel_of"]


@dataclass(frozen=True)
class Panel:
    """Counts of the model's genes in one slice.

    Attributes
    ----------
    counts
        CSR ``(n_cells, genes)``: of the genes that the slice has.
    genes
        Their numbers among the model's genes, ascending.
    totals
        Counts of every cell over all genes of the slice ``(n_cells,)``.
    coords
        ``(n_cells, 2)``.
    """

    counts: sparse.csr_matrix
    genes: Ints
    totals: Floats
    coords: Floats

    def take(self, rows: Ints) -> Panel:
        """Return some of the cells."""
        return Panel(self.counts[rows], self.genes, self.totals[rows], self.coords[rows])


@dataclass(frozen=True)
class Counted:
    """One slice, its genes by token.

    Attributes
    ----------
    counts
        CSR ``(n_cells, m)``.
    tokens
        Of each column, distinct, ascending ``(m,)``.
    totals
        Counts of every cell over all genes of the slice ``(n_cells,)``.
    coords
        ``(n_cells, 2)``.
    study
        Slices of one study weigh together as much as those of another.
    """

    counts: sparse.csr_matrix
    tokens: Int32s
    totals: Floats
    coords: Floats
    study: str = ""


def numbered(counts: sparse.csr_matrix, column_token: Int32s) -> tuple[sparse.csr_matrix, Int32s]:
    """Return the counts of matched genes, columns of one token summed, and the token of each column."""
    matched = np.flatnonzero(column_token >= 0)
    tokens, place = np.unique(column_token[matched], return_inverse=True)
    by_token = merge_columns(counts[:, matched], place.astype(np.int64), len(tokens))
    return by_token, tokens.astype(np.int32)


def panel_of(one: Counted, model_tokens: Ints) -> Panel:
    """Return the counts of the model's genes in a slice; ``model_tokens`` ascending."""
    place = np.searchsorted(model_tokens, one.tokens)
    place = np.minimum(place, len(model_tokens) - 1)
    columns = np.flatnonzero(model_tokens[place] == one.tokens)
    genes = place[columns].astype(np.int64)
    return Panel(one.counts[:, columns], genes, one.totals, one.coords)
