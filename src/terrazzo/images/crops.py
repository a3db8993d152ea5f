"""Crops: boxes of an image, each resized to one size, read when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.errors import ConfigError, InputError
from terrazzo.images.pixels import MAX_PIXELS, LazyPixels, Padding, read_padded

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND = 2**22  # pixels of the image that are read at once to be shrunken


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of one image; ``crops[i]``, ``crops[2:5]`` and ``crops[rows]`` read them.

    A box is cut where it lies, between pixels too, and resized by linear interpolation, over all the pixels that it
    covers where it shrinks (as Pillow does). Where there are coarser levels, the coarsest that still has the pixels
    serves. What lies beyond the border repeats its pixels, or is white.

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
    boxes: NDArray[np.float64]
    pixels: int = 224
    padding: Padding = "edge"

    def __post_init__(self) -> None:
        if (
            isinstance(self.pixels, bool)
            or not isinstance(self.pixels, (int, np.integer))
            or self.pixels < 1
        ):
            raise ConfigError(
                f"crops: pixels must be a whole number of at least 1, got {self.pixels!r}."
            )
        if self.padding not in ("edge", "white"):
            raise ConfigError(f'crops: padding must be "edge" or "white", got {self.padding!r}.')
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        bad = np.flatnonzero(~(sides > 0).all(axis=1))
        if len(bad):
            raise ConfigError(f"crops: box {bad[0]} has no inside: {self.boxes[bad[0]].tolist()}.")
        largest = float((sides + 2).prod(axis=1).max(initial=0.0))
        if max(largest, float(self.pixels) ** 2) > MAX_PIXELS:
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
        out = np.empty((len(chosen), self.pixels, self.pixels, 3), dtype=np.uint8)
        for k, row in enumerate(chosen):
            out[k] = self._read(self.boxes[row])
        return out

    def batches(self, size: int = 64) -> Iterator[NDArray[np.uint8]]:
        """Yield all crops in order, ``size`` at a time, uint8 (size, pixels, pixels, 3); the last may be smaller."""
        if size < 1:
            raise ConfigError(f"crops: a batch has {size} crops; it must have 1 or more.")
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def outside(self) -> NDArray[np.bool_]:
        """Say of each crop whether a part of it lies beyond the border, bool (n,)."""
        height, width = self.source.shape[:2]
        return np.any(
            np.concatenate([self.boxes[:, :2] < 0, self.boxes[:, 2:] > [width, height]], axis=1),
            axis=1,
        )

    def settings_hash(self) -> str:
        """Return the sha256 (hex) of boxes, size and padding: with the image's own hash, what the crops depend on."""
        digest = hashlib.sha256(f"terrazzo-crops-1 {self.pixels} {self.padding}".encode())
        digest.update((self.boxes + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def _read(self, box: NDArray[np.float64]) -> NDArray[np.uint8]:
        from PIL import Image

        source, box = _level(self.source, _near(box, self.source.shape), self.pixels)
        shrink = np.maximum(
            (box[2:] - box[:2]) / self.pixels, 1.0
        )  # the filter reaches so many pixels over the box
        low, high = np.floor(box[:2] - shrink).astype(int), np.ceil(box[2:] + shrink).astype(int)
        held = read_padded(source, low[0], low[1], high[0], high[1], self.padding)
        place = (*(box[:2] - low), *(box[2:] - low))
        side = (self.pixels, self.pixels)
        return np.asarray(Image.fromarray(held).resize(side, Image.Resampling.BILINEAR, box=place))


def boxes_around(centers: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return boxes (n, 4) of these sides, (2,) or (n, 2), around centers (n, 2)."""
    half = np.broadcast_to(sides / 2, centers.shape)
    return np.concatenate([centers - half, centers + half], axis=1)


def _near(box: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Move a box that lies far outside to where it sees the same, so that its pixels can be counted."""
    sides = box[2:] - box[:2]
    low = np.clip(box[:2], -sides - 4, np.array([shape[1], shape[0]]) + 4.0)
    return np.concatenate([low, low + sides])


def _level(
    source: NDArray[np.uint8] | LazyPixels,
    box: NDArray[np.float64],
    wanted: float | NDArray[np.float64],
) -> tuple[NDArray[np.uint8] | LazyPixels, NDArray[np.float64]]:
    """Return the coarsest level on which the box is still ``wanted`` pixels wide and high, and the box there."""
    if not isinstance(source, LazyPixels):
        return source, box
    size = np.array(source.shape[1::-1], dtype=np.float64)
    for level in reversed(source.levels):
        there = box * np.tile(np.array(level.shape[1::-1]) / size, 2)
        if level is source or (there[2:] - there[:2] >= wanted).all():
            return level, there
    return source, box


def shrunken(
    source: NDArray[np.uint8] | LazyPixels, box: tuple[int, int, int, int], max_side: int
) -> NDArray[np.uint8]:
    """Return a box of whole pixels, shrunken by averaging to at most ``max_side`` on either side, never enlarged.

    Raises
    ------
    InputError
        A box that is empty or reaches outside.
    """
    from PIL import Image

    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= source.shape[1] and 0 <= y0 < y1 <= source.shape[0]) or max_side < 1:
        raise InputError(
            f"no view of {box} in an image of {source.shape[1]} x {source.shape[0]} pixels."
        )
    factor = min(1.0, max_side / max(x1 - x0, y1 - y0))
    width, height = max(1, round((x1 - x0) * factor)), max(1, round((y1 - y0) * factor))
    source, (left, top, right, bottom) = _level(
        source, np.array(box, dtype=np.float64), 0.999 * np.array([width, height])
    )
    if (
        (right - left, bottom - top) == (width, height)
        and float(left).is_integer()
        and float(top).is_integer()
    ):
        return np.array(source[int(top) : int(bottom), int(left) : int(right)])
    out = np.empty((height, width, 3), dtype=np.uint8)
    row = (bottom - top) / height  # pixels of the source in a row of the view
    rows = max(1, int(_BAND / ((right - left) * row)))
    first, last = int(np.floor(left)), min(int(np.ceil(right)), source.shape[1])
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        a, b = top + start * row, top + stop * row
        upper, lower = int(np.floor(a)), min(int(np.ceil(b)), source.shape[0])
        held = Image.fromarray(np.ascontiguousarray(source[upper:lower, first:last]))
        place = (
            left - first,
            a - upper,
            min(right - first, held.width),
            min(b - upper, held.height),
        )
        out[start:stop] = np.asarray(
            held.resize((width, stop - start), Image.Resampling.BOX, box=place)
        )
    return out
