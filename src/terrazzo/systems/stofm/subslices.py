"""How a slice is divided into sub-slices of about 1,000 cells: balanced, or the published square grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.systems.stofm.virtual_cells import (
    VirtualCells,
    cluster_features,
    leiden_labels,
    virtual_cells,
)

__all__ = [
    "CELL",
    "GRAPH",
    "PAD",
    "VIRTUAL",
    "SubSlice",
    "SubSliceConfig",
    "SubSliceCutter",
    "halo_cells",
    "iterate",
    "length_unit",
    "macro_scale",
    "model_positions",
    "split_balanced",
    "split_cells",
    "split_grid",
    "with_positions",
]

# Projections closer than this share of the extent count as equal: rounding must not move a cut.
CUT_TIE = 1e-7

TIE_OFFSET = 0.3819660112501051  # keeps regular lattices off the edges of the rounding
ROUNDING = 1e-9  # of lengths
TINY = np.finfo(float).tiny


def split_balanced(positions: Floats, size: int) -> list[Ints]:
    """Divide by recursive median cuts along the principal axis of each part.

    Parts are contiguous, turn with the slice, differ by few cells, and none has more than ``size``.

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
    n = len(positions)
    n_parts = max(1, -(-n // size))
    pending = [(np.arange(n), n_parts)]
    out: list[Ints] = []
    while pending:
        index, n_parts = pending.pop()
        if n_parts == 1:
            out.append(np.sort(index))
            continue
        order = _along_principal_axis(positions[index])
        in_order = index[order]
        n_left = n_parts // 2
        cut = (len(index) * n_left) // n_parts
        left = in_order[:cut]
        right = in_order[cut:]
        pending.append((right, n_parts - n_left))
        pending.append((left, n_left))
    return out


def _along_principal_axis(points: Floats) -> Ints:
    """Order points along their first principal axis, ties along the second; the axes' signs follow the skewness."""
    centered = points - points.mean(axis=0)
    products = centered.T @ centered
    _, axes = np.linalg.eigh(products)
    first = centered @ axes[:, 1]  # by rising variance
    second = centered @ axes[:, 0]
    first_steps = _rounded(first)
    second_steps = _rounded(second)
    return np.lexsort((second_steps, first_steps))  # the last key counts first


def _rounded(along: Floats) -> Floats:
    """Return projections in whole steps, with the sign by which they are skewed upward."""
    skewness = np.sum(along**3)
    if skewness < 0:
        along = -along
    extent = float(np.ptp(along))
    step = max(extent, TINY) * CUT_TIE
    steps = along / step
    return np.floor(steps + TIE_OFFSET)


def split_grid(positions: Floats, size: int) -> list[Ints]:
    """Divide into square tiles, as the published code does, fixed so that no cell is lost.

    Tiles have the side ``sqrt(area / (n // size + 1))`` and follow each other column by column. Upstream loses cells on
    the far border of some lattices (they go to the last tile here) and cuts tiles of ``2 * size`` cells and more by
    file order (:func:`split_balanced` cuts them here).

    Parameters
    ----------
    positions
        ``(n, 2)``, any unit.
    size
        Target number of cells in a part.
    """
    n = len(positions)
    extent = np.ptp(positions, axis=0)
    if n <= size or extent.max() == 0:
        if n > 2 * size:
            return split_balanced(positions, max(size, 1))
        return [np.arange(n)]
    side = _tile_side(extent, n, n // size + 1)
    n_tiles = np.ceil(extent / side - ROUNDING)
    n_tiles = np.maximum(n_tiles, 1)
    low = positions.min(axis=0)
    tile = np.floor((positions - low) / side)
    tile = np.minimum(tile, n_tiles - 1)
    column, row = tile.astype(np.int64).T
    number = column * int(n_tiles[1]) + row
    order = np.argsort(number, kind="stable")
    steps = np.diff(number[order])
    bounds = np.flatnonzero(steps) + 1
    out: list[Ints] = []
    for part in np.split(order, bounds):
        if len(part) < 2 * size:
            out.append(part)
            continue
        for inner in split_balanced(positions[part], size):
            out.append(part[inner])
    return out


def _tile_side(extent: Floats, n: int, n_tiles: int) -> float:
    """Return the side of square tiles; where cells are on a line, whose area is next to nothing, of tiles along it."""
    longest = float(extent.max())
    on_a_line = extent.min() < longest / n
    if on_a_line:
        return longest / n_tiles
    area = np.prod(extent)
    return float(np.sqrt(area / n_tiles))


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
    offset = points - center
    squared = (offset**2).sum(axis=1)
    radius = float(np.sqrt(squared.max()))
    reach = (radius + width) * (1 + ROUNDING)
    near = tree.query_ball_point(center, reach)
    near = np.asarray(near, dtype=np.int64)
    outside = np.setdiff1d(near, core)
    if len(outside) == 0:
        return outside
    core_tree = cKDTree(points)
    outside_points = positions[outside]
    distance, _ = core_tree.query(outside_points)
    in_halo = distance <= width * (1 + ROUNDING)
    return outside[in_halo]


# Token types as published
CELL = 0
GRAPH = 1
VIRTUAL = 2
PAD = 3

PUBLISHED_DIAGONAL = 100.0  # published geometry: the slice's bounding box has this diagonal

TIE = 1e-6  # neighbors as near as the last one, up to rounding, all count: a lattice has many
MORE_NEIGHBORS = 16  # that are searched at first, for ties


_LARGEST = 1e9  # of any setting


@dataclass(frozen=True)
class SubSliceConfig:
    """Settings of sub-slices (Algorithm 1; table A.8).

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

    Raises
    ------
    ValueError
        A value out of its range.
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
        least_values = {
            "subslice_size": 1,
            "n_neighbors": 1,
            "cluster_neighbors": 2,
            "max_clusters": 1,
            "halo": 0.0,
        }
        for name, least in least_values.items():
            value = getattr(self, name)
            if not least <= value <= _LARGEST:
                raise ValueError(f"{name} is {value}; it must be at least {least}, and finite.")
        if not (
            0 < self.length_scale < _LARGEST
            and 0 < self.leiden_resolution < _LARGEST
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
        How many of them are the sub-slice's own: only these receive their vector from it.
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
    distance: Vectors
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
    if config.geometry != "published":
        return (coords - coords.mean(axis=0)) / scale
    low = coords.min(axis=0)
    high = coords.max(axis=0)
    center = (low + high) / 2
    diagonal = float(np.linalg.norm(high - low))
    factor = 1.0
    if diagonal > 0:
        factor = PUBLISHED_DIAGONAL / diagonal
    return (coords - center) * factor


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
    features: Vectors,
    positions: Floats,
    config: SubSliceConfig,
    *,
    labels: Ints | None = None,
    seed: int = 0,
) -> VirtualCells:
    """Make the slice's virtual cells from clusters (Algorithm 1, lines 2-8); ``labels=None``: from Leiden's."""
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
    if config.partition == "grid":
        return split_grid(positions, config.subslice_size)
    return split_balanced(positions, config.subslice_size)


class SubSliceCutter:
    """Cuts sub-slices out of one slice (Algorithm 1, lines 9-16).

    Parameters
    ----------
    positions
        Cells, float64 ``(n, 2)``, from :func:`model_positions`.
    virtual
        Virtual cells, float64 ``(k, 2)``.
    config
        Settings.
    """

    def __init__(self, positions: Floats, virtual: Floats, config: SubSliceConfig) -> None:
        self.positions = positions
        self.virtual = virtual
        self.config = config
        self._tree: cKDTree | None = None
        self._halo_width = 0.0
        if config.halo > 0:
            self._tree = cKDTree(positions)
            self._halo_width = config.halo * _spacing(positions, self._tree)

    def cut(self, core: Ints) -> SubSlice:
        """Return the sub-slice of some cells, with its halo."""
        cells = core
        if self._tree is not None:
            halo = halo_cells(self.positions, self._tree, core, self._halo_width)
            cells = np.concatenate([core, halo])
        n_virtual = len(self.virtual)
        graph_token = np.zeros((1, 2))
        positions = np.concatenate([graph_token, self.virtual, self.positions[cells]])
        row = np.empty(0, dtype=np.int64)
        col = row
        if self.config.pair == "knn":
            row, col = _listed_pairs(positions, n_virtual, self.config)
        return SubSlice(
            cells=cells,
            n_core=len(core),
            n_virtual=n_virtual,
            positions=positions,
            row=row,
            col=col,
            distance=_distances(positions, row, col),
            full=self.config.pair == "full",
        )


def iterate(
    positions: Floats, virtual: Floats, parts: list[Ints], config: SubSliceConfig
) -> Iterator[SubSlice]:
    """Yield the sub-slices one at a time (Algorithm 1, lines 9-16).

    Parameters
    ----------
    positions, virtual, config
        As in :class:`SubSliceCutter`.
    parts
        Index sets from :func:`split_cells`.
    """
    cutter = SubSliceCutter(positions, virtual, config)
    for core in parts:
        yield cutter.cut(core)


def with_positions(sub: SubSlice, positions: Floats, config: SubSliceConfig) -> SubSlice:
    """Return the same sub-slice with its tokens elsewhere: pairs are listed anew, so that none betrays a move."""
    row = sub.row
    col = sub.col
    if config.pair == "knn":
        row, col = _listed_pairs(positions, sub.n_virtual, config)
    distance = _distances(positions, row, col)
    return replace(sub, positions=positions, row=row, col=col, distance=distance)


def _spacing(positions: Floats, tree: cKDTree) -> float:
    """Return the median distance to the nearest other cell."""
    if len(positions) <= 1:
        return 0.0
    distance, _ = tree.query(positions, k=2, workers=-1)
    return float(np.median(distance[:, 1]))


def _distances(positions: Floats, row: Ints, col: Ints) -> Vectors:
    gap = positions[row] - positions[col]
    squared = (gap**2).sum(axis=1)
    return np.sqrt(squared).astype(np.float32)


def _listed_pairs(tokens: Floats, n_virtual: int, config: SubSliceConfig) -> tuple[Ints, Ints]:
    """Return the pairs with a true distance: virtual cells with all, cells with nearest neighbors (either way)."""
    n = len(tokens)
    first_cell = 1 + n_virtual
    if config.geometry == "published":  # every token is searched for and takes a place
        point, neighbor = _neighbors(tokens, config.n_neighbors - 1, ties=False)
    else:
        point, neighbor = _neighbors(tokens[first_cell:], config.n_neighbors, ties=True)
        point = point + first_cell
        neighbor = neighbor + first_cell
    low = np.minimum(point, neighbor)
    high = np.maximum(point, neighbor)
    are_cells = low >= first_cell
    number = np.unique(low[are_cells] * n + high[are_cells])
    # each virtual cell with all tokens behind it; the graph token is left out
    virtual_row, virtual_col = np.triu_indices(n_virtual, k=1, m=n - 1)
    row = np.concatenate([virtual_row + 1, number // n])
    col = np.concatenate([virtual_col + 1, number % n])
    return row, col


def _neighbors(points: Floats, k: int, *, ties: bool) -> tuple[Ints, Ints]:
    """Return (point, neighbor) for the k nearest others of each point; ``ties``: also those as near as the last."""
    n = len(points)
    k = min(k, n - 1)
    if k < 1:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty
    tree = cKDTree(points)
    most_extra = n - 1 - k
    n_extra = min(MORE_NEIGHBORS, most_extra) if ties else 0
    while True:
        distance, index = _nearest_others(tree, points, k + n_extra)
        reach = distance[:, k - 1] * (1 + TIE)
        if n_extra in (0, most_extra) or np.all(distance[:, -1] > reach):
            break
        n_extra = min(4 * n_extra, most_extra)
    is_neighbor = np.ones_like(distance, dtype=bool)
    if ties:
        is_neighbor = distance <= reach[:, None]
    point = np.repeat(np.arange(n), is_neighbor.sum(axis=1))
    return point, index[is_neighbor].astype(np.int64)


def _nearest_others(tree: cKDTree, points: Floats, k: int) -> tuple[Floats, Ints]:
    """Return distance and index of the k nearest others of each point, ``(n, k)``."""
    n = len(points)
    distance, index = tree.query(points, k=k + 1, workers=-1)
    is_itself = index == np.arange(n)[:, None]
    # where more points coincide than are searched, the last is dropped instead
    without_itself = ~is_itself.any(axis=1)
    is_itself[without_itself, -1] = True
    distance = distance[~is_itself].reshape(n, -1)
    index = index[~is_itself].reshape(n, -1)
    return distance, index
