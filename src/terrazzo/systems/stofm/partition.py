"""Dividing positions into compact parts: balanced, or the published square grid; and the cells around a part."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints

__all__ = ["halo_cells", "split_balanced", "split_grid"]

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
