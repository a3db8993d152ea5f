"""Open image files: PNG and JPEG are decoded at once, TIFFs stay in their file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pillow import read_pillow, read_size
from terrazzo.images.pixels import (
    MAX_PIXELS,
    ArrayPixels,
    LazyPixels,
    to_bytes,
    to_rgb,
    warn_if_dark,
)

__all__ = ["PILLOW_SUFFIXES", "TIFF_SUFFIXES", "open_later", "open_pixels"]

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
    suffix = _suffix_of(path)
    if suffix in TIFF_SUFFIXES:
        # imports tifffile and zarr, which takes a while
        from terrazzo.images.tiff import open_tiff

        return open_tiff(path, max_pixels)
    return _decode(path, max_pixels)


def open_later(path: Path, max_pixels: int = MAX_PIXELS) -> LazyPixels:
    """Return the pixels of a file, of which only the header is read now.

    Parameters
    ----------
    path, max_pixels
        As in :func:`open_pixels`; a PNG or JPEG is decoded whole when a pixel of it is first needed.

    Raises
    ------
    InputError
        No such file, another kind of file, too many pixels; later, a damaged or truncated file.
    """
    if _suffix_of(path) in PILLOW_SUFFIXES:
        return _DecodedLater(path, max_pixels)
    pixels = open_pixels(path, max_pixels)
    return pixels if isinstance(pixels, LazyPixels) else ArrayPixels(pixels)


class _DecodedLater(LazyPixels):
    """Pixels of a PNG or JPEG, decoded whole when one of them is first needed."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        height, width = read_size(path, max_pixels)
        super().__init__(height, width, max_pixels)
        self._path = path

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        return _decode(self._path, self.max_pixels)

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        return self._pixels[y0:y1, x0:x1]


def _decode(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG to RGB."""
    raw = read_pillow(path, max_pixels)
    pixels = to_rgb(to_bytes(raw))
    if raw.dtype == np.uint16:
        warn_if_dark(pixels, str(path))
    return pixels


def _suffix_of(path: Path) -> str:
    """Return the suffix of an image file, after checking that it is one."""
    if not path.is_file():
        raise InputError(f"No image file at {path}; check the path.")
    suffix = path.suffix.lower()
    if suffix in TIFF_SUFFIXES + PILLOW_SUFFIXES:
        return suffix
    known = ", ".join(PILLOW_SUFFIXES + TIFF_SUFFIXES)
    raise InputError(
        f"{path}: {suffix or 'no suffix'} is not an image format that can be read; save it as {known}."
    )
