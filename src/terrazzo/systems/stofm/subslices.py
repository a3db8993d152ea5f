"""How a slice is divided into sub-slices of about 1,000 cells: balanced, or the published square grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints
from terrazzo.systems.stofm.virtual_cells import (
    VirtualCells,
    cluster_features,
    leiden_labels,
    virtual_cells,
)

CUT_TIE = 1e-7  # projections closer than this share of the extent count as equal: rounding must not move a cut


TIE_OFFSET = 0.3819660112501051  # keeps regular lattices off the edges of the rounding


def split_balanced(positions: Floats, size: int) -> list[Ints]:
    """Divide by recursive median cuts along the principal axis of each part.

    Parts are contiguous, turn with the slice, differ by few cells, and none holds more than ``size``.

    Parameters
    ----------
    positions
        ``(n, 2)``.
    size
        Largest number of cells in a part.

    Returns
    -------
    Index sets; every cell is in exactly one.
    """
    out: list[Ints] = []
    stack = [(np.arange(len(positions)), max(1, -(-len(positions) // size)))]
    while stack:
        index, parts = stack.pop()
        if parts == 1:
            out.append(np.sort(index))
            continue
        order = _along_principal_axis(positions[index])
        left = parts // 2
        cut = (len(index) * left) // parts
        stack.append((index[order[cut:]], parts - left))
        stack.append((index[order[:cut]], left))
    return out


def _along_principal_axis(points: Floats) -> Ints:
    """Order points along their first principal axis, ties along the second; the axes' signs follow the skewness."""
    centered = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    keys = []
    for axis in (axes[:, 0], axes[:, 1]):  # np.lexsort sorts by its last key first
        along = centered @ axis
        if np.sum(along**3) < 0:
            along = -along
        extent = max(float(np.ptp(along)), np.finfo(float).tiny)
        keys.append(np.floor(along / (extent * CUT_TIE) + TIE_OFFSET))
    return np.lexsort(keys)


def split_grid(positions: Floats, size: int) -> list[Ints]:
    """Divide into square tiles, as the published code does, mended so that no cell is lost.

    Tiles have the side ``sqrt(area / (n // size + 1))`` and are walked column by column. Upstream loses cells on the
    far border of some lattices (they go to the last tile here) and cuts tiles of ``2 * size`` cells and more by file
    order (:func:`split_balanced` cuts them here).

    Parameters
    ----------
    positions
        ``(n, 2)``, any unit.
    size
        Target number of cells in a part.
    """
    n = len(positions)
    low, extent = positions.min(axis=0), np.ptp(positions, axis=0)
    if n <= size or extent.max() == 0:
        return split_balanced(positions, max(size, 1)) if n > 2 * size else [np.arange(n)]
    pieces = n // size + 1
    line = extent.min() < extent.max() / n  # its area is next to nothing: tiles along it
    side = extent.max() / pieces if line else np.sqrt(np.prod(extent) / pieces)
    tiles = np.maximum(np.ceil(extent / side - 1e-9), 1)
    where = np.minimum(np.floor((positions - low) / side), tiles - 1).astype(np.int64)
    code = where[:, 0] * int(tiles[1]) + where[:, 1]
    order = np.argsort(code, kind="stable")
    bounds = np.flatnonzero(np.diff(code[order])) + 1
    out: list[Ints] = []
    for part in np.split(order, bounds):
        if len(part) < 2 * size:
            out.append(part)
        else:
            out.extend(part[inner] for inner in split_balanced(positions[part], size))
    return out


def halo_cells(positions: Floats, tree: cKDTree, core: Ints, width: float) -> Ints:
    """Return the cells outside ``core`` that are at most ``width`` from one of its cells.

    Parameters
    ----------
    positions
        ``(n, 2)``.
    tree
        Search tree over all positions.
    core
        Index set of the sub-slice.
    width
        In units of ``positions``.
    """
    points = positions[core]
    center = points.mean(axis=0)
    reach = float(np.sqrt(((points - center) ** 2).sum(axis=1).max())) + width
    near = np.setdiff1d(
        np.asarray(tree.query_ball_point(center, reach * (1 + 1e-9)), dtype=np.int64), core
    )
    if len(near) == 0:
        return near
    distance, _ = cKDTree(points).query(positions[near])
    return near[distance <= width * (1 + 1e-9)]


CELL, GRAPH, VIRTUAL = 0, 1, 2  # token types as published; 3 is padding


PUBLISHED_DIAGONAL = 100.0  # published geometry: the slice's bounding box has this diagonal


TIE = 1e-6  # neighbors as near as the last one, up to rounding, all count: a lattice has many


