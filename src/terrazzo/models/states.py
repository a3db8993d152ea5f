"""States of cells, and their means over rings of neighbors: what a cell's surroundings consist of.

A state is a cluster of cells by their own expression. A mean of components forgets of what a neighborhood consists; a
mean of states does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.models.projections import standardized

__all__ = [
    "N_STATES",
    "RINGS",
    "SCALES",
    "States",
    "at_scales",
    "in_rings",
    "nearest_in_rings",
    "ring_means",
    "standardized_alone",
]

RINGS = (0, 6, 18, 36, 90, 216)  # neighbors up to each ring's outer edge

SCALES = (1, 7, 19)  # nearest cells, the cell itself counted, whose mean components have states

N_STATES = 60

MAX_FIT = 30_000  # cells that states are fitted on

ROWS = 20_000  # cells whose neighbors are searched together

SHARPNESS = 2.0  # of the soft assignment


@dataclass(frozen=True)
class States:
    """Soft states of cells: k-means centers and the width of the assignment.

    Attributes
    ----------
    centers
        float32 ``(n_states, n_components)``.
    width
        Mean squared distance of a cell to its nearest center.
    """

    centers: Vectors
    width: float

    @classmethod
    def fit(cls, components: Vectors, *, n_states: int = N_STATES, seed: int = 0) -> States:
        """Cluster cells by their components.

        Parameters
        ----------
        components
            ``(n_cells, n_components)``; of more than 30,000 cells a random sample is used.
        n_states
            Number of states; fewer where there are fewer distinct cells.
        seed
            Of the sample and of k-means.
        """
        from sklearn.cluster import KMeans

        rng = np.random.default_rng(seed)
        sample = components
        if len(components) > MAX_FIT:
            chosen = rng.choice(len(components), MAX_FIT, replace=False)
            rows = np.sort(chosen)
            sample = components[rows]
        sample = sample.astype(np.float64)
        distinct = np.unique(sample, axis=0)
        n_centers = min(n_states, len(distinct))
        model = KMeans(n_centers, n_init=1, random_state=seed).fit(sample)
        centers = model.cluster_centers_.astype(np.float32)
        variance = float(sample.var())
        least_width = 1e-6 * variance + 1e-12
        mean_squared = float(model.inertia_) / len(sample)
        width = max(mean_squared, least_width)
        return cls(centers, width)

    def __call__(self, components: Vectors) -> Vectors:
        """Return each cell's share of each state, float32 ``(n_cells, n_states)``; rows sum to 1.

        Weights are ``exp(-2 (d^2 - min d^2) / width)`` with ``d`` the distance to a center.
        """
        centers = self.centers.astype(np.float64)
        center_norm = (centers**2).sum(axis=1)
        shares = np.empty((len(components), len(centers)), dtype=np.float32)
        for start in range(0, len(components), ROWS):
            part = components[start : start + ROWS].astype(np.float64)
            squared = center_norm - 2 * part @ centers.T  # but for the cell's own norm
            least = squared.min(axis=1, keepdims=True)
            above_least = squared - least
            weight = np.exp(-SHARPNESS * above_least / self.width)
            total = weight.sum(axis=1, keepdims=True)
            shares[start : start + ROWS] = weight / total
        return shares


def nearest_in_rings(
    coords: Floats, rows: Ints | None = None, n_rows: int = ROWS
) -> Iterator[tuple[slice, Int32s]]:
    """Yield the neighbors of some cells at a time.

    Parameters
    ----------
    coords
        ``(n_cells, 2)``.
    rows
        Cells whose neighbors are wanted; None for all.
    n_rows
        Cells at a time.

    Yields
    ------
    Place among the wanted cells, and int32 ``(cells, up to 217)``: the cell itself, then its neighbors, the nearest
    first.
    """
    tree = cKDTree(coords)
    wanted = coords if rows is None else coords[rows]
    n_nearest = min(RINGS[-1] + 1, len(coords))
    ranks = list(range(1, n_nearest + 1))
    for start in range(0, len(wanted), n_rows):
        stop = min(start + n_rows, len(wanted))
        part = slice(start, stop)
        _, index = tree.query(wanted[part], k=ranks, workers=-1)
        yield part, np.asarray(index, dtype=np.int32)


def at_scales(components: Vectors, coords: Floats) -> tuple[Vectors, ...]:
    """Return components of cells averaged over 1, 7 and 19 nearest cells, each column standardized over the slice.

    A single cell is noisy and the mean of many is blurred: which scale tells more depends on the platform. Components
    shrink where counts are few; standardized, they do not.

    Parameters
    ----------
    components
        float32 ``(n_cells, m)``, of all cells of a slice.
    coords
        ``(n_cells, 2)``.

    Returns
    -------
    One float32 ``(n_cells, m)`` a scale.
    """
    contiguous = np.ascontiguousarray(components)
    parts: list[list[Vectors]] = [[] for _ in SCALES]
    for _, index in nearest_in_rings(coords):
        for scale, n_nearest in enumerate(SCALES):
            near = contiguous[index[:, :n_nearest]]
            parts[scale].append(near.mean(axis=1))
    return tuple(standardized_alone(np.concatenate(part)) for part in parts)


def standardized_alone(values: Vectors) -> Vectors:
    """Return values whose columns have mean 0 and sd 1; 0 where they do not vary."""
    return standardized(values, values.mean(axis=0), values.std(axis=0))


def in_rings(values: Vectors, coords: Floats) -> Vectors:
    """Return :func:`ring_means` of all cells of a slice, float32 ``(n_cells, 6 m)``."""
    parts = [ring_means(values, index) for _, index in nearest_in_rings(coords)]
    return np.concatenate(parts)


def ring_means(values: Vectors, index: Int32s) -> Vectors:
    """Return each cell's own values and their means over five rings (1-6, 7-18, 19-36, 37-90, 91-216), side by side.

    Parameters
    ----------
    values
        float32 ``(n_cells, m)``.
    index
        From :func:`nearest_in_rings`: one row a cell that is wanted.

    Returns
    -------
    float32 ``(wanted, 6 m)``; a ring that the slice is too small for is 0.
    """
    last_places = np.array((-1, *RINGS))
    first_places = last_places + 1
    edges = np.minimum(first_places, index.shape[1])
    contiguous = np.ascontiguousarray(values, dtype=np.float32)
    return _ring_means(contiguous, index, edges)


@numba.njit(cache=True)
def _ring_means(
    values: Vectors, index: Int32s, edges: Ints
) -> Vectors:  # pragma: no cover - compiled
    n_values = values.shape[1]
    n_rings = len(edges) - 1
    out = np.zeros((len(index), n_rings * n_values), dtype=np.float32)
    total = np.zeros(n_values)
    for cell in range(len(index)):
        for ring in range(n_rings):
            first = edges[ring]
            last = edges[ring + 1]
            if last <= first:
                continue
            total[:] = 0
            for place in range(first, last):
                neighbor = index[cell, place]
                for j in range(n_values):
                    total[j] += values[neighbor, j]
            for j in range(n_values):
                out[cell, ring * n_values + j] = total[j] / (last - first)
    return out
