"""Counts of the sites of a window, where they are in memory; compiled loops over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Bools, Floats, Int32s, Ints, Vectors

__all__ = [
    "SiteCounts",
    "add_up",
    "log_sums",
    "row_sums",
    "spread_out",
    "take",
    "thin",
    "thinned",
    "totals",
]

KNOWN = 32  # most counts are smaller: their logarithms are taken once a site

FEW = 8  # counts up to this are split in one draw

MANY = 256  # counts from this on are left to numpy

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")

inlined = numba.njit(inline="always")


@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})
def totals(indptr, data, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Return the sum of each row; counts are whole numbers, so that the sum is exact in any order."""
    out = np.zeros(len(rows))
    for site in range(len(rows)):
        row = rows[site]
        if row >= 0:
            low = indptr[row]
            high = indptr[row + 1]
            counts = data[low:high]
            total = 0.0
            for i in range(len(counts)):
                total += np.float64(counts[i])
            out[site] = total
    return out


@compiled
def take(indptr, indices, data, rows, column, n_columns, columns, taken):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write counts whose column has a place to ``columns`` and ``taken``, in one array for all sites.

    Return where each site's begin.
    """
    pointer = np.zeros(len(rows) + 1, dtype=np.int64)
    n = 0
    for site in range(len(rows)):
        row = rows[site]
        if row >= 0:
            low = indptr[row]
            high = indptr[row + 1]
            genes = indices[low:high]
            counts = data[low:high]
            for i in range(len(genes)):
                gene = np.uint32(genes[i])
                place = column[gene]
                at = np.uint64(n)
                columns[at] = place
                taken[at] = counts[i]
                n += int(place < n_columns)  # one without a place is overwritten
        pointer[site + 1] = n
    return pointer


@compiled
def add_up(indptr, indices, data, cells, start, column, n_columns, columns, summed):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Do as :func:`take` with sums over ``cells[start[site]:start[site + 1]]``, and over columns of the same place."""
    pointer = np.zeros(len(start), dtype=np.int64)
    # where each place's sum is; an index before `first` belongs to another site
    sum_of = np.full(n_columns, -1, dtype=np.int64)
    n = 0
    for site in range(len(start) - 1):
        first = n
        site_cells = cells[start[site] : start[site + 1]]
        for cell in site_cells:
            low = indptr[cell]
            high = indptr[cell + 1]
            for p in range(low, high):
                place = column[indices[p]]
                if place == n_columns:
                    continue
                at = sum_of[place]
                if at >= first:
                    summed[at] += data[p]
                else:
                    sum_of[place] = n
                    columns[n] = place
                    summed[n] = data[p]
                    n += 1
        pointer[site + 1] = n
    return pointer


@compiled
def _tabulate(table, factor):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for count in range(KNOWN):
        table[count] = np.log1p(count * factor)


@inlined
def _log(table, count, factor):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    whole = np.uint32(count)
    if whole < KNOWN and whole == count:
        return table[whole]
    return np.log1p(np.float64(count) * factor)


@compiled
def log_sums(indptr, indices, data, rows, factor, n_columns):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Return each column's sum of ``log1p(counts * factor)`` over the sites, and of its squares, ``(n_columns, 2)``."""
    sums = np.zeros((n_columns, 2))
    table = np.empty(KNOWN)
    for site in range(len(rows)):
        row = rows[site]
        if row < 0:
            continue
        low = indptr[row]
        high = indptr[row + 1]
        genes = indices[low:high]
        counts = data[low:high]
        site_factor = factor[site]
        _tabulate(table, site_factor)
        for i in range(len(genes)):
            value = _log(table, counts[i], site_factor)
            gene = np.uint32(genes[i])
            sums[gene, 0] += value
            sums[gene, 1] += value * value
    return sums


@compiled
def spread_out(indptr, indices, data, rows, column, factor, sites, less, times, where, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write ``(log1p(counts * factor) - less) * times`` to ``out``, on the chosen sites, where ``where`` is true."""
    table = np.empty(KNOWN, dtype=np.float32)
    values = np.empty(len(less) + 1, dtype=np.float32)
    for site in range(len(rows)):
        if not sites[site]:
            continue
        values[:] = 0
        row = rows[site]
        if row >= 0:
            low = indptr[row]
            high = indptr[row + 1]
            genes = indices[low:high]
            counts = data[low:high]
            site_factor = factor[site]
            _tabulate(table, site_factor)
            for i in range(len(genes)):  # the last value is that of columns without a place
                gene = np.uint32(genes[i])
                place_of_gene = np.uint32(column[gene])
                values[place_of_gene] = _log(table, counts[i], site_factor)
        wanted = where[site]
        written = out[site]
        for place in range(len(less)):  # a loop of its own, in float32: many at once
            value = (values[place] - less[place]) * times[place]
            written[place] = value if wanted[place] else written[place]


@compiled
def thin(indptr, data, rate, seed):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Draw how many of each count below ``MANY`` remain, binomially at the rate of its row.

    A uniform number becomes a binomial one by the distribution; larger counts are drawn a few at a time.
    """
    out = np.zeros_like(data)
    reach = np.empty((FEW + 1, FEW))
    for row in range(len(rate)):
        low = indptr[row]
        high = indptr[row + 1]
        counts = data[low:high]
        thinned = out[low:high]
        row_rate = rate[row]
        if row_rate >= 1:
            thinned[:] = counts
            continue
        _distribution(reach, row_rate)
        for i in range(len(counts)):
            left = int(counts[i])
            if left >= MANY:
                continue
            n = 0
            while left > 0:
                seed += np.uint64(0x9E3779B97F4A7C15)
                uniform = _uniform(seed)
                drawn = np.uint64(min(left, FEW))
                below = reach[drawn]
                for k in range(FEW):
                    n += int(uniform >= below[k])
                left -= FEW
            thinned[i] = n
    return out


@compiled
def _distribution(reach, rate):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the probability that at most ``k`` of ``n`` remain; 2 where ``k`` is not below ``n``."""
    lost = 1.0 - rate
    reach[:] = 2.0
    reach[1, 0] = lost
    for n in range(2, FEW + 1):  # one more, which remains or is lost
        before = reach[n - 1]
        reach[n, 0] = before[0] * lost
        for k in range(1, n):
            at_most_k = min(before[k], 1.0)
            at_most_less = before[k - 1]
            reach[n, k] = at_most_k * lost + at_most_less * rate


@inlined
def _uniform(state):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Return a number in [0, 1) from a counter that goes up by an odd number of 64 bits (SplitMix64)."""
    z = state ^ (state >> np.uint64(30))
    z = z * np.uint64(0xBF58476D1CE4E5B9)
    z = z ^ (z >> np.uint64(27))
    z = z * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    high_bits = z >> np.uint64(11)
    return np.float64(high_bits) * 2.0**-53


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
        pointer = add_up(
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
        pointer = take(
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
        sums = log_sums(matrix.indptr, matrix.indices, matrix.data, rows, factor, matrix.shape[1])
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
        spread_out(
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
    return totals(counts.indptr, counts.data, rows)


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
    part = thin(counts.indptr, counts.data, rate, seed)
    many = np.flatnonzero(counts.data >= MANY)
    row = np.searchsorted(counts.indptr, many, side="right") - 1
    large = counts.data[many].astype(np.int64)
    part[many] = rng.binomial(large, rate[row])
    return part
