"""TIFF images that stay in their file: tiles, strips and levels through tifffile's zarr view."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from tifffile.zarr import ZarrTiffStore

from terrazzo.errors import InputError
from terrazzo.images.pillow import BROKEN, check_size, decode_picture
from terrazzo.images.pixels import Colors, LazyPixels, to_bytes, to_rgb, warn_if_dark

__all__ = ["TiffPixels", "TiffStore", "open_tiff"]

CACHE_BYTES = 2**26  # of decoded tiles: spots beside each other share them
_LEAST_TILE = 2**20  # bytes, however small a tile is
_FILE_BLOCK = 2**20  # bytes
# Pixels of a coarsest level that is read to see whether the image is dark
_LARGEST_CHECKED = 2**22
_JPEG = 7
# JPEG marker that says: three components are red, green and blue, not YCbCr
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_TIFF_BROKEN = (*BROKEN, tifffile.TiffFileError)
_COLORS: dict[str, Colors] = {
    "MINISWHITE": "inverted",
    "MINISBLACK": "auto",
    "RGB": "auto",
    "SEPARATED": "cmyk",
}


class TiffStore(ZarrTiffStore):
    """Zarr store of one level of a TIFF that keeps the tiles (or strips) it decoded last.

    The file is opened for each reading and closed again, so that threads and forked processes share no position in it.
    """

    def __init__(self, series: tifffile.TiffPageSeries, level: int) -> None:
        super().__init__(series, level=level, read_only=True, _openfiles=0)
        self._recent = OrderedDict[str, Any]()

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return a decoded tile; zarr calls this in its own thread only."""
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        tile = await super().get(key, prototype, byte_range)
        if tile is not None:
            self._recent[key] = tile
            n_kept = max(1, CACHE_BYTES // len(tile))
            while len(self._recent) > n_kept:
                self._recent.popitem(last=False)
        return tile


@dataclass(frozen=True)
class TiffLevel:
    """One resolution of a TIFF.

    Attributes
    ----------
    height, width
        In pixels.
    channels_first
        Colors are stored one after the other: (C, H, W).
    shape, dtype
        Of the array as it is stored.
    tiles
        The array as zarr shows it, read by tile or strip; None if it is stored in one piece without compression.
    offset
        Where in the file such a piece begins.
    colors, palette
        What the values mean: as :func:`to_rgb` names it; uint16 (3, n) colors of a palette, or None.
    """

    height: int
    width: int
    channels_first: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tiles: zarr.Array | None
    offset: int
    colors: Colors
    palette: NDArray[np.uint16] | None


class TiffPixels(LazyPixels):
    """One level of a TIFF; the coarser ones are in ``levels``. Can be sent to other processes and used by threads."""

    def __init__(self, path: Path, level: TiffLevel, number: int, max_pixels: int) -> None:
        super().__init__(level.height, level.width, max_pixels)
        self.path = path
        self._level = level
        self._number = number

    def __reduce__(self) -> Any:
        return _reopen, (self.path, self.max_pixels, self._number)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the file, which is faster than to decode it."""
        with self.path.open("rb") as file:
            while block := file.read(_FILE_BLOCK):
                yield block

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        level = self._level
        box: tuple[slice, ...] = (slice(y0, y1), slice(x0, x1))
        if level.channels_first:
            box = (slice(None), *box)
        try:
            values = self._read(box)
        except _TIFF_BROKEN as error:
            raise InputError(
                f"{self.path}: damaged between columns {x0} and {x1}, rows {y0} and {y1} ({error}); "
                "copy or download it again."
            ) from error
        if level.channels_first:
            values = np.moveaxis(values, 0, -1)
        if level.palette is None:
            return to_rgb(to_bytes(values), level.colors)
        indices = values.reshape(values.shape[:2])
        colors = np.moveaxis(level.palette[:, indices], 0, -1)
        return to_rgb(to_bytes(colors))

    def _read(self, box: tuple[slice, ...]) -> NDArray[Any]:
        """Read stored values into an array that no longer depends on the file."""
        level = self._level
        if level.tiles is not None:
            return np.asarray(level.tiles[box])
        stored = np.memmap(self.path, level.dtype, mode="r", offset=level.offset, shape=level.shape)
        return np.array(stored[box])


def open_tiff(path: Path, max_pixels: int) -> NDArray[np.uint8] | LazyPixels:
    """Open the first series of a TIFF, lazily where its compression allows that.

    Raises
    ------
    InputError
        Not one gray or color image; tiles over ``max_pixels``; a damaged or truncated file; a compression that cannot
        be read.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            if not tiff.series:
                raise InputError(f"{path}: a TIFF without an image.")
            series = tiff.series[0]
            height, width, _ = _layout(path, series)
            problem = _unreadable(series)
            if problem is not None:
                check_size(path, width, height, max_pixels)
                return _read_with_pillow(path, problem, max_pixels)
            levels = [
                _open_level(path, series, number, max_pixels)
                for number, level in enumerate(series.levels)
                if _unreadable(level) is None
            ]
        return _pyramid(path, levels, max_pixels)
    except InputError:
        raise
    except _TIFF_BROKEN as error:
        raise InputError(
            f"{path}: cannot read this TIFF ({error}); save it uncompressed, or as PNG."
        ) from error


def _pyramid(path: Path, levels: list[TiffLevel], max_pixels: int) -> TiffPixels:
    """Join the levels of an image, and warn if its 16 bits are hardly used."""
    pixels = []
    for number, level in enumerate(levels):
        pixels.append(TiffPixels(path, level, number, max_pixels))
    finest = pixels[0]
    finest.levels = tuple(pixels)
    coarsest = levels[-1]
    is_small = coarsest.height * coarsest.width <= min(_LARGEST_CHECKED, max_pixels)
    is_uint16 = coarsest.dtype.newbyteorder("=") == np.uint16
    if is_small and is_uint16:
        warn_if_dark(np.asarray(pixels[-1]), str(path))
    return finest


def _reopen(path: Path, max_pixels: int, number: int) -> Any:
    """Open a level again, in another process."""
    pixels = open_tiff(path, max_pixels)
    if isinstance(pixels, LazyPixels):
        return pixels.levels[number]
    return pixels


def _layout(path: Path, series: Any) -> tuple[int, int, bool]:
    """Return height and width of a level, and whether its colors are stored one after the other."""
    shape, axes = series.shape, series.axes
    if len(shape) == 2:
        return shape[0], shape[1], False
    channels_first = axes[0] in "SC"
    n_channels = shape[0] if channels_first else shape[-1]
    if len(shape) != 3 or n_channels not in (1, 3, 4):
        raise InputError(
            f"{path}: TIFF of shape {shape} (axes {axes}); save it as one gray or RGB(A) image."
        )
    if channels_first:
        return shape[1], shape[2], True
    return shape[0], shape[1], False


def _unreadable(series: Any) -> str | None:
    """Say why the tiles of a level cannot be decoded one by one; None where they can."""
    key = series.keyframe
    colors, bits = key.photometric.name, key.bitspersample
    if key.compression == _JPEG:
        is_gray_or_rgb = key.samplesperpixel in (1, 3)
        is_usual = bits == 8 and key.planarconfig == 1 and is_gray_or_rgb
        return None if is_usual else "JPEG of another kind"
    has_known_colors = colors in _COLORS or colors == "PALETTE"
    has_whole_bytes = bits >= 8 and bits % 8 == 0
    has_known_type = key.dtype is not None and key.dtype.kind in "uf"
    if not (has_known_colors and has_whole_bytes and has_known_type):
        return f"{colors} colors of {bits} bits"
    try:
        if key.compression != 1:
            tifffile.TIFF.DECOMPRESSORS[key.compression]
        if key.predictor != 1:
            tifffile.TIFF.UNPREDICTORS[key.predictor]
    except KeyError:
        return f"compression {getattr(key.compression, 'name', key.compression)}"
    return None


def _open_level(path: Path, series: Any, number: int, max_pixels: int) -> TiffLevel:
    """Prepare one level for reading, while the file is open; its sizes are checked, nothing is decoded."""
    stored = series.levels[number]
    key = stored.keyframe
    height, width, channels_first = _layout(path, stored)
    dtype = np.dtype(key.dtype).newbyteorder(key.parent.byteorder)
    tiles = None
    if stored.dataoffset is None:
        rows, columns = key.chunks[:2]
        check_size(path, columns, rows, max_pixels)
        if key.compression == _JPEG:
            key.decode = _jpeg_decoder(key)
        tiles = zarr.open_array(TiffStore(series, number), mode="r")
        end = _end_of_tiles(path, stored)
    else:
        n_bytes = math.prod(stored.shape) * dtype.itemsize
        end = stored.dataoffset + n_bytes
    size = os.path.getsize(path)
    if end > size:
        raise InputError(
            f"{path}: truncated TIFF ({size} of {end} bytes on disk); copy or download it again."
        )
    is_palette = key.photometric.name == "PALETTE"
    return TiffLevel(
        height=height,
        width=width,
        channels_first=channels_first,
        shape=stored.shape,
        dtype=dtype,
        tiles=tiles,
        offset=stored.dataoffset or 0,
        colors=_COLORS.get(key.photometric.name, "auto"),
        palette=np.asarray(key.colormap) if is_palette else None,
    )


def _end_of_tiles(path: Path, series: Any) -> int:
    """Return where in the file the last tile of a level ends; a level that does not list all its tiles is refused."""
    key = series.keyframe
    n_tiles = math.prod(key.chunked)
    n_values = math.prod(key.chunks) * key.samplesperpixel
    most = (
        _LEAST_TILE + 2 * n_values * key.dtype.itemsize
    )  # no compression makes a tile twice as long
    last = 0
    for page in series.pages:
        if page is None:
            continue
        starts, lengths = page.dataoffsets, page.databytecounts
        n_listed = min(len(starts), len(lengths))
        if n_listed < n_tiles:
            raise InputError(
                f"{path}: truncated TIFF ({n_listed} of {n_tiles} tiles are listed); copy or download it again."
            )
        longest = max(lengths, default=0)
        if longest > most:
            raise InputError(
                f"{path}: a tile of {longest:,} bytes where {most:,} are enough; it is damaged, or made to fill the "
                "memory."
            )
        ends = [start + length for start, length in zip(starts, lengths, strict=False)]
        last = max(last, *ends)
    return last


def _jpeg_decoder(key: Any) -> Callable[..., Any]:
    """Return what tifffile calls to decode a JPEG tile, by Pillow: its own decoder needs imagecodecs."""
    from PIL.JpegImagePlugin import JpegImageFile

    rows, columns = key.chunks[:2]
    n_across = -(-key.imagewidth // columns)
    is_rgb = key.photometric.name == "RGB"

    def decode(data: bytes, index: int, *, jpegtables: bytes | None = None, **_: Any) -> Any:
        if jpegtables:  # shared by all tiles: without the end of the one and the start of the other
            data = jpegtables[:-2] + data[2:]
        if is_rgb:
            data = data[:2] + _ADOBE_RGB + data[2:]
        picture = JpegImageFile(io.BytesIO(data))
        row, column = divmod(index, n_across)
        height = min(rows, key.imagelength - row * rows)
        width = min(columns, key.imagewidth - column * columns)
        if not (width <= picture.width <= columns and height <= picture.height <= rows):
            raise ValueError(
                f"a tile of {picture.size} pixels where {columns, rows} were announced"
            )
        tile = np.zeros(key.chunks, dtype=np.uint8)
        tile[: picture.height, : picture.width] = decode_picture(picture)
        return tile, None, None

    return decode


def _read_with_pillow(path: Path, problem: str, max_pixels: int) -> NDArray[np.uint8]:
    """Decode the whole image with libtiff, for what cannot be read by part."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damage, which ends in an error or in pixels
            picture = TiffImageFile(file)
            check_size(path, picture.width, picture.height, max_pixels)
            return to_rgb(to_bytes(decode_picture(picture)))
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(
            f"{path}: cannot read this TIFF ({problem}; {error}); `pip install imagecodecs` may help, or save it with "
            "deflate or JPEG compression, or as PNG."
        ) from error
