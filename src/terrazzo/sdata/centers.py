"""Where the things of an element lie: centers of circles, polygons and labels, out of the forms that hold them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Floats, Ints

_POINT, _POLYGON, _MULTIPOINT, _MULTIPOLYGON = 1, 3, 4, 6


_NAMES = {2: "LineString", 5: "MultiLineString", 7: "GeometryCollection", _MULTIPOINT: "MultiPoint"}


_BAND = 2**20  # pixels looked at together


_FLAT = 1e-12  # area, in squares of the extent, below which a polygon has none


def of_rings(xy: Floats, ring: Ints, inner: NDArray[np.bool_], owner: Ints, n: int) -> Floats:
    """Return centroids of polygons, weighted by area, holes left out.

    Parameters
    ----------
    xy
        (m, 2) corners of all rings, one after the other; closed or not.
    ring
        (m,) to which ring a corner belongs, ascending.
    inner
        (r,) True for holes.
    owner
        (r,) to which of the ``n`` things a ring belongs.
    n
        Number of things.

    Returns
    -------
    (n, 2); the mean of the corners where there is no area, NaN where there is no corner.
    """
    thing = owner[ring]
    number = np.bincount(thing, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = [np.bincount(thing, weights=xy[:, axis], minlength=n) for axis in (0, 1)]
        mean: Floats = np.stack(sums, axis=1) / number[:, None]
    from_mean = xy - mean[thing]  # small numbers: no digits are lost far from the origin
    size = np.bincount(ring, minlength=len(owner))
    ends = np.cumsum(size)
    following = np.arange(1, len(xy) + 1)
    following[ends[size > 0] - 1] = (ends - size)[size > 0]  # a ring closes
    (x, y), (x_next, y_next) = from_mean.T, from_mean[following].T
    cross = x * y_next - x_next * y
    area, x_sum, y_sum = (
        np.bincount(ring, weights=part, minlength=len(owner))
        for part in (cross, (x + x_next) * cross, (y + y_next) * cross)
    )
    sign = np.where(area < 0, -1.0, 1.0) * np.where(inner, -1.0, 1.0)
    total, *moments = (
        np.bincount(owner, weights=sign * part, minlength=n) for part in (area, x_sum, y_sum)
    )
    extent = np.bincount(thing, weights=(from_mean**2).sum(axis=1), minlength=n)
    solid = total > _FLAT * extent
    shift = np.zeros((n, 2))
    for axis in (0, 1):
        shift[solid, axis] = moments[axis][solid] / (3 * total[solid])
    return mean + shift


def of_wkb(geometries: Sequence[bytes | None]) -> Floats:
    """Return centers of points, polygons and multipolygons in Well-Known Binary (ISO or PostGIS; any byte order).

    Raises
    ------
    ValueError
        Another kind of geometry, or bytes that end too early.
    """
    out = np.full((len(geometries), 2), np.nan)
    parts: list[Floats] = []
    inner: list[bool] = []
    owner: list[int] = []
    for number, data in enumerate(geometries):
        if not data:
            continue
        kind, order, dimensions, at = _head(data, 0)
        if kind == _POINT:
            out[number] = struct.unpack_from(f"{order}2d", data, at)
        elif kind in (_POLYGON, _MULTIPOLYGON):
            for corners, is_hole in _rings(data, kind, order, dimensions, at):
                parts.append(corners)
                inner.append(is_hole)
                owner.append(number)
        else:
            raise ValueError(
                f"a {_NAMES.get(kind, f'geometry of kind {kind}')}, which has no place of its own"
            )
    if parts:
        ring = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        found = of_rings(np.concatenate(parts), ring, np.array(inner), np.array(owner), len(out))
        held = np.unique(owner)
        out[held] = found[held]
    return out


def _head(data: bytes, at: int) -> tuple[int, str, int, int]:
    """Return kind, byte order, numbers a corner, and where the content begins."""
    try:
        order = "<" if data[at] else ">"
        (code,) = struct.unpack_from(f"{order}I", data, at + 1)
    except (IndexError, struct.error) as error:
        raise ValueError("a geometry ends too early") from error
    flags, kind = code >> 28, code & 0x0FFFFFFF
    dimensions = (
        2 + (flags >> 3 & 1) + (flags >> 2 & 1) + {0: 0, 1: 1, 2: 1, 3: 2}.get(kind // 1000, 0)
    )
    return kind % 1000, order, dimensions, at + 5 + (4 if flags & 2 else 0)


def _rings(
    data: bytes, kind: int, order: str, dimensions: int, at: int
) -> Iterator[tuple[Floats, bool]]:
    try:
        parts = 1
        if kind == _MULTIPOLYGON:
            (parts,) = struct.unpack_from(f"{order}I", data, at)
            at += 4
        for _ in range(parts):
            if kind == _MULTIPOLYGON:
                inside, order, dimensions, at = _head(data, at)
                if inside != _POLYGON:
                    raise ValueError("a MultiPolygon that holds something else")
            (rings,) = struct.unpack_from(f"{order}I", data, at)
            at += 4
            for number in range(rings):
                (corners,) = struct.unpack_from(f"{order}I", data, at)
                flat = np.frombuffer(
                    data, f"{order}f8", corners * dimensions, at + 4
                )  # refuses what is not there
                yield flat.reshape(corners, dimensions)[:, :2].astype(np.float64), number > 0
                at += 4 + flat.nbytes
    except struct.error as error:
        raise ValueError("a geometry ends too early") from error


def of_ragged(xy: Floats, offsets: Sequence[Ints]) -> Floats:
    """Return centers of things in ragged arrays, as shapes 0.1 and GeoArrow have them.

    Parameters
    ----------
    xy
        (m, 2) corners.
    offsets
        From the innermost: none for points; ends of rings, then of polygons, then of multipolygons, each beginning
        with 0 and counting what lies one level below.

    Raises
    ------
    ValueError
        Offsets that do not fit.
    """
    if not offsets:
        return np.asarray(xy, dtype=np.float64)
    sizes, held = [], len(xy)
    for level in offsets:
        steps = np.diff(level)
        if not len(level) or level[0] != 0 or (steps < 0).any() or int(level[-1]) != held:
            raise ValueError("offsets that do not fit the corners")
        held = len(steps)
        sizes.append(steps)
    if len(sizes) not in (2, 3):
        raise ValueError(f"{len(sizes)} levels of offsets; polygons have two, multipolygons three")
    ring = np.repeat(np.arange(len(sizes[0])), sizes[0])
    polygon = np.repeat(np.arange(len(sizes[1])), sizes[1])
    first = np.zeros(len(polygon), dtype=bool)
    first[offsets[1][:-1][sizes[1] > 0]] = True
    owner = polygon if len(sizes) == 2 else np.repeat(np.arange(len(sizes[2])), sizes[2])[polygon]
    return of_rings(np.asarray(xy, dtype=np.float64), ring, ~first, owner, held)


def of_labels(array: Any, blocks: Iterable[tuple[slice, ...]]) -> tuple[Ints, Floats]:
    """Return the labels of a picture but 0, ascending, and their centers; pixel ``i`` spans ``i`` to ``i + 1``.

    Parameters
    ----------
    array
        Whole numbers, ``(y, x)`` or ``(z, y, x)``, read block by block.
    blocks
        Boxes that cover it.
    """
    found: list[tuple[Ints, Ints, Floats]] = []
    for box in blocks:
        block = np.asarray(array[box])
        block = block.reshape(-1, *block.shape[-2:])
        rows = max(1, _BAND // block.shape[2])
        for plane in block:
            for top in range(0, len(plane), rows):
                band = plane[top : top + rows]
                found.append(_in_band(band, box[-2].start + top + 0.5, box[-1].start + 0.5))
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 2))
    every, number, sums = (np.concatenate([one[part] for one in found]) for part in range(3))
    labels, at = np.unique(every, return_inverse=True)
    pixels = np.bincount(at, weights=number)
    return labels, np.stack(
        [np.bincount(at, weights=sums[:, axis]) / pixels for axis in (0, 1)], axis=1
    )


def _in_band(band: NDArray[Any], y0: float, x0: float) -> tuple[Ints, Ints, Floats]:
    rows, columns = np.nonzero(band)
    values = band[rows, columns].astype(np.int64)
    if not len(values):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 2))
    low, high = int(values.min()), int(values.max())
    if high - low < 4 * _BAND:  # counted in place, much faster than sorted
        labels, at = np.arange(low, high + 1), values - low
    else:
        labels, at = np.unique(values, return_inverse=True)
    number = np.bincount(at, minlength=len(labels))
    sums = [
        np.bincount(at, weights=part, minlength=len(labels)) for part in (columns + x0, rows + y0)
    ]
    kept = number > 0
    places: Floats = np.stack(sums, axis=1).astype(np.float64)
    return labels[kept], number[kept], places[kept]
