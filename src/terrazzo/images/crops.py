"""Crops: boxes of an image, each resized to one size, read when they are indexed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Bools, Floats
from terrazzo.errors import ConfigError, InputError
from terrazzo.images.pixels import MAX_PIXELS, LazyPixels, Padding, read_padded

__all__ = ["Crops", "boxes_around", "shrink"]

_BAND = 2**22  # pixels of the image that are read at a time to be shrunken


@dataclass(frozen=True)
class Box:
    """A box on an image, in pixels of one of its levels; pixel i spans i to i + 1."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    def moved(self, left: float, top: float) -> Box:
        """Return a box of the same sides elsewhere."""
        return Box(
            left=left,
            top=top,
            right=left + self.width,
            bottom=top + self.height,
        )

    def scaled(self, x: float, y: float) -> Box:
        """Return the box on a level of which a pixel of this one is ``x`` wide and ``y`` high."""
        return Box(
            left=self.left * x,
            top=self.top * y,
            right=self.right * x,
            bottom=self.bottom * y,
        )

    def within(self, left: int, top: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom in pixels of a part of the image that starts there, as Pillow has it."""
        return (
            self.left - left,
            self.top - top,
            self.right - left,
            self.bottom - top,
        )


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of one image; ``crops[i]``, ``crops[2:5]`` and ``crops[rows]`` read them.

    A box need not start at whole pixels. It is resized by linear interpolation, over all the pixels that it covers
    where it shrinks (as Pillow does), from the coarsest level of the image that still has the pixels. What is beyond
    the border repeats its pixels, or is white.

    Parameters
    ----------
    source
        Pixels of the image.
    boxes
        float64 (n, 4): left, top, right, bottom in pixels of the image; pixel i spans i to i + 1.
    pixels
        Side of a crop.
    padding
        ``"edge"`` or ``"white"``.

    Raises
    ------
    ConfigError
        A box without an inside or over the reading limit; an impossible ``pixels`` or ``padding``.
    """

    source: NDArray[np.uint8] | LazyPixels
    boxes: Floats
    pixels: int = 224
    padding: Padding = "edge"

    def __post_init__(self) -> None:
        side = self.pixels
        is_whole = isinstance(side, (int, np.integer)) and not isinstance(side, bool)
        if not is_whole or side < 1:
            raise ConfigError(f"crops: pixels must be a whole number of at least 1, got {side!r}.")
        if self.padding not in ("edge", "white"):
            raise ConfigError(f'crops: padding must be "edge" or "white", got {self.padding!r}.')
        left, top, right, bottom = self.boxes.T
        width = right - left
        height = bottom - top
        has_inside = (width > 0) & (height > 0)
        if not has_inside.all():
            number = int(np.argmin(has_inside))
            box = self.boxes[number].tolist()
            raise ConfigError(f"crops: box {number} has no inside: {box}.")
        area = (width + 2) * (height + 2)
        largest = float(area.max(initial=0.0))
        returned = float(side) ** 2
        if max(largest, returned) > MAX_PIXELS:
            raise ConfigError(
                f"crops: a crop of {largest:.3g} pixels of the image is over the limit of {MAX_PIXELS}."
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Read crops: uint8 (pixels, pixels, 3) of one row, (k, pixels, pixels, 3) of several."""
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self._read(self.boxes[chosen])
        side = self.pixels
        shape = (len(chosen), side, side, 3)
        crops = np.empty(shape, dtype=np.uint8)
        for k, box in enumerate(self.boxes[chosen]):
            crops[k] = self._read(box)
        return crops

    def batches(self, size: int = 64) -> Iterator[NDArray[np.uint8]]:
        """Yield all crops in order, ``size`` at a time, uint8 (size, pixels, pixels, 3); the last may be smaller."""
        if size < 1:
            raise ConfigError(f"crops: a batch has {size} crops; it must have 1 or more.")
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def outside(self) -> Bools:
        """Return whether a part of each crop is beyond the border, bool (n,)."""
        height, width = self.source.shape[:2]
        left, top, right, bottom = self.boxes.T
        beyond_x = (left < 0) | (right > width)
        beyond_y = (top < 0) | (bottom > height)
        return beyond_x | beyond_y

    def settings_hash(self) -> str:
        """Return the sha256 (hex) of boxes, size and padding: with the image's own hash, what the crops depend on."""
        settings = f"terrazzo-crops-1 {self.pixels} {self.padding}"
        digest = hashlib.sha256(settings.encode())
        boxes = self.boxes + 0.0  # no negative zeros
        digest.update(boxes.astype("<f8").tobytes())
        return digest.hexdigest()

    def _read(self, box: Floats) -> NDArray[np.uint8]:
        """Read one crop."""
        from PIL import Image

        side = self.pixels
        whole = Box(*box.tolist())
        near = _near(whole, self.source)
        source, place = _level(self.source, near, side, side)
        # The filter reaches so many pixels over the box
        reach_x = max(place.width / side, 1.0)
        reach_y = max(place.height / side, 1.0)
        left = math.floor(place.left - reach_x)
        top = math.floor(place.top - reach_y)
        right = math.ceil(place.right + reach_x)
        bottom = math.ceil(place.bottom + reach_y)
        around = read_padded(source, left, top, right, bottom, self.padding)
        picture = Image.fromarray(around)
        size = (side, side)
        inside = place.within(left, top)
        crop = picture.resize(size, Image.Resampling.BILINEAR, box=inside)
        return np.asarray(crop)


def boxes_around(centers: Floats, sides: Floats) -> Floats:
    """Return boxes (n, 4) of these sides, (2,) or (n, 2), around centers (n, 2)."""
    half = np.broadcast_to(sides / 2, centers.shape)
    return np.concatenate([centers - half, centers + half], axis=1)


def _near(box: Box, source: NDArray[np.uint8] | LazyPixels) -> Box:
    """Move a box that is far outside to where it sees the same, so that its pixels can be counted."""
    height, width = source.shape[:2]
    least_left = -box.width - 4
    least_top = -box.height - 4
    left = min(max(box.left, least_left), width + 4.0)
    top = min(max(box.top, least_top), height + 4.0)
    return box.moved(left, top)


def _level(
    source: NDArray[np.uint8] | LazyPixels, box: Box, width: float, height: float
) -> tuple[NDArray[np.uint8] | LazyPixels, Box]:
    """Return the coarsest level on which the box still has these sides, in pixels, and the box there."""
    if not isinstance(source, LazyPixels):
        return source, box
    full_height, full_width, _ = source.shape
    for level in reversed(source.levels):
        level_height, level_width, _ = level.shape
        x = level_width / full_width
        y = level_height / full_height
        level_box = box.scaled(x, y)
        is_wide = level_box.width >= width
        is_high = level_box.height >= height
        if level is source or (is_wide and is_high):
            return level, level_box
    return source, box


def shrink(
    source: NDArray[np.uint8] | LazyPixels, box: tuple[int, int, int, int], max_side: int
) -> NDArray[np.uint8]:
    """Return a box of whole pixels, shrunken by averaging to at most ``max_side`` on either side, never enlarged.

    Raises
    ------
    InputError
        A box that is empty or reaches outside.
    """
    x0, y0, x1, y1 = box
    full_height, full_width = source.shape[:2]
    in_x = 0 <= x0 < x1 <= full_width
    in_y = 0 <= y0 < y1 <= full_height
    is_inside = in_x and in_y
    if not is_inside or max_side < 1:
        raise InputError(f"no view of {box} in an image of {full_width} x {full_height} pixels.")
    whole = Box(*map(float, box))
    factor = min(1.0, max_side / max(whole.width, whole.height))
    width = max(1, round(whole.width * factor))
    height = max(1, round(whole.height * factor))
    # A level that is only a rounding smaller will do
    level, place = _level(source, whole, 0.999 * width, 0.999 * height)
    has_size = place.width == width and place.height == height
    is_whole = place.left.is_integer() and place.top.is_integer()
    if has_size and is_whole:
        left = int(place.left)
        top = int(place.top)
        right = int(place.right)
        bottom = int(place.bottom)
        return np.array(level[top:bottom, left:right])
    return _shrink_by_bands(level, place, width, height)


def _shrink_by_bands(
    source: NDArray[np.uint8] | LazyPixels, box: Box, width: int, height: int
) -> NDArray[np.uint8]:
    """Average a box to ``width`` x ``height`` pixels, reading a band of it at a time."""
    from PIL import Image

    full_height, full_width = source.shape[:2]
    left = math.floor(box.left)
    right = min(math.ceil(box.right), full_width)
    source_rows = box.height / height  # for a row of the view
    area = box.width * source_rows
    n_rows = max(1, int(_BAND / area))
    view = np.empty((height, width, 3), dtype=np.uint8)
    for start in range(0, height, n_rows):
        stop = min(start + n_rows, height)
        upper = box.top + start * source_rows
        lower = box.top + stop * source_rows
        top = math.floor(upper)
        bottom = min(math.ceil(lower), full_height)
        pixels = np.ascontiguousarray(source[top:bottom, left:right])
        # Rounding may put the end a trifle beyond the border
        inside = (
            box.left - left,
            upper - top,
            min(box.right - left, right - left),
            min(lower - top, bottom - top),
        )
        band = Image.fromarray(pixels)
        size = (width, stop - start)
        small = band.resize(size, Image.Resampling.BOX, box=inside)
        view[start:stop] = np.asarray(small)
    return view
