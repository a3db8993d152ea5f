"""Images of a SpatialData, lazily, placed where its cells are: the scale follows from the transformations of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from terrazzo.arrays import Floats
from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, ArrayPixels
from terrazzo.sdata import (
    Element,
    annotation_of,
    check_source,
    choose_name,
    choose_system,
    choose_table,
    get_cells,
    get_element,
    open_elements,
    read_annotation,
)

__all__ = ["PlacedPixels", "find_image", "is_histology", "place_image"]

_COLORS = ({"r", "g", "b"}, {"red", "green", "blue"}, {"0", "1", "2"}, {"", "0"}, {""})


@dataclass(frozen=True, eq=False)
class PlacedPixels:
    """Pixels that are read when they are sliced, and the other fields of a :class:`TissueImage` that place them."""

    pixels: ArrayPixels
    scale: float
    scale_y: float | None
    offset: tuple[float, float]


def find_image(
    sdata: Any,
    image: str | None = None,
    *,
    table: str | None = None,
    region: str | None = None,
    coordinate_system: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> PlacedPixels:
    """Find an image of a SpatialData, with its scale for the coordinates that a slice of it has.

    Arguments and errors as of :meth:`terrazzo.TissueImage.from_spatialdata`.
    """
    source, where = check_source(sdata)
    if region is None:
        table = choose_table(source, table, where)
        regions, _, _ = annotation_of(read_annotation(source, table))
        region = choose_name(regions, None, "region", where)
    elements = open_elements(source, region, image)
    name = choose_name(list(elements.images), image, "image", where)
    picture = get_element(elements, "images", name, where)
    cells = get_cells(elements, region, where)
    if cells is None:
        raise InputError(f"{where} has no shapes, labels or points {region!r}")
    system = choose_system(cells, coordinate_system)
    return place_image(picture, cells, system, max_pixels)


def place_image(
    image: Element, cells: Element | None, system: str, max_pixels: int = MAX_PIXELS
) -> PlacedPixels:
    """Return an image with its scale for coordinates in a system: ``image_xy = xy * scale + offset``.

    ``cells`` is the element whose centers the coordinates are, None where there is none.

    Raises
    ------
    InputError
        No coordinate system in common; a transformation that turns, shears or mirrors; an image that is not (c, y, x),
        or stored in pieces that are too large.
    """
    matrix = _matrix_to_pixels(image, cells, system)
    linear = matrix[:2, :2]
    scales = np.diag(linear)
    is_scale = np.allclose(linear, np.diag(scales), atol=1e-9 * np.abs(linear).max())
    if not is_scale or (scales <= 0).any():
        raise InputError(
            f"the coordinates in {system!r} and {image.where} differ by more than a scale and a shift "
            f"({linear.round(6).tolist()}); choose another coordinate_system=, or transform the image first "
            "(spatialdata.transform)."
        )
    levels = _levels(image)
    largest = max(_chunk_size(level) for level in levels)
    if largest > 4 * max_pixels:
        raise InputError(
            f"{image.where} is stored in pieces of {largest:,} values; write it again in smaller chunks"
        )
    pixels = ArrayPixels(levels[0], channels_first=True, coarser=levels[1:], max_pixels=max_pixels)
    scale_x, scale_y = float(scales[0]), float(scales[1])
    offset = (float(matrix[0, 2]), float(matrix[1, 2]))
    is_square = np.isclose(scale_x, scale_y, rtol=1e-9)
    return PlacedPixels(pixels, scale_x, None if is_square else scale_y, offset)


def is_histology(image: Element) -> bool:
    """Say whether an image looks like histology: red, green and blue, and not three of many stains."""
    from spatialdata.models import get_channel_names

    names = [str(name).lower() for name in get_channel_names(image.data)]
    return len(names) == 3 and set(names) in _COLORS


def _levels(image: Element) -> list[Any]:
    """Return the Dask arrays of an image or of its pyramid, finest first."""
    from spatialdata import get_pyramid_levels

    levels = get_pyramid_levels(image.data) if hasattr(image.data, "children") else [image.data]
    for level in levels:
        if tuple(level.dims) != ("c", "y", "x"):
            raise InputError(f"{image.where} has the axes {level.dims}; they must be c, y and x")
    return [level.data for level in levels]


def _chunk_size(array: Any) -> int:
    """Return the number of values in the largest piece of a Dask array."""
    sides = [max(axis) for axis in array.chunks]
    return int(np.prod(sides))


def _matrix_to_pixels(image: Element, cells: Element | None, system: str) -> Floats:
    """Return the matrix (3, 3) from coordinates in the system to pixels, maybe through a system that both have."""
    if system in image.matrices:
        return np.asarray(np.linalg.inv(image.matrices[system]), dtype=np.float64)
    cell_matrices = {} if cells is None else cells.matrices
    shared = [name for name in cell_matrices if name in image.matrices]
    if not shared:
        raise InputError(
            f"{image.where} and the cells have no coordinate system in common (image: {', '.join(image.matrices)}; "
            f"cells: {', '.join(cell_matrices) or system}); set a transformation, or name another image."
        )
    to_pixels = np.linalg.solve(image.matrices[shared[0]], cell_matrices[shared[0]])
    return np.asarray(to_pixels @ np.linalg.inv(cell_matrices[system]), dtype=np.float64)
