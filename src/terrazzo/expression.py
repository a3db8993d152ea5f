"""Expression values: log counts and their scales, chosen genes, spatial autocorrelation, principal directions.

Counts become ``log1p(counts / total * scale)``, with the total of each cell or site over all genes of its slice. The
scale is 10,000 (the papers') or the median total of the slice.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo.arrays import AnyFloats, Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.slices import Slice
from terrazzo.slices.panel import Panel

__all__ = [
    "DIGITS",
    "LEAST_VALUE",
    "LEAST_VARIANCE",
    "PAPER_TOTAL",
    "Choice",
    "Normalize",
    "Scale",
    "SliceScale",
    "chosen_genes",
    "expression",
    "gene_columns",
    "least_squares_components",
    "log_counts",
    "log_values",
    "median_depth",
    "most_variable",
    "principal_directions",
    "scaling",
    "spatial_autocorrelation",
    "total_of",
    "variance",
]

Normalize = Literal["paper", "median"]
Scale = float | Literal["median"]
Choice = Literal["variance", "autocorrelation"]

PAPER_TOTAL = 1e4
# Of log values: less than this is rounding, for one count in 100,000 cells gives more
LEAST_VARIANCE = 1e-8
# Standard deviation below which a gene counts as constant: rounding must not be scaled up to unit variance
FLAT = 1e-6

GENOME_WIDE = 2000  # with more common genes than this, some are chosen
VARIABLE = 2000  # genes chosen by variance
AUTOCORRELATED = 1000  # genes chosen by spatial autocorrelation

N_NEIGHBORS = 6
GENES_AT_ONCE = 2000  # made dense together

VALUES_AT_ONCE = 50_000_000  # of all cells, made dense together

LEAST_VALUE = 1e-4  # share of the largest singular value; directions below it are left out
# The last bits of a solver differ from call to call, by where arrays are in memory; results are rounded to these digits
DIGITS = 6


# ---- log counts and scales


def total_of(totals: Floats, scale: Scale) -> float:
    """Return the total that cells or sites of a slice are scaled to: a number, or the median of those with counts."""
    if scale != "median":
        return float(scale)
    return median_depth(totals) or PAPER_TOTAL


def median_depth(totals: Floats) -> float:
    """Return the median total of the cells that have counts; 0 where none has."""
    filled = totals[totals > 0]
    return float(np.median(filled)) if len(filled) else 0.0


def scaling(scale: float, totals: Floats) -> Floats:
    """Return the factor that brings the counts of each row from its total to ``scale``; 0 for a row without counts."""
    return np.divide(scale, totals, out=np.zeros_like(totals), where=totals > 0)


def log_values(
    counts: sparse.csr_matrix, scale: float, total: Floats | None = None
) -> sparse.csr_matrix:
    """Return ``log1p(counts / total * scale)``, CSR float32; ``total`` of each row, None for its sum."""
    if total is None:
        total = _row_totals(counts)
    n_values = np.diff(counts.indptr)
    factor = np.repeat(scaling(scale, total), n_values)
    scaled = counts.data * factor
    data = np.log1p(scaled).astype(np.float32)
    return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def log_counts(tissue: Slice, genes: Sequence[str], rows: Ints | None = None) -> sparse.csr_matrix:
    """Return log1p of counts scaled to the slice's median total, CSR float32 ``(n_cells, genes)``, or some rows of it.

    Cells without counts take part in the median, and the logarithm is taken of float32 values: the last bits differ
    from those of :func:`log_values`.
    """
    column_of = gene_columns(tissue)
    columns = [column_of[gene] for gene in genes]
    total = np.maximum(tissue.total_counts, 1)
    factor = np.median(total) / total
    counts = tissue.counts
    if rows is not None:
        counts = counts[rows]
        factor = factor[rows]
    factors = np.repeat(factor, np.diff(counts.indptr))
    data = np.log1p((counts.data * factors).astype(np.float32))
    scaled = sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
    if columns == list(range(counts.shape[1])):
        return scaled
    return scaled[:, columns]


def expression(panel: Panel, genes: Sequence[str], scale: Scale = PAPER_TOTAL) -> pd.DataFrame:
    """Return ``log1p(counts / total * scale)``, float32 ``(n_cells, genes)``; rows of NaN for cells without counts.

    Totals are over all genes of the slice.

    Parameters
    ----------
    panel
        The slice.
    genes
        By any of their names, which become the names of the columns.
    scale
        Total that every cell is scaled to: a number, the same on all slices, or ``"median"``, that of this slice.

    Raises
    ------
    InputError
        A gene that is not in the panel.
    """
    for gene in genes:
        if gene not in panel.place:
            raise InputError(
                f"gene {gene!r} is not among the {len(panel.names)} genes of the slice."
            )
    totals = panel.totals
    common_total = total_of(totals, scale)
    columns = [panel.place[gene] for gene in genes]
    values = log_values(panel.counts[:, columns], common_total, totals)
    table = values.toarray()
    table[totals == 0] = np.nan
    return pd.DataFrame(table, columns=list(genes))


@dataclass(frozen=True)
class SliceScale:
    """Scale of a slice's values: the total of its sites, and mean and standard deviation of each gene.

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
        scale: Scale = PAPER_TOTAL if normalize == "paper" else "median"
        total = total_of(totals, scale)
        n_sites = 0
        sums = np.zeros(0)
        squares = np.zeros(0)
        for block in blocks:
            n_rows, n_genes = block.shape
            values = log_values(block, total, totals[n_sites : n_sites + n_rows])
            block_sums, block_squares = _column_sums(values)
            if n_sites == 0:
                sums = np.zeros(n_genes)
                squares = np.zeros(n_genes)
            sums += block_sums
            squares += block_squares
            n_sites += n_rows
        mean, spread = _mean_and_variance(sums, squares, n_sites)
        sd = np.sqrt(spread)
        varies = sd > FLAT + 1e-5 * mean
        return cls(total, mean, np.where(varies, sd, 0.0))

    def standardize(self, values: Vectors, genes: Ints) -> Vectors:
        """Return dense values ``(sites, m)`` of genes with mean 0 and sd 1 over the slice; 0 where they do not vary."""
        mean, factor = self.standards(genes)
        return ((values - mean) * factor).astype(np.float32)

    def standards(self, genes: Ints) -> tuple[Floats, Floats]:
        """Return what is subtracted from the values of genes, and what they are then multiplied with, ``(m,)`` both."""
        return self.mean[genes], scaling(1.0, self.sd[genes])

    def restore(self, standardized: Vectors, genes: Ints) -> Vectors:
        """Undo :meth:`standardize`."""
        values = standardized * self.sd[genes] + self.mean[genes]
        return values.astype(np.float32)


