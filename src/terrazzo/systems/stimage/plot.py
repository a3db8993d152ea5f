"""A slice on its way to an image: where its cells lie, its grid, a window, and what a model reads of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from terrazzo.arrays import Floats, Ints
from terrazzo.config import from_dict
from terrazzo.errors import InputError, did_you_mean
from terrazzo.expression import PAPER_TOTAL, SliceScale, log_values, variance
from terrazzo.plot.figures import add_scale, legend_width, scale_of
from terrazzo.plot.palettes import MISSING_COLOR, color_map
from terrazzo.plot.tissue import Place, draw, touching_distance
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid, Layout, grid_of
from terrazzo.sparse import merge_rows
from terrazzo.systems.stimage.windows import (
    WindowConfig,
    corners,
    describe,
    draw_corners,
    window_sites,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure


_HEIGHT = 3.1  # inches of a panel


_ASPECTS = (0.45, 2.2)  # of a panel, at most


_FRAME: dict[str, Any] = {"color": "#d62728", "linewidth": 1.5, "clip_on": False}  # of the window


_LINES: dict[str, Any] = {"colors": "#8a8a8a", "linewidths": 0.4, "zorder": 0.5}  # between bins


_BEYOND = (
    "#ffffff"  # past the edge of the grid; a site without a cell has the color of what is missing
)


_SIGNED = "RdBu_r"


@dataclass(frozen=True)
class _Window:
    """A window: its corner (row, column), its sites (-1 beyond the edge), its cells, its frame on the tissue (5, 2)."""

    corner: tuple[int, int]
    sites: Ints
    cells: Ints
    frame: Floats


@dataclass(frozen=True)
class _Shades:
    """One gene: log1p of counts per 10,000 of each cell and of each occupied site; of the sites, standardized, too."""

    gene: str
    cells: Floats
    sites: Floats
    standardized: Floats


def grid(
    data: AnnData | Slice,
    *,
    layout: Layout = "auto",
    bin_um: float = 0.0,
    window: int = 16,
    gene: str | None = None,
    seed: int = 0,
    **slice_options: Any,
) -> Figure:
    """Draw how a slice becomes the windows of ST as images, in the four stages of the paper's figure 2.

    *Original*: the cells where they lie. *Compacted*: the dense grid; sites without a cell stay empty. *Cropped*: one
    window, framed in the first two panels. *Normalized*: that window as a model reads it, the gene's values in rows and
    columns, with mean 0 and standard deviation 1 over the slice. The title says what the grid is.

    Parameters
    ----------
    data
        The slice. Never written to.
    layout, bin_um
        See :func:`terrazzo.slices.grids.lay_out`.
    window
        Sites on a side.
    gene
        Symbol or Ensembl id; None: the one that varies most in the window (the likeliest channel, eq 7).
    seed
        Of the window, which is drawn as in training (eq 6).
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`.

    Returns
    -------
    The figure; see :func:`terrazzo.plot.save`.

    Raises
    ------
    InputError
        The slice lies on no lattice and no bin size is given; it cannot be read; no such gene.
    ConfigError
        An impossible layout, bin size or window.
    """
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    config = from_dict(
        WindowConfig, {"layout": layout, "bin_um": float(bin_um), "window": window}, "grid"
    )
    tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
    laid = grid_of(tissue, layout=layout, bin_um=bin_um)
    crop = _crop(tissue.coords, laid, config, seed)
    shades = _shades(tissue, laid, _gene(tissue, laid, crop, gene))
    whole = _place(tissue.coords, np.vstack([tissue.coords, crop.frame]), 0.02)
    near = _place(tissue.coords, crop.frame, 0.02)
    sides = [whole.high - whole.low, np.array(laid.shape[::-1]), near.high - near.low, np.ones(2)]
    aspects = [float(np.clip(x / y, *_ASPECTS)) for x, y in sides]
    inches = (_HEIGHT * sum(aspects) + 2 * legend_width((), _HEIGHT) + 0.8, _HEIGHT + 0.8)
    airy = ConstrainedLayoutEngine(h_pad=0.08)  # between the figure's title and the panels'
    figure, axes = plt.subplots(1, 4, layout=airy, figsize=inches, width_ratios=aspects)
    norm = scale_of(np.concatenate([shades.cells, shades.sites]))
    _original(axes[0], tissue, whole, crop, shades, norm)
    _compacted(axes[1], laid, config.window, crop, shades, norm)
    _cropped(axes[2], near, laid, tissue, crop, shades, norm)
    _normalized(axes[3], laid, config.window, crop, shades)
    figure.suptitle(describe(laid, config), fontsize="medium")
    return figure


def _crop(coords: Floats, laid: Grid, config: WindowConfig, seed: int) -> _Window:
    row, column = draw_corners(corners(laid, config), 1, np.random.default_rng(seed))[0].tolist()
    sites = window_sites(laid, np.array([row, column]), config.window)
    cells = np.sort(laid.cells(sites)[0])
    to_tissue = _to_tissue(coords, laid, config.bin_um)
    around = coords[cells] if to_tissue is None else laid.places(sites[sites >= 0])
    half = touching_distance(coords) / 2 if to_tissue is None else 0.5
    (left, top), (right, bottom) = around.min(axis=0) - half, around.max(axis=0) + half
    frame = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
    return _Window(
        (row, column), sites, cells, frame if to_tissue is None else _mapped(frame, to_tissue)
    )


def _to_tissue(coords: Floats, laid: Grid, bin_um: float) -> Floats | None:
    """Return the map from places (x, y, 1) to coordinates, (3, 2); None where there is none: ranks, a single row."""
    if laid.layout == "bin":
        return np.vstack([bin_um * np.eye(2), coords.min(axis=0) + bin_um / 2])
    places = np.hstack([laid.places(laid.site), np.ones((len(coords), 1))])
    if laid.layout == "rank" or np.linalg.matrix_rank(places) < 3:
        return None
    return np.asarray(np.linalg.lstsq(places, coords, rcond=None)[0])


def _mapped(places: Floats, to_tissue: Floats) -> Floats:
    return np.asarray(np.hstack([places, np.ones((len(places), 1))]) @ to_tissue)


def _gene(tissue: Slice, laid: Grid, crop: _Window, asked: str | None) -> int:
    """Return the column of a gene; where none is asked for, of the one that varies most in the window."""
    if asked is None:
        held, where = np.unique(laid.site[crop.cells], return_inverse=True)
        counts = merge_rows(tissue.counts[crop.cells], where, len(held))
        spread = variance(log_values(counts, PAPER_TOTAL))
        return int(np.argmax(spread if spread.any() else counts.sum(axis=0)))
    known = np.stack([tissue.gene_symbols, tissue.gene_ids])
    found = np.flatnonzero((known == asked).any(axis=0))
    if len(found):
        return int(found[0])
    hint = did_you_mean(asked, [name for name in known.ravel().tolist() if name])
    raise InputError(f"{tissue.name} has no gene {asked!r}.{hint}")


def _shades(tissue: Slice, laid: Grid, column: int) -> _Shades:
    counts = sparse.csr_matrix(tissue.counts[:, [column]])
    at = np.searchsorted(laid.occupied, laid.site)
    totals = np.bincount(at, tissue.total_counts).astype(np.float64)
    summed = merge_rows(counts, at, len(laid.occupied))
    cells = log_values(counts, PAPER_TOTAL, tissue.total_counts).toarray().ravel()
    sites = log_values(summed, PAPER_TOTAL, totals).toarray()
    standardized = SliceScale.fit([summed], totals, "paper").standardize(
        sites, np.zeros(1, np.int64)
    )
    names = str(tissue.gene_symbols[column]), str(tissue.gene_ids[column])
    numbers = (values.ravel().astype(np.float64) for values in (cells, sites, standardized))
    return _Shades(names[0] or names[1], *numbers)


def _place(coords: Floats, shown: Floats, margin: float) -> Place:
    """Say what of the tissue is shown, with a margin in shares of the longer side."""
    low, high = shown.min(axis=0), shown.max(axis=0)
    touching = touching_distance(coords)
    edge = max(touching / 2, margin * float((high - low).max()))
    return Place(coords, touching, low - edge, high + edge)


def _original(
    axes: Axes, tissue: Slice, place: Place, crop: _Window, shades: _Shades, norm: Normalize
) -> None:
    draw(axes, place, pd.Series(shades.cells), {}, None, legend=False, norm=norm)
    axes.plot(*crop.frame.T, **_FRAME)
    width, height = np.ptp(tissue.coords, axis=0)
    unit = {"um": "µm", "pixel": "pixels"}.get(tissue.unit, "units")
    _title(axes, "original", f"{tissue.n_cells:,} cells, {width:,.0f} x {height:,.0f} {unit}")


def _compacted(
    axes: Axes, laid: Grid, side: int, crop: _Window, shades: _Shades, norm: Normalize
) -> None:
    pixels = np.full(laid.shape, np.nan, dtype=np.float32)
    pixels.flat[laid.occupied] = shades.sites
    axes.imshow(pixels, cmap=_with_gaps(None), norm=norm, interpolation="nearest")
    (row, column), (rows, columns) = crop.corner, (min(side, n) for n in laid.shape)
    left, top = column - 0.5, row - 0.5
    axes.plot(
        left + columns * np.array([0, 1, 1, 0, 0]), top + rows * np.array([0, 0, 1, 1, 0]), **_FRAME
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _title(axes, "compacted", f"{laid.shape[0]:,} x {laid.shape[1]:,} sites, gray: no cell")


def _cropped(
    axes: Axes,
    place: Place,
    laid: Grid,
    tissue: Slice,
    crop: _Window,
    shades: _Shades,
    norm: Normalize,
) -> None:
    from matplotlib.collections import LineCollection

    shown = Place(tissue.coords[crop.cells], place.touching, place.low, place.high)
    draw(axes, shown, pd.Series(shades.cells[crop.cells]), {}, None, legend=True, norm=norm)
    axes.plot(*crop.frame.T, **_FRAME)
    if laid.layout == "bin":
        axes.add_collection(LineCollection(list(_bin_edges(crop)), **_LINES))
    _title(axes, "cropped", f"{shades.gene}, log1p of counts per 10,000")


def _bin_edges(crop: _Window) -> Floats:
    """Return the lines between the bins of a window, (n, 2, 2), which cut its frame into equal parts."""
    inside = (crop.sites >= 0).reshape(int(len(crop.sites) ** 0.5), -1)
    top_left, top_right, bottom_right, bottom_left, _ = crop.frame
    lines = []
    for n, ends in (
        (int(inside.any(axis=0).sum()), (top_left, top_right, bottom_left, bottom_right)),
        (int(inside.any(axis=1).sum()), (top_left, bottom_left, top_right, bottom_right)),
    ):
        share = np.arange(1, n)[:, None] / n
        lines.append(np.stack([ends[i] + share * (ends[i + 1] - ends[i]) for i in (0, 2)], axis=1))
    return np.concatenate(lines)


def _normalized(axes: Axes, laid: Grid, side: int, crop: _Window, shades: _Shades) -> None:
    from matplotlib.colors import CenteredNorm

    at = np.minimum(np.searchsorted(laid.occupied, crop.sites), len(laid.occupied) - 1)
    held = laid.occupied[at] == crop.sites
    pixels = np.where(held, shades.standardized[at], np.nan).reshape(side, side)
    numbers = shades.standardized[at][held]
    limit = float(np.quantile(np.abs(numbers), 0.99)) or 1.0
    drawn = axes.imshow(
        pixels, cmap=_with_gaps(_SIGNED), norm=CenteredNorm(0, limit), interpolation="nearest"
    )
    beyond = np.where((crop.sites < 0).reshape(side, side), 0.0, np.nan)
    axes.imshow(np.ma.masked_invalid(beyond), cmap=_plain(_BEYOND), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=_FRAME["color"], linewidth=_FRAME["linewidth"])
    add_scale(axes, drawn, numbers)
    _title(axes, "normalized", f"{shades.gene}, in sd from the slice's mean")


def _with_gaps(name: str | None) -> Any:
    return color_map(name).with_extremes(bad=MISSING_COLOR)


def _plain(color: str) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([color])


def _title(axes: Axes, stage: str, text: str) -> None:
    axes.set_title(f"{stage}\n{text}", fontsize="small")
