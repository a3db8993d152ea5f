"""Open image files: PNG and JPEG are decoded at once, TIFFs stay in their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pillow import read_pillow
from terrazzo.images.pixels import MAX_PIXELS, LazyPixels, to_bytes, to_rgb, warn_if_dark

__all__ = ["PILLOW_SUFFIXES", "TIFF_SUFFIXES", "open_pixels"]

TIFF_SUFFIXES = (".tif", ".tiff")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")


def open_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8] | LazyPixels:
    """Return the pixels of a file: an array, or lazy ones where the format can be read by tile.

    Parameters
    ----------
    path
        ``.png``, ``.jpg``, ``.jpeg`` (decoded at once), ``.tif`` or ``.tiff`` (by tile or strip).
    max_pixels
        Most pixels (width x height) that are decoded at once.

    Raises
    ------
    InputError
        No such file, another kind of file, too many pixels, or a damaged or truncated file.
    """
    if not path.is_file():
        raise InputError(f"No image file at {path}; check the path.")
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES:
        # imports tifffile and zarr, which takes a while
        from terrazzo.images.tiff import open_tiff

        return open_tiff(path, max_pixels)
    if suffix in PILLOW_SUFFIXES:
        raw = read_pillow(path, max_pixels)
        pixels = to_rgb(to_bytes(raw))
        if raw.dtype == np.uint16:
            warn_if_dark(pixels, str(path))
        return pixels
    known = ", ".join(PILLOW_SUFFIXES + TIFF_SUFFIXES)
    raise InputError(
        f"{path}: {suffix or 'no suffix'} is not an image format that can be read; save it as {known}."
    )