def _row_totals(counts: sparse.csr_matrix) -> Floats:
    """Return the sum of each row."""
    totals = counts.sum(axis=1, dtype=np.float64)
    return np.asarray(totals).ravel()


def _column_sums(values: sparse.csr_matrix) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the sum of each column and the sum of its squares, in float64."""
    n_genes = values.shape[1]
    wide = values.data.astype(np.float64)
    sums = np.bincount(values.indices, wide, minlength=n_genes)
    squares = np.bincount(values.indices, wide**2, minlength=n_genes)
    return sums, squares


def _mean_and_variance(sums: Floats, squares: Floats, n: int) -> tuple[Floats, Floats]:
    """Return mean and variance over n rows from sums and sums of squares."""
    divisor = max(n, 1)
    mean = sums / divisor
    return mean, np.maximum(squares / divisor - mean**2, 0)


# ---- chosen genes


def variance(values: sparse.csr_matrix) -> Floats:
    """Return each column's variance over the rows, zeros included, without making it dense."""
    sums, squares = _column_sums(values)
    return _mean_and_variance(sums, squares, values.shape[0])[1]


def most_variable(panels: Sequence[Panel], n: int, scale: Scale = PAPER_TOTAL) -> list[str]:
    """Return the genes that vary most within a slice, on average over slices, the most variable first.

    Candidates are the genes that all of these slices have. Differences between slices do not count, nor do cells
    without counts.

    Parameters
    ----------
    panels
        Slices, at least one.
    n
        How many genes; fewer where no more vary.
    scale
        As in :func:`expression`.

    Raises
    ------
    InputError
        No gene that all slices have varies.
    """
    candidates = list(dict.fromkeys(panels[0].names))
    common = _in_all(candidates, [panel.place for panel in panels[1:]])
    spread = np.zeros(len(common))
    for panel in panels:
        totals = panel.totals
        common_total = total_of(totals, scale)
        filled = np.flatnonzero(totals > 0)
        values = log_values(panel.counts[filled], common_total, totals[filled])
        columns = [panel.place[name] for name in common]
        spread += variance(values)[columns] / len(panels)
    falling = np.argsort(-spread, kind="stable")
    chosen = [common[i] for i in falling[:n] if spread[i] > LEAST_VARIANCE]
    if not chosen:
        raise InputError(
            "no gene that all of these slices have varies: there is nothing to predict."
        )
    return chosen


def chosen_genes(slices: Sequence[Slice], choose: Choice) -> list[str]:
    """Return the genes common to all slices, or the best of them on genome-wide data.

    Of more than 2,000 common genes, the 2,000 of largest variance or the 1,000 of largest spatial autocorrelation of
    log counts are taken, on average over the slices, in the order of the first slice.

    Raises
    ------
    InputError
        The slices have fewer than two genes in common.
    """
    tables = [gene_columns(tissue) for tissue in slices]
    common = _in_all(list(tables[0]), tables[1:])
    if len(common) < 2:
        if len(slices) == 1:
            raise InputError(f"{slices[0].name} has fewer than two genes.")
        raise InputError(
            "the slices have fewer than two genes in common: are all of one species, and named alike (ids or symbols)?"
        )
    if len(common) <= GENOME_WIDE:
        return common
    scores = []
    for tissue in slices:
        values = log_counts(tissue, common)
        if choose == "autocorrelation":
            scores.append(spatial_autocorrelation(values, tissue.coords))
        else:
            scores.append(variance(values))
    score = np.mean(scores, axis=0)
    n_chosen = AUTOCORRELATED if choose == "autocorrelation" else VARIABLE
    falling = np.argsort(-score, kind="stable")
    best = np.sort(falling[:n_chosen])
    return [common[i] for i in best]