@dataclass(frozen=True)
class SubSliceConfig:
    """How a slice becomes sub-slices (Algorithm 1; table A.8).

    Attributes
    ----------
    geometry
        ``"um"``: micrometers divided by ``length_scale``; ``"published"``: bounding-box diagonal 100.
    length_scale
        Micrometers that count as distance 1 (``geometry="um"``).
    partition, subslice_size
        ``"balanced"`` or ``"grid"``, and the number of cells aimed at.
    halo
        Context around a sub-slice, in multiples of the slice's median spacing; 0 for none.
    n_neighbors
        Nearest neighbors with true distances (50 in the published code, which stores 49 and lets the graph token and
        the virtual cells take places; ``geometry="um"`` counts real cells only).
    pair
        ``"knn"``: other pairs are "far"; ``"full"``: all distances (the paper's text); ``"none"``: all pairs are far
        (ablation of table A.3).
    virtual
        Add virtual cells (False: ablation of table 5).
    alpha, mix, leiden_resolution, cluster_neighbors, max_clusters
        Macro scale, see :mod:`terrazzo.systems.stofm.virtual_cells`.
    """

    geometry: Literal["um", "published"] = "um"
    length_scale: float = 20.0
    partition: Literal["balanced", "grid"] = "balanced"
    subslice_size: int = 1000
    halo: float = 0.0
    n_neighbors: int = 50
    pair: Literal["knn", "full", "none"] = "knn"
    virtual: bool = True
    alpha: float = 0.8
    mix: Literal["concat", "sum"] = "concat"
    leiden_resolution: float = 1.0
    cluster_neighbors: int = 10
    max_clusters: int = 200

    def __post_init__(self) -> None:
        least = {
            "subslice_size": 1,
            "n_neighbors": 1,
            "cluster_neighbors": 2,
            "max_clusters": 1,
            "halo": 0.0,
        }
        for name, value in least.items():
            if not value <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be at least {value}, and finite."
                )
        if not (
            0 < self.length_scale < float("inf")
            and self.leiden_resolution > 0
            and 0 <= self.alpha <= 1
        ):
            raise ValueError(
                "length_scale and leiden_resolution must be positive, alpha between 0 and 1."
            )


@dataclass(frozen=True)
class SubSlice:
    """One sub-slice.

    Attributes
    ----------
    cells
        int64 ``(c,)``: cells of the slice behind the cell tokens, the sub-slice's own first, then its halo.
    n_core
        How many of them are the sub-slice's own: only these receive their vector here.
    n_virtual
        Number of virtual cells; tokens are ``1 + n_virtual + c``.
    positions
        float64 ``(tokens, 2)``; the graph token's is (0, 0) and has no meaning.
    row, col, distance
        Listed pairs, ``row < col``, token numbers above 0; float32 distances. Empty where ``full``.
    full
        Every pair has its true distance (``pair="full"``).
    """

    cells: Ints
    n_core: int
    n_virtual: int
    positions: Floats
    row: Ints
    col: Ints
    distance: NDArray[np.float32]
    full: bool = False

    @property
    def n_tokens(self) -> int:
        """Graph token, virtual cells and cells."""
        return 1 + self.n_virtual + len(self.cells)

    @property
    def token_types(self) -> Ints:
        """int64 ``(tokens,)``: 1 graph token, 2 virtual cell, 0 cell."""
        types = np.full(self.n_tokens, CELL, dtype=np.int64)
        types[0] = GRAPH
        types[1 : 1 + self.n_virtual] = VIRTUAL
        return types


def model_positions(coords: Floats, config: SubSliceConfig, scale: float = 1.0) -> Floats:
    """Return the positions that the model measures distances in, ``(n, 2)``.

    Parameters
    ----------
    coords
        Coordinates of the slice.
    config
        ``geometry`` decides: published = centered on the bounding box, diagonal 100; um = centered on the mean, divided
        by ``scale``.
    scale
        Length of one distance unit, in units of ``coords``.
    """
    if config.geometry == "published":
        low, high = coords.min(axis=0), coords.max(axis=0)
        diagonal = float(np.linalg.norm(high - low))
        return (coords - (low + high) / 2) * (
            PUBLISHED_DIAGONAL / diagonal if diagonal > 0 else 1.0
        )
    return (coords - coords.mean(axis=0)) / scale


def length_unit(unit: str, spacing: float, config: SubSliceConfig) -> float:
    """Return the length of one distance unit, in units of the coordinates.

    Parameters
    ----------
    unit
        Unit of the slice's coordinates; without micrometers (``"um"``) the median spacing is the unit.
    spacing
        The slice's median spacing, in units of the coordinates.
    config
        ``length_scale`` and ``geometry``.
    """
    if config.geometry == "published" or unit == "um":
        return config.length_scale
    return spacing if spacing > 0 else 1.0


def macro_scale(
    features: NDArray[np.float32],
    positions: Floats,
    config: SubSliceConfig,
    *,
    labels: Ints | None = None,
    seed: int = 0,
) -> VirtualCells:
    """Cluster the slice, or take clusters that are given, and make its virtual cells (Algorithm 1, lines 2-8)."""
    if labels is None:
        points = cluster_features(features, positions, config.alpha, config.mix)
        labels = leiden_labels(
            points, config.cluster_neighbors, config.leiden_resolution, config.max_clusters, seed
        )
    made = virtual_cells(features, positions, labels)
    if config.virtual:
        return made
    return VirtualCells(labels, made.features[:0], made.positions[:0])


