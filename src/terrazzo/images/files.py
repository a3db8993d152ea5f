"""Image files: what they say of themselves is checked before anything is decoded; TIFFs stay in their file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, LazyPixels, to_bytes, to_rgb, warn_if_dark

TIFF_SUFFIXES = (".tif", ".tiff")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")
BROKEN = (  # what the decoders are known to raise on damaged files
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)


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
        from terrazzo.images.tiff import open_tiff

        return open_tiff(path, max_pixels)
    if suffix in PILLOW_SUFFIXES:
        raw = read_pillow(path, max_pixels)
        pixels = to_rgb(to_bytes(raw))
        if raw.dtype == np.uint16:
            warn_if_dark(pixels, str(path))
        return pixels
    known = ", ".join(PILLOW_SUFFIXES + TIFF_SUFFIXES)
    raise InputError(f"{path}: {suffix or 'no suffix'} is not an image format read here; save as {known}.")


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture that would not fit, by what its header says."""
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

    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            if start == b"\x89PNG\r\n\x1a\n":
                picture: Any = PngImageFile(file)  # Image.open would add a limit of its own, which cannot be raised
            elif start[:2] == b"\xff\xd8":
                picture = JpegImageFile(file)
            else:
                raise InputError(f"{path} is not a PNG or JPEG image, whatever its name says.")
            check_size(path, picture.width, picture.height, max_pixels)
            return decoded(picture)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path}: damaged or truncated image ({error}); copy or download it again.") from error


def decoded(picture: Any) -> NDArray[Any]:
    """Return the pixels of a Pillow image."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)
    see_through = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA")
    wanted = "RGBA" if see_through else "L" if picture.mode in ("1", "L") else "RGB"
    return np.asarray(picture.convert(wanted))
