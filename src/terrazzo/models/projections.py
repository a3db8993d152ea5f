"""Projections of single cells: genes, their scale and principal directions, fitted on slices without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import (
    Choice,
    chosen_genes,
    gene_columns,
    least_squares_components,
    log_counts,
    principal_directions,
)
from terrazzo.slices import Slice

__all__ = [
    "HALF",
    "N_COMPONENTS",
    "Expression",
    "LeastSquares",
    "Projection",
    "VariableGenes",
    "sampled_rows",
    "standardized",
]

THETA = 100.0  # of Pearson residuals (Lause et al. 2021)

N_COMPONENTS = 20  # of expression, that are averaged over neighbors

HALF = 0.5  # of a slice's own mean is taken out, where several slices are taken together

LEAST_NOISE = 1e-3  # of the mean variance of a gene, where the components leave nothing

LIMIT = 10.0  # standard deviations at which a gene is clipped

ROWS = 20_000  # cells that are made dense together

MAX_FIT = 50_000  # cells up to which directions are fitted on all of them

SAMPLE = 20_000  # cells of more that they are fitted on

FLAT = 1e-6


@dataclass(frozen=True)
class Projection:
    """PCA of expression.

    Attributes
    ----------
    genes
        Names of the genes used, in the order of ``loadings``.
    loadings
        float64 ``(genes, n_components)``.
    mean, scale
        Of every gene over the training cells; None: each slice is standardized by its own.
    pearson
        Analytic Pearson residuals in place of log counts scaled to the slice's median total.
    variances
        ``(n_components,)``: of the components over the training cells, by falling size; 0 for those of zero loadings.
    noise
        Variance of one gene that the components leave, on average over the genes.
    """

    genes: tuple[str, ...]
    loadings: Floats
    mean: Vectors | None
    scale: Vectors | None
    pearson: bool
    variances: Floats
    noise: float

    @classmethod
    def fit(
        cls,
        slices: Sequence[Slice],
        n_components: int = 50,
        *,
        choose: Choice = "variance",
        own_scale: bool = False,
        pearson: bool = False,
        seed: int = 0,
    ) -> Projection:
        """Choose genes and fit the PCA.

        Parameters
        ----------
        slices
            Training slices, at least one; labels are not read.
        n_components
            Number of components.
        choose
            Where more than 2,000 genes are common to the slices: the 2,000 of largest variance, or the 1,000 most
            spatially autocorrelated, on average over the slices.
        own_scale
            Standardize each slice by its own mean and sd, which removes most of what differs between slices.
        pearson
            Pearson residuals in place of log counts.
        seed
            Seed of the solver.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common.
        """
        from sklearn.decomposition import PCA

        genes = chosen_genes(slices, choose)
        tables = [_values(tissue, genes, pearson) for tissue in slices]
        mean = None
        scale = None
        if own_scale:
            by_slice = [standardized(t, t.mean(axis=0), t.std(axis=0)) for t in tables]
            stacked = np.concatenate(by_slice)
        else:
            joined = np.concatenate(tables)
            mean = joined.mean(axis=0)
            scale = joined.std(axis=0)
            stacked = standardized(joined, mean, scale)
        loadings = np.zeros((len(genes), n_components))  # stay zero for slices without variation
        variances = np.zeros(n_components)
        noise = 1.0
        if len(stacked) > 1 and stacked.any():
            n_found = min(n_components, *stacked.shape)
            pca = PCA(n_found, random_state=seed).fit(stacked)
            loadings[:, : len(pca.components_)] = pca.components_.T
            variances[: len(pca.components_)] = pca.explained_variance_
            least_noise = LEAST_NOISE * float(stacked.var(axis=0).mean())
            noise = max(float(pca.noise_variance_), least_noise)
        return cls(tuple(genes), loadings, mean, scale, pearson, variances, noise)

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, n_components)``; missing genes count as average.

        Raises
        ------
        InputError
            The slice has none of the genes.
        """
        rows = _measured(tissue, self.genes)
        components = self.standardize(tissue, rows) @ self.loadings[rows]
        return components.astype(np.float32)

    def standardize(self, tissue: Slice, rows: Sequence[int]) -> Vectors:
        """Return the values of the genes of some rows of the loadings, float32 ``(n_cells, genes)``."""
        values = _values(tissue, [self.genes[row] for row in rows], self.pearson)
        mean = values.mean(axis=0) if self.mean is None else self.mean[rows]
        scale = values.std(axis=0) if self.scale is None else self.scale[rows]
        return standardized(values, mean, scale)


