"""Counts of the sites of a window, where they lie in memory: nothing is copied unless it must be summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Int32s, Ints
from terrazzo.systems.stimage import kernels


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
        n_sites, k = matrix.shape
        known = np.arange(k) if token is None else token
        return cls(matrix, np.arange(n_sites), known.astype(np.int32), n_tokens or k)

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
        totals = np.bincount(where, row_sums(counts, cells), minlength=n_sites).astype(np.float64)
        each = np.bincount(where, minlength=n_sites)
        if (not len(where) or each.max() == 1) and np.bincount(
            token[token >= 0], minlength=1
        ).max() <= 1:
            rows = np.full(n_sites, -1, dtype=np.int64)
            rows[where] = cells
            return cls(counts, rows, token, n_tokens), totals
        ordered, start = cells[np.argsort(where, kind="stable")], np.append(0, np.cumsum(each))
        columns, data = _room(counts, cells)
        lookup = np.where(token < 0, n_tokens, token)
        parts = (
            counts.indptr,
            counts.indices,
            counts.data,
            ordered,
            start,
            lookup,
            n_tokens,
            columns,
            data,
        )
        return cls.of(_csr(data, columns, kernels.add_up(*parts), n_tokens)), totals

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self.rows)

    def _columns(self, genes: Ints) -> NDArray[np.int32]:
        """Return where each column goes when these tokens are the columns; behind the last where it is none of them."""
        lookup = np.full(self.n_tokens + 1, len(genes), dtype=np.int32)
        lookup[genes] = np.arange(len(genes))
        return lookup[self.token]  # of -1: the one behind the last token's

    def take(self, genes: Ints) -> sparse.csr_matrix:
        """Return the counts of some tokens, each named once, CSR ``(S, m)``; in a row in any order."""
        matrix, (columns, data) = self.matrix, _room(self.matrix, self.rows[self.rows >= 0])
        parts = (
            matrix.indptr,
            matrix.indices,
            matrix.data,
            self.rows,
            self._columns(genes),
            len(genes),
            columns,
            data,
        )
        return _csr(data, columns, kernels.take(*parts), len(genes))

    def by_token(self) -> sparse.csr_matrix:
        """Return all counts that have a token, CSR ``(S, n_tokens)``; in a row in any order."""
        return self.take(np.arange(self.n_tokens))

    def variance(self, factor: Floats, there: Bools) -> Floats:
        """Return the variance of each token's ``log1p(counts * factor)`` over some sites, zeros included.

        Parameters
        ----------
        factor
            ``(S,)``.
        there
            bool ``(S,)``: sites that are counted.
        """
        matrix, rows = self.matrix, np.where(there, self.rows, -1)
        sums = kernels.log_sums(
            matrix.indptr, matrix.indices, matrix.data, rows, factor, matrix.shape[1]
        )
        first, second = (sums / max(int(there.sum()), 1)).T
        known, out = self.token >= 0, np.zeros(self.n_tokens)
        out[self.token[known]] = np.maximum(second - first**2, 0)[known]
        return out

    def values(
        self,
        genes: Ints,
        factor: Floats,
        there: Bools,
        mean: Floats,
        stretch: Floats,
        where: Bools | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return ``(log1p(counts * factor) - mean) * stretch`` of some tokens, float32 ``(S, m)``; 0 where not written.

        Parameters
        ----------
        genes, mean, stretch
            ``(m,)``; each token once.
        factor, there
            ``(S,)``, and bool ``(S,)``: sites that are written.
        where
            bool ``(S, m)``: values that are written; None: all of these sites.
        out
            Written into this.
        """
        matrix, shape = self.matrix, (len(self), len(genes))
        out = np.zeros(shape, dtype=np.float32) if out is None else out
        where = np.ones(shape, dtype=bool) if where is None else where
        less, times = mean.astype(np.float32), stretch.astype(np.float32)
        parts = matrix.indptr, matrix.indices, matrix.data, self.rows, self._columns(genes)
        kernels.spread_out(*parts, factor, there, less, times, where, out)
        return out


def row_sums(counts: sparse.csr_matrix, rows: Ints | None = None) -> Floats:
    """Return the sum of each row, or of some of them, float64 ``(n,)``."""
    return kernels.totals(
        counts.indptr, counts.data, np.arange(counts.shape[0]) if rows is None else rows
    )


def _room(counts: sparse.csr_matrix, rows: Ints) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """Return memory for the columns and counts of some rows."""
    n = int((counts.indptr[rows + 1] - counts.indptr[rows]).sum(dtype=np.int64))
    return np.empty(n, dtype=np.int32), np.empty(n, dtype=counts.dtype)


def _csr(
    data: NDArray[Any], columns: NDArray[np.int32], pointer: Ints, n_columns: int
) -> sparse.csr_matrix:
    n = int(pointer[-1])
    small = pointer.astype(np.int32) if n < 2**31 else pointer  # scipy wants one type for both
    return sparse.csr_matrix(
        (data[:n], columns[:n], small), shape=(len(pointer) - 1, n_columns), copy=False
    )


def thinned(counts: sparse.csr_matrix, rate: Floats, rng: np.random.Generator) -> NDArray[Any]:
    """Draw from every count how many of it are kept: binomial, at the rate of its row.

    Parameters
    ----------
    counts
        CSR ``(S, m)`` of whole numbers.
    rate
        ``(S,)``, from 0 to 1.
    rng
        Source of chance.

    Returns
    -------
    Of the counts' type, in the order of ``counts.data``.
    """
    part = kernels.thin(counts.indptr, counts.data, rate, rng.integers(2**64, dtype=np.uint64))
    many = np.flatnonzero(counts.data >= kernels.MANY)
    row = np.searchsorted(counts.indptr, many, side="right") - 1
    part[many] = rng.binomial(counts.data[many].astype(np.int64), rate[row])
    return part
