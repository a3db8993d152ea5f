"""PNG and JPEG images, decoded at once; their sizes are checked before that."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError

__all__ = ["BROKEN", "check_size", "decode_picture", "read_pillow", "read_size"]

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
    pixels: NDArray[Any] = _with_picture(path, max_pixels, decode_picture)
    return pixels


def read_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Return height and width of a PNG or JPEG from its header, checked as :func:`read_pillow` does."""
    height, width = _with_picture(path, max_pixels, lambda picture: picture.size[::-1])
    return int(height), int(width)


def _with_picture(path: Path, max_pixels: int, use: Callable[[Any], Any]) -> Any:
    """Open a PNG or JPEG, check its size, and return what ``use`` makes of it."""
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
            return use(picture)
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
