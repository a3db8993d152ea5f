"""Baselines: principal components of expression, fitted without labels, and their means over neighbors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo import keys, records
from terrazzo._version import __version__
from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.expression import chosen_genes
from terrazzo.models.inputs import embed_each
from terrazzo.models.projections import (
    HALF,
    N_COMPONENTS,
    Expression,
    LeastSquares,
    Projection,
    VariableGenes,
    standardized,
)
from terrazzo.slices import Slice

if TYPE_CHECKING:
    from terrazzo.models.states import States

__all__ = [
    "KINDS",
    "WITHIN_1_HOP",
    "WITHIN_3_HOPS",
    "Baseline",
    "Kind",
    "fit_baselines",
    "neighbor_mean",
    "unit",
]

WITHIN_1_HOP = 6  # neighbors within one hop on a hexagonal lattice

WITHIN_3_HOPS = 36

N_SCALED = 30  # states at each of three scales

ROWS = 20_000  # cells whose neighbors are searched together

Project = Callable[[Slice], Vectors]  # vectors of the single cells of a slice


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
    return neighbor_mean(components[:, :N_COMPONENTS], coords, WITHIN_3_HOPS)


def _own_and_smoothed(components: Vectors, coords: Floats) -> Vectors:
    return np.hstack([unit(components), unit(_smoothed(components, coords))])


def _own_and_rings(components: Vectors, coords: Floats) -> Vectors:
    from terrazzo.models.states import in_rings

    return in_rings(components[:, :N_COMPONENTS], coords)


def _roots_in_rings(shares: Vectors, coords: Floats) -> Vectors:
    from terrazzo.models.states import in_rings

    return np.sqrt(in_rings(shares, coords))


def _variance(slices: Sequence[Slice], n_components: int, seed: int) -> Project:
    return Projection.fit(slices, n_components, seed=seed)


def _genes(slices: Sequence[Slice], n_components: int, seed: int) -> Project:
    return VariableGenes(tuple(chosen_genes(slices, "variance")))


def _pearson(slices: Sequence[Slice], n_components: int, seed: int) -> Project:
    return Projection.fit(slices, n_components, choose="autocorrelation", pearson=True, seed=seed)


def _by_slice(slices: Sequence[Slice], n_components: int, seed: int) -> Projection:
    return Projection.fit(slices, n_components, choose="autocorrelation", own_scale=True, seed=seed)


def _half_shrunk(slices: Sequence[Slice], n_components: int, seed: int) -> Project:
    """Fit components with half of each slice's own mean taken out; zeros where there are fewer directions."""
    expression = Expression.fit(slices, HALF, n_components=n_components)
    n_genes, n_found = expression.directions.shape
    padding = np.zeros((n_genes, n_components - n_found))
    return replace(expression, directions=np.hstack([expression.directions, padding]))


@dataclass(frozen=True)
class _StateShares:
    """Shares of 60 states of each cell, by its components; 0 for states that there are not."""

    project: Project
    states: States

    def __call__(self, tissue: Slice) -> Vectors:
        from terrazzo.models.states import N_STATES

        components = self.project(tissue)
        found = self.states(components[:, :N_COMPONENTS])
        n_cells, n_found = found.shape
        shares = np.zeros((n_cells, N_STATES), dtype=np.float32)
        shares[:, :n_found] = found
        return shares


@dataclass(frozen=True)
class _ScaledShares:
    """Shares of 30 states of each cell at each of three scales, by its components; 0 for states that there are not."""

    project: Project
    states: tuple[States, ...]

    def __call__(self, tissue: Slice) -> Vectors:
        from terrazzo.models.states import at_scales

        components = self.project(tissue)[:, :N_COMPONENTS]
        scaled = at_scales(components, tissue.coords)
        shares = np.zeros((tissue.n_cells, len(scaled) * N_SCALED), dtype=np.float32)
        for scale, (states, values) in enumerate(zip(self.states, scaled, strict=True)):
            found = states(values)
            first = scale * N_SCALED
            shares[:, first : first + found.shape[1]] = found
        return shares


def _least_squares(project: Project, slices: Sequence[Slice], seed: int) -> Project:
    """Take components from the genes that a slice has."""
    if not isinstance(project, Projection):
        raise TypeError("only components of a projection have a least-squares estimate")
    return LeastSquares(project)


def _states(project: Project, slices: Sequence[Slice], seed: int) -> Project:
    """Fit states on the first components of all cells."""
    from terrazzo.models.states import States

    components = [project(tissue)[:, :N_COMPONENTS] for tissue in slices]
    return _StateShares(project, States.fit(np.concatenate(components), seed=seed))


def _scaled_states(project: Project, slices: Sequence[Slice], seed: int) -> Project:
    """Fit states at three scales on components that are estimated by least squares."""
    from terrazzo.models.states import SCALES, States, at_scales

    clean = _least_squares(project, slices, seed)
    by_slice = []
    for tissue in slices:
        components = clean(tissue)[:, :N_COMPONENTS]
        by_slice.append(at_scales(components, tissue.coords))
    fitted = []
    for scale in range(len(SCALES)):
        cells = np.concatenate([scaled[scale] for scaled in by_slice])
        fitted.append(States.fit(cells, n_states=N_SCALED, seed=seed))
    return _ScaledShares(clean, tuple(fitted))


