"""The picture room: one histology image, its scale against the slice, and square crops out of it.

Three lengths meet here. *Native* coordinates are those of ``obsm["spatial"]``; *image* pixels are columns and rows of
``TissueImage.pixels``; micrometres are what biology is measured in. ``image_xy = native_xy * scale`` joins the first
two, ``microns_per_pixel`` (of this image, not of the full-resolution scan) the last two.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.errors import ConfigError, InputError

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

MAX_PIXELS = 2**28  # width x height; 0.8 GB as uint8 RGB
"""Largest image read from a file by default. Pillow refuses PNG and JPEG over 178,956,970 pixels by itself."""

WHITE = 255
_TIFF_SUFFIXES = (".tif", ".tiff")
_PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg")
_BROKEN = (  # what the decoders are known to raise on damaged files
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


@dataclass(frozen=True, eq=False)
class TissueImage:
    """Histology of one slice.

    Parameters
    ----------
    pixels
        uint8, (H, W, 3), red-green-blue, row 0 at the top. Kept as a read-only view, not copied.
    microns_per_pixel
        Micrometres along the side of one pixel of ``pixels``; None where unknown.
    scale
        ``image_xy = native_xy * scale`` with x the column and y the row; both positive-down, origin at the top left.

    Raises
    ------
    InputError
        Wrong shape or dtype, an empty image, or a scale or pixel size that is not a positive finite number.

    Examples
    --------
    >>> import numpy as np
    >>> TissueImage(np.zeros((4, 6, 3), np.uint8)).crop(0.0, 0.0, size_px=2).shape
    (2, 2, 3)
    """

    pixels: NDArray[np.uint8]
    microns_per_pixel: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        pixels = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise InputError(
                f"TissueImage needs uint8 pixels of shape (height, width, 3), got {_describe(pixels)}; "
                "build it with TissueImage.from_array, which converts float, gray and RGBA images."
            )
        if 0 in pixels.shape:
            raise InputError(f"TissueImage has no pixels: shape {pixels.shape}; leave the image out instead.")
        for name in ("scale", "microns_per_pixel"):
            value = getattr(self, name)
            if value is None and name == "microns_per_pixel":
                continue
            object.__setattr__(self, name, _positive(value, name))
        view = pixels.view()
        view.flags.writeable = False
        object.__setattr__(self, "pixels", view)

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.pixels.shape[1])

    @classmethod
    def from_array(cls, array: ArrayLike, microns_per_pixel: float | None = None, scale: float = 1.0) -> TissueImage:
        """Build from any usual array.

        Parameters
        ----------
        array
            (H, W) or (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA (laid over white); uint8, uint16 (0-65535) or
            float in [0, 1].
        microns_per_pixel, scale
            As in :class:`TissueImage`.

        Raises
        ------
        InputError
            Another shape or dtype, NaN, or float values outside [0, 1].
        """
        return cls(_to_rgb(_to_bytes(np.asarray(array))), microns_per_pixel, scale)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        microns_per_pixel: float | None = None,
        scale: float = 1.0,
        max_pixels: int = MAX_PIXELS,
    ) -> TissueImage:
        """Read a ``.png``, ``.jpg`` / ``.jpeg`` (Pillow) or ``.tif`` / ``.tiff`` (tifffile, first series, full size).

        Parameters
        ----------
        path
            File; its size is read from the header and checked before any pixel is decoded.
        microns_per_pixel, scale
            As in :class:`TissueImage`; never guessed from the file's metadata.
        max_pixels
            Limit on width x height, default 2**28. PNG and JPEG also stop at Pillow's limit of 178,956,970.

        Raises
        ------
        InputError
            No such file, another kind of file, too many pixels, or a damaged or truncated file.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"No image file at {path}; check the path.")
        suffix = path.suffix.lower()
        if suffix in _TIFF_SUFFIXES:
            array = _read_tiff(path, max_pixels)
        elif suffix in _PILLOW_SUFFIXES:
            array = _read_pillow(path, max_pixels)
        else:
            known = ", ".join(_PILLOW_SUFFIXES + _TIFF_SUFFIXES)
            raise InputError(f"{path}: {suffix or 'no suffix'} is not an image format read here; save as {known}.")
        return cls.from_array(array, microns_per_pixel, scale)

    def crop(self, x: float, y: float, size_px: int | None = None, size_um: float | None = None) -> NDArray[np.uint8]:
        """Cut a square centred on a point of the slice; what lies beyond the border is white.

        Parameters
        ----------
        x, y
            Centre in native coordinates (those of ``obsm["spatial"]``).
        size_px
            Side in pixels of this image. Give this or ``size_um``, not both.
        size_um
            Side in micrometres; needs ``microns_per_pixel``. Rounded to whole pixels, at least one.

        Returns
        -------
        numpy.ndarray
            uint8, (size, size, 3), a copy.

        Raises
        ------
        ConfigError
            Neither or both sizes, a size under one pixel or over the reading limit, or unknown microns per pixel.
        InputError
            A centre that is not finite.
        """
        size = self._side(size_px, size_um)
        if not (np.isfinite(x) and np.isfinite(y)):
            raise InputError(f"Cannot crop at ({x}, {y}): the centre must be finite; drop or mend that coordinate.")
        limit = size + max(self.height, self.width)  # beyond this every crop is white: keeps the integers small
        left = int(np.clip(np.floor(x * self.scale - size / 2 + 0.5), -limit, limit))
        top = int(np.clip(np.floor(y * self.scale - size / 2 + 0.5), -limit, limit))
        out = np.full((size, size, 3), WHITE, dtype=np.uint8)
        x0, x1 = max(left, 0), min(left + size, self.width)
        y0, y1 = max(top, 0), min(top + size, self.height)
        if x0 < x1 and y0 < y1:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self.pixels[y0:y1, x0:x1]
        return out

    def _side(self, size_px: int | None, size_um: float | None) -> int:
        if (size_px is None) == (size_um is None):
            raise ConfigError("crop needs either size_px or size_um, one of the two.")
        if size_um is not None:
            if self.microns_per_pixel is None:
                raise ConfigError("crop: size_um needs an image with microns_per_pixel; set it, or pass size_px.")
            if not (np.isfinite(size_um) and size_um > 0):
                raise ConfigError(f"crop: size_um must be a positive number of micrometres, got {size_um}.")
            size = max(1, round(size_um / self.microns_per_pixel))
        else:
            if isinstance(size_px, bool) or not isinstance(size_px, (int, np.integer)) or size_px < 1:
                raise ConfigError(f"crop: size_px must be a whole number of at least 1, got {size_px!r}.")
            size = int(size_px)
        if size * size > MAX_PIXELS:
            raise ConfigError(
                f"crop: a size of {size} x {size} pixels is over the limit of {MAX_PIXELS} pixels in all."
            )
        return size


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return type(value).__name__


