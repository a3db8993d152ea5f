"""Expression: log counts, scales, variable and spatially variable genes, principal components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError
from terrazzo.slices import Slice
from terrazzo.slices.panel import Panel

Normalize = Literal["paper", "median"]


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
    def fit(
        cls, blocks: Iterable[sparse.csr_matrix], totals: Floats, normalize: Normalize
    ) -> SliceScale:
        """Measure a slice.

        Parameters
        ----------
        blocks
            Counts of all occupied sites, CSR, some rows at a time; read once.
        totals
            Counts of every occupied site, over all genes, in the order of the blocks.
        normalize
            ``"paper"``: 10,000; ``"median"``: the median over sites with counts.
        """
        total = total_of(totals, PAPER_TOTAL if normalize == "paper" else "median")
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

    def standardize(self, values: NDArray[np.float32], genes: Ints) -> NDArray[np.float32]:
        """Return dense values ``(sites, m)`` of genes with mean 0 and sd 1 over the slice; 0 where they do not vary."""
        mean, stretch = self.standards(genes)
        return ((values - mean) * stretch).astype(np.float32)

    def standards(self, genes: Ints) -> tuple[Floats, Floats]:
        """Return what genes' values are lessened by and then multiplied with, ``(m,)`` both."""
        sd = self.sd[genes]
        return self.mean[genes], np.divide(1.0, sd, out=np.zeros_like(sd), where=sd > 0)

    def restore(self, standardized: NDArray[np.float32], genes: Ints) -> NDArray[np.float32]:
        """Undo :meth:`standardize`."""
        return (standardized * self.sd[genes] + self.mean[genes]).astype(np.float32)


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
    hold = sparse.csr_matrix(
        (np.ones(len(where), counts.dtype), (where, np.arange(len(where)))), (n_sites, len(where))
    )
    return sparse.csr_matrix(hold @ counts)


def scaling(scale: float, totals: Floats) -> Floats:
    """Return what brings the counts of each site from its total to ``scale``; 0 for a site without counts."""
    return np.divide(scale, totals, out=np.zeros_like(totals), where=totals > 0)


def log_values(
    counts: sparse.csr_matrix, scale: float, total: NDArray[np.float64] | None = None
) -> sparse.csr_matrix:
    """Return ``log1p(counts / total * scale)``, CSR float32; ``total`` of each row, None for its sum."""
    sums = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel() if total is None else total
    data = np.log1p(counts.data * np.repeat(scaling(scale, sums), np.diff(counts.indptr))).astype(
        np.float32
    )
    return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def variance(values: sparse.csr_matrix) -> NDArray[np.float64]:
    """Return each column's variance over the rows, zeros included, without making it dense."""
    n, genes = values.shape
    wide = values.data.astype(np.float64)
    mean = np.bincount(values.indices, wide, minlength=genes) / max(n, 1)
    return np.maximum(
        np.bincount(values.indices, wide**2, minlength=genes) / max(n, 1) - mean**2, 0
    )


def expression(panel: Panel, genes: Sequence[str], scale: Scale = PAPER_TOTAL) -> pd.DataFrame:
    """Return ``log1p(counts / total * scale)``, float32 ``(n_cells, genes)``; rows of NaN for cells without counts.

    Totals are over all genes of the slice.

    Parameters
    ----------
    panel
        The slice.
    genes
        By any of their names; the columns are called as here.
    scale
        Total that every cell is brought to: a number, the same on all slices, or ``"median"``, that of this slice.

    Raises
    ------
    InputError
        A gene that is not in the panel.
    """
    if gone := [gene for gene in genes if gene not in panel.place]:
        raise InputError(
            f"gene {gone[0]!r} is not among the {len(panel.names)} genes of the slice."
        )
    totals, columns = panel.totals, [panel.place[gene] for gene in genes]
    values = log_values(panel.counts[:, columns], total_of(totals, scale), totals).toarray()
    values[totals == 0] = np.nan
    return pd.DataFrame(values, columns=list(genes))


def most_variable(panels: Sequence[Panel], n: int, scale: Scale = PAPER_TOTAL) -> list[str]:
    """Return the genes that vary most within a slice, on the average over slices, the most variable first.

    Candidates are the genes that all of these slices have. What differs between slices counts for nothing, nor do
    cells without counts.

    Parameters
    ----------
    panels
        Slices, at least one; what is not among them has no say.
    n
        How many; fewer where no more vary.
    scale
        As in :func:`expression`.

    Raises
    ------
    InputError
        No gene that all slices have varies.
    """
    first, *others = panels
    common = [
        name for name in dict.fromkeys(first.names) if all(name in other.place for other in others)
    ]
    spread = np.zeros(len(common))
    for panel in panels:
        totals = panel.totals
        seen = np.flatnonzero(totals > 0)
        values = log_values(panel.counts[seen], total_of(totals, scale), totals[seen])
        spread += variance(values)[[panel.place[name] for name in common]] / len(panels)
    order = [i for i in np.argsort(-spread, kind="stable")[:n] if spread[i] > LEAST_VARIANCE]
    if not order:
        raise InputError(
            "no gene that all of these slices have varies: there is nothing to predict."
        )
    return [common[i] for i in order]