@dataclass(frozen=True)
class LeastSquares:
    """Components of a projection, estimated from the genes that a slice has: a missing gene is missing, not average.

    Attributes
    ----------
    projection
        Fitted before; its loadings stay as they are.
    """

    projection: Projection

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, n_components)``.

        See :func:`terrazzo.expression.least_squares_components`.

        Raises
        ------
        InputError
            The slice has fewer than 20 genes of the loadings, and less than half of them.
        """
        projection = self.projection
        rows = _measured(tissue, projection.genes)
        n_genes = len(projection.genes)
        n_needed = min(N_COMPONENTS, math.ceil(n_genes / 2))
        if len(rows) < n_needed:
            raise InputError(
                f"{tissue.name} has {len(rows)} of the {n_genes} genes of the baseline; its components cannot be "
                f"estimated from fewer than {n_needed}: fit the baseline on slices of this panel."
            )
        values = projection.standardize(tissue, rows)
        components = least_squares_components(
            values, projection.loadings[rows], projection.variances, projection.noise
        )
        return components.astype(np.float32)


def _measured(tissue: Slice, genes: Sequence[str]) -> list[int]:
    """Return the numbers of the genes that a slice has; InputError where it has none."""
    columns = gene_columns(tissue)
    numbers = [number for number, gene in enumerate(genes) if gene in columns]
    if not numbers:
        raise InputError(f"{tissue.name} has none of the {len(genes)} genes of the baseline.")
    return numbers


def _values(tissue: Slice, genes: Sequence[str], pearson: bool) -> Vectors:
    """Return log counts or Pearson residuals of some genes, ``(n_cells, genes)``."""
    if not pearson:
        return log_counts(tissue, genes).toarray()
    columns = gene_columns(tissue)
    counts = tissue.counts[:, [columns[gene] for gene in genes]]
    counts = counts.toarray().astype(np.float32)
    total = np.asarray(tissue.total_counts, dtype=np.float32)
    all_counts = max(float(total.sum()), 1.0)
    share = counts.sum(axis=0) / all_counts
    expected = total[:, None] * share[None]
    variance = expected + expected**2 / np.float32(THETA)
    residual = (counts - expected) / np.sqrt(np.maximum(variance, 1e-12))
    limit = np.float32(np.sqrt(len(counts)))
    return np.clip(residual, -limit, limit)


def standardized(values: Vectors, mean: Vectors, deviation: Vectors) -> Vectors:
    """Return values of mean 0 and sd 1; 0 where they do not vary, so that rounding is not amplified."""
    flat = deviation <= 1e-6 + 1e-5 * np.abs(mean)
    divisor = np.where(flat, 1, deviation)
    scaled = (values - mean) / divisor
    return np.where(flat, 0, scaled).astype(np.float32)


@dataclass(frozen=True)
class VariableGenes:
    """Log-normalized expression of the variable genes of the training slices; missing genes are zero."""

    genes: tuple[str, ...]

    def __call__(self, tissue: Slice) -> Vectors:
        """Return float32 ``(n_cells, genes)``."""
        columns = _measured(tissue, self.genes)
        values = log_counts(tissue, [self.genes[column] for column in columns])
        expression = np.zeros((tissue.n_cells, len(self.genes)), dtype=np.float32)
        expression[:, columns] = values.toarray()
        return expression


@dataclass(frozen=True)
class Expression:
    """Components of expression: genes, their scale, and directions.

    Attributes
    ----------
    genes
        Ids, or symbols where there are none.
    mean, sd
        float64 ``(genes,)``: of log counts over all slices; sd within slices, 0 for a gene that does not vary.
    directions
        ``(genes, n_components)``, orthonormal columns.
    own_share
        Share of a slice's own mean in what is subtracted: 1 for each slice by itself, 0 for the mean of all.
    """

    genes: tuple[str, ...]
    mean: Floats
    sd: Floats
    directions: Floats
    own_share: float

    @classmethod
    def fit(
        cls,
        slices: Sequence[Slice],
        own_share: float,
        *,
        genes: Sequence[str] | None = None,
        weights: Floats | None = None,
        n_components: int = N_COMPONENTS,
    ) -> Expression:
        """Choose genes and fit directions on slices, all of which count alike per cell.

        Parameters
        ----------
        slices
            At least one; labels are not read.
        own_share
            See the attribute.
        genes
            None: those that all slices have, of more than 2,000 the 1,000 most spatially autocorrelated.
        weights
            ``(genes,)``: how often each gene counts (of a bootstrap); None: once.
        n_components
            Directions; fewer where there are no more, none where no gene varies.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common.
        """
        names = tuple(chosen_genes(slices, "autocorrelation")) if genes is None else tuple(genes)
        tables = [log_counts(tissue, names) for tissue in slices]
        means = np.stack([np.asarray(table.mean(axis=0)).ravel() for table in tables])
        sizes = np.array([table.shape[0] for table in tables], dtype=np.float64)
        variances = []
        for table, mean in zip(tables, means, strict=True):
            squares = np.asarray(table.multiply(table).mean(axis=0)).ravel()
            variances.append(np.maximum(squares - mean**2, 0))
        mean = sizes @ means / sizes.sum()
        sd = np.sqrt(sizes @ np.stack(variances) / sizes.sum())
        sd = np.where(sd > FLAT + 1e-5 * mean, sd, 0.0)
        if weights is not None:
            sd = np.where(weights > 0, sd / np.sqrt(np.maximum(weights, 1e-12)), 0.0)
        start = cls(names, mean, sd, np.zeros((len(names), 0)), own_share)
        moment = np.zeros((len(names), len(names)))
        n_rows = 0
        samples = sampled_rows([table.shape[0] for table in tables])
        for i, (table, own_mean) in enumerate(zip(tables, means, strict=True)):
            subtracted = start._subtracted(own_mean)
            chosen = table if samples is None else table[samples[i]]
            for first in range(0, chosen.shape[0], ROWS):
                part = start._standardized(chosen[first : first + ROWS], subtracted)
                moment += part.T @ part
                n_rows += len(part)
        directions, _ = principal_directions(moment / n_rows, n_components)
        return cls(names, mean, sd, directions, own_share)

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, 20)``; a missing gene counts as average."""
        columns = gene_columns(tissue)
        present = np.array([gene in columns for gene in self.genes])
        if not present.any():
            raise InputError(f"{tissue.name} has none of the {len(self.genes)} genes.")
        known = [gene for gene in self.genes if gene in columns]
        table = log_counts(tissue, known)
        own_mean = np.asarray(table.mean(axis=0)).ravel()
        part_of = Expression(
            tuple(known),
            self.mean[present],
            self.sd[present],
            self.directions[present],
            self.own_share,
        )
        subtracted = part_of._subtracted(own_mean)
        out = np.empty((tissue.n_cells, self.directions.shape[1]), dtype=np.float32)
        for first in range(0, tissue.n_cells, ROWS):
            rows = slice(first, first + ROWS)
            out[rows] = part_of._standardized(table[rows], subtracted) @ part_of.directions
        return out

    def _subtracted(self, own_mean: Floats) -> Floats:
        return self.own_share * own_mean + (1 - self.own_share) * self.mean

    def _standardized(self, values: sparse.csr_matrix, subtracted: Floats) -> Floats:
        divisor = np.where(self.sd > 0, self.sd, 1)
        scaled = (values.toarray() - subtracted) / divisor
        return np.where(self.sd > 0, np.clip(scaled, -LIMIT, LIMIT), 0.0)


def sampled_rows(n_cells: Sequence[int]) -> list[Ints] | None:
    """Return a random 20,000 cells of slices that have more than 50,000, in shares by size; None for all cells."""
    n_all = sum(n_cells)
    if n_all <= MAX_FIT:
        return None
    rng = np.random.default_rng(0)
    rows = []
    for n in n_cells:
        n_rows = min(n, max(2, round(SAMPLE * n / n_all)))
        rows.append(np.sort(rng.choice(n, n_rows, replace=False)))
    return rows
