"""Pixels as they come, as uint8 red-green-blue; and pixels that stay in their file until a region is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terrazzo.errors import InputError, TerrazzoWarning

Colors = Literal["auto", "inverted", "cmyk"]
Padding = Literal["edge", "white"]

MAX_PIXELS = 2**28
"""Most pixels (width x height) that are decoded at once unless more is allowed; 0.8 GB as uint8 RGB."""

WHITE = 255
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
    if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
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
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise InputError(
            f"Image of shape {array.shape}: pass (height, width) or (height, width, 1, 3 or 4 channels)."
        )
    if colors == "inverted":
        array = WHITE - array
    if colors == "cmyk" and array.shape[2] == 4:
        light = WHITE - array.astype(np.uint16)
        return ((light[:, :, :3] * light[:, :, 3:] + 127) // 255).astype(np.uint8)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.uint16)
        array = ((array[:, :, :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array


def warn_if_dark(converted: NDArray[np.uint8], where: str) -> None:
    """Say that a 16-bit image uses so little of its range that it reads as black."""
    if converted.max() <= _TWELVE_BITS >> 8:
        warnings.warn(
            f"{where}: 16-bit, but no value is above {_TWELVE_BITS} of 65,535, so it reads as almost black. If it has "
            "12 bits, multiply it by 16 first.",
            TerrazzoWarning,
            stacklevel=4,
        )


class LazyPixels:
    """Pixels that are read where they are asked for: ``pixels[y0:y1, x0:x1]`` is uint8, (rows, columns, 3).

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
        """Read a region that lies inside, (y1 - y0, x1 - x0, 3)."""
        raise NotImplementedError

    def content(self) -> Iterator[bytes]:
        """Yield bytes that change when the picture does."""
        for y in range(0, self.shape[0], 512):
            yield np.ascontiguousarray(self[y : y + 512]).tobytes()

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (4 - len(index)) + index[at + 1 :]
        bounds: list[int] = []
        rest: list[Any] = []
        for axis in range(2):
            one = index[axis] if axis < len(index) else slice(None)
            if isinstance(one, slice):
                start, stop, step = one.indices(self.shape[axis])
                if step < 1:
                    raise IndexError("pixels are read forwards: give slices with a positive step")
                bounds += [start, max(stop, start)]
                rest.append(slice(None, None, step))
            else:
                at = int(one) + (self.shape[axis] if one < 0 else 0)
                if not 0 <= at < self.shape[axis]:
                    raise IndexError(f"pixel {one} of {self.shape[axis]}")
                bounds += [at, at + 1]
                rest.append(0)
        if (bounds[1] - bounds[0]) * (bounds[3] - bounds[2]) > self.max_pixels:
            raise InputError(
                f"{bounds[3] - bounds[2]} x {bounds[1] - bounds[0]} pixels at once are over the limit of "
                f"{self.max_pixels}; read a smaller region, or raise max_pixels."
            )
        return self._region(*bounds)[(*rest, *index[2:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self[:, :]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        sides = ", ".join(f"{level.shape[1]} x {level.shape[0]}" for level in self.levels)
        return f"{type(self).__name__}({sides})"


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
        sides = shape[1:] if channels_first and len(shape) == 3 else shape[:2]
        channels = 1 if len(shape) == 2 else shape[0 if channels_first else -1]
        if len(shape) not in (2, 3) or channels not in (1, 3, 4) or 0 in shape:
            raise InputError(
                f"Image of shape {shape}: it must be gray, RGB or RGBA; of a stack of channels, choose three first."
            )
        super().__init__(sides[0], sides[1], max_pixels)
        self._array, self._first = array, channels_first and len(shape) == 3
        rest = [
            ArrayPixels(one, channels_first=channels_first, max_pixels=max_pixels)
            for one in coarser
        ]
        self.levels = (self, *rest)

    def _region(self, y0: int, y1: int, x0: int, x1: int) -> NDArray[np.uint8]:
        raw = np.asarray(self._array[:, y0:y1, x0:x1] if self._first else self._array[y0:y1, x0:x1])
        return to_rgb(to_bytes(np.moveaxis(raw, 0, -1) if self._first else raw))


def read_padded(
    pixels: NDArray[np.uint8] | LazyPixels, x0: int, y0: int, x1: int, y1: int, padding: Padding
) -> NDArray[np.uint8]:
    """Read a box that may reach over the border, (y1 - y0, x1 - x0, 3), a copy.

    What lies beyond is white, or repeats the nearest pixel of the border.
    """
    height, width = pixels.shape[:2]
    columns, rows = np.arange(x0, x1), np.arange(y0, y1)
    inside_x, inside_y = np.clip(columns, 0, width - 1), np.clip(rows, 0, height - 1)
    left, top = int(inside_x[0]), int(inside_y[0])
    held = pixels[top : int(inside_y[-1]) + 1, left : int(inside_x[-1]) + 1]
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return np.array(held)
    out = held[np.ix_(inside_y - top, inside_x - left)]
    if padding == "white":
        out[(rows < 0) | (rows >= height)] = WHITE
        out[:, (columns < 0) | (columns >= width)] = WHITE
    return out
