"""Labels of cells, and whether cells of different labels overlap: by shared places, or by lying among each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from terrazzo.arrays import Bools, Floats, Ints

__all__ = ["Labels", "Shared", "column_labels", "equal_names", "equal_points", "mixing", "sharing"]

_SHOWN = 5  # values in a message
_SHOWN_LETTERS = 40  # of each
_LEAST = 3  # cells that share a place, or lie among others
_SHARED = 0.05  # of the cells, that share a place: fewer are accidents
_NO_CHANCE = 5.0  # groups that would hold a value twice by chance
_ROUND = 10  # places of a round, or its order could be chance
_LOOKED_UP = 500  # cells of a section, that are looked up in another
_NEIGHBORS = 8
_REACH = 4.0  # spacings within which neighbors count
_GAP = 0.95 * np.pi  # between directions to neighbors; a cell at a border has a larger one


@dataclass(frozen=True, eq=False)
class Labels:
    """A column that divides cells.

    Attributes
    ----------
    codes
        int64 (n,): number of each cell's value; -1 where it has none.
    values
        The values that cells have, as texts; categories in their order, else as they first come.
    """

    codes: Ints
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def rows(self) -> list[Ints]:
        """The rows of each value, ascending."""
        order = np.argsort(self.codes, kind="stable")
        n_missing = np.count_nonzero(self.codes < 0)
        order = order[n_missing:]  # those without a value come first
        times = np.bincount(self.codes[order], minlength=len(self))
        ends = np.cumsum(times)
        return np.split(order, ends[:-1])

    def in_blocks(self) -> bool:
        """Return whether the rows of each value follow each other, as :func:`anndata.concat` puts them."""
        steps = np.diff(self.codes)
        n_changes = np.count_nonzero(steps)
        return n_changes + 1 == len(self)

    def in_words(self) -> str:
        """Return the values for a message, shortened."""
        texts = []
        for value in self.values[:_SHOWN]:
            if len(value) > _SHOWN_LETTERS:
                value = f"{value[:_SHOWN_LETTERS]}..."
            texts.append(value)
        n_more = len(self) - _SHOWN
        if n_more > 0:
            texts.append(f"and {n_more} more")
        return ", ".join(texts)


def column_labels(column: pd.Series) -> Labels | None:
    """Return a column of ``obs`` as labels; None where its values cannot be compared."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy()
        present = column.cat.categories
    else:
        try:
            codes, present = pd.factorize(column)
        except TypeError:  # lists and the like
            return None
    values = [str(value) for value in present]
    has_value = codes >= 0
    used = np.unique(codes[has_value])
    new_code = np.full(len(values) + 1, -1, dtype=np.int64)  # the last is that of no value
    new_code[used] = np.arange(len(used))
    used_values = [values[number] for number in used]
    return Labels(new_code[codes], tuple(used_values))


@dataclass(frozen=True, eq=False)
class Shared:
    """Cells that have something in common that cells of one section have for themselves.

    Attributes
    ----------
    what
        In words: "a place of the array".
    group
        int64 (n,): cells with the same number share it.
    shares
        bool (n,): not alone in its group.
    """

    what: str
    group: Ints
    shares: Bools

    @property
    def number(self) -> int:
        """How many cells share it."""
        return int(self.shares.sum())

    @property
    def matters(self) -> bool:
        """Whether so many share it that it is no accident."""
        least = _SHARED * len(self.shares)
        return self.number >= max(_LEAST, least)

    def explained(self, labels: Labels) -> float:
        """Return the share of these cells whose group has each value of a column at most once."""
        group = self.group[self.shares]
        codes = labels.codes[self.shares]
        n_codes = len(labels) + 1
        pair = group * n_codes + codes + 1
        _, inverse, times = np.unique(pair, return_inverse=True, return_counts=True)
        comes_again = times[inverse] > 1
        has_none = codes < 0
        spoiled = np.unique(group[comes_again | has_none])
        is_spoiled = np.isin(group, spoiled)
        return 1.0 - float(is_spoiled.mean())

    def largest(self) -> int:
        """Return the most cells that share one."""
        times = np.bincount(self.group)
        return int(times.max())

    def is_no_chance(self, labels: Labels) -> bool:
        """Return whether many groups would hold a value twice if values were drawn at random."""
        codes = labels.codes[self.shares]
        known = codes[codes >= 0]
        times = np.bincount(known)
        frequency = times / max(len(codes), 1)
        squares = np.square(frequency)
        same_twice = float(squares.sum())
        n_groups = len(np.unique(self.group[self.shares]))
        return n_groups * same_twice >= _NO_CHANCE

    @property
    def in_rounds(self) -> bool:
        """Whether the rows go through all of them once, then through all of them again."""
        group = pd.Series(self.group[self.shares])
        if group.nunique() < _ROUND:
            return False
        earlier = group.groupby(group).cumcount()
        return bool(earlier.is_monotonic_increasing)

    def in_words(self) -> str:
        """Return how many cells share it."""
        n_cells = len(self.shares)
        return f"{self.number:,} of {n_cells:,} cells share {self.what} with others"