@dataclass(frozen=True)
class Kind:
    """One kind of baseline.

    Attributes
    ----------
    title
        For tables.
    combine
        Called with the vectors of a slice's single cells and their coordinates; returns the baseline's vectors.
    fit
        Called with slices, the number of components and a seed; returns what makes vectors of single cells.
    refine
        Called with what ``fit`` returned, the slices and the seed; returns what makes vectors of single cells in its
        place. None: nothing.
    z_scores
        The vectors of each slice are brought to mean 0 and sd 1.
    joint
        In tables it is fitted on the slice that is scored, too, without labels.
    """

    title: str
    combine: Callable[[Vectors, Floats], Vectors]
    fit: Callable[[Sequence[Slice], int, int], Project] = _variance
    refine: Callable[[Project, Sequence[Slice], int], Project] | None = None
    z_scores: bool = False
    joint: bool = False


_CLEAN_T1 = Kind("T1, clean loadings", _smoothed, _by_slice, _least_squares)

_CLEAN_T3 = Kind("T3, clean loadings", _own_and_rings, _by_slice, _least_squares)

_CLEAN_T4 = Kind("T4 at three scales, clean loadings", _roots_in_rings, _by_slice, _scaled_states)

KINDS = {
    "expression": Kind("Expression of variable genes", _own, _genes),
    "pca": Kind("PCA", _own),
    "pca-nb1": Kind("PCA + neighbor mean, 1 hop", _one_hop),
    "pca-nb3": Kind("PCA + neighbor mean, 3 hops", _three_hops),
    "pca-concat": Kind("[PCA ; 1 hop ; 3 hops]", _all_hops),
    "pearson": Kind("Pearson-residual PCA", _own, _pearson),
    "z50": Kind("Z50 (own cell)", _own, _by_slice),
    "t1": Kind("T1 (Z20, 3 hops)", _smoothed, _by_slice),
    "t2": Kind("T2 [Z50 ; T1]", _own_and_smoothed, _by_slice),
    "t3": Kind("T3 (Z20, rings)", _own_and_rings, _by_slice),
    "t4": Kind("T4 (bag of states)", _roots_in_rings, _by_slice, _states),
    "t1-half": Kind("T1, half-shrunk slice means", _smoothed, _half_shrunk, joint=True),
    "t1-clean": _CLEAN_T1,
    "t3-clean": _CLEAN_T3,
    "t4-clean": _CLEAN_T4,
    "t1-clean-z": replace(_CLEAN_T1, title="T1, clean loadings, z-scored by slice", z_scores=True),
    "t3-clean-z": replace(_CLEAN_T3, title="T3, clean loadings, z-scored by slice", z_scores=True),
    "t4-clean-z": replace(
        _CLEAN_T4, title="T4 at three scales, clean loadings, z-scored by slice", z_scores=True
    ),
}


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
        of five rings of its neighbors. ``t4``: square roots of the shares of 60 states (k-means of 20 components) of
        the cell and of its rings. ``t1-half``: ``t1`` with each gene's slice mean shrunk by half towards the mean of
        all slices that it is fitted on, and the deviation within slices. ``t1-clean``, ``t3-clean``: ``t1`` and ``t3``
        with loadings that stay as they were fitted, and components of another slice estimated by least squares from
        the genes that it has; ``t4-clean``: as ``t4``, of such components, with 30 states at each of three scales
        (means over 1, 7 and 19 cells). ``t1-clean-z``, ``t3-clean-z``, ``t4-clean-z``: these with mean 0 and sd 1
        on each slice.
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
        self._project: Project | None = None

    @property
    def default_key(self) -> str:
        """Key that :meth:`embed` writes: ``X_pca``, ``X_t3``, ..."""
        return keys.baseline_key(self.name)

    @property
    def genes(self) -> tuple[str, ...]:
        """The genes that it was fitted on, ids or symbols; () before."""
        project: Any = self._project
        while project is not None and not hasattr(project, "genes"):
            project = getattr(project, "project", None) or getattr(project, "projection", None)
        return () if project is None else tuple(project.genes)

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
        kind = KINDS[self.name]
        project = self._project or self._fitted([tissue])
        combined = kind.combine(project(tissue), tissue.coords)
        if kind.z_scores:
            combined = standardized(combined, combined.mean(axis=0), combined.std(axis=0))
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
            A slice that cannot be used, that has none of the genes, or too few for ``t1-clean`` and its like.
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
        if self._project is not None:
            _digest_fields(digest, self._project)
        return digest.hexdigest()

    def _fitted(self, tissues: Sequence[Slice], project: Project | None = None) -> Project:
        """Return what makes vectors of single cells, fitted on slices; ``project``: of the kind's ``fit``."""
        kind = KINDS[self.name]
        if project is None:
            project = kind.fit(tissues, self.n_components, self.seed)
        if kind.refine is None:
            return project
        return kind.refine(project, tissues, self.seed)

    def _set(self, project: Project, tissues: Sequence[Slice]) -> None:
        self._project = project
        self.fitted_on = tuple(tissue.name for tissue in tissues)


def _digest_fields(digest: Any, value: Any) -> None:
    """Feed what was fitted to a digest: arrays as bytes, all else as text."""
    for one in fields(value):
        content = getattr(value, one.name)
        if is_dataclass(content):
            _digest_fields(digest, content)
        elif isinstance(content, tuple) and content and is_dataclass(content[0]):
            for part in content:
                _digest_fields(digest, part)
        elif isinstance(content, np.ndarray):
            digest.update(np.ascontiguousarray(content).tobytes())
        else:
            digest.update(json.dumps(content).encode())


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
    projections: dict[Any, Project] = {}
    fitted = {}
    for name in names:
        baseline = Baseline(name, n_components=n_components, seed=seed)
        fit = KINDS[name].fit
        if fit not in projections:
            projections[fit] = fit(tissues, n_components, seed)
        baseline._set(baseline._fitted(tissues, projections[fit]), tissues)
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
