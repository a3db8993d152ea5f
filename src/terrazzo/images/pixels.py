"""Convert pixels of any kind to uint8 RGB, and read pixels that stay in their file, a region at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError, TerrazzoWarning

__all__ = [
    "MAX_PIXELS",
    "ArrayPixels",
    "Colors",
    "LazyPixels",
    "Padding",
    "read_padded",
    "to_bytes",
    "to_rgb",
    "warn_if_dark",
]

Colors = Literal["auto", "inverted", "cmyk"]
Padding = Literal["edge", "white"]

MAX_PIXELS = 2**28
"""Most pixels (width x height) that are decoded at once unless more is allowed; 0.8 GB as uint8 RGB."""

WHITE = 255
_CONTENT_ROWS = 512  # read at a time to hash an image
_TWELVE_BITS = 4095


def to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return uint8 of bool, uint8, uint16 (0-65535) or float in [0, 1], of any shape.

    Raises
    ------
    InputError
        Another dtype; NaN, or float values outside [0, 1].
    """
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return np.asarray(array // 257, dtype=np.uint8)
    if array.dtype.kind != "f":
        raise InputError(f"Image of {array.dtype}: pass uint8, uint16 or float in [0, 1].")
    in_range = (array >= 0) & (array <= 1)  # False for NaN
    if not in_range.all():
        raise InputError(
            "Float image has values outside [0, 1] or NaN; divide by 255 (or by its maximum) first."
        )
    return np.asarray(np.rint(array * 255), dtype=np.uint8)


def to_rgb(array: NDArray[np.uint8], colors: Colors = "auto") -> NDArray[np.uint8]:
    """Return (H, W, 3) of (H, W), (H, W, 1) gray, RGB, or RGBA (laid over white).

    Parameters
    ----------
    array
        uint8.
    colors
        ``"auto"``: by the number of channels. ``"inverted"``: gray with 0 as white. ``"cmyk"``: four inks, 255 is full.

    Raises
    ------
    InputError
        Another shape.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    n_channels = array.shape[2] if array.ndim == 3 else 0
    if n_channels not in (1, 3, 4):
        raise InputError(
            f"Image of shape {array.shape}: pass (height, width) or (height, width, 1, 3 or 4 channels)."
        )
    if colors == "inverted":
        array = WHITE - array
    if n_channels == 1:
        return np.repeat(array, 3, axis=2)
    if n_channels == 3:
        return array
    first = array[:, :, :3]
    last = array[:, :, 3:].astype(np.uint16)
    if colors == "cmyk":
        light = WHITE - first.astype(np.uint16)
        return _share_of_255(light * (WHITE - last))
    return _share_of_255(first * last + WHITE * (255 - last))


def _share_of_255(product: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Divide by 255, rounded."""
    rounded = (product + 127) // 255
    return rounded.astype(np.uint8)


def warn_if_dark(converted: NDArray[np.uint8], where: str) -> None:
    """Warn of a 16-bit image that uses so little of its range that it reads as black."""
    if converted.max() <= _TWELVE_BITS >> 8:
        warnings.warn(
            f"{where}: 16-bit, but no value is above {_TWELVE_BITS} of 65,535, so it reads as almost black. If it has "
            "12 bits, multiply it by 16 first.",
            TerrazzoWarning,
            stacklevel=4,
        )


class LazyPixels:
    """Pixels that are read when they are sliced: ``pixels[y0:y1, x0:x1]`` is uint8, (rows, columns, 3).

    ``np.asarray`` reads all, within ``max_pixels``. Subclasses read a raw region of one level of a pyramid.

    Attributes
    ----------
    shape
        (height, width, 3).
    levels
        Itself, and the same picture at coarser resolutions, finest first.
    max_pixels
        Most pixels of one reading.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, height: int, width: int, max_pixels: int = MAX_PIXELS) -> None:
        self.shape = (int(height), int(width), 3)
        self.levels: tuple[LazyPixels, ...] = (self,)
        self.max_pixels = max_pixels

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        """Read a region inside the image, (y1 - y0, x1 - x0, 3)."""
        raise NotImplementedError

    def content(self) -> Iterator[bytes]:
        """Yield bytes that change when the picture does."""
        for y in range(0, self.shape[0], _CONTENT_ROWS):
            rows = self[y : y + _CONTENT_ROWS]
            yield np.ascontiguousarray(rows).tobytes()

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        rows, columns, *channels = _three_axes(index)
        y0, y1, inner_rows = _bounds(rows, self.shape[0])
        x0, x1, inner_columns = _bounds(columns, self.shape[1])
        height = y1 - y0
        width = x1 - x0
        if height * width > self.max_pixels:
            raise InputError(
                f"{width} x {height} pixels at once are over the limit of {self.max_pixels}; "
                "read a smaller region, or raise max_pixels."
            )
        region = self._region(y0, y1, x0, x1)
        return region[(inner_rows, inner_columns, *channels)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self[:, :]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        sides = []
        for level in self.levels:
            height, width, _ = level.shape
            sides.append(f"{width} x {height}")
        return f"{type(self).__name__}({', '.join(sides)})"


def _three_axes(index: Any) -> tuple[Any, ...]:
    """Return an index with rows, columns and, where it says something of them, channels."""
    if not isinstance(index, tuple):
        index = (index,)
    everything = slice(None)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        n_left_out = 4 - len(index)
        index = index[:at] + (everything,) * n_left_out + index[at + 1 :]
    while len(index) < 2:
        index = (*index, everything)
    return index


def _bounds(index: Any, size: int) -> tuple[int, int, Any]:
    """Return where the pixels of an index start and stop on an axis, and the index of these pixels among them."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        if step < 1:
            raise IndexError("pixels are read forwards: give slices with a positive step")
        return start, max(stop, start), slice(None, None, step)
    at = int(index)
    if at < 0:
        at += size
    if not 0 <= at < size:
        raise IndexError(f"pixel {index} of {size}")
    return at, at + 1, 0


class ArrayPixels(LazyPixels):
    """Any array that is sliced lazily (dask, zarr, HDF5, NumPy), with its channels first or last.

    Parameters
    ----------
    array
        (H, W), (H, W, C) or, with ``channels_first``, (C, H, W); C is 1, 3 or 4.
    channels_first
        As SpatialData has it.
    coarser
        The same picture at lower resolutions, finest first.

    Raises
    ------
    InputError
        Another shape.
    """

    def __init__(
        self,
        array: Any,
        *,
        channels_first: bool = False,
        coarser: Sequence[Any] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        shape = tuple(int(side) for side in array.shape)
        if len(shape) == 2:
            channels_first = False
            n_channels = 1
        else:
            n_channels = shape[0 if channels_first else -1]
        if len(shape) not in (2, 3) or n_channels not in (1, 3, 4) or 0 in shape:
            raise InputError(
                f"Image of shape {shape}: it must be gray, RGB or RGBA; of a stack of channels, choose three first."
            )
        height, width = shape[1:] if channels_first else shape[:2]
        super().__init__(height, width, max_pixels)
        self._array = array
        self._channels_first = channels_first
        levels: list[LazyPixels] = [self]
        for one in coarser:
            levels.append(ArrayPixels(one, channels_first=channels_first, max_pixels=max_pixels))
        self.levels = tuple(levels)

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        if self._channels_first:
            raw = np.moveaxis(np.asarray(self._array[:, y0:y1, x0:x1]), 0, -1)
        else:
            raw = np.asarray(self._array[y0:y1, x0:x1])
        return to_rgb(to_bytes(raw))


def read_padded(
    pixels: NDArray[np.uint8] | LazyPixels, x0: int, y0: int, x1: int, y1: int, padding: Padding
) -> NDArray[np.uint8]:
    """Read a box that may reach over the border, (y1 - y0, x1 - x0, 3), a copy.

    What is beyond is white, or repeats the nearest pixel of the border.
    """
    height, width = pixels.shape[:2]
    columns = np.arange(x0, x1)
    rows = np.arange(y0, y1)
    nearest_column = np.clip(columns, 0, width - 1)
    nearest_row = np.clip(rows, 0, height - 1)
    left = int(nearest_column[0])
    right = int(nearest_column[-1]) + 1
    top = int(nearest_row[0])
    bottom = int(nearest_row[-1]) + 1
    inside = pixels[top:bottom, left:right]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return np.array(inside)
    out = inside[np.ix_(nearest_row - top, nearest_column - left)]
    if padding == "white":
        out[rows != nearest_row] = WHITE
        out[:, columns != nearest_column] = WHITE
    return out
