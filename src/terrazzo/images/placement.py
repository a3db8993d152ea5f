"""Do the spots lie on the tissue? A wrong scale or a swap of x and y gives crops of glass, and no error anywhere."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.images.tissue import TissueImage

_SIDE = 512  # pixels of the picture in which tissue is looked for
_RING = 0.04  # share of the longer side at the border from which the color of the glass is taken
_BLUR = 1.5  # pixels: dust and the dots of the frame are no tissue
_ENOUGH = 0.95  # of the spots on tissue: nothing to ask
_GAIN = 0.1  # share of the spots that a swap must bring onto tissue before it is called one
_LEAST = 0.5  # of the spots on tissue: below it something is wrong, whatever it is
_CONTRAST = 12.0  # of 255: two kinds of pixels that are nearer than this are one


@dataclass(frozen=True)
class Placement:
    """Where the spots lie on their image.

    Attributes
    ----------
    n
        Spots.
    inside, inside_swapped
        Share of the spots whose center lies on the image: as given, and with x and y swapped.
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
        """Too few spots lie on tissue, and clearly more would with x and y swapped."""
        gain = self.on_tissue_swapped - self.on_tissue
        return self.on_tissue < _ENOUGH and gain >= max(_GAIN, 2 / max(self.n, 1) ** 0.5)


def needed(image: TissueImage | None, name: str = "slice", scale: bool = True) -> TissueImage:
    """Return the image that a task cannot do without.

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
    """Say where spots (n, 2), x and y in native coordinates, lie; nothing is refused.

    Raises
    ------
    InputError
        Positions that are not (n, 2) or not finite.
    """
    given = image.to_pixels(native_xy)
    swapped = image.to_pixels(np.asarray(native_xy, dtype=np.float64)[:, ::-1])
    if len(given) == 0:
        return Placement(0, 1.0, 1.0, float("nan"), float("nan"), float("nan"))
    tissue = tissue_mask(image)
    return Placement(
        n=len(given),
        inside=float(_inside(given, image).mean()),
        inside_swapped=float(_inside(swapped, image).mean()),
        on_tissue=_share(tissue, given, image),
        on_tissue_swapped=_share(tissue, swapped, image),
        tissue_area=float("nan") if tissue is None else float(tissue.mean()),
    )


def check_spots(
    image: TissueImage, native_xy: ArrayLike, name: str = "slice", outside: float = 0.0
) -> Placement:
    """Check that spots lie on the image, and on its tissue.

    Parameters
    ----------
    image
        Histology of the slice.
    native_xy
        Centers (n, 2), x and y, in native coordinates.
    name
        Of the slice, for messages.
    outside
        Share of the spots whose center may lie outside the image.

    Returns
    -------
    What was found.

    Raises
    ------
    InputError
        More spots than ``outside`` lie off the image; x and y are swapped: clearly more spots would lie on tissue the
        other way round.

    Warns
    -----
    TerrazzoWarning
        Less than half of the spots lie on tissue, either way.
    """
    found = place_spots(image, native_xy)
    swap = "swap the two columns (adata.obsm['spatial'] = adata.obsm['spatial'][:, ::-1])"
    if found.inside < 1 - outside:
        xy = image.to_pixels(native_xy)
        (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
        mend = "mend its scale (image_xy = native_xy * scale + offset), or leave out the spots that have no image"
        raise InputError(
            f"{name}: {round((1 - found.inside) * found.n)} of {found.n} spots lie outside the image: it spans 0 to "
            f"{image.width} by 0 to {image.height} pixels, they {left:.6g} to {right:.6g} by {top:.6g} to "
            f"{bottom:.6g}; {f'x and y look swapped: {swap}' if found.inside_swapped >= 1 - outside else mend}."
        )
    if found.looks_swapped:
        raise InputError(
            f"{name}: only {found.on_tissue:.0%} of the spots lie on tissue, and {found.on_tissue_swapped:.0%} would "
            f"with x and y swapped: {swap}, or look at terrazzo.plot.overlay(adata)."
        )
    if found.on_tissue < _LEAST:
        warnings.warn(
            f"{name}: only {found.on_tissue:.0%} of the spots lie on what looks like tissue; look at "
            "terrazzo.plot.overlay(adata) and mend the scale of the image if they are misplaced.",
            TerrazzoWarning,
            stacklevel=2,
        )
    return found


def tissue_mask(image: TissueImage) -> NDArray[np.bool_] | None:
    """Return where a small view of the image is unlike its border, bool; None where nothing stands out.

    The color of the glass is the median of a ring at the border; Otsu's threshold on the distance from it, halved so
    that pale tissue counts, parts the two.
    """
    from scipy.ndimage import gaussian_filter

    small = image.view(max_side=_SIDE).astype(np.float64)
    n = max(1, int(_RING * max(small.shape)))
    if min(small.shape[:2]) <= 2 * n:
        return None
    ring = np.ones(small.shape[:2], dtype=bool)
    ring[n:-n, n:-n] = False
    distance = gaussian_filter(np.abs(small - np.median(small[ring], axis=0)).max(axis=2), _BLUR)
    threshold = _otsu(distance)
    if threshold is None:
        return None
    mask: NDArray[np.bool_] = distance > threshold / 2
    return mask


def _otsu(values: NDArray[np.float64]) -> float | None:
    """Threshold that parts the values in two as far from each other as can be; None where they are one."""
    counts, edges = np.histogram(values, 256)
    level = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums = np.cumsum(counts * level)
    low, high = (
        sums[:-1] / np.maximum(below, 1),
        (sums[-1] - sums[:-1]) / np.maximum(total - below, 1),
    )
    at = int(np.argmax(below * (total - below) * (high - low) ** 2))
    return float(level[at]) if high[at] - low[at] >= _CONTRAST else None


def _inside(xy: NDArray[np.float64], image: TissueImage) -> NDArray[np.bool_]:
    return np.all((xy >= 0) & (xy <= [image.width, image.height]), axis=1)


def _share(mask: NDArray[np.bool_] | None, xy: NDArray[np.float64], image: TissueImage) -> float:
    """Share of all spots that lie on tissue; those outside do not."""
    if mask is None:
        return float("nan")
    inside = _inside(xy, image)
    factor = np.array(mask.shape[::-1]) / [image.width, image.height]
    at = np.minimum((xy[inside] * factor).astype(int), np.array(mask.shape[::-1]) - 1)
    return float(mask[at[:, 1], at[:, 0]].sum() / len(xy))
