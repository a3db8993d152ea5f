"""Images of a SpatialData, lazily, placed where its cells are: the scale follows from the transformations of both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, ArrayPixels
from terrazzo.images.tissue import TissueImage
from terrazzo.sdata import Container, Element, choose_system, open_container
from terrazzo.sdata.container import annotated

_COLORS = ({"r", "g", "b"}, {"red", "green", "blue"}, {"0", "1", "2"}, {"", "0"}, {""}, set[str]())


def read_image(
    sdata: Any,
    image: str | None = None,
    *,
    table: str | None = None,
    region: str | None = None,
    coordinate_system: str | None = None,
    microns_per_pixel: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> TissueImage:
    """Take an image out of a SpatialData, with its scale for the coordinates that the slice has.

    The coordinates of a slice are those of the shapes, labels or points that its table annotates, in the coordinate
    system. ``image_xy = native_xy * scale + offset`` follows from the transformations of these and of the image into
    that system, or into another that both have.

    Parameters
    ----------
    sdata
        A SpatialData, the path of one, or anything with ``images``, ``shapes``, ``labels``, ``points`` and ``tables``
        as SpatialData has them.
    image
        Name of the image; None where there is only one.
    table, region, coordinate_system
        As :meth:`terrazzo.Slice.from_spatialdata` chooses them.
    microns_per_pixel, max_pixels
        As in :meth:`TissueImage.from_file`.

    Raises
    ------
    InputError
        No image, or no region; several and none named; a name that is not there; no coordinate system in common; a
        transformation that turns, shears or mirrors; an image that is not (c, y, x).
    """
    held = open_container(sdata)
    picture = held.image(image)
    cells = held.region(_region(held, table) if region is None else region)
    return placed(
        picture, cells, choose_system(cells, coordinate_system), microns_per_pixel, max_pixels
    )


def placed(
    image: Element,
    cells: Element | None,
    system: str,
    microns_per_pixel: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> TissueImage:
    """Return an image with its scale for coordinates of cells in a coordinate system.

    Parameters
    ----------
    image
        Of a SpatialData.
    cells
        The element whose centers the coordinates are; None where there is none, and they are those of the system.
    system
        Name of the coordinate system that the coordinates are in.
    microns_per_pixel, max_pixels
        As in :meth:`TissueImage.from_file`.

    Raises
    ------
    InputError
        As :func:`read_image`.
    """
    matrix = _to_pixels(image, cells, system)
    scale = matrix[:2, :2]
    if (
        not np.allclose(scale, np.diag(np.diag(scale)), atol=1e-9 * np.abs(scale).max())
        or (np.diag(scale) <= 0).any()
    ):
        raise InputError(
            f"between the coordinates in {system!r} and {image.where} lies more than a scale and a shift "
            f"({scale.round(6).tolist()}); choose another coordinate_system=, or transform the image first "
            "(spatialdata.transform)."
        )
    levels = image.levels
    chunk = max(
        int(np.prod([_longest(side) for side in getattr(one, "chunks", None) or (0,)]))
        for one in levels
    )
    if chunk > 4 * max_pixels:
        raise InputError(
            f"{image.where} is stored in pieces of {chunk:,} values; write it again in smaller chunks"
        )
    pixels = ArrayPixels(levels[0], channels_first=True, coarser=levels[1:], max_pixels=max_pixels)
    x, y = float(scale[0, 0]), float(scale[1, 1])
    shift = (float(matrix[0, 2]), float(matrix[1, 2]))
    return TissueImage(
        pixels, microns_per_pixel, x, None if np.isclose(x, y, rtol=1e-9) else y, shift
    )


def in_colors(image: Element) -> bool:
    """Say whether an image looks like histology: red, green and blue, and not three of many stains."""
    names = {name.lower() for name in image.channels}
    return image.levels[0].shape[0] == 3 and names in _COLORS


def _to_pixels(image: Element, cells: Element | None, system: str) -> NDArray[np.float64]:
    """3 x 3, from coordinates in the system to pixels of the image."""
    if system in image.systems:
        return np.asarray(np.linalg.inv(image.systems[system].matrix), dtype=np.float64)
    shared = [] if cells is None else [name for name in cells.systems if name in image.systems]
    if cells is None or not shared:
        raise InputError(
            f"{image.where} and the cells have no coordinate system in common (image: {', '.join(image.systems)}; "
            f"cells: {', '.join(cells.systems) if cells is not None else system}); set a transformation, or name "
            "another image."
        )
    through = np.linalg.solve(image.systems[shared[0]].matrix, cells.systems[shared[0]].matrix)
    return np.asarray(through @ np.linalg.inv(cells.systems[system].matrix), dtype=np.float64)


def _longest(side: Any) -> int:
    return max(side) if isinstance(side, tuple) else int(side)


def _region(held: Container, table: str | None) -> str:
    names = annotated(held.tables[held.table_name(table)]())[0]
    if len(names) != 1:
        raise InputError(
            f"the table annotates {', '.join(names) or 'nothing'}; pass region= the one that its cells are."
        )
    return names[0]
