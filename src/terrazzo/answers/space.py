"""Vectors in which regions are found: components of expression and states of cells, averaged over rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terrazzo.arrays import AnyFloats, Floats, Int32s, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.models.baselines import neighbor_mean
from terrazzo.models.projections import N_COMPONENTS, Expression, sampled_rows
from terrazzo.models.states import States, nearest_in_rings, ring_means
from terrazzo.slices import Slice

__all__ = [
    "Axes",
    "CellSpace",
    "RegionSpace",
    "Tissue",
    "between_slices",
    "fit_expression",
]

MANY_CELLS = 300_000  # above, the seeds take turns, so that memory stays bounded


def fit_expression(slices: Sequence[Slice], own_share: float, **options: Any) -> Expression:
    """Fit components of expression (``options`` as of :meth:`terrazzo.models.projections.Expression.fit`).

    Raises
    ------
    InputError
        The slices have fewer than two genes in common, or none that varies.
    """
    expression = Expression.fit(slices, own_share, **options)
    if not expression.sd.any():
        raise InputError("no gene of the slices varies; there is nothing to tell cells apart by.")
    return expression


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
