"""Image files: what they say of themselves is checked before anything is decoded; TIFFs stay in their file."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.images.pixels import MAX_PIXELS, Colors, LazyPixels, to_bytes, to_rgb, warn_if_dark

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
        from terrazzo.images.files import open_tiff

        return open_tiff(path, max_pixels)
    if suffix in PILLOW_SUFFIXES:
        raw = read_pillow(path, max_pixels)
        pixels = to_rgb(to_bytes(raw))
        if raw.dtype == np.uint16:
            warn_if_dark(pixels, str(path))
        return pixels
    known = ", ".join(PILLOW_SUFFIXES + TIFF_SUFFIXES)
    raise InputError(
        f"{path}: {suffix or 'no suffix'} is not an image format read here; save as {known}."
    )


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
                picture: Any = PngImageFile(
                    file
                )  # Image.open would add a limit of its own, which cannot be raised
            elif start[:2] == b"\xff\xd8":
                picture = JpegImageFile(file)
            else:
                raise InputError(f"{path} is not a PNG or JPEG image, whatever its name says.")
            check_size(path, picture.width, picture.height, max_pixels)
            return decoded(picture)
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path}: damaged or truncated image ({error}); copy or download it again."
        ) from error


def decoded(picture: Any) -> NDArray[Any]:
    """Return the pixels of a Pillow image."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)
    see_through = "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA")
    wanted = "RGBA" if see_through else "L" if picture.mode in ("1", "L") else "RGB"
    return np.asarray(picture.convert(wanted))


CACHE_BYTES = 2**26  # of decoded segments: spots that lie side by side share them


_JPEG = 7


_ADOBE_RGB = (
    b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # says that three components are no YCbCr
)


_COLORS: dict[str, Colors] = {
    "MINISWHITE": "inverted",
    "MINISBLACK": "auto",
    "RGB": "auto",
    "SEPARATED": "cmyk",
}


_CHUNK = 2**20  # bytes of a reading; pixels of a segment that we cut ourselves


_LOOKED_AT = 2**22  # pixels that are read to see whether a picture is dark