NEAREST = 6  # neighbors of a place


GENES = 2000  # that are made dense at a time


def spatial_autocorrelation(
    values: sparse.csr_matrix, coords: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the correlation of each column with the mean of its 6 nearest neighbors, ``(genes,)``.

    Parameters
    ----------
    values
        CSR ``(n, genes)``: expression, one row a place.
    coords
        ``(n, 2)``: where the places lie.

    Returns
    -------
    Between -1 and 1; 0 for a gene that does not vary.
    """
    n = len(coords)
    k = min(NEAREST + 1, n)
    _, index = cKDTree(coords).query(coords, k=[*range(1, k + 1)], workers=-1)
    rows = np.repeat(np.arange(n), k - 1)
    weight = np.full(len(rows), 1 / max(k - 1, 1))
    mean = sparse.csr_matrix((weight, (rows, index[:, 1:].ravel())), shape=(n, n))
    out = np.zeros(values.shape[1])
    for start in range(0, len(out), GENES):
        own = values[:, start : start + GENES]
        around = np.asarray((mean @ own).todense())
        mine = own.toarray()
        mine, around = mine - mine.mean(axis=0), around - around.mean(axis=0)
        scale = np.sqrt((mine**2).sum(axis=0) * (around**2).sum(axis=0))
        out[start : start + GENES] = (mine * around).sum(axis=0) / np.maximum(scale, 1e-12)
    return out


LEAST_VALUE = 1e-4  # of the largest singular value: directions of nothing


DIGITS = 6  # the last bits differ from call to call, by where arrays lie in memory; stored vectors go by every bit


def principal_directions(moment: Floats, k: int) -> tuple[Floats, Floats]:
    """Return the first k principal directions.

    Parameters
    ----------
    moment
        ``(m, m)``: mean of ``x x^T`` over rows whose columns have mean 0.
    k
        Directions wanted.

    Returns
    -------
    ``(m, k)``, orthonormal columns by falling variance, and the variances ``(k,)``; both may be shorter. Signs and the
    last digits do not depend on the solver.
    """
    variance, vectors = np.linalg.eigh(moment)
    variance, vectors = np.maximum(variance[::-1][:k], 0), vectors[:, ::-1][:, :k]
    vectors = vectors * np.sign((vectors**3).sum(axis=0))  # the solver's sign is chance
    kept = variance > LEAST_VALUE**2 * variance.max(initial=0)
    return vectors[:, kept].round(DIGITS), variance[kept].round(DIGITS)


Choice = Literal["variance", "autocorrelation"]


GENOME_WIDE = 2000  # with more genes than this, some are chosen


VARIABLE, AUTOCORRELATED = 2000, 1000  # how many, by either rule


def chosen_genes(slices: Sequence[Slice], choose: Choice) -> list[str]:
    """Return the genes common to all slices, or on genome-wide data the best of them; see :meth:`Projection.fit`."""
    tables = [gene_columns(s) for s in slices]
    common = [g for g in tables[0] if all(g in t for t in tables[1:])]
    if len(common) < 2:
        raise InputError("the training slices have fewer than two genes in common.")
    if len(common) <= GENOME_WIDE:
        return common
    score = np.mean(
        [
            spatial_autocorrelation(log_counts(s, common), s.coords)
            if choose == "autocorrelation"
            else variance(log_counts(s, common))
            for s in slices
        ],
        axis=0,
    )
    kept = AUTOCORRELATED if choose == "autocorrelation" else VARIABLE
    return [common[i] for i in np.sort(np.argsort(-score, kind="stable")[:kept])]


def gene_columns(tissue: Slice) -> dict[str, int]:
    """Return the column of each gene by id, or by symbol where there is no id."""
    names = np.where(tissue.gene_ids != "", tissue.gene_ids, tissue.gene_symbols)
    return {str(name): i for i, name in enumerate(names)}


def log_counts(tissue: Slice, genes: Sequence[str]) -> sparse.csr_matrix:
    """Return log1p of counts scaled to the slice's median total, CSR float32 ``(n_cells, genes)``."""
    columns = gene_columns(tissue)
    total = np.maximum(tissue.total_counts, 1)
    scaled = sparse.csr_matrix(
        sparse.diags(np.median(total) / total) @ tissue.counts, dtype=np.float32
    )
    scaled.data = np.log1p(scaled.data)
    return scaled[:, [columns[g] for g in genes]]
