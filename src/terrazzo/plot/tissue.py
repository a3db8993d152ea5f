"""Values on the tissue: labels, numbers and genes where the cells are, over the histology if there is one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats
from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage
from terrazzo.plot.figures import add_legend, add_scale, legend_width, new_axes, scale_of, size_of
from terrazzo.plot.palettes import (
    MISSING,
    MISSING_COLOR,
    Palette,
    color_map,
    is_label,
    joint_label_colors,
    read_values,
)
from terrazzo.slices import Slice
from terrazzo.slices.parts import split, takes_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = [
    "Place",
    "Underlay",
    "cut",
    "draw",
    "image_corners",
    "inches_of",
    "legend_colors",
    "panels",
    "place_of",
    "place_of_slice",
    "spatial",
    "touching_distance",
]

Underlay = bool | Literal["auto"] | TissueImage

LONG_SIDE = 5.0  # inches of the tissue's longer side, in a figure with one panel
MAX_SIDE_PX = 1500  # of an image as it is drawn
NCOLS = 3  # panels in a row, where nothing else is set
_SMALLER = 0.8  # a panel beside others, of one alone
_TITLE = 0.3  # inches
_NEIGHBORS = 4  # of a square lattice all at one distance, of a hexagonal one as well
_LEAST_POINT = 1.2  # printer's points: a cell is never drawn smaller
# diameter of a cell over histology; opaque, or its color is not the legend's
_OVER_IMAGE = 0.7
_RASTER = 20_000  # more cells than this are pixels in a PDF, too
_TOO_LONG = 0.1  # inches a letter of a title takes, about


@dataclass(frozen=True)
class Place:
    """Where a slice is drawn.

    Attributes
    ----------
    coords
        float64 ``(n_cells, 2)``: centers of the cells.
    touching
        Diameter at which typical neighbors touch.
    low, high
        ``(2,)``: upper left and lower right corner of what is shown.
    pixels, extent
        Histology under the cells, None for none; its left, right, bottom and top.
    """

    coords: np.ndarray
    touching: float
    low: np.ndarray
    high: np.ndarray
    pixels: np.ndarray | None = None
    extent: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class _Panel:
    """What one panel shows: where, which values, colors of labels ({} for numbers), scale of numbers, and a title."""

    place: Place
    values: pd.Series
    colors: dict[str, str]
    title: str
    norm: Normalize | None = None


@dataclass(frozen=True)
class _Look:
    """How panels are drawn; see :func:`spatial`."""

    legend: bool = True
    palette: Palette | None = None
    alpha: float = 1.0
    size: float | None = None

    def draw(self, axes: Axes, panel: _Panel) -> None:
        """Draw a panel with its title."""
        draw(
            axes,
            panel.place,
            panel.values,
            panel.colors,
            self.palette,
            legend=self.legend,
            alpha=self.alpha,
            size=self.size,
            norm=panel.norm,
        )
        _set_title(axes, panel.title)


def spatial(
    adata: AnnData | Sequence[AnnData],
    *,
    color: str | Sequence[str],
    ax: Axes | None = None,
    title: str | Sequence[str] | None = None,
    ncols: int | None = None,
    legend: bool = True,
    image: Underlay = False,
    palette: Palette | None = None,
    alpha: float = 1.0,
    size: float | None = None,
    **slice_options: Any,
) -> Axes | Figure:
    """Draw ``obs`` columns and genes on the tissue, y downwards as on a slide.

    Axes are in the slice's units: micrometers where they are known.

    Parameters
    ----------
    adata
        One slice with ``obsm["spatial"]``, or several, which are drawn in a row each. Never written to.
    color
        Column of ``obs`` (labels or numbers) or a gene: a name in ``var_names``, a symbol or an Ensembl id; or a list
        of these, a panel each. Cells without a label, or without a finite number, are light gray. Several slices
        share the colors of labels and the scale of numbers.
    ax
        Axes to draw on, for one slice and one color; None makes a figure.
    title
        Title, or one for each panel, row by row; None: ``color``.
    ncols
        Panels in a row, for one slice; None: 3. The panels of several slices are always a row for each slice.
    legend
        Name the labels (up to 40), or draw the scale of the numbers. It leaves out the extreme half per cent at
        either end, and has an arrow there.
    image
        Histology under the cells. True: that of ``uns["spatial"]``; ``"auto"``: that, where there is one; or a
        :class:`terrazzo.TissueImage` of the one slice.
    palette
        Labels: colors by name, or in the order of the categories; see :func:`terrazzo.plot.colors` for the default.
        Numbers: a matplotlib color map. Of several colors a text is for both, everything else for labels.
    alpha
        Opacity, 0 to 1.
    size
        Diameter of a cell; 1: typical neighbors touch. None: 1, over an image 0.7.
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`. ``slice_key``, the column of ``obs`` that tells the sections of
        an AnnData apart: each is drawn by itself, as several slices are.

    Returns
    -------
    The axes, for one slice and one color that is not a list; else the figure, see :func:`terrazzo.plot.save`.

    Raises
    ------
    InputError
        ``color`` is neither a column nor a gene, or labels in one slice and numbers in another; ``image=True`` where
        there is none; an image that no cell is on; a slice that cannot be read.
    ConfigError
        An impossible ``image``, ``palette``, ``alpha`` or ``size``; no color; another number of titles than of
        panels; ``ncols`` below 1 or with several slices; ``ax`` for several panels.
    """
    _check(image, alpha, size)
    slices = _as_list(adata)
    colors = [color] if isinstance(color, str) else list(color)
    slice_key = slice_options.get("slice_key")
    if not takes_all(slice_key):
        del slice_options["slice_key"]
        parts = [part for one in slices for part in split(one, str(slice_key))]
        adata = slices = [part.adata for part in parts]
        if title is None:
            title = [f"{part.value}: {name}" for part in parts for name in colors]
    titles = _titles(title, colors, len(slices))
    is_one = isinstance(adata, AnnData) and isinstance(color, str)
    _check_layout(slices, ax, ncols, image, is_one)
    look = _Look(legend, palette, alpha, size)
    columns = [_read_column(slices, name, palette) for name in colors]
    places = [place_of(one, image, slice_options) for one in slices]
    shown: list[_Panel] = []
    for row, place in enumerate(places):
        for column in columns:
            panel = _Panel(
                place,
                column.values[row],
                column.colors[row],
                titles[len(shown)],
                column.norm,
            )
            shown.append(panel)
    if not is_one:
        across = ncols or NCOLS
        if len(slices) > 1:
            across = len(colors)
        return _draw_grid(shown, across, look)
    if ax is None:
        width, height = inches_of(places[0])
        beside = legend_width(shown[0].colors, height) if legend else 0.0
        ax = new_axes(width + beside, height + _TITLE)
    look.draw(ax, shown[0])
    return ax


def _as_list(adata: AnnData | Sequence[AnnData]) -> list[AnnData]:
    """Return one slice or several as a list."""
    slices = [adata] if isinstance(adata, AnnData) else list(adata)
    for one in slices:
        if not isinstance(one, AnnData):
            raise InputError(
                f"slices must be given as an AnnData or a list of them, not {type(one).__name__}."
            )
    return slices


@dataclass(frozen=True)
class _Column:
    """One color of several slices: the values of each, the colors of each one's labels, the scale of all numbers."""

    values: list[pd.Series]
    colors: list[dict[str, str]]
    norm: Normalize | None


def _read_column(slices: Sequence[AnnData], color: str, palette: Palette | None) -> _Column:
    """Read one color of all slices."""
    values = [read_values(adata, color) for adata in slices]
    n_labels = sum(is_label(one) for one in values)
    if 0 < n_labels < len(values):
        raise InputError(
            f"{color!r} holds labels in {n_labels} of {len(values)} slices and numbers in the others; "
            "draw them in figures of their own."
        )
    if n_labels:
        joint = joint_label_colors(slices, color, values, palette)
        return _Column(values, [_with_missing(one, joint) for one in values], None)
    norm = None
    numbers = pd.concat(values).dropna().to_numpy(dtype=float)
    if len(slices) > 1 and len(numbers):
        norm = scale_of(numbers)
    return _Column(values, [{} for _ in values], norm)


def _with_missing(values: pd.Series, colors: dict[str, str]) -> dict[str, str]:
    """Return the colors of the labels that occur, the missing one last."""
    shown = {name: colors[name] for name in values.cat.categories}
    if values.isna().any():
        shown[MISSING] = MISSING_COLOR
    return shown


def _titles(title: str | Sequence[str] | None, colors: Sequence[str], n_slices: int) -> list[str]:
    """Return a title for each panel, row by row."""
    if title is None:
        title = list(colors) * n_slices
    titles = [title] if isinstance(title, str) else list(title)
    if not titles or len(titles) != len(colors) * n_slices:
        raise ConfigError(
            f"there are {n_slices} slices, {len(colors)} colors and {len(titles)} titles; "
            "give at least one slice and one color, and a title for each panel."
        )
    return titles


def _check_layout(
    slices: Sequence[AnnData],
    ax: Axes | None,
    ncols: int | None,
    image: Underlay,
    is_one: bool,
) -> None:
    """Refuse options that do not fit the number of panels."""
    if ax is not None and not is_one:
        raise ConfigError("ax is for one slice and one color; without it a figure is made.")
    if ncols is not None and (ncols < 1 or len(slices) > 1):
        raise ConfigError(
            f"ncols is {ncols} for {len(slices)} slices; it must be at least 1, "
            "and several slices have a row each: leave it out."
        )
    if isinstance(image, TissueImage) and len(slices) > 1:
        raise ConfigError(
            "image is one TissueImage for several slices; "
            'pass True or "auto", which take that of each slice.'
        )


def panels(
    place: Place,
    values: Sequence[pd.Series],
    names: Sequence[dict[str, str]],
    titles: Sequence[str],
    *,
    ncols: int = NCOLS,
    legend: bool = True,
) -> Figure:
    """Draw several values of one place side by side: what :func:`spatial` does once all is read and checked.

    Parameters
    ----------
    place
        From :func:`place_of` or :func:`place_of_slice`.
    values, names, titles
        One each a panel: :func:`terrazzo.plot.palettes.read_values`, the colors of its labels ({} for numbers), title.
    ncols, legend
        As in :func:`spatial`.
    """
    shown = []
    for one, colors, title in zip(values, names, titles, strict=True):
        shown.append(_Panel(place, one, colors, title))
    return _draw_grid(shown, ncols, _Look(legend=legend))


def _draw_grid(shown: Sequence[_Panel], ncols: int, look: _Look) -> Figure:
    """Draw panels in rows."""
    import matplotlib.pyplot as plt

    across = min(ncols, len(shown))
    sizes = [inches_of(panel.place) for panel in shown]
    widest = _SMALLER * max(width for width, _ in sizes)
    heights = []
    for start in range(0, len(sizes), across):
        in_row = sizes[start : start + across]
        tallest = max(height for _, height in in_row)
        heights.append(_SMALLER * tallest)
    width = across * widest
    if look.legend:
        for column in range(across):
            in_column = shown[column::across]
            width += max(legend_width(panel.colors, max(heights)) for panel in in_column)
    down = len(heights)
    height = sum(heights) + 0.4 * down
    figure, axes = plt.subplots(
        down,
        across,
        squeeze=False,
        layout="constrained",
        figsize=(width, height),
        height_ratios=heights,
    )
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, shown, strict=False):
        look.draw(ax, panel)
    return figure


def _check(image: Underlay, alpha: float, size: float | None) -> None:
    """Refuse impossible options."""
    is_image = isinstance(image, bool | TissueImage)
    is_auto = isinstance(image, str) and image == "auto"
    if not is_image and not is_auto:
        raise ConfigError(f'image is {image!r}; it must be True, False, "auto" or a TissueImage.')
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it must be between 0 and 1.")
    if size is not None and not 0 < size < np.inf:
        raise ConfigError(f"size is {size}; it must be above 0: 1 lets neighbors touch.")


def legend_colors(
    adata: AnnData, color: str, values: pd.Series, palette: Palette | None
) -> dict[str, str]:
    """Return the colors of the labels, the missing one last; empty for numbers."""
    if not is_label(values):
        return {}
    colors = joint_label_colors([adata], color, [values], palette)
    return _with_missing(values, colors)


def place_of(adata: AnnData, image: Underlay, slice_options: dict[str, Any]) -> Place:
    """Return where the cells of a slice are drawn, and the image under them; see :func:`spatial`."""
    own_image = image if isinstance(image, TissueImage) else None
    tissue = Slice.from_anndata(adata, image=own_image, **slice_options)
    return place_of_slice(tissue, image)


def place_of_slice(tissue: Slice, image: Underlay) -> Place:
    """Return where a slice is drawn, with the part of its image that is there.

    Raises
    ------
    InputError
        ``image=True`` where there is none; an image that no cell is on.
    """
    coords = tissue.coords
    touching = touching_distance(coords)
    longest = float(np.ptp(coords, axis=0).max())
    margin = max(touching, 0.02 * longest)
    low = coords.min(axis=0) - margin
    high = coords.max(axis=0) + margin
    if image is False or (tissue.image is None and image == "auto"):
        return Place(coords, touching, low, high)
    if tissue.image is None:
        raise InputError(
            'image=True, but there is no image in uns["spatial"] that belongs to this slice; '
            'pass a TissueImage, or image="auto" to do without.'
        )
    first, last = image_corners(tissue.image, tissue.coord_scale)
    on_image = (coords >= first) & (coords <= last)
    if not on_image.all(axis=1).any():
        raise InputError(
            f"no cell is on the image: it spans {_span(first, last)}, the cells {_span(low, high)}; "
            "fix its scale (image_xy = native_xy * scale)"
        )
    pixels, extent = cut(tissue.image, tissue.coord_scale, low, high)
    return Place(coords, touching, low, high, pixels, extent)


def _span(low: Floats, high: Floats) -> str:
    """Return a rectangle in words."""
    left, top = low
    right, bottom = high
    return f"{left:.6g} to {right:.6g} by {top:.6g} to {bottom:.6g}"


def touching_distance(coords: np.ndarray) -> float:
    """Return the typical distance to the nearest neighbors: of a lattice its pitch; 1.0 where all are in one place."""
    places = np.unique(coords, axis=0)
    if len(places) < 2:
        return 1.0
    k = min(_NEIGHBORS, len(places) - 1)
    distance, _ = cKDTree(places).query(places, k=k + 1)
    to_others = distance[:, 1:]
    return float(np.median(to_others.mean(axis=1)))


def cut(
    image: TissueImage, coord_scale: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Cut the image to what is shown and shrink it; returns pixels and (left, right, bottom, top) in the slice's unit.

    A pixel's edge is at a whole number: pixel i spans i to i + 1 (as ``TissueImage.crop`` has it).
    """
    pixel = coord_scale / image.scales  # of the slice's units
    corner, _ = image_corners(image, coord_scale)
    size = np.array([image.width, image.height])
    first = np.floor((low - corner) / pixel)
    first = np.clip(first, 0, size - 1).astype(int)
    last = np.ceil((high - corner) / pixel)
    last = np.clip(last, first + 1, size).astype(int)
    x0, y0 = first.tolist()
    x1, y1 = last.tolist()
    pixels = image.view(x0, y0, x1, y1, MAX_SIDE_PX)
    left, top = corner + first * pixel
    right, bottom = corner + last * pixel
    return pixels, (left, right, bottom, top)


def image_corners(image: TissueImage, coord_scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper left and the lower right corner of an image in the units of its slice, (2,) each."""
    pixel = coord_scale / image.scales
    low = -np.array(image.offset) * pixel
    size = np.array([image.width, image.height])
    return low, low + size * pixel


def inches_of(place: Place) -> tuple[float, float]:
    """Return width and height of the panel: the longer side is LONG_SIDE, the other no thinner than a third."""
    sides = place.high - place.low
    shares = np.maximum(sides / sides.max(), 1 / 3)
    width, height = LONG_SIDE * shares
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
    cells = _Cells(axes, place, alpha, size)
    if place.pixels is not None:
        axes.imshow(place.pixels, extent=place.extent, interpolation="antialiased", zorder=0)
    axes.set(aspect="equal", xticks=[], yticks=[], facecolor="none")
    left, top = place.low
    right, bottom = place.high
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.spines[:].set_visible(False)
    missing = values.isna().to_numpy()
    if missing.any():
        cells.draw(missing, facecolors=MISSING_COLOR, label=MISSING)
    if is_label(values):
        for name in values.cat.categories:
            has_name = (values == name).to_numpy()
            cells.draw(has_name, facecolors=names[name], label=name)
        if legend:
            add_legend(axes, names)
        return
    if missing.all():
        return
    numbers = values.to_numpy(dtype=float)[~missing]
    discs = cells.draw(
        ~missing,
        array=numbers,
        cmap=color_map(palette),
        norm=scale_of(numbers) if norm is None else norm,
    )
    if legend:
        add_scale(axes, discs, numbers)


@dataclass(frozen=True)
class _Cells:
    """Cells as discs on axes."""

    axes: Axes
    place: Place
    alpha: float
    size: float | None

    def draw(self, which: np.ndarray, **look: Any) -> Any:
        """Draw some cells, bool ``(n_cells,)``, with a diameter in the axes' units: they touch at every figure size."""
        from matplotlib.collections import EllipseCollection

        over_image = self.place.pixels is not None
        usual = _OVER_IMAGE if over_image else 1.0
        share = usual if self.size is None else self.size
        diameter = self.place.touching * share
        points = self._points()
        side = max(diameter, _LEAST_POINT / points)
        if over_image:  # a white rim: pink cells on pink tissue
            linewidth = min(0.4, 0.06 * side * points)
            look.update(edgecolors="white", linewidths=linewidth)
        else:
            look.update(linewidths=0)
        offsets = self.place.coords[which]
        discs = EllipseCollection(
            [side],
            [side],
            [0.0],
            units="xy",
            offsets=offsets,
            offset_transform=self.axes.transData,
            rasterized=len(offsets) > _RASTER,
            alpha=self.alpha,
            **look,
        )
        return self.axes.add_collection(discs, autolim=False)

    def _points(self) -> float:
        """Return the printer's points in a unit of the axes."""
        inches = np.maximum(size_of(self.axes), 0.1)
        left, right = self.axes.get_xlim()
        bottom, top = self.axes.get_ylim()
        spans = np.abs([right - left, top - bottom])
        return 72 * float(np.min(inches / spans))


def _set_title(axes: Axes, title: str) -> None:
    """Break a title that would reach into the next panel."""
    width, _ = size_of(axes)
    letters = max(12, int(width / _TOO_LONG))
    broken = textwrap.fill(title, letters, break_long_words=False)
    axes.set_title(broken, fontsize="medium")
