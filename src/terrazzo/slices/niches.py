"""A spot and its nearest neighbors: the niche of ST-Align (section 3.1), its mean expression and its box on the image.

Arrays only. Positions and lengths are micrometers wherever crops are cut; niches themselves need no unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.errors import ConfigError, InputError

__all__ = ["Niches", "find_niches", "spot_boxes", "spot_diameter"]

_TIE = 1e-6  # distances that differ by less than this share are equal: a turned or scaled lattice stays one
_CANDIDATES = 8  # queried beyond the K nearest, so that ties are seen
_CHUNK = 2**22  # candidates at once
_SPOT_UM = {"visium": 55.0, "st": 100.0, "slideseq": 10.0}
_NAMES = {
    "st1k": "st",
    "st2k": "st",
    "legacyst": "st",
    "spatialtranscriptomics": "st",
    "slideseqv2": "slideseq",
}


@dataclass(frozen=True, eq=False)
class Niches:
    """The members of each spot's niche.

    Attributes
    ----------
    members
        int64 (n, K + 1): the spot itself, then its neighbors, nearest first; -1 where there is none.
    """

    members: Ints

    def __len__(self) -> int:
        return len(self.members)

    @property
    def sizes(self) -> Ints:
        """Members of each niche, the spot included, int64 (n,)."""
        return np.count_nonzero(self.members >= 0, axis=1)

    def averaging(self, rows: Ints | None = None) -> sparse.csr_matrix:
        """Return the matrix that averages, float64 CSR (rows, n): row i has 1 / |N(i)| at the members of i."""
        members = self.members if rows is None else self.members[rows]
        is_member = members >= 0
        indices = members[is_member]
        sizes = is_member.sum(axis=1)
        ends = np.cumsum(sizes)
        indptr = np.concatenate([[0], ends])
        weight = 1.0 / np.maximum(sizes, 1)
        weights = np.repeat(weight, sizes)
        shape = (len(members), len(self))
        return sparse.csr_matrix((weights, indices, indptr), shape=shape)

    def mean(
        self, values: sparse.csr_matrix | NDArray[Any], rows: Ints | None = None
    ) -> sparse.csr_matrix | Vectors:
        """Average over each niche, the target spot included (eq 2), without ever making sparse values dense.

        Parameters
        ----------
        values
            (n, g): genes, CSR or dense.
        rows
            Niches wanted, in this order; None: all.

        Returns
        -------
        float32 (rows, g), CSR where ``values`` are.

        Raises
        ------
        InputError
            Values of another number of spots.
        """
        if values.shape[0] != len(self):
            raise InputError(
                f"values have {values.shape[0]} rows for {len(self)} spots; give one row a spot."
            )
        out = self.averaging(rows) @ values
        if not sparse.issparse(out):
            return np.asarray(out, dtype=np.float32)
        out = sparse.csr_matrix(out, dtype=np.float32)
        out.sort_indices()
        return out

    def boxes(self, coords: Floats, diameter: float, *, square: bool = False) -> Floats:
        """Return the box that covers the discs of each niche's spots, float64 (n, 4): left, top, right, bottom.

        Parameters
        ----------
        coords
            float64 (n, 2), in the unit of ``diameter``.
        diameter
            Of a spot; see :func:`spot_diameter`.
        square
            Widen the shorter side, about the center of the box, so that a crop keeps its proportions.
        """
        _check_diameter(diameter)
        radius = diameter / 2
        spots = np.arange(len(self))[:, None]
        members = np.where(self.members >= 0, self.members, spots)
        places = coords[members]
        low = places.min(axis=1) - radius
        high = places.max(axis=1) + radius
        if square:
            center = (low + high) / 2
            sides = high - low
            half = sides.max(axis=1, keepdims=True) / 2
            low = center - half
            high = center + half
        return np.concatenate([low, high], axis=1)


def find_niches(coords: Floats, k: int = 3, *, reach: float | None = None) -> Niches:
    """Find the K nearest neighbors of each spot (eq 1).

    On a lattice more than K neighbors may be equally near. Of those the one with the smaller y is taken first, then
    the one with the smaller x, then the earlier row: the result depends on no order of the rows, save for spots that
    share one place, and on no threads.

    Parameters
    ----------
    coords
        float64 (n, 2).
    k
        Neighbors beside the spot itself; fewer where there are not as many spots.
    reach
        Distance beyond which a spot is no neighbor, in the unit of ``coords``; None: as the paper, however far.

    Raises
    ------
    ConfigError
        A negative ``k``, or a ``reach`` that is not positive.
    InputError
        Positions that are not (n, 2) or not finite.
    """
    is_whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not is_whole or k < 0:
        raise ConfigError(f"a niche has {k!r} neighbors; it must be a whole number of at least 0.")
    if reach is not None and not reach > 0:
        raise ConfigError(f"reach is {reach!r}; it must be a positive length, or None.")
    coords = np.asarray(coords, dtype=np.float64)
    is_plane = coords.ndim == 2 and coords.shape[1] == 2
    if not is_plane or not np.isfinite(coords).all():
        raise InputError(f"positions must be finite and (n, 2), x and y; got shape {coords.shape}.")
    n = len(coords)
    n_neighbors = min(int(k), max(n - 1, 0))
    members = np.full((n, k + 1), -1, dtype=np.int64)
    members[:, 0] = np.arange(n)
    if n_neighbors == 0:
        return Niches(members)
    tree = cKDTree(coords)
    pending = np.arange(n)
    n_candidates = n_neighbors + 1 + _CANDIDATES
    n_candidates = min(n, n_candidates)
    while len(pending):
        unsure = []
        step = max(1, _CHUNK // n_candidates)
        for start in range(0, len(pending), step):
            rows = pending[start : start + step]
            distance, index = tree.query(coords[rows], k=n_candidates)
            farthest = distance[:, -1]
            last_neighbor = distance[:, n_neighbors]
            tie = 1 + 2 * _TIE
            is_sure = farthest > last_neighbor * tie
            if n_candidates == n:
                is_sure[:] = True
            unsure.append(rows[~is_sure])
            rows = rows[is_sure]
            distance = distance[is_sure]
            index = index[is_sure]
            neighbors, apart = _nearest(coords, rows, distance, index, n_neighbors)
            if reach is not None:
                is_far = apart > reach * (1 + _TIE)
                neighbors[is_far] = -1
            members[rows, 1 : n_neighbors + 1] = neighbors
        pending = np.concatenate(unsure)
        n_candidates = min(n, 2 * n_candidates)
    return Niches(members)


def _nearest(
    coords: Floats,
    rows: Ints,
    distance: Floats,
    index: Ints,
    n_neighbors: int,
) -> tuple[Ints, Floats]:
    """Pick the neighbors of these rows out of candidates sorted by distance; return them and their distances."""
    gap = np.diff(distance, axis=1)
    is_farther = gap > _TIE * distance[:, 1:]
    first = np.zeros((len(rows), 1), dtype=np.int64)
    following = np.cumsum(is_farther, axis=1)
    rank = np.concatenate([first, following], axis=1)
    is_self = index == rows[:, None]
    rank[is_self] = -1  # the spot itself comes first, whoever shares its place
    farthest = distance[:, n_neighbors]
    unit = np.where(farthest > 0, farthest, 1.0)
    spots = coords[rows]
    offset = coords[index] - spots[:, None]
    unit = unit[:, None, None]
    place = np.rint(offset / unit / _TIE)
    x = place[..., 0]
    y = place[..., 1]
    order = np.lexsort((index, x, y, rank), axis=-1)
    order = order[:, 1 : n_neighbors + 1]
    neighbors = np.take_along_axis(index, order, axis=1)
    distances = np.take_along_axis(distance, order, axis=1)
    return neighbors, distances


def spot_boxes(coords: Floats, diameter: float) -> Floats:
    """Return the box of each spot's disc, float64 (n, 4): left, top, right, bottom, in the unit of ``diameter``."""
    _check_diameter(diameter)
    radius = diameter / 2
    return np.concatenate([coords - radius, coords + radius], axis=1)


