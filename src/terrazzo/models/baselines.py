"""Principal components of expression, fitted on slices without labels: what the trivial baselines are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrazzo import keys
from terrazzo._version import __version__
from terrazzo.arrays import Floats, Vectors
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.expression import Choice, chosen_genes, gene_columns, log_counts
from terrazzo.slices import Slice

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
        Of every gene over the training cells; None: each slice is standardized by its own.
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
            Standardize each slice by its own mean and sd: takes away most of what differs between slices.
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
            stacked = np.concatenate(
                [_standardized(t, t.mean(axis=0), t.std(axis=0)) for t in tables]
            )
        else:
            joined = np.concatenate(tables)
            mean, scale = joined.mean(axis=0), joined.std(axis=0)
            stacked = _standardized(joined, mean, scale)
        loadings = np.zeros((len(genes), n_components))  # of slices without variation, all zero
        if len(stacked) > 1 and stacked.any():
            found = (
                PCA(min(n_components, *stacked.shape), random_state=seed).fit(stacked).components_
            )
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
            raise InputError(
                f"{tissue.name} has none of the {len(self.genes)} genes of the baseline."
            )
        values = _values(tissue, [self.genes[i] for i in rows], self.pearson)
        mean = values.mean(axis=0) if self.mean is None else self.mean[rows]
        scale = values.std(axis=0) if self.scale is None else self.scale[rows]
        return (_standardized(values, mean, scale) @ self.loadings[rows]).astype(np.float32)


def _values(tissue: Slice, genes: Sequence[str], pearson: bool) -> Vectors:
    if not pearson:
        return log_counts(tissue, genes).toarray()
    columns = gene_columns(tissue)
    counts = tissue.counts[:, [columns[g] for g in genes]].toarray().astype(np.float32)
    total = np.asarray(tissue.total_counts, dtype=np.float32)
    expected = total[:, None] * (counts.sum(axis=0) / max(float(total.sum()), 1.0))[None]
    residual = (counts - expected) / np.sqrt(
        np.maximum(expected + expected**2 / np.float32(THETA), 1e-12)
    )
    limit = np.float32(np.sqrt(len(counts)))
    return np.clip(residual, -limit, limit)


def _standardized(values: Vectors, mean: Vectors, scale: Vectors) -> Vectors:
    # a gene that is the same everywhere says nothing: rounding must not be blown up to unit variance
    flat = scale <= 1e-6 + 1e-5 * np.abs(mean)
    return np.where(flat, 0, (values - mean) / np.where(flat, 1, scale)).astype(np.float32)


WITHIN_1_HOP, WITHIN_3_HOPS = 6, 36  # spots within so many hops on a hexagonal lattice


RINGS = (0, 6, 18, 36, 90, 216)  # neighbors up to each ring's outer edge


SHORT = 20  # components that are averaged over neighbors


def neighbor_mean(values: Vectors, coords: Floats, k: int) -> Vectors:
    """Average each row over the cell itself and its ``k`` nearest neighbors."""
    if k == 0 or len(values) == 1:
        return values
    _, index = cKDTree(coords).query(coords, k=min(k + 1, len(values)), workers=-1)
    return values[index].mean(axis=1)


def rings(values: Vectors, coords: Floats) -> list[Vectors]:
    """Return the mean over five rings of nearest neighbors (1-6, 7-18, 19-36, 37-90, 91-216), each as ``values``."""
    reach = min(RINGS[-1] + 1, len(values))
    _, index = cKDTree(coords).query(coords, k=[*range(1, reach + 1)], workers=-1)
    out = []
    for inner, outer in pairwise(RINGS):
        ring = index[:, inner + 1 : outer + 1]
        out.append(values[ring].mean(axis=1) if ring.shape[1] else np.zeros_like(values))
    return out


def unit(block: Vectors) -> Vectors:
    """Scale a block to a mean norm of one."""
    return block / max(float(np.linalg.norm(block, axis=1).mean()), 1e-12)


def _smooth(z: Vectors, coords: Floats) -> Vectors:
    return neighbor_mean(z[:, :SHORT], coords, WITHIN_3_HOPS)


def _all_hops(z: Vectors, coords: Floats) -> Vectors:
    return np.hstack([z, *(neighbor_mean(z, coords, k) for k in (WITHIN_1_HOP, WITHIN_3_HOPS))])


@dataclass(frozen=True)
class Kind:
    """What a baseline is: a projection, and what is made of it with the coordinates."""

    title: str
    combine: Callable[[Vectors, Floats], Vectors]
    projection: dict[str, Any] = field(default_factory=dict)


_STRONG = {"choose": "autocorrelation", "own_scale": True}


KINDS = {
    "expression": Kind("Expression of variable genes", lambda z, c: z),
    "pca": Kind("PCA", lambda z, c: z),
    "pca-nb1": Kind("PCA + neighbor mean, 1 hop", lambda z, c: neighbor_mean(z, c, WITHIN_1_HOP)),
    "pca-nb3": Kind("PCA + neighbor mean, 3 hops", lambda z, c: neighbor_mean(z, c, WITHIN_3_HOPS)),
    "pca-concat": Kind("[PCA ; 1 hop ; 3 hops]", _all_hops),
    "pearson": Kind(
        "Pearson-residual PCA", lambda z, c: z, {"choose": "autocorrelation", "pearson": True}
    ),
    "z50": Kind("Z50 (own cell)", lambda z, c: z, _STRONG),
    "t1": Kind("T1 (Z20, 3 hops)", _smooth, _STRONG),
    "t2": Kind("T2 [Z50 ; T1]", lambda z, c: np.hstack([unit(z), unit(_smooth(z, c))]), _STRONG),
    "t3": Kind(
        "T3 (Z20, rings)", lambda z, c: np.hstack([z[:, :SHORT], *rings(z[:, :SHORT], c)]), _STRONG
    ),
}


@dataclass(frozen=True)
class VariableGenes:
    """Log-normalized expression of the variable genes of the training slices; genes that lack are zero."""

    genes: tuple[str, ...]

    def __call__(self, tissue: Slice) -> Vectors:
        """Return float32 ``(n_cells, genes)``."""
        here = gene_columns(tissue)
        kept = [i for i, g in enumerate(self.genes) if g in here]
        if not kept:
            raise InputError(
                f"{tissue.name} has none of the {len(self.genes)} genes of the baseline."
            )
        out = np.zeros((tissue.n_cells, len(self.genes)), dtype=np.float32)
        out[:, kept] = log_counts(tissue, [self.genes[i] for i in kept]).toarray()
        return out


class Baseline:
    """A baseline by name: fitted on slices without labels, then one vector a cell.

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
        self.name, self.title = name, KINDS[name].title
        self.n_components, self.seed = n_components, seed
        self.fitted_on: tuple[str, ...] = ()
        self._project: Callable[[Slice], Vectors] | None = None

    @property
    def default_key(self) -> str:
        """Key that :meth:`embed` writes: ``X_pca``, ``X_t3``, ..."""
        return keys.baseline_key(self.name)

    def fit(self, slices: Sequence[AnnData | Slice] | AnnData | Slice) -> Self:
        """Fit genes and components on slices; labels are not looked at.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common.
        """
        tissues = _tissues(slices)
        self._use(
            _fitted(KINDS[self.name], self.name, tissues, self.n_components, self.seed), tissues
        )
        return self

    def transform(self, tissue: Slice) -> Vectors:
        """Return the vectors of a slice, float32 ``(n_cells, d)``; not fitted before, it is fitted on this slice."""
        project = self._project or _fitted(
            KINDS[self.name], self.name, [tissue], self.n_components, self.seed
        )
        return KINDS[self.name].combine(project(tissue), tissue.coords).astype(np.float32)

    def embed(
        self, adata: AnnData, *, key_added: str | None = None, **slice_options: Any
    ) -> AnnData:
        """Write ``obsm["X_<name>"]``, float32 ``(n_cells, d)``.

        Parameters
        ----------
        adata
            Raw counts and ``obsm["spatial"]``.
        key_added
            Another ``obsm`` key.
        **slice_options
            Passed to :meth:`terrazzo.Slice.from_anndata`.
        """
        tissue = Slice.from_anndata(adata, **slice_options)
        key = key_added or self.default_key
        adata.obsm[key] = self.transform(tissue)
        record = {
            "model": self.title,
            "model_type": f"baseline:{self.name}",
            "n_components": self.n_components,
            "fitted_on": ", ".join(self.fitted_on or (tissue.name,)),
            "seed": self.seed,
            "terrazzo_version": __version__,
        }
        adata.uns[keys.UNS] = {**dict(adata.uns.get(keys.UNS, {})), key: record}
        return adata

    def _use(self, project: Callable[[Slice], Vectors], tissues: Sequence[Slice]) -> None:
        self._project, self.fitted_on = project, tuple(t.name for t in tissues)


