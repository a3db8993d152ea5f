"""How a slice is divided into sub-slices of about 1,000 cells: balanced, or the published square grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIE = 1e-7  # projections closer than this share of the extent count as equal: rounding must not move a cut
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
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    keys = []
    for axis in (axes[:, 0], axes[:, 1]):  # np.lexsort sorts by its last key first
        along = centred @ axis
        if np.sum(along**3) < 0:
            along = -along
        extent = max(float(np.ptp(along)), np.finfo(float).tiny)
        keys.append(np.floor(along / (extent * TIE) + TIE_OFFSET))
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
    centre = points.mean(axis=0)
    reach = float(np.sqrt(((points - centre) ** 2).sum(axis=1).max())) + width
    near = np.setdiff1d(np.asarray(tree.query_ball_point(centre, reach * (1 + 1e-9)), dtype=np.int64), core)
    if len(near) == 0:
        return near
    distance, _ = cKDTree(points).query(positions[near])
    return near[distance <= width * (1 + 1e-9)]
