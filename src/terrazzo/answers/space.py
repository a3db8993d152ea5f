"""Vectors in which regions are found: components of expression and states of cells, averaged over rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from terrazzo.arrays import AnyFloats, Floats, Int32s, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import (
    DIGITS,
    chosen_genes,
    gene_columns,
    log_counts,
    principal_directions,
)
from terrazzo.models.baselines import neighbor_mean
from terrazzo.models.states import States, nearest_in_rings, ring_means
from terrazzo.slices import Slice

__all__ = [
    "N_COMPONENTS",
    "Axes",
    "CellSpace",
    "Expression",
    "RegionSpace",
    "Tissue",
    "between_slices",
    "sampled_rows",
]

N_COMPONENTS = 20  # of expression, and of the vectors in which regions are found

LIMIT = 10.0  # standard deviations at which a gene is clipped

ROWS = 20_000  # cells that are made dense together

MAX_FIT = 50_000  # cells up to which directions are fitted on all of them

SAMPLE = 20_000  # cells of more that they are fitted on

MANY_CELLS = 300_000  # above, the seeds take turns, so that memory stays bounded

FLAT = 1e-6


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
            Directions; fewer where there are no more.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common, or none that varies.
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
        if not sd.any():
            raise InputError(
                "no gene of the slices varies; there is nothing to tell cells apart by."
            )
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


@dataclass(frozen=True)
class Axes:
    """States of one seed, and the directions of their ring means.

    Attributes
    ----------
    states
        Of single cells.
    component_scale, state_scale
        What the ring means of components and of states are divided by; the first is None where only states count.
    center, directions
        ``(m,)`` and ``(m, 20)``: of the ring means.
    """

    states: States
    component_scale: float | None
    state_scale: float
    center: Floats
    directions: Floats

    def project(self, components: Vectors, shares: Vectors, index: Int32s) -> Floats:
        """Return the vectors of some cells, ``(wanted, 20)``."""
        described = self.describe(components, shares, index).astype(np.float64)
        return (described - self.center) @ self.directions

    def describe(self, components: Vectors, shares: Vectors, index: Int32s) -> Vectors:
        """Return the ring means of some cells, float32 ``(wanted, m)``: square roots of states, after components."""
        blocks = []
        if self.component_scale is not None:
            blocks.append(ring_means(components, index) / self.component_scale)
        blocks.append(np.sqrt(ring_means(shares, index)) / self.state_scale)
        return np.hstack(blocks)


@dataclass(frozen=True)
class Tissue:
    """Single cells of one slice, and those of them that vectors are wanted of.

    Attributes
    ----------
    coords
        ``(n_cells, 2)``.
    components
        ``(n_cells, 20)``.
    rows
        Sorted; None for all.
    """

    coords: Floats
    components: Vectors
    rows: Ints | None = None

    @property
    def n_wanted(self) -> int:
        """Number of cells that vectors are wanted of."""
        return len(self.coords) if self.rows is None else len(self.rows)


@dataclass(frozen=True)
class RegionSpace:
    """Everything that makes vectors of cells: components of single cells, and for each seed states and directions."""

    expression: Expression
    axes: tuple[Axes, ...]

    @classmethod
    def fit(
        cls,
        slices: Sequence[Slice],
        expression: Expression,
        seeds: Sequence[int],
        *,
        joint: bool,
        rows: Sequence[Ints] | None = None,
    ) -> tuple[RegionSpace, list[list[Floats]]]:
        """Fit states and directions; return them, and for each seed the vectors of each slice.

        Parameters
        ----------
        slices
            Slices, at least one.
        expression
            Fitted on them.
        seeds
            Of the states.
        joint
            Ring means of components beside those of states, equal in mean norm.
        rows
            Cells of each slice that vectors are wanted of; None for all.
        """
        tissues = []
        for i, tissue in enumerate(slices):
            wanted = None if rows is None else rows[i]
            tissues.append(Tissue(tissue.coords, expression(tissue), wanted))
        axes = []
        vectors = []
        n_cells = sum(tissue.n_cells for tissue in slices)
        at_once = len(seeds) if n_cells <= MANY_CELLS else 1
        for first in range(0, len(seeds), at_once):
            group = _fit_axes(tissues, seeds[first : first + at_once], joint)
            axes.extend(group)
            vectors.extend(_project(tissues, group))
        return cls(expression, tuple(axes)), vectors

    def __call__(self, tissue: Slice) -> list[Floats]:
        """Return the vectors of a slice for each seed, float64 ``(n_cells, 20)``."""
        components = self.expression(tissue)
        by_seed = _project([Tissue(tissue.coords, components)], self.axes)
        return [vectors[0] for vectors in by_seed]


def _fit_axes(tissues: Sequence[Tissue], seeds: Sequence[int], joint: bool) -> list[Axes]:
    """Fit states and directions of some seeds."""
    stacked = np.concatenate([tissue.components for tissue in tissues])
    states = [States.fit(stacked, seed=seed) for seed in seeds]
    start = [Axes(one, 1.0, 1.0, np.zeros(0), np.zeros((0, 0))) for one in states]
    samples = _ring_samples(tissues, start)
    width = 6 * stacked.shape[1]
    axes = []
    for one in states:
        values = samples.pop(0).astype(np.float64)
        of_components = values[:, :width]
        of_states = values[:, width:]
        component_scale = None
        state_scale = 1.0
        if joint:
            component_scale = max(_mean_norm(of_components), 1e-12)
            state_scale = _mean_norm(of_states)
            values = np.hstack([of_components / component_scale, of_states / state_scale])
        else:
            values = of_states
        center = values.mean(axis=0)
        centered = values - center
        moment = centered.T @ centered / len(values)
        directions, _ = principal_directions(moment, N_COMPONENTS)
        axes.append(Axes(one, component_scale, state_scale, center, directions))
    return axes


def _mean_norm(values: Floats) -> float:
    return float(np.linalg.norm(values, axis=1).mean())


def _ring_samples(tissues: Sequence[Tissue], axes: Sequence[Axes]) -> list[Vectors]:
    """Return for each seed the ring means of the wanted cells, or of a random 20,000 of many."""
    samples: list[list[Vectors]] = [[] for _ in axes]
    chosen = sampled_rows([tissue.n_wanted for tissue in tissues])
    for i, tissue in enumerate(tissues):
        rows = tissue.rows
        if chosen is not None:
            rows = chosen[i] if rows is None else rows[chosen[i]]
        shares = [axis.states(tissue.components) for axis in axes]
        for _, index in nearest_in_rings(tissue.coords, rows):
            for axis, own_shares, sample in zip(axes, shares, samples, strict=True):
                sample.append(axis.describe(tissue.components, own_shares, index))
    return [np.concatenate(sample) for sample in samples]


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


def _project(tissues: Sequence[Tissue], axes: Sequence[Axes]) -> list[list[Floats]]:
    """Return for each seed the vectors of the wanted cells of each slice."""
    by_seed: list[list[Floats]] = [[] for _ in axes]
    for tissue in tissues:
        shares = [axis.states(tissue.components) for axis in axes]
        out = [np.empty((tissue.n_wanted, axis.directions.shape[1])) for axis in axes]
        for part, index in nearest_in_rings(tissue.coords, tissue.rows):
            for axis, own_shares, vectors in zip(axes, shares, out, strict=True):
                vectors[part] = axis.project(tissue.components, own_shares, index)
        for vectors, all_vectors in zip(out, by_seed, strict=True):
            all_vectors.append(np.round(vectors, DIGITS))  # so that another machine finds the same
    return by_seed


@dataclass(frozen=True)
class CellSpace:
    """Components of single cells, as they are or averaged over the cell and its nearest neighbors.

    Attributes
    ----------
    expression
        Components of single cells.
    n_neighbors
        36 are three hops on a hexagonal lattice; 0: the cell alone.
    """

    expression: Expression
    n_neighbors: int

    def __call__(self, tissue: Slice, rows: Ints | None = None) -> list[Floats]:
        """Return the vectors of a slice (or of some cells of it), float64 ``(n_cells, 20)``, in a list of one."""
        components = self.expression(tissue)
        means = neighbor_mean(components, tissue.coords, self.n_neighbors, rows)
        vectors: Floats = means.astype(np.float64)
        return [vectors.round(DIGITS)]


def between_slices(vectors: Sequence[AnyFloats]) -> float:
    """Return the share of the variance of vectors that is between slices; 0 for one slice."""
    if len(vectors) < 2:
        return 0.0
    stacked = np.concatenate(vectors)
    center = stacked.mean(axis=0)
    total = ((stacked - center) ** 2).sum()
    between = 0.0
    for part in vectors:
        between += len(part) * ((part.mean(axis=0) - center) ** 2).sum()
    return float(between / max(total, 1e-12))
