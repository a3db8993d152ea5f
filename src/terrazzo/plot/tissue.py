"""The tissue itself: labels, domains, numbers and genes where the cells lie, over the histology where there is one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage
from terrazzo.plot.figures import add_legend, add_scale, legend_width, new_axes, scale_of, size_of
from terrazzo.plot.palettes import (
    MISSING,
    MISSING_COLOR,
    Palette,
    color_map,
    label_colors,
    read_values,
)
from terrazzo.slices import Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Underlay = bool | Literal["auto"] | TissueImage

LONG_SIDE = 5.0  # inches of the tissue's longer side, in a figure of our own
MAX_SIDE_PX = 1500  # of an image as it is drawn
_NEIGHBORS = 4  # of a square lattice all at one distance, of a hexagonal one as well
_LEAST_POINT = 1.2  # printer's points: a cell is never drawn smaller
_OVER_IMAGE = (
    0.7  # diameter of a cell that has histology under it; opaque, or its color is not the legend's
)
_RASTER = 20_000  # more cells than this are pixels in a PDF, too


@dataclass(frozen=True)
class Place:
    """Where to draw: centers (n, 2), the diameter at which they about touch, edges, the image and its edges."""

    coords: np.ndarray
    touching: float
    low: np.ndarray
    high: np.ndarray
    pixels: np.ndarray | None = None
    extent: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 0.0)


def spatial(
    adata: AnnData,
    *,
    color: str,
    ax: Axes | None = None,
    title: str | None = None,
    legend: bool = True,
    image: Underlay = False,
    palette: Palette | None = None,
    alpha: float = 1.0,
    size: float | None = None,
    **slice_options: Any,
) -> Axes:
    """Draw one ``obs`` column or gene on the tissue, y downwards as on a slide.

    Axes are in the slice's units: micrometers where they are known.

    Parameters
    ----------
    adata
        With ``obsm["spatial"]``. Never written to.
    color
        Column of ``obs`` (labels or numbers) or a gene: a name in ``var_names``, a symbol or an Ensembl id. Cells
        without a label, or without a finite number, are light gray.
    ax
        Axes to draw on; None makes a figure.
    title
        Title; None: ``color``.
    legend
        Name the labels (up to 40), or draw the scale of the numbers. It leaves out the extreme half per cent at
        either end, and has an arrow there.
    image
        Histology under the cells. True: that of ``uns["spatial"]``; ``"auto"``: that, where there is one; or a
        :class:`terrazzo.TissueImage`.
    palette
        Labels: colors by name, or in the order of the categories; see :func:`terrazzo.plot.colors` for the default.
        Numbers: a matplotlib color map.
    alpha
        Opacity, 0 to 1.
    size
        Diameter of a cell; 1: typical neighbors touch. None: 1, over an image 0.7.
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        ``color`` is neither a column nor a gene; ``image=True`` where there is none; an image that no cell lies on; a
        slice that cannot be read.
    ConfigError
        An impossible ``image``, ``palette``, ``alpha`` or ``size``.
    """
    _check(image, alpha, size)
    values = read_values(adata, color)
    names = legend_colors(adata, color, values, palette)
    place = place_of(adata, image, slice_options)
    if ax is None:
        width, height = inches_of(place)
        ax = new_axes(width + (legend_width(names, height) if legend else 0.0), height + 0.3)
    draw(ax, place, values, names, palette, legend=legend, alpha=alpha, size=size)
    _set_title(ax, color if title is None else title)
    return ax


def spatial_grid(
    adata: AnnData,
    colors: Sequence[str],
    *,
    titles: Sequence[str] | None = None,
    n_columns: int = 3,
    legend: bool = True,
    image: Underlay = False,
    palette: Palette | None = None,
    alpha: float = 1.0,
    size: float | None = None,
    **slice_options: Any,
) -> Figure:
    """Draw several columns or genes of one slice side by side, each with its own legend or scale.

    Parameters
    ----------
    adata
        As in :func:`spatial`.
    colors
        Columns of ``obs`` and genes, a panel each.
    titles
        One a panel; None: the colors.
    n_columns
        Panels in a row.
    legend, image, palette, alpha, size, **slice_options
        As in :func:`spatial`. A palette given as a sequence or map is for labels; as a text for both.

    Returns
    -------
    The figure; see :func:`terrazzo.plot.save`.

    Raises
    ------
    InputError, ConfigError
        As in :func:`spatial`; no panel, another number of titles, ``n_columns`` below 1.
    """
    _check(image, alpha, size)
    colors = [colors] if isinstance(colors, str) else list(colors)
    titles = colors if titles is None else list(titles)
    if not colors or len(titles) != len(colors) or n_columns < 1:
        raise ConfigError(
            f"spatial_grid has {len(colors)} colors, {len(titles)} titles and n_columns={n_columns}; "
            "give one color or more, one title for each, and one column or more."
        )
    values = [read_values(adata, color) for color in colors]
    names = [legend_colors(adata, c, v, palette) for c, v in zip(colors, values, strict=True)]
    place = place_of(adata, image, slice_options)
    look: dict[str, Any] = {"palette": palette, "alpha": alpha, "size": size}
    return panels(place, values, names, titles, n_columns=n_columns, legend=legend, **look)


def panels(
    place: Place,
    values: Sequence[pd.Series],
    names: Sequence[dict[str, str]],
    titles: Sequence[str],
    *,
    n_columns: int = 3,
    legend: bool = True,
    palette: Palette | None = None,
    **look: Any,
) -> Figure:
    """Draw several values of one place side by side: what :func:`spatial_grid` does once all is read and checked.

    Parameters
    ----------
    place
        From :func:`place_of` or :func:`place_of_slice`.
    values, names, titles
        One each a panel: :func:`terrazzo.plot.palettes.read_values`, the colors of its labels ({} for numbers), title.
    n_columns, legend, palette
        As in :func:`spatial_grid`.
    **look
        Passed to :func:`draw`: ``alpha``, ``size``.
    """
    import matplotlib.pyplot as plt

    width, height = (0.8 * side for side in inches_of(place))
    across = min(n_columns, len(values))
    down = -(-len(values) // across)
    beside = [
        max(legend_width(n, height) for n in names[column::across]) for column in range(across)
    ]
    inches = (across * width + (sum(beside) if legend else 0.0), down * (height + 0.4))
    figure, axes = plt.subplots(down, across, squeeze=False, layout="constrained", figsize=inches)
    for ax in axes.flat[len(values) :]:
        ax.set_axis_off()
    for ax, value, name, title in zip(axes.flat, values, names, titles, strict=False):
        draw(ax, place, value, name, palette, legend=legend, **look)
        _set_title(ax, title)
    return figure


def _check(image: Underlay, alpha: float, size: float | None) -> None:
    if not (isinstance(image, bool | TissueImage) or (isinstance(image, str) and image == "auto")):
        raise ConfigError(f'image is {image!r}; it must be True, False, "auto" or a TissueImage.')
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it must lie between 0 and 1.")
    if size is not None and not 0 < size < np.inf:
        raise ConfigError(f"size is {size}; it must be above 0: 1 lets neighbors touch.")


def legend_colors(
    adata: AnnData, color: str, values: pd.Series, palette: Palette | None
) -> dict[str, str]:
    """Colors of the labels, the missing one last; empty for numbers."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return {}
    found = label_colors(adata, color, values, palette)
    return {**found, MISSING: MISSING_COLOR} if values.isna().any() else found