@dataclass(frozen=True)
class Level:
    """One resolution: its pages (one, or one a color) and the segments that they are read by.

    Attributes
    ----------
    plain
        Neither compressed nor tiled: rows can be read from anywhere, and segments are cut by us.
    tables, palette
        Shared parts of JPEG segments; uint16 (3, n) colors of a palette. None where there are none.
    """

    pages: tuple[Any, ...]
    height: int
    width: int
    rows: int
    columns: int
    plain: bool
    byteorder: str
    tables: bytes | None
    palette: NDArray[np.uint16] | None

    @property
    def key(self) -> Any:
        """What all pages have in common: tifffile's keyframe."""
        return self.pages[0].keyframe

    @property
    def planes(self) -> int:
        """Colors of a page that are stored one after the other."""
        return self.key.samplesperpixel if self.key.planarconfig == 2 else 1

    @property
    def samples(self) -> int:
        """Colors of a page that are stored together."""
        return self.key.samplesperpixel if self.key.planarconfig == 1 else 1

    @property
    def across(self) -> int:
        """Segments beside each other."""
        return -(-self.width // self.columns)

    @property
    def down(self) -> int:
        """Segments below each other."""
        return -(-self.height // self.rows)


def open_tiff(path: Path, max_pixels: int) -> NDArray[np.uint8] | LazyPixels:
    """Open the first series of a TIFF, lazily where its compression allows that.

    Raises
    ------
    InputError
        Not one gray or color image; segments over ``max_pixels``; a damaged or truncated file; a compression that
        nothing here can read.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            sizes = _sizes(path, tiff)
            series = tiff.series[0].levels[0]
            if any(
                page is None for page in series.pages
            ):  # one page stands for all: ImageJ's stacks
                check_size(path, sizes[0][1], sizes[0][0], max_pixels)
                array = np.asarray(series.asarray())
                return to_rgb(
                    to_bytes(np.moveaxis(array, 0, -1) if series.axes[0] in "SC" else array)
                )
            reason = _unreadable(series)
            if reason is not None:
                check_size(path, sizes[0][1], sizes[0][0], max_pixels)
                return _by_pillow(path, reason, max_pixels)
            held = zip(tiff.series[0].levels, sizes, strict=False)
            levels = [
                _level(one, *size, tiff.byteorder) for one, size in held if _unreadable(one) is None
            ]
        found = TiffPixels(path, levels, max_pixels)
        coarsest = found.levels[-1]
        if levels[-1].key.dtype == np.uint16 and coarsest.shape[0] * coarsest.shape[1] <= min(
            _LOOKED_AT, max_pixels
        ):
            warn_if_dark(np.asarray(coarsest), str(path))
        return found
    except InputError:
        raise
    except (*BROKEN, tifffile.TiffFileError) as error:
        raise InputError(
            f"{path}: cannot read this TIFF ({error}); save it uncompressed, or as PNG."
        ) from error


class TiffPixels(LazyPixels):
    """One level of a TIFF; the coarser ones are in ``levels``. Can be sent to other processes and used by threads."""

    def __init__(self, path: Path, levels: list[Level], max_pixels: int, at: int = 0) -> None:
        level = levels[at]
        super().__init__(level.height, level.width, max_pixels)
        self.path = path
        self._level, self._at = level, at
        self._lock, self._held = threading.Lock(), OrderedDict[int, NDArray[np.uint8]]()
        check_size(path, level.columns, level.rows, max_pixels)
        _check_complete(path, level)
        if at == 0:
            self.levels = (
                self,
                *(TiffPixels(path, levels, max_pixels, k) for k in range(1, len(levels))),
            )

    def __reduce__(self) -> Any:
        return _reopen, (self.path, self.max_pixels, self._at)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the file, which is faster than to decode it."""
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        out = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        if out.size == 0:
            return out
        rows, columns = self._level.rows, self._level.columns
        for row in range(y0 // rows, (y1 - 1) // rows + 1):
            for column in range(x0 // columns, (x1 - 1) // columns + 1):
                top, left = row * rows, column * columns
                a, b, c, d = (
                    max(y0, top),
                    min(y1, top + rows),
                    max(x0, left),
                    min(x1, left + columns),
                )
                out[a - y0 : b - y0, c - x0 : d - x0] = self._segment(row, column)[
                    a - top : b - top, c - left : d - left
                ]
        return out

    def _segment(self, row: int, column: int) -> NDArray[np.uint8]:
        index = row * self._level.across + column
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
        try:
            found = self._decode(row, column)
        except InputError:
            raise
        except BROKEN as error:
            left, top = column * self._level.columns, row * self._level.rows
            raise InputError(
                f"{self.path}: damaged at column {left}, row {top} ({error}); copy or download it again."
            ) from error
        with self._lock:
            self._held[index] = found
            while len(self._held) > 1 and len(self._held) * found.nbytes > CACHE_BYTES:
                self._held.popitem(last=False)
        return found

    def _decode(self, row: int, column: int) -> NDArray[np.uint8]:
        level, key = self._level, self._level.key
        height = min(level.rows, level.height - row * level.rows)
        width = min(level.columns, level.width - column * level.columns)
        parts = [
            self._part(page, plane, row, column)[:height, :width]
            for page in level.pages
            for plane in range(level.planes)
        ]
        raw = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
        if raw.shape[:2] != (height, width):
            raise InputError(
                f"{self.path}: a segment holds {raw.shape[:2]} pixels, its TIFF says {(height, width)}."
            )
        if level.palette is not None:
            return to_rgb(to_bytes(np.moveaxis(level.palette[:, raw[:, :, 0]], 0, -1)))
        return to_rgb(to_bytes(raw), _COLORS.get(key.photometric.name, "auto"))

    def _part(self, page: Any, plane: int, row: int, column: int) -> NDArray[Any]:
        """Read and decode one segment of one page, (rows, columns, samples)."""
        level, key = self._level, self._level.key
        if level.plain:
            dtype = np.dtype(key.dtype).newbyteorder(level.byteorder)
            line = level.width * level.samples * dtype.itemsize
            n = min(level.rows, level.height - row * level.rows)
            data = self._read(
                page.dataoffsets[0] + (plane * level.height + row * level.rows) * line, n * line
            )
            flat = np.frombuffer(data, dtype=dtype).reshape(n, level.width, level.samples)
            return flat.astype(key.dtype, copy=False)
        index = (plane * level.down + row) * level.across + column
        if page.databytecounts[index] == 0:  # left out by the writer: nothing but the fill value
            return np.full((level.rows, level.columns, level.samples), key.nodata, dtype=key.dtype)
        data = self._read(page.dataoffsets[index], page.databytecounts[index])
        if key.compression == _JPEG:
            return _jpeg(
                data, level.tables, key.photometric.name == "RGB", (level.columns, level.rows)
            )
        return np.asarray(key.decode(data, index)[0])[0]

    def _read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:  # of its own: shared by no thread and no process
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise InputError(f"{self.path}: truncated TIFF; copy or download it again.")
        return data


def _reopen(path: Path, max_pixels: int, at: int) -> Any:
    found = open_tiff(path, max_pixels)
    return found.levels[at] if isinstance(found, LazyPixels) else found


def _sizes(path: Path, tiff: Any) -> list[tuple[int, int]]:
    """Height and width of each level, finest first."""
    if not tiff.series:
        raise InputError(f"{path}: a TIFF without an image.")
    sizes = []
    for series in tiff.series[0].levels:
        shape, axes = series.shape, series.axes
        channel = 0 if len(shape) == 3 and axes[0] in "SC" else -1  # planar or interleaved color
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[channel] not in (1, 3, 4)):
            raise InputError(
                f"{path}: TIFF of shape {shape} (axes {axes}); save it as one gray or RGB(A) image."
            )
        sizes.append(shape[:2] if channel == -1 else shape[1:])
    return sizes


def _level(series: Any, height: int, width: int, byteorder: str) -> Level:
    key = series.keyframe
    plain = not key.is_tiled and key.is_final
    rows, columns = (
        (key.tilelength, key.tilewidth) if key.is_tiled else (min(key.rowsperstrip, height), width)
    )
    if plain:
        rows = min(height, max(1, _CHUNK // width))
    _ = key.decode  # while the file is open
    palette = np.asarray(key.colormap) if key.photometric.name == "PALETTE" else None
    tables = key.jpegtables if key.compression == _JPEG else None
    return Level(
        tuple(series.pages), height, width, rows, columns, plain, byteorder, tables, palette
    )


def _unreadable(series: Any) -> str | None:
    """Say why the segments of a level cannot be decoded one by one; None where they can."""
    import tifffile

    key = series.keyframe
    colors, bits = key.photometric.name, key.bitspersample
    if key.compression == _JPEG:
        return None if bits == 8 and key.planarconfig == 1 else "JPEG of another kind"
    if (
        colors not in (*_COLORS, "PALETTE")
        or key.dtype is None
        or key.dtype.kind not in "uf"
        or bits < 8
        or bits % 8
    ):
        return f"{colors} colors of {bits} bits"
    try:
        if key.compression != 1:
            tifffile.TIFF.DECOMPRESSORS[key.compression]
        if key.predictor != 1:
            tifffile.TIFF.UNPREDICTORS[key.predictor]
    except KeyError:
        return f"compression {getattr(key.compression, 'name', key.compression)}"
    return None


def _check_complete(path: Path, level: Level) -> None:
    size = os.path.getsize(path)
    for page in level.pages:
        if level.plain:
            wanted, ends = (
                1,
                [
                    page.dataoffsets[0]
                    + level.height
                    * level.width
                    * level.key.dtype.itemsize
                    * level.key.samplesperpixel
                ],
            )
        else:
            wanted = level.across * level.down * level.planes
            ends = [
                start + length
                for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
        if len(ends) < wanted or max(ends) > size:
            raise InputError(
                f"{path}: truncated TIFF ({size} bytes on disk); copy or download it again."
            )


def _jpeg(
    data: bytes, tables: bytes | None, is_rgb: bool, limit: tuple[int, int]
) -> NDArray[np.uint8]:
    """Decode one JPEG segment with Pillow, which is always there."""
    from PIL.JpegImagePlugin import JpegImageFile

    if tables:
        data = tables[:-2] + data[2:]  # without the end of the one and the start of the other
    if is_rgb:
        data = data[:2] + _ADOBE_RGB + data[2:]
    picture = JpegImageFile(io.BytesIO(data))
    if picture.size[0] > limit[0] or picture.size[1] > limit[1]:
        raise ValueError(f"a segment of {picture.size} pixels where {limit} were announced")
    found = decoded(picture)
    return found[:, :, None] if found.ndim == 2 else found


def _by_pillow(path: Path, reason: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode the whole picture with libtiff, for what cannot be read by part."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, which ends in an error or in pixels
            picture = TiffImageFile(file)
            check_size(path, picture.width, picture.height, max_pixels)
            return to_rgb(to_bytes(decoded(picture)))
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path}: cannot read this TIFF ({reason}; {error}); `pip install imagecodecs` may help, or save it with "
            "deflate or JPEG compression, or as PNG."
        ) from error
