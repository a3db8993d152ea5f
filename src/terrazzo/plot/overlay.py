"""Do spots sit on tissue? The whole image with its spots, and a few of them as large as their crops."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

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

_HEIGHT = 4.6  # inches of a panel
_ACROSS = 4.5  # spot distances in half a close-up
_RING = "#00e5ff"  # a color that no stain has
_NICHE = "#ffd600"
_OFF = "#ff1744"  # of a spot outside the image


def overlay(
    data: AnnData | Slice,
    *,
    image: TissueImage | None = None,
    spot_um: float | None = None,
    n_neighbors: int = 3,
    **slice_options: Any,
) -> Figure:
    """Draw spots over the whole histology image, and two close-ups: amid the tissue and at its edge.

    Rings have the diameter of a spot, so they show what its crop contains; in the close-ups a dashed box is the niche
    of the middle spot (itself and its neighbors). The title says how many spots lie on tissue, and how many would with
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

    tissue = (
        data if isinstance(data, Slice) else Slice.from_anndata(data, image=image, **slice_options)
    )
    given = tissue.image if image is None else image
    if given is not None and given.microns_per_pixel is None and tissue.unit == "um":
        given = replace(given, microns_per_pixel=tissue.coord_scale / given.scale)
    picture = needed(given, tissue.name)
    if picture.microns_per_pixel is None or tissue.unit != "um":  # the first for the type checker
        raise ConfigError(
            f"{tissue.name}: coordinates are in {tissue.unit!r}; pass microns_per_unit= to draw to scale."
        )
    diameter = (
        spot_diameter(tissue.technology, tissue.lattice_kind, tissue.spacing)
        if spot_um is None
        else spot_um
    )
    found, xy = place_spots(picture, tissue.native_coords), tissue.coords
    low, high = image_corners(picture, tissue.coord_scale)
    aspect = float(np.clip((high - low)[0] / (high - low)[1], 0.4, 2.5))
    figure, axes = plt.subplots(
        1,
        3,
        layout="constrained",
        figsize=(_HEIGHT * (aspect + 2) + 0.4, _HEIGHT + 0.8),
        width_ratios=[aspect, 1, 1],
    )
    inside = ((xy >= low) & (xy <= high)).all(axis=1)
    _panel(
        axes[0],
        picture,
        tissue.coord_scale,
        np.minimum(low, xy.min(axis=0)),
        np.maximum(high, xy.max(axis=0)),
    )
    _rings(axes[0], xy[inside], diameter, _RING)
    _rings(axes[0], xy[~inside], diameter, _OFF)
    boxes = find_niches(xy, n_neighbors).boxes(xy, diameter)
    middle = np.median(xy, axis=0)
    far = np.linalg.norm(xy - middle, axis=1)
    for ax, spot, name in zip(
        axes[1:], (int(far.argmin()), int(far.argmax())), ("amid", "edge"), strict=True
    ):
        half = max(_ACROSS * tissue.spacing, 2 * diameter)
        _panel(ax, picture, tissue.coord_scale, xy[spot] - half, xy[spot] + half)
        near = (np.abs(xy - xy[spot]) <= half + diameter).all(axis=1)
        _rings(ax, xy[near], diameter, _RING)
        left, top, right, bottom = boxes[spot]
        ax.plot(
            [left, right, right, left, left],
            [top, top, bottom, bottom, top],
            "--",
            color=_NICHE,
            linewidth=1.5,
        )
        ax.set_title(f"{name}: {2 * half:,.0f} um across", fontsize="medium")
    axes[0].set_title("whole image", fontsize="medium")
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / picture.microns_per_pixel
    figure.suptitle(
        f"{tissue.name}, {tissue.technology}: {tissue.n_cells:,} spots, {_percent(found.on_tissue)} on tissue "
        f"({_percent(found.on_tissue_swapped)} with x and y swapped)\n{picture.microns_per_pixel:.3g} um a pixel: a "
        f"spot of {diameter:g} um is {diameter / picture.microns_per_pixel:.3g} pixels, a niche "
        f"{sides.min():.3g} to {sides.max():.3g}",
        fontsize="medium",
    )
    return figure


def _percent(share: float) -> str:
    return "?" if np.isnan(share) else f"{share:.0%}"


def _panel(
    axes: Axes, image: TissueImage, coord_scale: float, low: np.ndarray, high: np.ndarray
) -> None:
    """Show a part of the image; where there is none the panel stays gray."""
    first, last = image_corners(image, coord_scale)
    if (np.maximum(low, first) < np.minimum(high, last)).all():
        pixels, extent = cut(image, coord_scale, np.maximum(low, first), np.minimum(high, last))
        axes.imshow(pixels, extent=extent, interpolation="antialiased")
    axes.set(
        xlim=(low[0], high[0]),
        ylim=(high[1], low[1]),
        aspect="equal",
        facecolor="#bdbdbd",
        xticks=[],
        yticks=[],
    )


def _rings(axes: Axes, xy: np.ndarray, diameter: float, color: str) -> None:
    from matplotlib.collections import EllipseCollection

    if len(xy) == 0:
        return
    points = (
        72 * size_of(axes)[0] / float(np.abs(np.diff(axes.get_xlim()))[0])
    )  # printer's points in a micrometer
    width = float(np.clip(0.12 * diameter * points, 0.3, 1.5))
    axes.add_collection(
        EllipseCollection(
            [diameter],
            [diameter],
            [0.0],
            units="xy",
            offsets=xy,
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors=color,
            linewidths=width,
        ),
        autolim=False,
    )
