"""Counts of the sites of a window: views of the slice's counts, copied only where cells must be summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Int32s, Ints, Vectors
from terrazzo.systems.stimage import kernels

__all__ = ["SiteCounts", "row_sums", "thinned"]


@dataclass(frozen=True)
class SiteCounts:
    """Counts of ``S`` sites.

    Attributes
    ----------
    matrix
        CSR ``(n, k)``, no column twice in a row: some cells of a slice, or sums of them.
    rows
        int64 ``(S,)``: row of each site, -1 for none.
    token
        int32 ``(k,)``: token of each column, -1 for none; no token twice.
    n_tokens
        Of the vocabulary.
    """

    matrix: sparse.csr_matrix
    rows: Ints
    token: Int32s
    n_tokens: int

    @classmethod
    def of(
        cls, matrix: sparse.csr_matrix, token: NDArray[Any] | None = None, n_tokens: int = 0
    ) -> SiteCounts:
        """Return the rows of a matrix as sites; columns have these tokens, else their own number."""
        n_sites, n_columns = matrix.shape
        if token is None:
            token = np.arange(n_columns)
        return cls(matrix, np.arange(n_sites), token.astype(np.int32), n_tokens or n_columns)

    @classmethod
    def summed(
        cls,
        counts: sparse.csr_matrix,
        cells: Ints,
        where: Ints,
        n_sites: int,
        token: Int32s,
        n_tokens: int,
    ) -> tuple[SiteCounts, Floats]:
        """Return the counts of some cells, summed by site, and float64 totals of the sites over all columns.

        Parameters
        ----------
        counts
            CSR ``(n, n_genes)``.
        cells, where
            ``(c,)``: rows of ``counts``, and the site of each, in any order.
        n_sites
            How many sites; one without a cell has no counts.
        token
            int32 ``(n_genes,)``: token of each column. Counts without one (-1) are left out, but for the totals; those
            that share one are summed.
        n_tokens
            Of the vocabulary.
        """
        cell_totals = row_sums(counts, cells)
        totals = np.bincount(where, cell_totals, minlength=n_sites).astype(np.float64)
        n_cells = np.bincount(where, minlength=n_sites)
        one_cell_each = len(where) == 0 or n_cells.max() == 1
        if one_cell_each and _each_once(token):
            rows = np.full(n_sites, -1, dtype=np.int64)
            rows[where] = cells
            return cls(counts, rows, token, n_tokens), totals
        by_site = cells[np.argsort(where, kind="stable")]
        start = np.append(0, np.cumsum(n_cells))
        columns, data = _empty_entries(counts, cells)
        pointer = kernels.add_up(
            counts.indptr,
            counts.indices,
            counts.data,
            by_site,
            start,
            np.where(token < 0, n_tokens, token),
            n_tokens,
            columns,
            data,
        )
        return cls.of(_csr(data, columns, pointer, n_tokens)), totals

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.rows)

    def _columns(self, genes: Ints) -> Int32s:
        """Return where each column goes when these tokens are the columns; ``len(genes)`` where it is none of them."""
        lookup = np.full(self.n_tokens + 1, len(genes), dtype=np.int32)
        lookup[genes] = np.arange(len(genes))
        return lookup[self.token]  # -1 is the last entry, that of no token

    def take(self, genes: Ints) -> sparse.csr_matrix:
        """Return the counts of some tokens, each named once, CSR ``(S, m)``; in a row in any order."""
        matrix = self.matrix
        columns, data = _empty_entries(matrix, self.rows[self.rows >= 0])
        pointer = kernels.take(
            matrix.indptr,
            matrix.indices,
            matrix.data,
            self.rows,
            self._columns(genes),
            len(genes),
            columns,
            data,
        )
        return _csr(data, columns, pointer, len(genes))

    def by_token(self) -> sparse.csr_matrix:
        """Return all counts that have a token, CSR ``(S, n_tokens)``; in a row in any order."""
        return self.take(np.arange(self.n_tokens))

    def variance(self, factor: Floats, sites: Bools) -> Floats:
        """Return the variance of each token's ``log1p(counts * factor)`` over some sites, zeros included.

        Parameters
        ----------
        factor
            ``(S,)``.
        sites
            bool ``(S,)``: sites that are counted.
        """
        matrix = self.matrix
        rows = np.where(sites, self.rows, -1)
        sums = kernels.log_sums(
            matrix.indptr, matrix.indices, matrix.data, rows, factor, matrix.shape[1]
        )
        n_sites = max(int(sites.sum()), 1)
        mean, mean_square = (sums / n_sites).T
        by_column = np.maximum(mean_square - mean**2, 0)
        known = self.token >= 0
        by_token = np.zeros(self.n_tokens)
        by_token[self.token[known]] = by_column[known]
        return by_token

    def values(
        self,
        genes: Ints,
        factor: Floats,
        sites: Bools,
        mean: Floats,
        stretch: Floats,
        where: Bools | None = None,
        out: Vectors | None = None,
    ) -> Vectors:
        """Return ``(log1p(counts * factor) - mean) * stretch`` of some tokens, float32 ``(S, m)``; 0 where not written.

        Parameters
        ----------
        genes, mean, stretch
            ``(m,)``; each token once.
        factor, sites
            ``(S,)``, and bool ``(S,)``: sites that are written.
        where
            bool ``(S, m)``: values that are written; None: all of these sites.
        out
            Written into this.
        """
        matrix = self.matrix
        shape = (len(self), len(genes))
        if out is None:
            out = np.zeros(shape, dtype=np.float32)
        if where is None:
            where = np.ones(shape, dtype=bool)
        kernels.spread_out(
            matrix.indptr,
            matrix.indices,
            matrix.data,
            self.rows,
            self._columns(genes),
            factor,
            sites,
            mean.astype(np.float32),
            stretch.astype(np.float32),
            where,
            out,
        )
        return out


def row_sums(counts: sparse.csr_matrix, rows: Ints | None = None) -> Floats:
    """Return the sum of each row, or of some of them, float64 ``(n,)``."""
    if rows is None:
        rows = np.arange(counts.shape[0])
    return kernels.totals(counts.indptr, counts.data, rows)


def _each_once(token: Int32s) -> bool:
    """Return True if no two columns share a token."""
    n_columns = np.bincount(token[token >= 0], minlength=1)
    return bool(n_columns.max() <= 1)


def _empty_entries(counts: sparse.csr_matrix, rows: Ints) -> tuple[Int32s, NDArray[Any]]:
    """Return uninitialized arrays for the columns and counts of some rows."""
    lengths = counts.indptr[rows + 1] - counts.indptr[rows]
    n = int(lengths.sum(dtype=np.int64))
    return np.empty(n, dtype=np.int32), np.empty(n, dtype=counts.dtype)


def _csr(data: NDArray[Any], columns: Int32s, pointer: Ints, n_columns: int) -> sparse.csr_matrix:
    n = int(pointer[-1])
    if n < 2**31:
        pointer = pointer.astype(np.int32)  # scipy wants one type for both
    shape = (len(pointer) - 1, n_columns)
    return sparse.csr_matrix((data[:n], columns[:n], pointer), shape=shape, copy=False)


def thinned(counts: sparse.csr_matrix, rate: Floats, rng: np.random.Generator) -> NDArray[Any]:
    """Thin counts: draw how many of each remain, binomially at the rate of its row.

    Parameters
    ----------
    counts
        CSR ``(S, m)`` of whole numbers.
    rate
        ``(S,)``, from 0 to 1.
    rng
        Random generator.

    Returns
    -------
    Of the counts' type, in the order of ``counts.data``.
    """
    seed = rng.integers(2**64, dtype=np.uint64)
    part = kernels.thin(counts.indptr, counts.data, rate, seed)
    many = np.flatnonzero(counts.data >= kernels.MANY)
    row = np.searchsorted(counts.indptr, many, side="right") - 1
    large = counts.data[many].astype(np.int64)
    part[many] = rng.binomial(large, rate[row])
    return part
