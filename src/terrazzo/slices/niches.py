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

from terrazzo.errors import ConfigError, InputError

TIE = 1e-6  # distances that differ by less than this share are equal: a lattice that was turned or scaled is still one


_CANDIDATES = 8  # asked for beyond the K nearest, so that ties are seen


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

    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Members of each niche, the spot included, int64 (n,)."""
        return np.count_nonzero(self.members >= 0, axis=1)

    def averaging(self, rows: NDArray[np.int64] | None = None) -> sparse.csr_matrix:
        """Return the matrix that averages, float64 CSR (rows, n): row i has 1 / |N(i)| at the members of i."""
        members = self.members if rows is None else self.members[rows]
        there = members >= 0
        sizes = there.sum(axis=1)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        weights = np.repeat(1.0 / np.maximum(sizes, 1), sizes)
        return sparse.csr_matrix((weights, members[there], indptr), shape=(len(members), len(self)))

    def mean(
        self, values: sparse.csr_matrix | NDArray[Any], rows: NDArray[np.int64] | None = None
    ) -> sparse.csr_matrix | NDArray[np.float32]:
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

    def boxes(
        self, coords: NDArray[np.float64], diameter: float, *, square: bool = False
    ) -> NDArray[np.float64]:
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
        own = np.where(self.members >= 0, self.members, np.arange(len(self))[:, None])
        low, high = coords[own].min(axis=1) - diameter / 2, coords[own].max(axis=1) + diameter / 2
        if square:
            center, half = (low + high) / 2, (high - low).max(axis=1, keepdims=True) / 2
            low, high = center - half, center + half
        return np.concatenate([low, high], axis=1)


def find_niches(coords: NDArray[np.float64], k: int = 3, *, reach: float | None = None) -> Niches:
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
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 0:
        raise ConfigError(f"a niche has {k!r} neighbors; it must be a whole number of at least 0.")
    if reach is not None and not reach > 0:
        raise ConfigError(f"reach is {reach!r}; it must be a positive length, or None.")
    coords = np.asarray(coords, dtype=np.float64)
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.isfinite(coords).all():
        raise InputError(f"positions must be finite and (n, 2), x and y; got shape {coords.shape}.")
    n, near = len(coords), min(int(k), max(len(coords) - 1, 0))
    members = np.full((n, k + 1), -1, dtype=np.int64)
    members[:, 0] = np.arange(n)
    if near == 0:
        return Niches(members)
    tree, pending, asked = cKDTree(coords), np.arange(n), min(n, near + 1 + _CANDIDATES)
    while len(pending):
        unsure = []
        step = max(1, _CHUNK // asked)
        for start in range(0, len(pending), step):
            rows = pending[start : start + step]
            distance, index = tree.query(coords[rows], k=asked)
            sure = (distance[:, -1] > distance[:, near] * (1 + 2 * TIE)) | (asked == n)
            chosen, far = _nearest(coords, rows[sure], distance[sure], index[sure], near)
            if reach is not None:
                chosen[far > reach * (1 + TIE)] = -1
            members[rows[sure], 1 : near + 1] = chosen
            unsure.append(rows[~sure])
        pending, asked = np.concatenate(unsure), min(n, 2 * asked)
    return Niches(members)


def _nearest(
    coords: NDArray[np.float64],
    rows: NDArray[np.int64],
    distance: NDArray[np.float64],
    index: NDArray[np.int64],
    near: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pick the neighbors of these rows out of candidates sorted by distance; returns them and their distances."""
    apart = np.diff(distance, axis=1) > TIE * distance[:, 1:]
    rank = np.concatenate(
        [np.zeros((len(rows), 1), dtype=np.int64), np.cumsum(apart, axis=1)], axis=1
    )
    rank[index == rows[:, None]] = -1  # the spot itself comes first, whoever shares its place
    unit = np.where(distance[:, near] > 0, distance[:, near], 1.0)[:, None, None]
    place = np.rint((coords[index] - coords[rows][:, None]) / unit / TIE)
    order = np.lexsort((index, place[..., 0], place[..., 1], rank), axis=-1)[:, 1 : near + 1]
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(distance, order, axis=1)


def spot_boxes(coords: NDArray[np.float64], diameter: float) -> NDArray[np.float64]:
    """Return the box of each spot's disc, float64 (n, 4): left, top, right, bottom, in the unit of ``diameter``."""
    _check_diameter(diameter)
    return np.concatenate([coords - diameter / 2, coords + diameter / 2], axis=1)


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
    known = _SPOT_UM.get(name) or _SPOT_UM.get(lattice_kind or "")
    if known is None or "visiumhd" in tag:
        raise ConfigError(
            f"the spots of {technology!r} have no known size; state their diameter in micrometers (spot_um=), or for "
            "single cells how much around a cell its crop shall show."
        )
    return known


def _check_diameter(diameter: float) -> None:
    if not (np.isfinite(diameter) and diameter > 0):
        raise ConfigError(f"the diameter of a spot is {diameter!r}; it must be a positive length.")
