"""Compiled loops over the counts of a window, which run for each of thousands of windows.

They release the interpreter's lock, so that a loader's thread reads ahead while the model trains. None is parallel:
numba's threads may not be entered from two threads at once on every platform. None uses a global generator: random
numbers come from a seed. They are used by :mod:`terrazzo.systems.stimage.counts`.

In all of them ``indptr``, ``indices`` and ``data`` are a CSR matrix; ``rows`` is the row of each site, -1 for none;
``column`` is the place of each of its columns in the output; the number of places means no place.

Two things are for speed: an unsigned index needs no check for a negative one, and a loop without a branch has no
mispredicted branches.
"""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["add_up", "log_sums", "spread_out", "take", "thin", "totals"]

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
