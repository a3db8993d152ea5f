"""Figure of a slice on its way to an image: cells, grid, one window, and the window as a model reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

__all__ = ["grid"]

HEIGHT = 3.1  # inches of a panel

ASPECTS = (0.45, 2.2)  # of a panel, at least and at most

MARGIN = 0.02  # around what is shown, in shares of the longer side

FRAME: dict[str, Any] = {"color": "#d62728", "linewidth": 1.5, "clip_on": False}  # of the window

LINES: dict[str, Any] = {"colors": "#8a8a8a", "linewidths": 0.4, "zorder": 0.5}  # between bins

# past the edge of the grid; a site without a cell has the color of what is missing
BEYOND = "#ffffff"

SIGNED = "RdBu_r"


@dataclass(frozen=True)
class _Crop:
    """One window of a grid.

    Attributes
    ----------
    corner
        Row and column of its first site.
    side
        Sites on a side.
    sites
        Its sites, row by row; -1 beyond the edge of the grid.
    cells
        Rows of its cells.
    frame
        ``(5, 2)``: corners of the window on the tissue, the first of them twice.
    """

    corner: tuple[int, int]
    side: int
    sites: Ints
    cells: Ints
    frame: Floats


@dataclass(frozen=True)
class _GeneValues:
    """Values of one gene.

    Attributes
    ----------
    gene
        Its symbol, or Ensembl id.
    cells, sites
        log1p of counts per 10,000 of each cell, and of each occupied site.
    standardized
        The values of the sites with mean 0 and standard deviation 1 over the slice.
    """

    gene: str
    cells: Floats
    sites: Floats
    standardized: Floats


@dataclass(frozen=True)
class _Drawing:
    """Contents of the four panels; ``norm`` is the scale of colors of the first three."""

    tissue: Slice
    grid: Grid
    crop: _Crop
    values: _GeneValues
    norm: Normalize


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

    *Original*: the cells at their positions. *Compacted*: the dense grid; sites without a cell stay empty. *Cropped*:
    one window, framed in the first two panels. *Normalized*: that window as a model reads it, the gene's values in rows
    and columns, with mean 0 and standard deviation 1 over the slice. The title describes the grid.

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
        The slice is on no lattice and no bin size is given; it cannot be read; no such gene.
    ConfigError
        An impossible layout, bin size or window.
    """
    settings = {"layout": layout, "bin_um": float(bin_um), "window": window}
    config = from_dict(WindowConfig, settings, "grid")
    tissue = data if isinstance(data, Slice) else Slice.from_anndata(data, **slice_options)
    slice_grid = grid_of(tissue, layout=layout, bin_um=bin_um)
    crop = _crop(tissue.coords, slice_grid, config, seed)
    if gene is None:
        column = _most_variable_gene(tissue, slice_grid, crop)
    else:
        column = _column_of(tissue, gene)
    values = _gene_values(tissue, slice_grid, column)
    norm = scale_of(np.concatenate([values.cells, values.sites]))
    figure = _draw(_Drawing(tissue, slice_grid, crop, values, norm))
    figure.suptitle(describe(slice_grid, config), fontsize="medium")
    return figure


def _draw(drawing: _Drawing) -> Figure:
    """Draw the four panels side by side, each as wide as its content needs."""
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    coords = drawing.tissue.coords
    frame = drawing.crop.frame
    whole = _place(coords, np.vstack([coords, frame]))
    near = _place(coords, frame)
    n_rows, n_columns = drawing.grid.shape
    aspects = [
        _aspect(whole.high - whole.low),
        _aspect(np.array([n_columns, n_rows])),
        _aspect(near.high - near.low),
        _aspect(np.ones(2)),
    ]
    width_of_scales = 2 * legend_width((), HEIGHT)
    width = HEIGHT * sum(aspects) + width_of_scales + 0.8
    size = (width, HEIGHT + 0.8)
    airy = ConstrainedLayoutEngine(h_pad=0.08)  # between the figure's title and the panels'
    figure, axes = plt.subplots(1, 4, layout=airy, figsize=size, width_ratios=aspects)
    _draw_original(axes[0], drawing, whole)
    _draw_compacted(axes[1], drawing)
    _draw_cropped(axes[2], drawing, near)
    _draw_normalized(axes[3], drawing)
    return figure


def _aspect(size: Floats | Ints) -> float:
    """Return width over height, within bounds."""
    width, height = size
    return float(np.clip(width / height, *ASPECTS))