def fit_baselines(
    names: Sequence[str],
    slices: Sequence[AnnData | Slice],
    *,
    n_components: int = 50,
    seed: int = 0,
) -> dict[str, Baseline]:
    """Fit several baselines on the same slices; those that share a projection share its fit.

    Returns
    -------
    Name to fitted :class:`Baseline`.
    """
    tissues, shared = _tissues(slices), {}
    out = {}
    for name in names:
        baseline, kind = Baseline(name, n_components=n_components, seed=seed), KINDS[name]
        which = "expression" if name == "expression" else str(sorted(kind.projection.items()))
        if which not in shared:
            shared[which] = _fitted(kind, name, tissues, n_components, seed)
        baseline._use(shared[which], tissues)
        out[name] = baseline
    return out


def _fitted(
    kind: Kind, name: str, tissues: Sequence[Slice], n: int, seed: int
) -> Callable[[Slice], Vectors]:
    if name == "expression":
        return VariableGenes(tuple(chosen_genes(tissues, "variance")))
    return Projection.fit(tissues, n, seed=seed, **kind.projection)


def _tissues(slices: Sequence[AnnData | Slice] | AnnData | Slice) -> list[Slice]:
    given = [slices] if isinstance(slices, AnnData | Slice) else list(slices)
    if not given:
        raise InputError("a baseline needs at least one slice to be fitted on.")
    return [s if isinstance(s, Slice) else Slice.from_anndata(s) for s in given]
