"""Open image files: PNG and JPEG are decoded at once, TIFFs stay in their file; sizes are checked before that."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, LazyPixels, to_bytes, to_rgb, warn_if_dark

__all__ = [
    "BROKEN",
    "PILLOW_SUFFIXES",
    "TIFF_SUFFIXES",
    "check_size",
    "decode_picture",
    "open_pixels",
    "read_pillow",
]

TIFF_SUFFIXES = (".tif", ".tiff")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")

# What the decoders are known to raise on damaged files
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"


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
        from terrazzo.images.tiff import open_tiff  # imports tifffile and zarr, which takes a while

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


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that would not fit into memory, by the size that its header states."""
    if width * height > max_pixels:
        raise InputError(
            f"{path}: {width} x {height} pixels to be decoded at once are over the limit of {max_pixels} (a "
            "decompression bomb?); save a smaller copy (and set scale and microns_per_pixel to match) or a tiled TIFF, "
            "or raise max_pixels if you trust it."
        )


def read_pillow(path: Path, max_pixels: int) -> NDArray[Any]:
    """Decode a PNG or JPEG, whole: gray, RGB, RGBA or 16-bit gray as it is, anything else as RGB."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # Image.open would add a limit of its own, which cannot be raised
    picture: JpegImageFile | PngImageFile
    try:
        with path.open("rb") as file:
            start = file.read(len(_PNG_START))
            file.seek(0)
            if start == _PNG_START:
                picture = PngImageFile(file)
            elif start.startswith(_JPEG_START):
                picture = JpegImageFile(file)
            else:
                raise InputError(f"{path} is not a PNG or JPEG image, whatever its name says.")
            check_size(path, picture.width, picture.height, max_pixels)
            return decode_picture(picture)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path}: damaged or truncated image ({error}); copy or download it again."
        ) from error


def decode_picture(picture: Any) -> NDArray[Any]:
    """Return the pixels of a Pillow image: 16-bit gray, gray, RGB or RGBA."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        return np.asarray(picture.convert("RGBA"))
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    return np.asarray(picture.convert("RGB"))
