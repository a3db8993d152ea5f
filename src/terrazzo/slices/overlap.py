"""Labels of cells, and whether cells of different labels overlap: by shared places, or by lying among each other."""

from __future__ import annotations

from dataclasses import dataclass

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

    def rows(self) -> list[Ints]:
        """Return the rows of each value, ascending."""
        order = np.argsort(self.codes, kind="stable")
        ends = np.searchsorted(self.codes[order], np.arange(len(self) + 1))
        return [order[ends[i] : ends[i + 1]] for i in range(len(self))]

    def in_blocks(self) -> bool:
        """Return whether the rows of each value follow each other, as :func:`anndata.concat` puts them."""
        changes = np.count_nonzero(np.diff(self.codes))
        return changes + 1 == len(self)

    def in_words(self) -> str:
        """Return the values for a message, shortened."""
        texts = []
        for value in self.values[:_SHOWN]:
            is_long = len(value) > _SHOWN_LETTERS
            texts.append(f"{value[: _SHOWN_LETTERS - 3]}..." if is_long else value)
        n_more = len(self) - _SHOWN
        if n_more > 0:
            texts.append(f"and {n_more} more")
        return ", ".join(texts)


def column_labels(column: pd.Series) -> Labels | None:
    """Return a column of ``obs`` as labels; None where its values cannot be compared."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.to_numpy().astype(np.int64)
        values = [str(value) for value in column.cat.categories]
    else:
        try:
            codes, uniques = pd.factorize(column)
        except TypeError:  # lists and the like
            return None
        values = [str(value) for value in uniques]
    used = np.unique(codes[codes >= 0])
    new_code = np.full(len(values) + 1, -1, dtype=np.int64)
    new_code[used] = np.arange(len(used))
    return Labels(new_code[codes], tuple(values[i] for i in used))


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
    def matters(self) -> bool:
        """Whether so many share it that it is no accident."""
        n_shared = int(self.shares.sum())
        return n_shared >= max(_LEAST, _SHARED * len(self.shares))

    def explained(self, labels: Labels) -> float:
        """Return the share of these cells whose group has each value of a column at most once."""
        group = self.group[self.shares]
        codes = labels.codes[self.shares]
        code = group * (len(labels) + 1) + codes + 1
        _, inverse, times = np.unique(code, return_inverse=True, return_counts=True)
        is_repeated = (times[inverse] > 1) | (codes < 0)
        n_groups = int(self.group.max()) + 1
        spoiled = np.zeros(n_groups, dtype=bool)
        spoiled[group[is_repeated]] = True
        return 1.0 - float(spoiled[group].mean())

    def largest(self) -> int:
        """Return the most cells that share one."""
        return int(np.bincount(self.group).max())

    def is_no_chance(self, labels: Labels) -> bool:
        """Return whether so many groups would hold a value twice if values were drawn at random."""
        codes = labels.codes[self.shares]
        frequency = np.bincount(codes[codes >= 0]) / max(len(codes), 1)
        n_groups = len(np.unique(self.group[self.shares]))
        return bool(n_groups * np.square(frequency).sum() >= _NO_CHANCE)

    @property
    def in_rounds(self) -> bool:
        """Whether the rows go through all of them once, then through all of them again."""
        group = pd.Series(self.group[self.shares])
        if group.nunique() < _ROUND:
            return False
        times = group.groupby(group).cumcount().to_numpy()
        return bool((np.diff(times) >= 0).all())

    def in_words(self) -> str:
        """Return how many cells share it."""
        n_shared = int(self.shares.sum())
        return f"{n_shared:,} of {len(self.shares):,} cells share {self.what} with others"


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
    places = [coords[rows] for rows in labels.rows()]
    lows = np.stack([one.min(axis=0) for one in places])
    highs = np.stack([one.max(axis=0) for one in places])
    for first, cells in enumerate(places):
        meets = (lows <= highs[first]).all(axis=1) & (highs >= lows[first]).all(axis=1)
        meets[first] = False
        if parents is not None:
            meets &= parents == parents[first]
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
    is_inside = (cells >= others.min(axis=0)) & (cells <= others.max(axis=0))
    inside = cells[is_inside.all(axis=1)]
    enough = min(max(_LEAST, least * len(cells)), len(cells))
    if len(inside) < enough:
        return 0.0
    surrounded = float(_surrounded(_some(inside), others).mean()) * len(inside)
    if surrounded < enough:
        return 0.0
    return surrounded / len(cells)


def _some(points: Floats) -> Floats:
    """Return at most so many points as are looked up, evenly from all."""
    step = -(-len(points) // _LOOKED_UP)
    return points[::step]


def _surrounded(points: Floats, others: Floats) -> Bools:
    """Return which points have others in all directions, within a few times the spacing of those."""
    tree = cKDTree(others)
    spacing = _spacing(tree, others)
    nearest = list(range(1, min(_NEIGHBORS, len(others)) + 1))
    distance, index = tree.query(points, k=nearest)
    away = others[index] - points[:, None]
    angle = np.arctan2(away[..., 1], away[..., 0])
    is_near = (distance > 0) & (distance <= _REACH * spacing)
    angle[~is_near] = np.nan
    angle = np.sort(angle, axis=1)  # those that are not near come last
    n_near = is_near.sum(axis=1)
    last = np.maximum(n_near - 1, 0)
    first_angle = angle[:, 0]
    last_angle = np.take_along_axis(angle, last[:, None], axis=1)[:, 0]
    widest = first_angle + 2 * np.pi - last_angle
    gaps = np.diff(angle, axis=1)
    for column in gaps.T:
        widest = np.fmax(widest, column)
    is_on_top = distance[:, 0] == 0
    return is_on_top | ((n_near >= 3) & (widest < _GAP))


def _spacing(tree: cKDTree, cells: Floats) -> float:
    """Return the median distance to the nearest cell at another place; 0 where there is none."""
    nearest = list(range(1, min(_NEIGHBORS, len(cells)) + 1))
    distance, _ = tree.query(_some(cells), k=nearest)
    apart = np.where(distance > 0, distance, np.inf).min(axis=1)
    known = apart[np.isfinite(apart)]
    return float(np.median(known)) if len(known) else 0.0