def _crop(coords: Floats, grid: Grid, config: WindowConfig, seed: int) -> _Crop:
    """Draw a window as in training."""
    rng = np.random.default_rng(seed)
    allowed = corners(grid, config)
    corner = draw_corners(allowed, 1, rng)[0]
    row, column = corner.tolist()
    sites = window_sites(grid, corner, config.window)
    cells, _ = grid.cells(sites)
    cells = np.sort(cells)
    to_tissue = _to_tissue(coords, grid, config.bin_um)
    if to_tissue is None:
        half = touching_distance(coords) / 2
        frame = _frame(coords[cells], half)
    else:
        inside = sites[sites >= 0]
        frame = _frame(grid.places(inside), 0.5)
        frame = np.asarray(_with_ones(frame) @ to_tissue)
    return _Crop((row, column), config.window, sites, cells, frame)


def _frame(points: Floats, margin: float) -> Floats:
    """Return the frame around points; see :func:`_rectangle`."""
    left, top = points.min(axis=0) - margin
    right, bottom = points.max(axis=0) + margin
    return _rectangle(left, top, right, bottom)


def _rectangle(left: float, top: float, right: float, bottom: float) -> Floats:
    """Return the corners of a rectangle, the first of them twice, ``(5, 2)``."""
    top_left = [left, top]
    top_right = [right, top]
    bottom_right = [right, bottom]
    bottom_left = [left, bottom]
    return np.array([top_left, top_right, bottom_right, bottom_left, top_left])


def _to_tissue(coords: Floats, grid: Grid, bin_um: float) -> Floats | None:
    """Return the map from places (x, y, 1) to coordinates, (3, 2); None where there is none: ranks, a single row."""
    if grid.layout == "bin":
        steps = bin_um * np.eye(2)
        origin = coords.min(axis=0) + bin_um / 2
        return np.vstack([steps, origin])
    places = _with_ones(grid.places(grid.site))
    if grid.layout == "rank":
        return None
    if np.linalg.matrix_rank(places) < 3:
        return None
    solution = np.linalg.lstsq(places, coords, rcond=None)
    return np.asarray(solution[0])


def _with_ones(places: Floats) -> Floats:
    """Return places with a third column of ones."""
    ones = np.ones((len(places), 1))
    return np.hstack([places, ones])


def _most_variable_gene(tissue: Slice, grid: Grid, crop: _Crop) -> int:
    """Return the column of the gene that varies most in the window; where none varies, of the most counted one."""
    cell_sites = grid.site[crop.cells]
    sites, where = np.unique(cell_sites, return_inverse=True)
    cell_counts = tissue.counts[crop.cells]
    counts = merge_rows(cell_counts, where, len(sites))
    values = log_values(counts, PAPER_TOTAL)
    spread = variance(values)
    if spread.any():
        return int(np.argmax(spread))
    return int(np.argmax(counts.sum(axis=0)))


def _column_of(tissue: Slice, gene: str) -> int:
    """Return the column of a gene by symbol or Ensembl id."""
    names = np.stack([tissue.gene_symbols, tissue.gene_ids])
    is_gene = (names == gene).any(axis=0)
    columns = np.flatnonzero(is_gene)
    if len(columns):
        return int(columns[0])
    known = [name for name in names.ravel().tolist() if name]
    hint = did_you_mean(gene, known)
    raise InputError(f"{tissue.name} has no gene {gene!r}.{hint}")


def _gene_values(tissue: Slice, grid: Grid, column: int) -> _GeneValues:
    counts = sparse.csr_matrix(tissue.counts[:, [column]])
    place = np.searchsorted(grid.occupied, grid.site)
    totals = np.bincount(place, tissue.total_counts).astype(np.float64)
    site_counts = merge_rows(counts, place, len(grid.occupied))
    cells = log_values(counts, PAPER_TOTAL, tissue.total_counts).toarray()
    sites = log_values(site_counts, PAPER_TOTAL, totals).toarray()
    scale = SliceScale.fit([site_counts], totals, "paper")
    only_gene = np.zeros(1, dtype=np.int64)
    standardized = scale.standardize(sites, only_gene)
    symbol = str(tissue.gene_symbols[column])
    ensembl_id = str(tissue.gene_ids[column])
    return _GeneValues(
        gene=symbol or ensembl_id,
        cells=cells.ravel().astype(np.float64),
        sites=sites.ravel().astype(np.float64),
        standardized=standardized.ravel().astype(np.float64),
    )


def _place(coords: Floats, shown: Floats) -> Place:
    """Return the part of the tissue around some points."""
    low = shown.min(axis=0)
    high = shown.max(axis=0)
    touching = touching_distance(coords)
    size = high - low
    longer_side = float(size.max())
    edge = max(touching / 2, MARGIN * longer_side)
    return Place(coords, touching, low - edge, high + edge)


