"""Images of SpatialData objects, lazily: the package itself is not needed, only objects that look like its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, ArrayPixels
from terrazzo.images.tissue import TissueImage

_AXES = ("x", "y")


def read_image(
    sdata: Any,
    image: str | None = None,
    *,
    region: str | None = None,
    coordinate_system: str | None = None,
    microns_per_pixel: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> TissueImage:
    """Take an image out of a SpatialData object, with its scale for the coordinates of the cells.

    The coordinates in ``obsm["spatial"]`` of a table are those of the shapes (or labels) that it annotates, before any
    transformation. ``image_xy = native_xy * scale + offset`` follows from the transformations of shapes and image into
    a coordinate system that both have.

    Parameters
    ----------
    sdata
        Anything with ``images``, ``shapes``, ``labels`` and ``tables`` as SpatialData has them.
    image
        Name of the image; None where there is only one.
    region
        Name of the shapes or labels that the table annotates; None: as the only table says.
    coordinate_system
        Name; None: the first that both have.
    microns_per_pixel, max_pixels
        As in :meth:`TissueImage.from_file`.

    Raises
    ------
    InputError
        No image, no such image or region, several and none named; no coordinate system in common; a transformation
        that turns, shears or mirrors; an image that is not (c, y, x).
    """
    element = _one(getattr(sdata, "images", {}), image, "image")
    levels = _levels(element)
    name = _region(sdata) if region is None else region
    elements = {**dict(getattr(sdata, "shapes", {})), **dict(getattr(sdata, "labels", {}))}
    if name not in elements:
        raise InputError(
            f"the SpatialData has no shapes or labels {name!r}; there are: {', '.join(elements) or 'none'}."
        )
    to_image, to_cells = _transformations(levels[0]), _transformations(elements[name])
    shared = [system for system in to_cells if system in to_image]
    if coordinate_system is None and not shared:
        raise InputError(
            f"image and {name!r} have no coordinate system in common (image: {', '.join(to_image)}; {name}: "
            f"{', '.join(to_cells)}); set a transformation, or name another image."
        )
    chosen = shared[0] if coordinate_system is None else coordinate_system
    if chosen not in shared:
        raise InputError(f"coordinate system {chosen!r} is not one of {', '.join(shared) or 'none'}, which both have.")
    matrix = np.linalg.solve(_affine(to_image[chosen]), _affine(to_cells[chosen]))
    scale = matrix[:2, :2]
    if not np.allclose(scale, np.diag(np.diag(scale)), atol=1e-9 * np.abs(scale).max()) or (np.diag(scale) <= 0).any():
        raise InputError(
            f"between {name!r} and the image lies more than a scale and a shift ({scale.round(6).tolist()}); transform "
            "the image first (spatialdata.transform)."
        )
    pixels = ArrayPixels(
        levels[0].data, channels_first=True, coarser=[one.data for one in levels[1:]], max_pixels=max_pixels
    )
    x, y = float(scale[0, 0]), float(scale[1, 1])
    shift = (float(matrix[0, 2]), float(matrix[1, 2]))
    return TissueImage(pixels, microns_per_pixel, x, None if np.isclose(x, y, rtol=1e-9) else y, shift)


def _one(found: Any, name: str | None, what: str) -> Any:
    held = dict(found)
    if not held:
        raise InputError(f"the SpatialData has no {what}.")
    if name is None and len(held) > 1:
        raise InputError(f"the SpatialData has {len(held)} {what}s: pass {what}= one of {', '.join(map(str, held))}.")
    if name is not None and name not in held:
        raise InputError(f"the SpatialData has no {what} {name!r}; {what}s: {', '.join(map(str, held))}.")
    return next(iter(held.values())) if name is None else held[name]


def _region(sdata: Any) -> str:
    table = _one(getattr(sdata, "tables", {}), None, "table")
    region = dict(table.uns.get("spatialdata_attrs", {})).get("region")
    names = (
        [region] if isinstance(region, str) else [str(one) for one in np.ravel(region)] if region is not None else []
    )
    if len(names) != 1:
        raise InputError(f"the table annotates {names or 'nothing'}; pass region= the shapes that its cells are.")
    return names[0]


def _levels(element: Any) -> list[Any]:
    """Return the data arrays of one picture, finest first: one, or a tree of ``scale0``, ``scale1``, ..."""
    if not hasattr(element, "data") or isinstance(element, Mapping) or hasattr(element, "children"):
        parts: dict[Any, Any] = dict(getattr(element, "children", element))
        names = sorted((n for n in parts if str(n).startswith("scale")), key=lambda n: int(str(n)[5:]))
        levels = [next(iter(dict(getattr(parts[n], "data_vars", parts[n])).values())) for n in names]
    else:
        levels = [element]
    if not levels or any(tuple(getattr(one, "dims", ("c", "y", "x"))) != ("c", "y", "x") for one in levels):
        raise InputError("an image of a SpatialData must have the axes c, y and x; this one is another kind.")
    return levels


def _transformations(element: Any) -> dict[str, Any]:
    attributes: Any = getattr(element, "attrs", None)
    return dict((attributes or {}).get("transform") or {})


def _affine(transformation: Any) -> NDArray[np.float64]:
    """3 x 3, from x and y to x and y."""
    try:
        matrix = transformation.to_affine_matrix(input_axes=_AXES, output_axes=_AXES)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"cannot read the transformation {transformation!r} ({error}).") from error
    return np.asarray(matrix, dtype=np.float64)
