"""Lattices of spots: numbers on an array, distances of neighbors, and the shape that positions form.

Nothing here knows what a platform is; :mod:`terrazzo.slices.units` weighs what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from terrazzo import keys
from terrazzo.arrays import Floats, Ints, Vectors

__all__ = [
    "DIAGONAL_STEPS",
    "HEX_STEPS",
    "SQUARE_STEPS",
    "Positions",
    "is_lattice_itself",
    "lattice_distance",
    "nearest_distance",
    "numbers_of",
    "read_lattice",
    "step_distance",
    "step_spread",
]

HEX_STEPS = ((0, 2), (1, 1), (1, -1))  # (row, column) to the six neighbors, on a staggered array
DIAGONAL_STEPS = ((1, 1), (1, -1))
SQUARE_STEPS = ((0, 1), (1, 0))
_SAMPLE = 20_000  # places whose neighbors are looked at where there are more
_ORDERED = 0.8  # order of the directions to neighbors from which they form a lattice
_DISORDERED = 0.5  # ... and below which they do not form the other one
_NEAR = 1.25  # times the typical distance: as near are the neighbors of a lattice
_SPREAD = 0.3  # what counts as the typical distance, as a share of it
_LEAST_PLACES = 9  # fewer form nothing


class Positions:
    """What can be measured on the coordinates of a slice, in their own unit; each only when it is looked at.

    Parameters
    ----------
    native
        float64 (n, 2), finite.
    """

    def __init__(self, native: Floats) -> None:
        self.native = native

    @cached_property
    def places(self) -> Floats:
        """Distinct positions, float64 (m, 2)."""
        table = pd.DataFrame(self.native)
        return np.asarray(table.drop_duplicates().to_numpy(dtype=np.float64))

    @property
    def n_places(self) -> int:
        """Number of distinct positions."""
        return len(self.places)

    @cached_property
    def extent(self) -> float:
        """The longer side of the box around all positions."""
        if not len(self.native):
            return 0.0
        return float(np.ptp(self.native, axis=0).max())

    @cached_property
    def _neighbors(self) -> tuple[Floats, Ints, Ints]:
        """Distances and numbers of the six nearest of some places, and the numbers of these places."""
        step = max(1, self.n_places // _SAMPLE)
        sample = np.arange(0, self.n_places, step)
        n_queried = min(7, self.n_places)
        # built fast: few places are asked about
        tree = cKDTree(self.places, balanced_tree=False, compact_nodes=False)
        distance, index = tree.query(self.places[sample], k=n_queried)
        return distance[:, 1:], index[:, 1:], sample

    @cached_property
    def spacing(self) -> float:
        """Median distance to the nearest other position; 0 where there is none."""
        if self.n_places < 2:
            return 0.0
        distance, _, _ = self._neighbors
        return float(np.median(distance[:, 0]))

    @cached_property
    def spread(self) -> float:
        """How much distances to the nearest vary, as a share of their mean: about 0.5 of positions at random."""
        if self.n_places < 2:
            return 0.0
        distance, _, _ = self._neighbors
        nearest = distance[:, 0]
        return float(nearest.std() / nearest.mean())

    @cached_property
    def shape(self) -> str | None:
        """The lattice that the positions form, turned by any angle: "hex", "square", or None."""
        if self.n_places < _LEAST_PLACES:
            return None
        distance, index, sample = self._neighbors
        nearest = distance[:, 0]
        is_typical = np.abs(nearest - self.spacing) < _SPREAD * self.spacing
        if is_typical.mean() < _ORDERED:
            return None
        is_near = distance < _NEAR * self.spacing
        steps = self.places[index] - self.places[sample][:, None]
        dx, dy = steps[is_near].T
        angle = np.arctan2(dy, dx)
        square = _order(angle, 4)
        hexagonal = _order(angle, 6)
        if square >= _ORDERED and hexagonal < _DISORDERED:
            return "square"
        if hexagonal >= _ORDERED and square < _DISORDERED:
            return "hex"
        return None

    @cached_property
    def is_whole(self) -> bool:
        """Whether all coordinates are whole numbers, or differ by whole numbers."""
        if self.n_places < 2:
            return False
        steps = self.places - self.places[0]
        return bool(np.abs(steps - np.rint(steps)).max() < 1e-6)


def _order(angle: Vectors | Floats, fold: int) -> float:
    """Return how well directions agree up to turns by a part of a circle: 1 fully, 0 not at all."""
    if not len(angle):
        return 0.0
    phases = np.exp(1j * fold * angle)
    return float(np.abs(phases.mean()))


def nearest_distance(coords: Floats) -> float:
    """Return the median distance to the nearest cell at another position; 1.0 where all cells share one position.

    Parameters
    ----------
    coords
        float64 (n, 2), finite.
    """
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return 1.0
    distance, _ = cKDTree(places).query(places, k=2)
    nearest = distance[:, 1]
    apart = nearest[nearest > 0]  # the square of a tiny distance is 0
    return float(np.median(apart)) if len(apart) else 1.0


def lattice_distance(coords: Floats, n_neighbors: int) -> float | None:
    """Return the pitch of coordinates on a lattice with so many nearest neighbors; None where they are on none."""
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return None
    n_queried = min(n_neighbors + 1, len(places))
    distance, _ = cKDTree(places).query(places, k=n_queried)
    distance = distance[:, 1:]  # without the place itself
    nearest = distance[:, 0]
    typical = float(np.median(nearest))
    is_on_lattice = np.abs(nearest - typical) < _SPREAD * typical
    if is_on_lattice.mean() < _ORDERED:
        return None
    neighbors = distance[distance < _NEAR * typical]
    return float(np.median(neighbors))


def numbers_of(column: pd.Series) -> Floats:
    """Return the numbers of a column, float64 ``(n,)``; NaN for what is not a number or has too many digits for one."""
    is_number = column.dtype.kind in "biuf"
    values = column if is_number else column.astype(object).map(_word_of)
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _word_of(value: object) -> str:
    # pandas takes any word; of objects, some mixtures of whole numbers beyond 64 bits and text make it fail
    return str(int(value)) if isinstance(value, bool) else str(value)


def read_lattice(obs: pd.DataFrame) -> Ints | None:
    """Return (row, col), int64 (n, 2), None where the columns are not there or not whole numbers."""
    if keys.ARRAY_ROW not in obs.columns or keys.ARRAY_COL not in obs.columns:
        return None
    columns = []
    for name in (keys.ARRAY_ROW, keys.ARRAY_COL):
        columns.append(numbers_of(obs[name]))
    values = np.stack(columns, axis=1)
    is_usable = np.isfinite(values) & (np.abs(values) < 2**31) & (values == np.rint(values))
    return values.astype(np.int64) if is_usable.all() else None


def step_distance(lattice: Ints, xy: Floats, steps: Sequence[tuple[int, int]]) -> float | None:
    """Return the median distance of the spots that are one of ``steps`` (row, col) apart; None if there are none."""
    every = np.concatenate(_step_lengths(lattice, xy, steps))
    median = float(np.median(every)) if len(every) else 0.0
    return median if median > 0 else None


def step_spread(lattice: Ints, xy: Floats, steps: Sequence[tuple[int, int]]) -> float:
    """Return how much distances along one step vary, as a share of their median: the most of all ``steps``.

    0 on a lattice that was computed; some percent where spots were found on a picture.
    """
    spreads = [0.0]
    for lengths in _step_lengths(lattice, xy, steps):
        median = float(np.median(lengths)) if len(lengths) else 0.0
        if median > 0:
            spreads.append(float(lengths.std()) / median)
    return max(spreads)


def _step_lengths(lattice: Ints, xy: Floats, steps: Sequence[tuple[int, int]]) -> list[Floats]:
    """Return the distances of all spots that are one step (row, col) apart, for each of ``steps``."""
    rows, columns = (lattice - lattice.min(axis=0)).T
    width = int(columns.max()) + 5  # wide enough that a step never wraps into the next row
    codes = (rows + 2) * width + columns + 2
    codes, spots = np.unique(codes, return_index=True)
    places = xy[spots]
    last = len(codes) - 1
    distances = []
    for row_step, column_step in steps:
        wanted = codes + row_step * width + column_step
        position = np.searchsorted(codes, wanted)
        position = np.minimum(position, last)
        has_neighbor = codes[position] == wanted
        neighbors = position[has_neighbor]
        apart = places[has_neighbor] - places[neighbors]
        distances.append(np.linalg.norm(apart, axis=1))
    return distances


def is_lattice_itself(native: Floats, lattice: Ints) -> bool:
    """Say whether the coordinates are the numbers of the lattice."""
    xy = np.abs(native)
    rows_columns = np.abs(lattice)
    columns_rows = rows_columns[:, ::-1]
    return np.array_equal(xy, rows_columns) or np.array_equal(xy, columns_rows)