def sharing(what: str, group: Ints) -> Shared:
    """Return which cells share something; ``group`` has a number for each cell, the same for those that do."""
    times = np.bincount(group)
    return Shared(what, group, times[group] > 1)


def equal_points(points: Floats) -> Ints:
    """Return a number for each point, the same for equal ones."""
    pairs = np.ascontiguousarray(points + 0.0)  # one zero
    as_complex = pairs.view(np.complex128).ravel()  # sorted in one go
    _, group = np.unique(as_complex, return_inverse=True)
    return np.asarray(group, dtype=np.int64).ravel()


def equal_names(names: pd.Index | pd.Series) -> Ints:
    """Return a number for each name, the same for equal ones."""
    codes, _ = pd.factorize(names)
    return np.asarray(codes, dtype=np.int64)


def mixing(coords: Floats, labels: Labels, least: float, parents: Ints | None = None) -> str:
    """Return in words how many cells of a section lie among those of another; "" where less than ``least`` do.

    With ``parents``, a number for each section, only sections of one parent are compared.
    """
    places = [coords[rows] for rows in labels.rows]
    lows = np.stack([one.min(axis=0) for one in places])
    highs = np.stack([one.max(axis=0) for one in places])
    for first, cells in enumerate(places):
        low = lows[first]
        high = highs[first]
        begins_before = (lows <= high).all(axis=1)
        ends_after = (highs >= low).all(axis=1)
        meets = begins_before & ends_after
        meets[first] = False
        if parents is not None:
            parent = parents[first]
            meets &= parents == parent
        for second in np.flatnonzero(meets).tolist():
            share = _share_among(cells, places[second], least)
            if share >= least:
                inner = labels.values[first]
                outer = labels.values[second]
                return f"{share:.0%} of the cells of {inner!r} lie among those of {outer!r}"
    return ""


def _share_among(cells: Floats, others: Floats, least: float) -> float:
    """Return the share of the cells of one section that have cells of another on all sides, near by.

    0 where too few are in the other's bounding box for that share to reach ``least``.
    """
    low = others.min(axis=0)
    high = others.max(axis=0)
    is_inside = (cells >= low) & (cells <= high)
    inside = cells[is_inside.all(axis=1)]
    n_cells = len(cells)
    enough = max(_LEAST, least * n_cells)
    enough = min(enough, n_cells)
    if len(inside) < enough:
        return 0.0
    surrounded = _surrounded(_some(inside), others)
    n_surrounded = float(surrounded.mean()) * len(inside)
    if n_surrounded < enough:
        return 0.0
    return n_surrounded / n_cells


def _some(points: Floats) -> Floats:
    """Return at most so many points as are looked up, evenly from all."""
    step = -(-len(points) // _LOOKED_UP)
    return points[::step]


def _surrounded(points: Floats, others: Floats) -> Bools:
    """Return which points have others in all directions, within a few times the spacing of those."""
    tree = cKDTree(others)
    reach = _REACH * _spacing(tree, others)
    distance, index = tree.query(points, k=_ranks(len(others)))
    away = others[index] - points[:, None]
    away_x = away[..., 0]
    away_y = away[..., 1]
    angle = np.arctan2(away_y, away_x)
    is_near = (distance > 0) & (distance <= reach)
    angle[~is_near] = np.nan
    n_near = is_near.sum(axis=1)
    has_several = n_near >= 3
    widest = _widest_gap(angle, n_near)
    is_around = has_several & (widest < _GAP)
    is_on_top = distance[:, 0] == 0
    return is_on_top | is_around


def _widest_gap(angle: Floats, n_near: Ints) -> Floats:
    """Return the widest gap between the directions of each row, of which the first so many are numbers when sorted."""
    ascending = np.sort(angle, axis=1)  # NaN come last
    first = ascending[:, 0]
    place_of_last = np.maximum(n_near - 1, 0)
    last = np.take_along_axis(ascending, place_of_last[:, None], axis=1)
    widest = first + 2 * np.pi - last[:, 0]
    gaps = np.diff(ascending, axis=1)
    for column in gaps.T:
        widest = np.fmax(widest, column)
    return widest


def _ranks(n_cells: int) -> list[int]:
    """Return which nearest cells are looked at: the first, the second, and so on."""
    n_ranks = min(_NEIGHBORS, n_cells)
    return list(range(1, n_ranks + 1))


def _spacing(tree: cKDTree, cells: Floats) -> float:
    """Return the median distance to the nearest cell at another place; 0 where there is none."""
    distance, _ = tree.query(_some(cells), k=_ranks(len(cells)))
    distance[distance == 0] = np.inf
    nearest = distance.min(axis=1)
    known = nearest[np.isfinite(nearest)]
    if not len(known):
        return 0.0
    return float(np.median(known))
