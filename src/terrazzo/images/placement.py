"""Check that spots are on the tissue: a wrong scale, or x and y swapped, gives crops of glass and no error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.images.tissue import TissueImage

__all__ = ["Placement", "check_spots", "needed", "place_spots", "tissue_mask"]

_SIDE = 512  # pixels of the view in which tissue is looked for
_RING = 0.04  # share of the longer side at the border from which the color of the glass is taken
_BLUR = 1.5  # pixels: dust and the dots of the frame are not tissue
_ENOUGH = 0.95  # share of the spots on tissue with which the axes are not doubted
_GAIN = 0.1  # share of the spots that a swap must bring onto tissue to be reported
_LEAST = 0.5  # share of the spots on tissue below which a warning is given
_CONTRAST = 12.0  # of 255: two kinds of pixels that are nearer than this are one
_UNKNOWN = float("nan")
_SWAP = "swap the two columns (adata.obsm['spatial'] = adata.obsm['spatial'][:, ::-1])"


@dataclass(frozen=True)
class Placement:
    """Where the spots are on their image.

    Attributes
    ----------
    n
        Spots.
    inside, inside_swapped
        Share of the spots whose center is on the image: as given, and with x and y swapped.
    on_tissue, on_tissue_swapped
        Share whose center looks like tissue; NaN where the image has no glass to tell it from.
    tissue_area
        Share of the image that looks like tissue.
    """

    n: int
    inside: float
    inside_swapped: float
    on_tissue: float
    on_tissue_swapped: float
    tissue_area: float

    @property
    def looks_swapped(self) -> bool:
        """Whether too few spots are on tissue, and clearly more would be with x and y swapped."""
        gain = self.on_tissue_swapped - self.on_tissue
        noise = 2 / max(self.n, 1) ** 0.5
        return self.on_tissue < _ENOUGH and gain >= max(_GAIN, noise)


def needed(image: TissueImage | None, name: str = "slice", scale: bool = True) -> TissueImage:
    """Return the image of a slice, for a task that needs one.

    Raises
    ------
    InputError
        No image; with ``scale`` also an image of unknown micrometers per pixel.
    """
    if image is None:
        raise InputError(
            f"{name} has no histology image that belongs to its coordinates; pass image=terrazzo.TissueImage.from_file("
            "path, scale=...), or put it into uns['spatial'] as Space Ranger does (images and scalefactors)."
        )
    if scale and image.microns_per_pixel is None:
        raise InputError(
            f"{name}: the micrometers per pixel of its image are not known, so no crop of a physical size can be cut; "
            "name the platform (technology='Visium'), give microns_per_unit= of the coordinates, or set "
            "microns_per_pixel of the TissueImage."
        )
    return image


def place_spots(image: TissueImage, native_xy: ArrayLike) -> Placement:
    """Measure where spots (n, 2), x and y in native coordinates, are; nothing is refused.

    Raises
    ------
    InputError
        Positions that are not (n, 2) or not finite.
    """
    pixels = image.to_pixels(native_xy)
    native_yx = np.asarray(native_xy, dtype=np.float64)[:, ::-1]
    swapped_pixels = image.to_pixels(native_yx)
    if len(pixels) == 0:
        return Placement(
            n=0,
            inside=1.0,
            inside_swapped=1.0,
            on_tissue=_UNKNOWN,
            on_tissue_swapped=_UNKNOWN,
            tissue_area=_UNKNOWN,
        )
    tissue = tissue_mask(image)
    return Placement(
        n=len(pixels),
        inside=float(_inside(pixels, image).mean()),
        inside_swapped=float(_inside(swapped_pixels, image).mean()),
        on_tissue=_share_on_tissue(tissue, pixels, image),
        on_tissue_swapped=_share_on_tissue(tissue, swapped_pixels, image),
        tissue_area=_UNKNOWN if tissue is None else float(tissue.mean()),
    )


def check_spots(
    image: TissueImage, native_xy: ArrayLike, name: str = "slice", outside: float = 0.0
) -> Placement:
    """Check that spots are on the image, and on its tissue.

    Parameters
    ----------
    image
        Histology of the slice.
    native_xy
        Centers (n, 2), x and y, in native coordinates.
    name
        Of the slice, for messages.
    outside
        Share of the spots whose center may be outside the image.

    Returns
    -------
    Placement
        As :func:`place_spots` measures it.

    Raises
    ------
    InputError
        More spots than ``outside`` are off the image; x and y are swapped: clearly more spots would be on tissue the
        other way round.

    Warns
    -----
    TerrazzoWarning
        Less than half of the spots are on tissue, either way.
    """
    placement = place_spots(image, native_xy)
    if placement.inside < 1 - outside:
        swap_helps = placement.inside_swapped >= 1 - outside
        pixels = image.to_pixels(native_xy)
        raise InputError(f"{name}: {_outside_message(placement, image, pixels, swap_helps)}")
    on_tissue = f"{placement.on_tissue:.0%}"
    if placement.looks_swapped:
        raise InputError(
            f"{name}: only {on_tissue} of the spots are on tissue, and {placement.on_tissue_swapped:.0%} would be "
            f"with x and y swapped: {_SWAP}, or look at terrazzo.plot.overlay(adata)."
        )
    if placement.on_tissue < _LEAST:
        warnings.warn(
            f"{name}: only {on_tissue} of the spots are on what looks like tissue; look at "
            "terrazzo.plot.overlay(adata) and fix the scale of the image if they are misplaced.",
            TerrazzoWarning,
            stacklevel=2,
        )
    return placement


def _outside_message(
    placement: Placement, image: TissueImage, pixels: Floats, swap_helps: bool
) -> str:
    """Say how many spots are outside the image, and what to do."""
    n_outside = round((1 - placement.inside) * placement.n)
    left, top = pixels.min(axis=0)
    right, bottom = pixels.max(axis=0)
    if swap_helps:
        advice = f"x and y look swapped: {_SWAP}"
    else:
        advice = "fix its scale (image_xy = native_xy * scale + offset), or leave out the spots that have no image"
    return (
        f"{n_outside} of {placement.n} spots are outside the image: it spans 0 to {image.width} by 0 to "
        f"{image.height} pixels, they {left:.6g} to {right:.6g} by {top:.6g} to {bottom:.6g}; {advice}."
    )


def tissue_mask(image: TissueImage) -> Bools | None:
    """Return where a small view of the image is unlike its border, bool; None where nothing stands out.

    The color of the glass is the median of a ring at the border; Otsu's threshold on the distance from it, halved so
    that pale tissue counts, separates the two.
    """
    from scipy.ndimage import gaussian_filter

    view = image.view(max_side=_SIDE).astype(np.float64)
    sides = view.shape[:2]
    n = max(1, int(_RING * max(view.shape)))
    if min(sides) <= 2 * n:
        return None
    is_ring = np.ones(sides, dtype=bool)
    is_ring[n:-n, n:-n] = False
    glass = np.median(view[is_ring], axis=0)
    difference = np.abs(view - glass).max(axis=2)
    distance = gaussian_filter(difference, _BLUR)
    threshold = _otsu(distance)
    if threshold is None:
        return None
    mask: Bools = distance > threshold / 2
    return mask


def _otsu(values: Floats) -> float | None:
    """Return the threshold that separates values into the two most distant groups; None where there is only one."""
    counts, edges = np.histogram(values, 256)
    level = (edges[1:] + edges[:-1]) / 2
    n_below = np.cumsum(counts)[:-1]
    n_above = counts.sum() - n_below
    sums = np.cumsum(counts * level)
    sum_below = sums[:-1]
    sum_above = sums[-1] - sum_below
    mean_below = sum_below / np.maximum(n_below, 1)
    mean_above = sum_above / np.maximum(n_above, 1)
    contrast = mean_above - mean_below
    best = int(np.argmax(n_below * n_above * contrast**2))
    if contrast[best] < _CONTRAST:
        return None
    return float(level[best])


def _inside(pixels: Floats, image: TissueImage) -> Bools:
    """Return which positions are on the image."""
    x, y = pixels.T
    in_x = (x >= 0) & (x <= image.width)
    in_y = (y >= 0) & (y <= image.height)
    return in_x & in_y


def _share_on_tissue(mask: Bools | None, pixels: Floats, image: TissueImage) -> float:
    """Return the share of all spots that are on tissue; those outside are not."""
    if mask is None:
        return _UNKNOWN
    x, y = pixels[_inside(pixels, image)].T
    height, width = mask.shape
    column = _scaled(x, width / image.width, width)
    row = _scaled(y, height / image.height, height)
    n_on_tissue = mask[row, column].sum()
    return float(n_on_tissue / len(pixels))


def _scaled(position: Floats, factor: float, size: int) -> Ints:
    """Return the pixel of a mask at each position along an axis."""
    pixel = (position * factor).astype(int)
    return np.minimum(pixel, size - 1)