def _positive(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"TissueImage: {name} must be a positive finite number, got {value!r}.")
    return number


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.asarray(array // 257, dtype=np.uint8)
    if array.dtype.kind != "f":
        raise InputError(f"Image of {array.dtype}: pass uint8, uint16 or float in [0, 1].")
    if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError("Float image has values outside [0, 1] or NaN; divide by 255 (or by its maximum) first.")
    return np.asarray(np.rint(array * 255), dtype=np.uint8)


def _to_rgb(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(f"Image of shape {array.shape}: pass (height, width) or (height, width, 1, 3 or 4 channels).")
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint16)
        over = (array[:, :, :3] * alpha + WHITE * (255 - alpha) + 127) // 255
        return over.astype(np.uint8)
    return array


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{path}: {width} x {height} pixels is over the limit of {max_pixels}; "
            "save a smaller copy (and set scale and microns_per_pixel to match), or raise max_pixels."
        )


def _read_pillow(path: Path, max_pixels: int) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            picture = Image.open(path, formats=("PNG", "JPEG"))
        with picture:
            _check_size(path, *picture.size, max_pixels)
            if picture.mode.startswith("I;16"):
                return np.asarray(picture)
            see_through = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA")
            wanted = "RGBA" if see_through else "L" if picture.mode in ("1", "L") else "RGB"
            return np.asarray(picture.convert(wanted))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: refused as a decompression bomb ({error}); save a smaller copy.") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a PNG or JPEG image, whatever its name says.") from error
    except _BROKEN as error:
        raise InputError(f"{path}: damaged or truncated image ({error}); copy or download it again.") from error


def _read_tiff(path: Path, max_pixels: int) -> NDArray[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            shape, axes = series.shape, series.axes
            channel = 0 if len(shape) == 3 and axes[0] in "SC" else -1  # planar or interleaved colour
            if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channel] not in (1, 3, 4)):
                raise InputError(f"{path}: TIFF of shape {shape} (axes {axes}); save it as one gray or RGB(A) image.")
            height, width = shape[:2] if channel == -1 else shape[1:]
            _check_size(path, width, height, max_pixels)
            page = tiff.pages[series.keyframe.index]
            size = path.stat().st_size
            ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if not ends or max(ends) > size:
                raise InputError(f"{path}: truncated TIFF ({size} bytes on disk); copy or download it again.")
            array = np.asarray(series.asarray())
    except InputError:
        raise
    except (*_BROKEN, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: cannot read this TIFF ({error}); save it uncompressed, or as PNG.") from error
    return np.moveaxis(array, 0, -1) if channel == 0 else array
