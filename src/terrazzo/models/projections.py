"""Principal components of expression, fitted on slices without labels: what the trivial baselines are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.errors import InputError
from terrazzo.slices import Slice
from terrazzo.units.autocorrelation import spatial_autocorrelation

Vectors = NDArray[np.float32]
Choice = Literal["variance", "autocorrelation"]

GENOME_WIDE = 2000  # with more genes than this, some are chosen
VARIABLE, AUTOCORRELATED = 2000, 1000  # how many, by either rule
THETA = 100.0  # of Pearson residuals (Lause et al. 2021)


@dataclass(frozen=True)
class Projection:
    """A PCA of expression.

    Attributes
    ----------
    genes
        Names of the genes used, in the order of ``loadings``.
    loadings
        float64 ``(genes, n_components)``.
    mean, scale
        Of every gene over the training cells; None: each slice is standardised by its own.
    pearson
        Analytic Pearson residuals in place of log counts scaled to the slice's median total.
    """

    genes: tuple[str, ...]
    loadings: NDArray[np.float64]
    mean: Vectors | None
    scale: Vectors | None
    pearson: bool = False

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
            Training slices, at least one; labels are not looked at.
        n_components
            Components kept.
        choose
            Where more than 2,000 genes are common to the slices: the 2,000 of largest variance, or the 1,000 most
            spatially autocorrelated, on average over the slices.
        own_scale
            Standardise each slice by its own mean and sd: takes away most of what differs between slices.
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
        tables = [_values(s, genes, pearson) for s in slices]
        if own_scale:
            mean = scale = None
            stacked = np.concatenate([_standardised(t, t.mean(axis=0), t.std(axis=0)) for t in tables])
        else:
            joined = np.concatenate(tables)
            mean, scale = joined.mean(axis=0), joined.std(axis=0)
            stacked = _standardised(joined, mean, scale)
        loadings = np.zeros((len(genes), n_components))  # of slices without variation, all zero
        if len(stacked) > 1 and stacked.any():
            found = PCA(min(n_components, *stacked.shape), random_state=seed).fit(stacked).components_
            loadings[:, : len(found)] = found.T
        return cls(tuple(genes), loadings, mean, scale, pearson)

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, n_components)``; genes that lack count as average.

        Raises
        ------
        InputError
            The slice has none of the genes.
        """
        here = gene_columns(tissue)
        rows = [i for i, g in enumerate(self.genes) if g in here]
        if not rows:
            raise InputError(f"{tissue.name} has none of the {len(self.genes)} genes of the baseline.")
        values = _values(tissue, [self.genes[i] for i in rows], self.pearson)
        mean = values.mean(axis=0) if self.mean is None else self.mean[rows]
        scale = values.std(axis=0) if self.scale is None else self.scale[rows]
        return (_standardised(values, mean, scale) @ self.loadings[rows]).astype(np.float32)


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
            else _variance(log_counts(s, common))
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
    scaled = sparse.csr_matrix(sparse.diags(np.median(total) / total) @ tissue.counts, dtype=np.float32)
    scaled.data = np.log1p(scaled.data)
    return scaled[:, [columns[g] for g in genes]]


def _values(tissue: Slice, genes: Sequence[str], pearson: bool) -> Vectors:
    if not pearson:
        return log_counts(tissue, genes).toarray()
    columns = gene_columns(tissue)
    counts = tissue.counts[:, [columns[g] for g in genes]].toarray().astype(np.float32)
    total = np.asarray(tissue.total_counts, dtype=np.float32)
    expected = total[:, None] * (counts.sum(axis=0) / max(float(total.sum()), 1.0))[None]
    residual = (counts - expected) / np.sqrt(np.maximum(expected + expected**2 / np.float32(THETA), 1e-12))
    limit = np.float32(np.sqrt(len(counts)))
    return np.clip(residual, -limit, limit)


def _standardised(values: Vectors, mean: Vectors, scale: Vectors) -> Vectors:
    # a gene that is the same everywhere says nothing: rounding must not be blown up to unit variance
    flat = scale <= 1e-6 + 1e-5 * np.abs(mean)
    return np.where(flat, 0, (values - mean) / np.where(flat, 1, scale)).astype(np.float32)


def _variance(expression: sparse.csr_matrix) -> NDArray[np.float64]:
    n, genes = expression.shape
    mean = np.bincount(expression.indices, expression.data, minlength=genes) / n  # in float64
    return np.bincount(expression.indices, expression.data.astype(np.float64) ** 2, minlength=genes) / n - mean**2