def spot_diameter(
    technology: str, lattice_kind: str | None = None, spacing: float | None = None
) -> float:
    """Return the diameter of a platform's spots in micrometers.

    Visium 55, ST 100, Slide-seq 10; Visium HD the side of its bins, which is their ``spacing``.

    Parameters
    ----------
    technology, lattice_kind
        As a slice has them.
    spacing
        Distance of neighboring spots in micrometers.

    Raises
    ------
    ConfigError
        A platform that has no spots, or is not known here.
    """
    tag = re.sub(r"[^a-z0-9]", "", technology.lower())
    if "visiumhd" in tag and spacing is not None and spacing > 0:
        return float(spacing)
    name = _NAMES.get(tag, tag)
    diameter = _SPOT_UM.get(name)
    if diameter is None and lattice_kind is not None:
        diameter = _SPOT_UM.get(lattice_kind)
    if diameter is None or "visiumhd" in tag:
        raise ConfigError(
            f"the spots of {technology!r} have no known size; state their diameter in micrometers (spot_um=), or for "
            "single cells how much around a cell its crop shall show."
        )
    return diameter


def _check_diameter(diameter: float) -> None:
    is_length = np.isfinite(diameter) and diameter > 0
    if not is_length:
        raise ConfigError(f"the diameter of a spot is {diameter!r}; it must be a positive length.")
