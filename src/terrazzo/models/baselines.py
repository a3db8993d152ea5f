"""Baselines: principal components of expression, fitted without labels, and their means over neighbors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo import keys, records
from terrazzo._version import __version__
from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.expression import Choice, chosen_genes, gene_columns, log_counts
from terrazzo.models.inputs import embed_each
from terrazzo.slices import Slice

__all__ = [
    "KINDS",
    "WITHIN_1_HOP",
    "WITHIN_3_HOPS",
    "Baseline",
    "Kind",
    "Projection",
    "VariableGenes",
    "fit_baselines",
    "neighbor_mean",
    "standardized",
    "unit",
]

THETA = 100.0  # of Pearson residuals (Lause et al. 2021)

WITHIN_1_HOP = 6  # neighbors within one hop on a hexagonal lattice

WITHIN_3_HOPS = 36

N_SMOOTHED = 20  # components that are averaged over neighbors

ROWS = 20_000  # cells whose neighbors are searched together


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
    """

    genes: tuple[str, ...]
    loadings: Floats
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
        if len(stacked) > 1 and stacked.any():
            n_found = min(n_components, *stacked.shape)
            pca = PCA(n_found, random_state=seed).fit(stacked)
            loadings[:, : len(pca.components_)] = pca.components_.T
        return cls(tuple(genes), loadings, mean, scale, pearson)

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, n_components)``; missing genes count as average.

        Raises
        ------
        InputError
            The slice has none of the genes.
        """
        rows = _measured(tissue, self.genes)
        values = _values(tissue, [self.genes[row] for row in rows], self.pearson)
        mean = values.mean(axis=0) if self.mean is None else self.mean[rows]
        scale = values.std(axis=0) if self.scale is None else self.scale[rows]
        components = standardized(values, mean, scale) @ self.loadings[rows]
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


def neighbor_mean(values: Vectors, coords: Floats, k: int, rows: Ints | None = None) -> Vectors:
    """Average each row (or those of ``rows``) over the cell itself and its ``k`` nearest neighbors."""
    if k == 0 or len(values) == 1:
        return values if rows is None else values[rows]
    tree = cKDTree(coords)
    wanted = coords if rows is None else coords[rows]
    n_nearest = min(k + 1, len(values))
    means = np.empty((len(wanted), *values.shape[1:]), dtype=values.dtype)
    for start in range(0, len(wanted), ROWS):
        part = slice(start, start + ROWS)
        _, index = tree.query(wanted[part], k=n_nearest, workers=-1)
        means[part] = values[index].mean(axis=1)
    return means


def unit(block: Vectors) -> Vectors:
    """Scale a block to a mean norm of one."""
    mean_norm = float(np.linalg.norm(block, axis=1).mean())
    return block / max(mean_norm, 1e-12)


def _own(components: Vectors, coords: Floats) -> Vectors:
    return components


def _one_hop(components: Vectors, coords: Floats) -> Vectors:
    return neighbor_mean(components, coords, WITHIN_1_HOP)


def _three_hops(components: Vectors, coords: Floats) -> Vectors:
    return neighbor_mean(components, coords, WITHIN_3_HOPS)


def _all_hops(components: Vectors, coords: Floats) -> Vectors:
    return np.hstack([components, _one_hop(components, coords), _three_hops(components, coords)])


def _smoothed(components: Vectors, coords: Floats) -> Vectors:
    return neighbor_mean(components[:, :N_SMOOTHED], coords, WITHIN_3_HOPS)


def _own_and_smoothed(components: Vectors, coords: Floats) -> Vectors:
    return np.hstack([unit(components), unit(_smoothed(components, coords))])


def _own_and_rings(components: Vectors, coords: Floats) -> Vectors:
    from terrazzo.models.states import nearest_in_rings, ring_means

    first = components[:, :N_SMOOTHED]
    parts = [ring_means(first, index) for _, index in nearest_in_rings(coords)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Kind:
    """One kind of baseline.

    Attributes
    ----------
    title
        For tables.
    combine
        Called with the components and the coordinates of a slice's cells; returns their vectors.
    projection
        Arguments of :meth:`Projection.fit`.
    """

    title: str
    combine: Callable[[Vectors, Floats], Vectors]
    projection: dict[str, Any] = field(default_factory=dict)


_SPATIAL = {"choose": "autocorrelation", "own_scale": True}

_PEARSON = {"choose": "autocorrelation", "pearson": True}

KINDS = {
    "expression": Kind("Expression of variable genes", _own),
    "pca": Kind("PCA", _own),
    "pca-nb1": Kind("PCA + neighbor mean, 1 hop", _one_hop),
    "pca-nb3": Kind("PCA + neighbor mean, 3 hops", _three_hops),
    "pca-concat": Kind("[PCA ; 1 hop ; 3 hops]", _all_hops),
    "pearson": Kind("Pearson-residual PCA", _own, _PEARSON),
    "z50": Kind("Z50 (own cell)", _own, _SPATIAL),
    "t1": Kind("T1 (Z20, 3 hops)", _smoothed, _SPATIAL),
    "t2": Kind("T2 [Z50 ; T1]", _own_and_smoothed, _SPATIAL),
    "t3": Kind("T3 (Z20, rings)", _own_and_rings, _SPATIAL),
}


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


class Baseline:
    """Baseline by name: fitted on slices without labels, then one vector a cell.

    Parameters
    ----------
    name
        ``expression``: log counts, scaled to the slice's median total, of the variable genes. ``pca``: 50 principal
        components of them, standardized (the scanpy pipeline). ``pca-nb1``, ``pca-nb3``: averaged over the cell and its
        neighbors within 1 or 3 hops (6, 36 nearest). ``pca-concat``: all three. ``pearson``: components of Pearson
        residuals. ``z50``: components of the spatially autocorrelated genes, each slice standardized by itself. ``t1``:
        20 of them averaged over 3 hops. ``t2``: ``[z50 ; t1]``, equal in mean norm. ``t3``: 20 of them of the cell and
        of five rings of its neighbors.
    n_components
        Principal components.
    seed
        Seed of the solver.

    Raises
    ------
    ConfigError
        No such baseline.
    """

    def __init__(self, name: str, *, n_components: int = 50, seed: int = 0) -> None:
        if name not in KINDS:
            hint = did_you_mean(name, KINDS, f"There are: {', '.join(KINDS)}.")
            raise ConfigError(f"there is no baseline {name!r}.{hint}")
        self.name = name
        self.title = KINDS[name].title
        self.n_components = n_components
        self.seed = seed
        self.fitted_on: tuple[str, ...] = ()
        self._project: Callable[[Slice], Vectors] | None = None

    @property
    def default_key(self) -> str:
        """Key that :meth:`embed` writes: ``X_pca``, ``X_t3``, ..."""
        return keys.baseline_key(self.name)

    @property
    def genes(self) -> tuple[str, ...]:
        """The genes that it was fitted on, ids or symbols; () before."""
        project = self._project
        if isinstance(project, VariableGenes | Projection):
            return project.genes
        return ()

    def fit(
        self, slices: Sequence[AnnData | Slice] | AnnData | Slice, *, slice_key: str | None = None
    ) -> Self:
        """Fit genes and components on slices; labels are not read.

        Parameters
        ----------
        slices
            One or several.
        slice_key
            Column of ``obs`` that tells the sections of an AnnData apart; each is a slice.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common.
        """
        tissues = _tissues(slices, slice_key)
        self._set(self._fitted(tissues), tissues)
        return self

    def unfitted(self) -> Baseline:
        """Return another of the same settings that is not fitted."""
        return Baseline(self.name, n_components=self.n_components, seed=self.seed)

    def transform(self, tissue: Slice) -> Vectors:
        """Return the vectors of a slice, float32 ``(n_cells, d)``; not fitted before, it is fitted on this slice."""
        project = self._project or self._fitted([tissue])
        combined = KINDS[self.name].combine(project(tissue), tissue.coords)
        return combined.astype(np.float32)

    def embed(self, data: Any, *, key_added: str | None = None, **slice_options: Any) -> Any:
        """Write one vector for every cell into ``obsm["X_<name>"]`` (float32, n x d), with provenance in ``uns``.

        Parameters
        ----------
        data
            AnnData, SpatialData, path, or a list of these; raw counts.
        key_added
            Another ``obsm`` key.
        **slice_options
            Of :meth:`terrazzo.Slice.from_anndata` and :class:`terrazzo.slices.Choices`. Of an AnnData with several
            sections (``slice_key``) each is embedded by itself; fit on all of them first, if their vectors are to be
            compared.

        Returns
        -------
        The AnnData (loaded, if ``data`` is a path), the SpatialData, or a list of them.

        Raises
        ------
        InputError
            A slice that cannot be used, or that has none of the genes.
        """

        def embed_one(tissue: Slice, adata: AnnData) -> None:
            self.write(adata, tissue, self.transform(tissue), key_added)

        return embed_each(data, slice_options, embed_one)

    def write(
        self, adata: AnnData, tissue: Slice, vectors: Vectors, key_added: str | None = None
    ) -> None:
        """Write vectors and their provenance into an AnnData."""
        records.write(adata, key_added or self.default_key, vectors, self.record(tissue))

    def record(self, tissue: Slice) -> dict[str, Any]:
        """Return the provenance of the vectors of a slice, for ``uns``."""
        fitted_on = self.fitted_on or (tissue.name,)
        return {
            "model": self.title,
            "model_type": f"baseline:{self.name}",
            "n_components": self.n_components,
            "fitted_on": ", ".join(fitted_on),
            "seed": self.seed,
            "terrazzo_version": __version__,
        }

    def fingerprint(self) -> str:
        """Return a sha256 of name, settings and what was fitted."""
        digest = hashlib.sha256()
        settings = [self.name, self.n_components, self.seed, list(self.fitted_on), __version__]
        digest.update(json.dumps(settings).encode())
        project = self._project
        if isinstance(project, VariableGenes | Projection):
            digest.update(json.dumps(project.genes).encode())
        if isinstance(project, Projection):
            for array in (project.loadings, project.mean, project.scale):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _fitted(self, tissues: Sequence[Slice]) -> Callable[[Slice], Vectors]:
        """Return the projection, fitted on slices."""
        if self.name == "expression":
            return VariableGenes(tuple(chosen_genes(tissues, "variance")))
        settings = KINDS[self.name].projection
        return Projection.fit(tissues, self.n_components, seed=self.seed, **settings)

    def _set(self, project: Callable[[Slice], Vectors], tissues: Sequence[Slice]) -> None:
        self._project = project
        self.fitted_on = tuple(tissue.name for tissue in tissues)


def fit_baselines(
    names: Sequence[str],
    slices: Sequence[AnnData | Slice],
    *,
    n_components: int = 50,
    seed: int = 0,
    slice_key: str | None = None,
) -> dict[str, Baseline]:
    """Fit several baselines on the same slices; those that share a projection share its fit.

    ``slice_key`` as of :meth:`Baseline.fit`.

    Returns
    -------
    Name to fitted :class:`Baseline`.
    """
    tissues = _tissues(slices, slice_key)
    projections: dict[str, Callable[[Slice], Vectors]] = {}
    fitted = {}
    for name in names:
        baseline = Baseline(name, n_components=n_components, seed=seed)
        key = name if name == "expression" else str(KINDS[name].projection)
        if key not in projections:
            projections[key] = baseline._fitted(tissues)
        baseline._set(projections[key], tissues)
        fitted[name] = baseline
    return fitted


def _tissues(
    slices: Sequence[AnnData | Slice] | AnnData | Slice, slice_key: str | None = None
) -> list[Slice]:
    if isinstance(slices, AnnData | Slice):
        slices = [slices]
    tissues: list[Slice] = []
    for one in slices:
        if isinstance(one, Slice):
            tissues.append(one)
        elif slice_key is None:
            tissues.append(Slice.from_anndata(one))
        else:
            tissues += Slice.each_from_anndata(one, slice_key=slice_key)
    if not tissues:
        raise InputError("a baseline needs at least one slice to be fitted on.")
    return tissues
