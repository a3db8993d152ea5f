"""Spots over their histology, to check that they are on tissue: the whole image, and two close-ups with crops."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from terrazzo.arrays import Floats
from terrazzo.errors import ConfigError
from terrazzo.images import TissueImage, needed
from terrazzo.images.placement import place_spots
from terrazzo.plot.figures import size_of
from terrazzo.plot.tissue import cut, image_corners
from terrazzo.slices import Slice
from terrazzo.slices.niches import find_niches, spot_diameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["overlay"]

_HEIGHT = 4.6  # inches of a panel
_ACROSS = 4.5  # spot distances in half a close-up
_RING = "#00e5ff"  # a color that no stain has
_NICHE = "#ffd600"
_OFF = "#ff1744"  # of a spot outside the image
_NO_IMAGE = "#bdbdbd"


def overlay(
    data: AnnData | Slice,
    *,
    image: TissueImage | None = None,
    spot_um: float | None = None,
    n_neighbors: int = 3,
    **slice_options: Any,
) -> Figure:
    """Draw spots over the whole histology image, and two close-ups: in the middle of the tissue and at its edge.

    Rings have the diameter of a spot, so they show what its crop contains; in the close-ups a dashed box is the niche
    of the middle spot (itself and its neighbors). The title says how many spots are on tissue, and how many would with
    x and y swapped. Spots outside the image are red.

    Parameters
    ----------
    data
        The slice. Never written to.
    image
        Its histology; None: that of ``uns["spatial"]``.
    spot_um
        Diameter of a spot in micrometers; None: that of the platform.
    n_neighbors
        Of the niche.
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`.

    Returns
    -------
    The figure; see :func:`terrazzo.plot.save`.

    Raises
    ------
    InputError
        No image, or one of unknown scale; a slice that cannot be read.
    ConfigError
        A platform whose spots have no known size, and no ``spot_um``.
    """
    import matplotlib.pyplot as plt

    tissue = data
    if not isinstance(tissue, Slice):
        tissue = Slice.from_anndata(tissue, image=image, **slice_options)
    picture, microns_per_pixel = _scaled_image(tissue, image)
    diameter = spot_um
    if diameter is None:
        diameter = spot_diameter(tissue.technology, tissue.lattice_kind, tissue.spacing)
    xy = tissue.coords
    low, high = image_corners(picture, tissue.coord_scale)
    width, height = high - low
    aspect = float(np.clip(width / height, 0.4, 2.5))
    figure, axes = plt.subplots(
        1,
        3,
        layout="constrained",
        figsize=(_HEIGHT * (aspect + 2) + 0.4, _HEIGHT + 0.8),
        width_ratios=[aspect, 1, 1],
    )
    on_image = (xy >= low) & (xy <= high)
    inside = on_image.all(axis=1)
    shown_low = np.minimum(low, xy.min(axis=0))
    shown_high = np.maximum(high, xy.max(axis=0))
    _show_image(axes[0], picture, tissue.coord_scale, shown_low, shown_high)
    _rings(axes[0], xy[inside], diameter, _RING)
    _rings(axes[0], xy[~inside], diameter, _OFF)
    axes[0].set_title("whole image", fontsize="medium")
    boxes = find_niches(xy, n_neighbors).boxes(xy, diameter)
    middle = np.median(xy, axis=0)
    from_middle = np.linalg.norm(xy - middle, axis=1)
    close_ups = {"middle": from_middle.argmin(), "edge": from_middle.argmax()}
    for ax, (name, spot) in zip(axes[1:], close_ups.items(), strict=True):
        half = max(_ACROSS * tissue.spacing, 2 * diameter)
        center = xy[spot]
        _show_image(ax, picture, tissue.coord_scale, center - half, center + half)
        distance = np.abs(xy - center)
        near = (distance <= half + diameter).all(axis=1)
        _rings(ax, xy[near], diameter, _RING)
        _dashed_box(ax, boxes[spot])
        ax.set_title(f"{name}: {2 * half:,.0f} um across", fontsize="medium")
    title = _title(tissue, picture, diameter, boxes, microns_per_pixel)
    figure.suptitle(title, fontsize="medium")
    return figure


def _scaled_image(tissue: Slice, image: TissueImage | None) -> tuple[TissueImage, float]:
    """Return the image to draw, and its scale in micrometers per pixel."""
    picture = tissue.image if image is None else image
    if picture is not None and picture.microns_per_pixel is None and tissue.unit == "um":
        microns_per_pixel = tissue.coord_scale / picture.scale
        picture = replace(picture, microns_per_pixel=microns_per_pixel)
    picture = needed(picture, tissue.name)
    if picture.microns_per_pixel is None or tissue.unit != "um":
        raise ConfigError(
            f"{tissue.name}: coordinates are in {tissue.unit!r}; "
            "pass microns_per_unit= to draw to scale."
        )
    return picture, picture.microns_per_pixel


def _title(
    tissue: Slice,
    image: TissueImage,
    diameter: float,
    boxes: Floats,
    microns_per_pixel: float,
) -> str:
    """Return how many spots are on tissue, and how large spots and niches are in pixels."""
    placement = place_spots(image, tissue.native_coords)
    sides_um = boxes[:, 2:] - boxes[:, :2]
    sides = sides_um.max(axis=1) / microns_per_pixel
    spot = diameter / microns_per_pixel
    first = (
        f"{tissue.name}, {tissue.technology}: {tissue.n_cells:,} spots, "
        f"{_percent(placement.on_tissue)} on tissue "
        f"({_percent(placement.on_tissue_swapped)} with x and y swapped)"
    )
    second = (
        f"{microns_per_pixel:.3g} um a pixel: a spot of {diameter:g} um is "
        f"{spot:.3g} pixels, "
        f"a niche {sides.min():.3g} to {sides.max():.3g}"
    )
    return f"{first}\n{second}"


def _percent(share: float) -> str:
    return "?" if np.isnan(share) else f"{share:.0%}"


def _show_image(
    axes: Axes, image: TissueImage, coord_scale: float, low: np.ndarray, high: np.ndarray
) -> None:
    """Show a part of the image; where there is none the panel stays gray."""
    first, last = image_corners(image, coord_scale)
    shown_first = np.maximum(low, first)
    shown_last = np.minimum(high, last)
    if (shown_first < shown_last).all():
        pixels, extent = cut(image, coord_scale, shown_first, shown_last)
        axes.imshow(pixels, extent=extent, interpolation="antialiased")
    left, top = low
    right, bottom = high
    axes.set(
        xlim=(left, right),
        ylim=(bottom, top),
        aspect="equal",
        facecolor=_NO_IMAGE,
        xticks=[],
        yticks=[],
    )


def _dashed_box(axes: Axes, box: Floats) -> None:
    """Draw the edges of a niche."""
    left, top, right, bottom = box
    axes.plot(
        [left, right, right, left, left],
        [top, top, bottom, bottom, top],
        "--",
        color=_NICHE,
        linewidth=1.5,
    )


def _rings(axes: Axes, xy: np.ndarray, diameter: float, color: str) -> None:
    """Draw the outlines of spots."""
    from matplotlib.collections import EllipseCollection

    if len(xy) == 0:
        return
    left, right = axes.get_xlim()
    width, _ = size_of(axes)
    points = 72 * width / abs(right - left)  # printer's points in a micrometer
    thickness = 0.12 * diameter * points
    linewidth = float(np.clip(thickness, 0.3, 1.5))
    rings = EllipseCollection(
        [diameter],
        [diameter],
        [0.0],
        units="xy",
        offsets=xy,
        offset_transform=axes.transData,
        facecolors="none",
        edgecolors=color,
        linewidths=linewidth,
    )
    axes.add_collection(rings, autolim=False)