def _draw_original(axes: Axes, drawing: _Drawing, place: Place) -> None:
    tissue = drawing.tissue
    cell_values = pd.Series(drawing.values.cells)
    draw(axes, place, cell_values, {}, None, legend=False, norm=drawing.norm)
    _draw_frame(axes, drawing.crop.frame)
    width, height = np.ptp(tissue.coords, axis=0)
    unit = {"um": "µm", "pixel": "pixels"}.get(tissue.unit, "units")
    size = f"{width:,.0f} x {height:,.0f} {unit}"
    _set_title(axes, "original", f"{tissue.n_cells:,} cells, {size}")


def _draw_compacted(axes: Axes, drawing: _Drawing) -> None:
    grid = drawing.grid
    crop = drawing.crop
    n_rows, n_columns = grid.shape
    pixels = np.full(grid.shape, np.nan, dtype=np.float32)
    pixels.flat[grid.occupied] = drawing.values.sites
    axes.imshow(pixels, cmap=_with_gaps(None), norm=drawing.norm, interpolation="nearest")
    row, column = crop.corner
    left = column - 0.5
    top = row - 0.5
    right = left + min(crop.side, n_columns)
    bottom = top + min(crop.side, n_rows)
    _draw_frame(axes, _rectangle(left, top, right, bottom))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    _set_title(axes, "compacted", f"{n_rows:,} x {n_columns:,} sites, gray: no cell")


def _draw_cropped(axes: Axes, drawing: _Drawing, place: Place) -> None:
    from matplotlib.collections import LineCollection

    crop = drawing.crop
    values = drawing.values
    coords = drawing.tissue.coords[crop.cells]
    shown = replace(place, coords=coords)
    cell_values = pd.Series(values.cells[crop.cells])
    draw(axes, shown, cell_values, {}, None, legend=True, norm=drawing.norm)
    _draw_frame(axes, crop.frame)
    if drawing.grid.layout == "bin":
        edges = list(_bin_edges(crop))
        axes.add_collection(LineCollection(edges, **LINES))
    _set_title(axes, "cropped", f"{values.gene}, log1p of counts per 10,000")


def _bin_edges(crop: _Crop) -> Floats:
    """Return the lines between the bins of a window, (n, 2, 2), which cut its frame into equal parts."""
    inside = (crop.sites >= 0).reshape(crop.side, crop.side)
    n_columns = int(inside.any(axis=0).sum())
    n_rows = int(inside.any(axis=1).sum())
    top_left, top_right, bottom_right, bottom_left, _ = crop.frame
    upright = _between((top_left, top_right), (bottom_left, bottom_right), n_columns)
    level = _between((top_left, bottom_left), (top_right, bottom_right), n_rows)
    return np.concatenate([upright, level])


def _between(one: tuple[Floats, Floats], other: tuple[Floats, Floats], n: int) -> Floats:
    """Return the ``n - 1`` lines from one side to the other that cut both into ``n`` equal parts, (n - 1, 2, 2)."""
    share = np.arange(1, n)[:, None] / n
    ends = []
    for start, end in (one, other):
        ends.append(start + share * (end - start))
    return np.stack(ends, axis=1)


def _draw_normalized(axes: Axes, drawing: _Drawing) -> None:
    from matplotlib.colors import CenteredNorm, ListedColormap

    crop = drawing.crop
    occupied = drawing.grid.occupied
    shape = (crop.side, crop.side)
    place = np.searchsorted(occupied, crop.sites)
    place = np.minimum(place, len(occupied) - 1)
    present = occupied[place] == crop.sites
    standardized = drawing.values.standardized[place]
    pixels = np.where(present, standardized, np.nan).reshape(shape)
    numbers = standardized[present]
    limit = np.quantile(np.abs(numbers), 0.99)
    norm = CenteredNorm(0, float(limit) or 1.0)
    image = axes.imshow(pixels, cmap=_with_gaps(SIGNED), norm=norm, interpolation="nearest")
    beyond = np.where(crop.sites < 0, 0.0, np.nan)
    beyond = beyond.reshape(shape)
    white = ListedColormap([BEYOND])
    axes.imshow(np.ma.masked_invalid(beyond), cmap=white, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME["color"], linewidth=FRAME["linewidth"])
    add_scale(axes, image, numbers)
    _set_title(axes, "normalized", f"{drawing.values.gene}, in sd from the slice's mean")


def _draw_frame(axes: Axes, frame: Floats) -> None:
    x, y = frame.T
    axes.plot(x, y, **FRAME)


def _with_gaps(name: str | None) -> Any:
    return color_map(name).with_extremes(bad=MISSING_COLOR)


def _set_title(axes: Axes, stage: str, text: str) -> None:
    axes.set_title(f"{stage}\n{text}", fontsize="small")