def place_of(adata: AnnData, image: Underlay, slice_options: dict[str, Any]) -> Place:
    """Return where the cells of a slice are drawn, and the image under them; see :func:`spatial`."""
    given = image if isinstance(image, TissueImage) else None
    return place_of_slice(Slice.from_anndata(adata, image=given, **slice_options), image)


def place_of_slice(found: Slice, image: Underlay) -> Place:
    """Say where a slice is drawn, with the part of its image that lies there.

    Raises
    ------
    InputError
        ``image=True`` where there is none; an image that no cell lies on.
    """
    touching = touching_distance(found.coords)
    margin = max(touching, 0.02 * float(np.ptp(found.coords, axis=0).max()))
    low, high = found.coords.min(axis=0) - margin, found.coords.max(axis=0) + margin
    place = Place(found.coords, touching, low, high)
    if image is False or (found.image is None and image == "auto"):
        return place
    if found.image is None:
        raise InputError(
            'image=True, but there is no image in uns["spatial"] that belongs to this slice; '
            'pass a TissueImage, or image="auto" to do without.'
        )
    first, corner = image_corners(found.image, found.coord_scale)
    if not ((found.coords >= first) & (found.coords <= corner)).all(axis=1).any():
        raise InputError(
            f"no cell lies on the image: it spans {first[0]:.6g} to {corner[0]:.6g} by {first[1]:.6g} to "
            f"{corner[1]:.6g}, "
            f"the cells {low[0]:.6g} to {high[0]:.6g} by {low[1]:.6g} to {high[1]:.6g}; "
            "mend its scale (image_xy = native_xy * scale)"
        )
    pixels, extent = cut(found.image, found.coord_scale, low, high)
    return Place(found.coords, touching, low, high, pixels, extent)


def touching_distance(coords: np.ndarray) -> float:
    """Typical distance of a cell from its nearest neighbors: the pitch of a lattice; 1.0 where all lie in one."""
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return 1.0
    k = min(_NEIGHBORS, len(places) - 1)
    distance = cKDTree(places).query(places, k=k + 1)[0][:, 1:]
    return float(np.median(distance.mean(axis=1)))