def split_cells(positions: Floats, config: SubSliceConfig) -> list[Ints]:
    """Return the index sets of the sub-slices; every cell is in exactly one."""
    cut = split_grid if config.partition == "grid" else split_balanced
    return cut(positions, config.subslice_size)


def iterate(
    positions: Floats, virtual: Floats, parts: list[Ints], config: SubSliceConfig
) -> Iterator[SubSlice]:
    """Yield the sub-slices one at a time (Algorithm 1, lines 9-16).

    Parameters
    ----------
    positions
        Cells, float64 ``(n, 2)``, from :func:`model_positions`.
    virtual
        Virtual cells, float64 ``(k, 2)``.
    parts
        Index sets from :func:`split_cells`.
    config
        Settings.
    """
    tree = cKDTree(positions) if config.halo > 0 else None
    width = config.halo * _spacing(positions, tree) if tree is not None else 0.0
    for core in parts:
        around = halo_cells(positions, tree, core, width) if tree is not None else core[:0]
        cells = np.concatenate([core, around])
        tokens = np.concatenate([np.zeros((1, 2)), virtual, positions[cells]])
        if config.pair != "knn":
            row = col = np.empty(0, dtype=np.int64)
        else:
            row, col = _listed_pairs(tokens, len(virtual), config)
        distance = np.sqrt(((tokens[row] - tokens[col]) ** 2).sum(axis=1)).astype(np.float32)
        yield SubSlice(
            cells, len(core), len(virtual), tokens, row, col, distance, config.pair == "full"
        )


def with_positions(sub: SubSlice, positions: Floats, config: SubSliceConfig) -> SubSlice:
    """Return the same sub-slice with its tokens elsewhere: pairs are listed anew, so that none betrays a move."""
    row, col = (
        _listed_pairs(positions, sub.n_virtual, config)
        if config.pair == "knn"
        else (sub.row, sub.col)
    )
    distance = np.sqrt(((positions[row] - positions[col]) ** 2).sum(axis=1)).astype(np.float32)
    return replace(sub, positions=positions, row=row, col=col, distance=distance)


def _spacing(positions: Floats, tree: cKDTree) -> float:
    """Median distance to the nearest other cell."""
    return (
        float(np.median(tree.query(positions, k=2, workers=-1)[0][:, 1]))
        if len(positions) > 1
        else 0.0
    )


def _listed_pairs(tokens: Floats, n_virtual: int, config: SubSliceConfig) -> tuple[Ints, Ints]:
    """Pairs with a true distance: nearest neighbors (either way) and virtual cells to all."""
    n, first = len(tokens), 1 + n_virtual
    if config.geometry == "published":  # every token takes part in the search and takes places
        left, right = _neighbors(tokens, config.n_neighbors - 1, ties=False)
    else:
        left, right = _neighbors(tokens[first:], config.n_neighbors, ties=True)
        left, right = left + first, right + first
    low, high = np.minimum(left, right), np.maximum(left, right)
    cells = low >= first
    code = np.sort(low[cells] * n + high[cells])
    code = code[np.concatenate([[True], code[1:] != code[:-1]])] if len(code) else code
    virtual_row = np.repeat(np.arange(1, first), n - np.arange(2, first + 1))
    virtual_col = np.concatenate(
        [np.arange(v + 1, n) for v in range(1, first)] or [np.empty(0, dtype=np.int64)]
    )
    return np.concatenate([virtual_row, code // n]), np.concatenate([virtual_col, code % n])


def _neighbors(points: Floats, k: int, *, ties: bool) -> tuple[Ints, Ints]:
    """Return (point, neighbor) for the k nearest others of each point; ``ties``: also those as near as the last."""
    n = len(points)
    k = min(k, n - 1)
    if k < 1:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    tree = cKDTree(points)
    extra = min(16, n - 1 - k) if ties else 0
    while True:
        distance, index = tree.query(points, k=k + 1 + extra, workers=-1)
        own = index == np.arange(n)[:, None]
        own[~own.any(axis=1), -1] = (
            True  # more coincident points than neighbors: drop the last instead
        )
        distance, index = distance[~own].reshape(n, -1), index[~own].reshape(n, -1)
        reach = distance[:, k - 1] * (1 + TIE)
        if extra == 0 or k + extra == n - 1 or np.all(distance[:, -1] > reach):
            break
        extra = min(4 * extra, n - 1 - k)
    keep = distance <= reach[:, None] if ties else np.ones_like(distance, dtype=bool)
    return np.repeat(np.arange(n), keep.sum(axis=1)), index[keep].astype(np.int64)
