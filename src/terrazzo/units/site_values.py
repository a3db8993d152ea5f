"""Values of sites: counts summed over a site's cells, normalised, and brought to the scale of their slice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.units.grids import Floats, Ints

Normalise = Literal["paper", "median"]
Scale = float | Literal["median"]
PAPER_TOTAL = 1e4
LEAST_VARIANCE = 1e-8  # of log values; below it is rounding: one count in 100,000 cells gives more
FLAT = 1e-6  # a gene that varies less says nothing: rounding must not be blown up to unit variance


@dataclass(frozen=True)
class SliceScale:
    """What brings the values of a slice to a common scale.

    Attributes
    ----------
    total
        Counts that every site is scaled to: 10,000 (paper), or the slice's median.
    mean, sd
        float64 ``(genes,)``: of the values over all occupied sites; sd 0 for a gene that does not vary.
    """

    total: float
    mean: Floats
    sd: Floats

    @classmethod
    def fit(cls, blocks: Iterable[sparse.csr_matrix], totals: Floats, normalise: Normalise) -> SliceScale:
        """Measure a slice.

        Parameters
        ----------
        blocks
            Counts of all occupied sites, CSR, some rows at a time; read once.
        totals
            Counts of every occupied site, over all genes, in the order of the blocks.
        normalise
            ``"paper"``: 10,000; ``"median"``: the median over sites with counts.
        """
        total = total_of(totals, PAPER_TOTAL if normalise == "paper" else "median")
        count, first, second = 0, np.zeros(0), np.zeros(0)
        for block in blocks:
            values = log_values(block, total, totals[count : count + block.shape[0]])
            if not count:
                first, second = np.zeros(block.shape[1]), np.zeros(block.shape[1])
            wide = values.data.astype(np.float64)
            first += np.bincount(values.indices, wide, minlength=len(first))
            second += np.bincount(values.indices, wide**2, minlength=len(second))
            count += block.shape[0]
        mean = first / max(count, 1)
        sd = np.sqrt(np.maximum(second / max(count, 1) - mean**2, 0))
        return cls(total, mean, np.where(sd > FLAT + 1e-5 * mean, sd, 0.0))

    def standardise(self, values: NDArray[np.float32], genes: Ints) -> NDArray[np.float32]:
        """Return dense values ``(sites, m)`` of genes with mean 0 and sd 1 over the slice; 0 where they do not vary."""
        mean, stretch = self.standards(genes)
        return ((values - mean) * stretch).astype(np.float32)

    def standards(self, genes: Ints) -> tuple[Floats, Floats]:
        """Return what genes' values are lessened by and then multiplied with, ``(m,)`` both."""
        sd = self.sd[genes]
        return self.mean[genes], np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0)

    def restore(self, standardised: NDArray[np.float32], genes: Ints) -> NDArray[np.float32]:
        """Undo :meth:`standardise`."""
        return (standardised * self.sd[genes] + self.mean[genes]).astype(np.float32)


def total_of(totals: Floats, scale: Scale) -> float:
    """Return the counts that every site or cell of a slice is scaled to: a number, or the median of those with any."""
    if scale != "median":
        return float(scale)
    seen = totals[totals > 0]
    return float(np.median(seen)) if len(seen) else PAPER_TOTAL


def sum_by_site(counts: sparse.csr_matrix, where: Ints, n_sites: int) -> sparse.csr_matrix:
    """Sum the counts of the cells of a site, CSR ``(n_sites, n_genes)``; ``where`` is the row of each cell."""
    if len(where) == n_sites and np.array_equal(where, np.arange(n_sites)):
        return counts
    hold = sparse.csr_matrix((np.ones(len(where), counts.dtype), (where, np.arange(len(where)))), (n_sites, len(where)))
    return sparse.csr_matrix(hold @ counts)


def scaling(scale: float, totals: Floats) -> Floats:
    """Return what brings the counts of each site from its total to ``scale``; 0 for a site without counts."""
    return np.divide(scale, totals, out=np.zeros_like(totals), where=totals > 0)


def log_values(counts: sparse.csr_matrix, scale: float, total: NDArray[np.float64] | None = None) -> sparse.csr_matrix:
    """Return ``log1p(counts / total * scale)``, CSR float32; ``total`` of each row, None for its sum."""
    sums = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel() if total is None else total
    data = np.log1p(counts.data * np.repeat(scaling(scale, sums), np.diff(counts.indptr))).astype(np.float32)
    return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def variance(values: sparse.csr_matrix) -> NDArray[np.float64]:
    """Return each column's variance over the rows, zeros included, without making it dense."""
    n, genes = values.shape
    wide = values.data.astype(np.float64)
    mean = np.bincount(values.indices, wide, minlength=genes) / max(n, 1)
    return np.maximum(np.bincount(values.indices, wide**2, minlength=genes) / max(n, 1) - mean**2, 0)
