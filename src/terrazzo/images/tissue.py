"""One histology image, its scale against the slice, and crops out of it.

There are three kinds of coordinates. *Native* ones are those of ``obsm["spatial"]``; *image* pixels are columns and
rows of ``TissueImage.pixels``; micrometers are what biology is measured in. ``image_xy = native_xy * scale + offset``
relates the first two, ``microns_per_pixel`` (of this image, not of the full-resolution scan) the last two. Pixel ``i``
spans ``i`` to ``i + 1``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.images.crops import Crops, boxes_around, shrink
from terrazzo.images.files import open_pixels
from terrazzo.images.pixels import (
    MAX_PIXELS,
    ArrayPixels,
    LazyPixels,
    Padding,
    read_padded,
    to_bytes,
    to_rgb,
    warn_if_dark,
)

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

__all__ = ["TissueImage"]

_FAR = 1e9  # pixels: boxes beyond it see the same border, and still have an inside in float64


@dataclass(frozen=True, eq=False)
class TissueImage:
    """Histology of one slice.

    Parameters
    ----------
    pixels
        uint8, (H, W, 3), red-green-blue, row 0 at the top: an array, kept as a read-only view and not copied, or
        :class:`terrazzo.images.pixels.LazyPixels`, which stay in their file.
    microns_per_pixel
        Micrometers along the width of one pixel of ``pixels``; None where unknown.
    scale
        ``image_xy = native_xy * scale + offset`` with x the column and y the row; both positive-down.
    scale_y
        Of y, where it is not that of x; the pixels are then not square.
    offset
        Image pixel (x, y) of the native origin: not (0, 0) where the image was cut out of the scan.

    Raises
    ------
    InputError
        Wrong shape or dtype, an empty image, or a scale or pixel size that is not a positive finite number.

    Examples
    --------
    >>> import numpy as np
    >>> image = TissueImage(np.zeros((40, 60, 3), np.uint8), microns_per_pixel=0.5)
    >>> image.crop(0.0, 0.0, size_px=2).shape
    (2, 2, 3)
    >>> image.crops(np.array([[30.0, 20.0], [8.0, 8.0]]), size_um=8, pixels=32)[:].shape
    (2, 32, 32, 3)
    """

    pixels: NDArray[np.uint8] | LazyPixels
    microns_per_pixel: float | None = None
    scale: float = 1.0
    scale_y: float | None = None
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        if isinstance(self.pixels, np.ndarray):
            view = self.pixels.view()
            view.flags.writeable = False
            object.__setattr__(self, "pixels", view)
        for name in ("scale", "scale_y", "microns_per_pixel"):
            value = getattr(self, name)
            if value is not None or name == "scale":
                object.__setattr__(self, name, _positive(value, name))
        offset = np.asarray(self.offset, dtype=np.float64)
        if offset.shape != (2,) or not np.isfinite(offset).all():
            raise InputError(
                f"TissueImage: offset must be two finite numbers, x and y, got {self.offset!r}."
            )
        object.__setattr__(self, "offset", tuple(offset.tolist()))

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.pixels.shape[1])

    @property
    def scales(self) -> Floats:
        """Image pixels along x and along y in one native unit, float64 (2,)."""
        scale_y = self.scale if self.scale_y is None else self.scale_y
        return np.array([self.scale, scale_y])

    @classmethod
    def from_array(
        cls, array: ArrayLike, microns_per_pixel: float | None = None, **where: Any
    ) -> TissueImage:
        """Build from any usual array in memory.

        Parameters
        ----------
        array
            (H, W) or (H, W, 1) gray, (H, W, 3) RGB or (H, W, 4) RGBA (laid over white); uint8, uint16 (0-65535) or
            float in [0, 1].
        microns_per_pixel, **where
            As in :class:`TissueImage`: ``scale``, ``scale_y``, ``offset``.

        Raises
        ------
        InputError
            Another shape or dtype, NaN, or float values outside [0, 1].
        """
        array = np.asarray(array)
        pixels = to_rgb(to_bytes(array))
        if array.dtype == np.uint16 and pixels.size:
            warn_if_dark(pixels, "image")
        return cls(pixels, microns_per_pixel, **where)

    @classmethod
    def from_lazy(
        cls,
        array: Any,
        microns_per_pixel: float | None = None,
        *,
        channels_first: bool = False,
        max_pixels: int = MAX_PIXELS,
        **where: Any,
    ) -> TissueImage:
        """Build from an array that is read when it is sliced (zarr, dask, HDF5); nothing is read now.

        Parameters
        ----------
        array
            As in :meth:`from_array`, or (C, H, W) with ``channels_first``.
        microns_per_pixel, **where
            As in :class:`TissueImage`: ``scale``, ``scale_y``, ``offset``.
        channels_first
            As SpatialData has it.
        max_pixels
            Most pixels that are read at once.

        Raises
        ------
        InputError
            Another shape.
        """
        pixels = ArrayPixels(array, channels_first=channels_first, max_pixels=max_pixels)
        return cls(pixels, microns_per_pixel, **where)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        microns_per_pixel: float | None = None,
        scale: float = 1.0,
        max_pixels: int = MAX_PIXELS,
        **where: Any,
    ) -> TissueImage:
        """Read a ``.png``, ``.jpg`` / ``.jpeg`` (Pillow) or ``.tif`` / ``.tiff`` (tifffile, first series).

        A TIFF stays in its file: its tiles or strips are read when a crop covers them, and its coarser levels serve
        crops that need no more. Gray, RGBA, palette, CMYK and 16-bit pictures become RGB.

        Parameters
        ----------
        path
            File; its sizes are read from the header and checked before any pixel is decoded.
        microns_per_pixel, scale, **where
            As in :class:`TissueImage`; never guessed from the file's metadata.
        max_pixels
            Most pixels (width x height) that are decoded at once, default 2**28: the whole of a PNG or JPEG, a tile or
            a region of a TIFF. Raise it only for a file that you trust.

        Raises
        ------
        InputError
            No such file, another kind of file, too many pixels, or a damaged or truncated file.
        """
        pixels = open_pixels(Path(path), max_pixels)
        return cls(pixels, microns_per_pixel, scale, **where)

    @classmethod
    def from_spatialdata(cls, sdata: Any, image: str | None = None, **options: Any) -> TissueImage:
        """Take an image of a SpatialData, lazily; see :func:`terrazzo.images.spatialdata.read_image`."""
        from terrazzo.images.spatialdata import read_image

        return read_image(sdata, image, **options)

    def to_pixels(self, native_xy: ArrayLike) -> Floats:
        """Return image pixels (column, row) of native coordinates, float64 (n, 2).

        Raises
        ------
        InputError
            Another shape, or coordinates that are not finite.
        """
        xy = np.asarray(native_xy, dtype=np.float64)
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise InputError(f"positions must be (n, 2), x and y; got shape {xy.shape}.")
        is_finite = np.isfinite(xy).all(axis=1)
        if not is_finite.all():
            row = int(np.argmin(is_finite))
            raise InputError(
                f"Cannot crop at {xy[row]} (row {row}): centers must be finite; drop or fix them."
            )
        return xy * self.scales + self.offset

    def crop(
        self,
        x: float,
        y: float,
        size_px: int | None = None,
        size_um: float | None = None,
        padding: Padding = "edge",
    ) -> NDArray[np.uint8]:
        """Cut a square of whole pixels centered on a point of the slice, as it is: nothing is resized.

        Parameters
        ----------
        x, y
            Center in native coordinates (those of ``obsm["spatial"]``).
        size_px
            Side in pixels of this image. Give this or ``size_um``, not both.
        size_um
            Side in micrometers; needs ``microns_per_pixel``. Rounded to whole pixels, at least one.
        padding
            Beyond the border: ``"edge"`` repeats its pixels, ``"white"`` is white.

        Returns
        -------
        numpy.ndarray
            uint8, (size, size, 3), a copy. With ``scale_y``, ``size_um`` gives different numbers of rows and columns.

        Raises
        ------
        ConfigError
            Neither or both sizes, a size under one pixel or over the reading limit, or unknown microns per pixel.
        InputError
            A center that is not finite.
        """
        size = self._sides(size_px, size_um)
        center = self.to_pixels([[x, y]])[0]
        corner = np.floor(center - size / 2 + 0.5)
        limit = size + max(self.height, self.width)  # beyond it, every crop is the same
        corner = np.clip(corner, -limit, limit)
        left, top = corner.astype(int).tolist()
        width, height = size.tolist()
        return read_padded(self.pixels, left, top, left + width, top + height, padding)

    def crops(
        self,
        native_xy: ArrayLike,
        size_um: float | ArrayLike,
        pixels: int = 224,
        padding: Padding = "edge",
    ) -> Crops:
        """Return squares of a physical size around positions, each resized to ``pixels``; none is read yet.

        Parameters
        ----------
        native_xy
            Centers (n, 2), x and y, in native coordinates.
        size_um
            Side in micrometers; one, or one for each.
        pixels
            Side of the crops that are returned.
        padding
            Beyond the border: ``"edge"`` repeats its pixels, ``"white"`` is white.

        Raises
        ------
        ConfigError
            Unknown microns per pixel, or an impossible size.
        InputError
            Positions that are not (n, 2) or not finite.
        """
        centers = np.clip(self.to_pixels(native_xy), -_FAR, _FAR)
        size = np.asarray(size_um, dtype=np.float64)
        has_shape = size.shape in ((), (len(centers),))
        is_positive = np.isfinite(size).all() and (size > 0).all()
        if not has_shape or not is_positive:
            raise ConfigError(
                f"crops: size_um must be a positive number of micrometers, or one a row; got {size_um!r}."
            )
        if self.microns_per_pixel is None:
            raise ConfigError("crops: size_um needs an image with microns_per_pixel; set it.")
        pixels_per_um = self.scales / (self.scale * self.microns_per_pixel)
        sides = size[..., None] * pixels_per_um
        return Crops(self.pixels, boxes_around(centers, sides), pixels, padding)

    def box_crops(
        self, native_boxes: ArrayLike, pixels: int = 224, padding: Padding = "edge"
    ) -> Crops:
        """Return boxes of the slice, each resized to a square of ``pixels``; none is read yet.

        Parameters
        ----------
        native_boxes
            (n, 4): left, top, right, bottom in native coordinates. Boxes in the micrometers of a slice are divided by
            its ``coord_scale`` first.
        pixels, padding
            As in :meth:`crops`.

        Raises
        ------
        ConfigError
            Boxes without an inside, or an impossible size.
        InputError
            Boxes that are not (n, 4) or not finite.
        """
        boxes = np.asarray(native_boxes, dtype=np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(
                f"boxes must be (n, 4): left, top, right, bottom; got shape {boxes.shape}."
            )
        corners = self.to_pixels(boxes.reshape(-1, 2))
        return Crops(self.pixels, corners.reshape(-1, 4), pixels, padding)

    def view(
        self,
        x0: int = 0,
        y0: int = 0,
        x1: int | None = None,
        y1: int | None = None,
        max_side: int = 1500,
    ) -> NDArray[np.uint8]:
        """Return a box of the image (in its pixels) no longer than ``max_side`` on either side, for looking at.

        It is read from the coarsest level that will do, and by bands: a large image is never in memory as a whole.
        """
        right = self.width if x1 is None else x1
        bottom = self.height if y1 is None else y1
        return shrink(self.pixels, (x0, y0, right, bottom), max_side)

    @cached_property
    def content_hash(self) -> str:
        """Sha256 (hex) of the pixels, or of the bytes of the file that they are in; without scale and offset."""
        sides = f"terrazzo-image-1 {self.height} {self.width}"
        digest = hashlib.sha256(sides.encode())
        if isinstance(self.pixels, LazyPixels):
            for part in self.pixels.content():
                digest.update(part)
        else:
            digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def _sides(self, size_px: int | None, size_um: float | None) -> Ints:
        """Return the columns and rows of a crop."""
        if (size_px is None) == (size_um is None):
            raise ConfigError("crop needs either size_px or size_um, one of the two.")
        if size_um is not None:
            size = self._sides_of_um(size_um)
        else:
            side = min(_whole(size_px, "size_px"), MAX_PIXELS)
            size = np.full(2, side, dtype=np.int64)
        if size.prod() > MAX_PIXELS:
            raise ConfigError(
                f"crop: a size of {size[0]} x {size[1]} pixels is over the limit of {MAX_PIXELS} pixels in all."
            )
        return size

    def _sides_of_um(self, size_um: float) -> Ints:
        """Return the columns and rows of a crop of a physical size, at least one each."""
        if self.microns_per_pixel is None:
            raise ConfigError(
                "crop: size_um needs an image with microns_per_pixel; set it, or pass size_px."
            )
        if not (np.isfinite(size_um) and size_um > 0):
            raise ConfigError(
                f"crop: size_um must be a positive number of micrometers, got {size_um}."
            )
        wanted = size_um / self.microns_per_pixel * self.scales / self.scale
        rounded = np.rint(np.minimum(wanted, MAX_PIXELS))
        return np.maximum(1, rounded).astype(np.int64)


def _check_pixels(pixels: Any) -> None:
    """Refuse what is not uint8 RGB, or empty."""
    shown = type(pixels).__name__
    is_rgb = False
    if isinstance(pixels, (np.ndarray, LazyPixels)):
        shown = f"{pixels.dtype} {pixels.shape}"
        is_rgb = pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
    if not is_rgb:
        raise InputError(
            f"TissueImage needs uint8 pixels of shape (height, width, 3), got {shown}; "
            "build it with TissueImage.from_array, which converts float, gray and RGBA images."
        )
    if 0 in pixels.shape:
        raise InputError(
            f"TissueImage has no pixels: shape {pixels.shape}; leave the image out instead."
        )


def _whole(value: Any, name: str) -> int:
    """Return a whole number of at least 1."""
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < 1:
        raise ConfigError(f"crop: {name} must be a whole number of at least 1, got {value!r}.")
    return int(value)


def _positive(value: Any, name: str) -> float:
    """Return a positive finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"TissueImage: {name} must be a positive finite number, got {value!r}.")
    return number