def _in_all(names: Sequence[str], tables: Sequence[Container[str]]) -> list[str]:
    """Return the names that all tables contain."""
    return [name for name in names if all(name in table for table in tables)]


def gene_columns(tissue: Slice) -> dict[str, int]:
    """Return the column of each gene by id, or by symbol where there is no id."""
    names = np.where(tissue.gene_ids != "", tissue.gene_ids, tissue.gene_symbols)
    return {str(name): i for i, name in enumerate(names)}


# ---- spatial autocorrelation


def spatial_autocorrelation(values: sparse.csr_matrix, coords: AnyFloats) -> Floats:
    """Return the correlation of each column with the mean of its 6 nearest neighbors, ``(genes,)``.

    Parameters
    ----------
    values
        CSR ``(n, genes)``: expression, one row a cell.
    coords
        ``(n, 2)``: positions of the cells.

    Returns
    -------
    Between -1 and 1; 0 for a gene that does not vary.
    """
    neighbor_mean = _neighbor_mean(coords)
    correlation = np.zeros(values.shape[1])
    n_cells, n_genes = values.shape
    n_at_once = min(GENES_AT_ONCE, VALUES_AT_ONCE // max(n_cells, 1) + 1)
    for start in range(0, n_genes, n_at_once):
        part = slice(start, start + n_at_once)
        sparse_own = values[:, part]
        sparse_around = neighbor_mean @ sparse_own
        own = _centered(sparse_own.toarray())
        around = _centered(np.asarray(sparse_around.todense()))
        covariance = (own * around).sum(axis=0)
        own_square = (own**2).sum(axis=0)
        around_square = (around**2).sum(axis=0)
        norm = np.sqrt(own_square * around_square)
        correlation[part] = covariance / np.maximum(norm, 1e-12)
    return correlation


def _centered(values: AnyFloats) -> AnyFloats:
    """Return columns with mean 0."""
    return values - values.mean(axis=0)


def _neighbor_mean(coords: AnyFloats) -> sparse.csr_matrix:
    """Return the matrix (n, n) that takes the mean over the nearest neighbors of each cell."""
    n = len(coords)
    n_found = min(N_NEIGHBORS + 1, n)  # with the cell itself
    ranks = list(range(1, n_found + 1))  # a list, so that one neighbor is a column too
    _, nearest = cKDTree(coords).query(coords, k=ranks, workers=-1)
    n_neighbors = n_found - 1
    rows = np.repeat(np.arange(n), n_neighbors)
    columns = nearest[:, 1:].ravel()
    share = 1 / max(n_neighbors, 1)
    weight = np.full(len(rows), share)
    return sparse.csr_matrix((weight, (rows, columns)), shape=(n, n))


# ---- principal directions


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
    rising_values, rising_vectors = np.linalg.eigh(moment)
    values = rising_values[::-1][:k]
    directions = rising_vectors[:, ::-1][:, :k]
    variances = np.maximum(values, 0)
    skewness = (directions**3).sum(axis=0)
    directions = directions * np.sign(skewness)  # the solver's sign is arbitrary
    smallest = LEAST_VALUE**2 * variances.max(initial=0)
    large = variances > smallest
    return directions[:, large].round(DIGITS), variances[large].round(DIGITS)


def least_squares_components(
    values: AnyFloats, loadings: Floats, variances: Floats, noise: float
) -> Floats:
    """Estimate components of rows from the genes that are there: a missing gene is missing, not zero.

    The estimate is ``(U^T U + noise diag(1 / variances))^-1 U^T x``, with the loadings ``U`` of the genes that are
    there: the mean of the components given ``x = U z + e`` (probabilistic PCA). It leans to 0 the less the genes tell.

    Parameters
    ----------
    values
        ``(n, m)``: of ``m`` genes, on the scale that the loadings were fitted on.
    loadings
        ``(m, k)``: the rows of those genes, of loadings with orthonormal columns over all genes.
    variances
        ``(k,)``: of the components; a component of variance 0 stays 0.
    noise
        Variance of one gene that the components leave; above 0.

    Returns
    -------
    ``(n, k)``.
    """
    components = np.zeros((len(values), len(variances)))
    used = variances > 0
    known = loadings[:, used]
    moment = known.T @ known + noise * np.diag(1 / variances[used])
    weights = np.linalg.solve(moment, known.T)
    components[:, used] = values @ weights.T
    return components