def cut(
    image: TissueImage, coord_scale: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Cut the image to what is shown and shrink it; returns pixels and (left, right, bottom, top) in the slice's unit.

    A pixel's edge lies at a whole number: pixel i spans i to i + 1 (as ``TissueImage.crop`` has it).
    """
    pixel = coord_scale / image.scales  # of the slice's units
    corner, size = image_corners(image, coord_scale)[0], np.array([image.width, image.height])
    first = np.clip(np.floor((low - corner) / pixel), 0, size - 1).astype(int)
    last = np.clip(np.ceil((high - corner) / pixel), first + 1, size).astype(int)
    (x0, y0), (x1, y1) = first.tolist(), last.tolist()
    shown = image.view(x0, y0, x1, y1, MAX_SIDE_PX)
    (left, top), (right, bottom) = corner + first * pixel, corner + last * pixel
    return shown, (left, right, bottom, top)


def image_corners(image: TissueImage, coord_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper left and the lower right corner of an image in the units of its slice, (2,) each."""
    pixel = coord_scale / image.scales
    low = -np.array(image.offset) * pixel
    return low, low + np.array([image.width, image.height]) * pixel


def inches_of(place: Place) -> tuple[float, float]:
    """Width and height of the panel: the longer side is LONG_SIDE, the other no thinner than a third."""
    sides = place.high - place.low
    width, height = LONG_SIDE * np.maximum(sides / sides.max(), 1 / 3)
    return float(width), float(height)


def draw(
    axes: Axes,
    place: Place,
    values: pd.Series,
    names: dict[str, str],
    palette: Palette | None,
    *,
    legend: bool,
    alpha: float = 1.0,
    size: float | None = None,
    norm: Normalize | None = None,
) -> None:
    """Draw values on axes; ``norm`` in place of the numbers' own scale, where several panels share one."""
    if place.pixels is not None:
        axes.imshow(place.pixels, extent=place.extent, interpolation="antialiased", zorder=0)
    usual = 1.0 if place.pixels is None else _OVER_IMAGE
    look: dict[str, Any] = {
        "alpha": alpha,
        "diameter": place.touching * (usual if size is None else size),
    }
    if place.pixels is not None:
        look["rim"] = "white"  # a pink cell on pink tissue
    axes.set(aspect="equal", xticks=[], yticks=[], facecolor="none")
    axes.set(xlim=(place.low[0], place.high[0]), ylim=(place.high[1], place.low[1]))
    axes.spines[:].set_visible(False)
    missing = values.isna().to_numpy()
    if missing.any():
        _cells(axes, place.coords[missing], **look, facecolors=MISSING_COLOR, label=MISSING)
    if isinstance(values.dtype, pd.CategoricalDtype):
        for name in values.cat.categories:
            here = (values == name).to_numpy()
            _cells(axes, place.coords[here], **look, facecolors=names[name], label=name)
        if legend:
            add_legend(axes, names)
    elif not missing.all():
        numbers = values.to_numpy(dtype=float)[~missing]
        shades = {
            "array": numbers,
            "cmap": color_map(palette),
            "norm": scale_of(numbers) if norm is None else norm,
        }
        drawn = _cells(axes, place.coords[~missing], **look, **shades)
        if legend:
            add_scale(axes, drawn, numbers)


def _cells(
    axes: Axes, xy: np.ndarray, *, diameter: float, rim: str | None = None, **look: Any
) -> Any:
    """Discs with a diameter in the units of the axes: they touch at every size of the figure."""
    from matplotlib.collections import EllipseCollection

    inches, spans = (
        size_of(axes),
        np.abs([np.diff(axes.get_xlim()), np.diff(axes.get_ylim())]).ravel(),
    )
    points = 72 * float(
        np.min(np.maximum(inches, 0.1) / spans)
    )  # printer's points in a unit of the axes
    side = max(diameter, _LEAST_POINT / points)
    edge = (
        {"linewidths": 0}
        if rim is None
        else {"edgecolors": rim, "linewidths": min(0.4, 0.06 * side * points)}
    )
    discs = EllipseCollection(
        [side],
        [side],
        [0.0],
        units="xy",
        offsets=xy,
        offset_transform=axes.transData,
        rasterized=len(xy) > _RASTER,
        **edge,
        **look,
    )
    return axes.add_collection(discs, autolim=False)


def _set_title(axes: Axes, title: str) -> None:
    """Break a title that would reach into the next panel."""
    letters = max(12, int(size_of(axes)[0] / 0.1))
    axes.set_title(textwrap.fill(title, letters, break_long_words=False), fontsize="medium")
