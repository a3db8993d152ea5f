"""Results: an embedding in two dimensions, and predictions against the truth. Arrays in, axes out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from terrazzo import records
from terrazzo.arrays import AnyFloats, Floats, Vectors
from terrazzo.errors import InputError
from terrazzo.plot.figures import add_legend, add_scale, legend_width, new_axes, scale_of
from terrazzo.plot.palettes import (
    MAP,
    MISSING,
    MISSING_COLOR,
    Palette,
    color_map,
    has_label,
    is_label,
    label_colors,
    natural,
    read_values,
)
from terrazzo.sparse import check_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LEAST_CELLS", "confusion", "predicted_against_true", "umap", "umap_layout"]

MAX_CELLS = 20_000
LEAST_CELLS = 5
NEIGHBORS = 15  # scanpy's
_SIDE = 5.0  # inches
_INK = 60_000  # square points that all the dots of a UMAP cover together, about
_WRITTEN = 20  # classes up to which every field of a confusion matrix holds its number
_SCATTER = 5_000  # pairs up to which each is a dot


def umap(
    adata: AnnData,
    *,
    use_rep: str | AnyFloats,
    color: str,
    seed: int = 0,
    ax: Axes | None = None,
    title: str | None = None,
    legend: bool = True,
    palette: Palette | None = None,
) -> Axes:
    """Draw the UMAP of an embedding (scanpy's, 15 neighbors), colored by a column of ``obs`` or a gene.

    Up to 20,000 cells, which take a minute or two; of more, as many are drawn at random, and the title says so. Same
    seed, same picture.

    Parameters
    ----------
    adata
        Holds the embedding. Never written to.
    use_rep
        As in :func:`terrazzo.records.vectors`: ``obsm`` key, ``"key:block"``, or an array ``(n, d)``.
    color, palette, legend
        As in :func:`terrazzo.plot.spatial`: a label has the same color there.
    seed
        Of the sample and of UMAP.
    ax
        Axes to draw on; None makes a figure.
    title
        Title; None: ``color``.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        Fewer than five cells; no such embedding or one with NaN; ``color`` is neither a column nor a gene.
    ConfigError
        An impossible ``palette``.
    """
    vectors = records.vectors(adata, use_rep)
    n_cells = len(vectors)
    if n_cells < LEAST_CELLS:
        raise InputError(f"UMAP needs at least {LEAST_CELLS} cells; there are {n_cells}.")
    values = read_values(adata, color)
    names: dict[str, str] = {}
    if is_label(values):
        names = label_colors(adata, color, values, palette)
    else:
        color_map(palette)  # refuses one that does not exist before the long work
    order = np.random.default_rng(seed).permutation(n_cells)[:MAX_CELLS]
    drawn = np.sort(order)
    places = umap_layout(vectors[drawn], seed)
    rank = np.searchsorted(drawn, order)
    # drawn in random order: no label hides another
    shown = values.iloc[order]
    named = dict(names)
    if is_label(values) and shown.isna().any():
        named[MISSING] = MISSING_COLOR
    if ax is None:
        beside = legend_width(named, _SIDE) if legend else 0.0
        ax = new_axes(_SIDE + beside, _SIDE)
    _scatter(ax, places[rank], shown, named, palette, legend)
    text = color if title is None else title
    n_drawn = len(order)
    if n_drawn < n_cells:
        text = f"{text}\n{n_drawn:,} of {n_cells:,} cells"
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", box_aspect=1)
    ax.set_title(text, fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _scatter(
    axes: Axes,
    places: Vectors,
    values: pd.Series,
    colors: dict[str, str],
    palette: Palette | None,
    legend: bool,
) -> None:
    """Draw cells as dots, those without a value below the others."""
    ink_a_cell = _INK / len(values)
    area = float(np.clip(ink_a_cell, 2, 60))
    look: dict[str, Any] = {"s": area, "linewidths": 0, "rasterized": True}
    missing = values.isna().to_numpy()
    x, y = places[missing].T
    axes.scatter(x, y, color=MISSING_COLOR, **look)
    known = values[~missing]
    x, y = places[~missing].T
    if is_label(values):
        axes.scatter(x, y, color=[colors[name] for name in known], **look)
        if legend:
            add_legend(axes, colors)
        return
    numbers = known.to_numpy(dtype=float)
    if not len(numbers):
        return
    dots = axes.scatter(
        x,
        y,
        c=numbers,
        cmap=color_map(palette),
        norm=scale_of(numbers),
        **look,
    )
    if legend:
        add_scale(axes, dots, numbers)


def umap_layout(vectors: AnyFloats, seed: int) -> Vectors:
    """Return UMAP coordinates ``(n, 2)``: scanpy's, 15 neighbors; same seed, same places."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its parts, about one another: a user cannot fix them
        import scanpy as sc

        cells = AnnData(obsm={"X": np.asarray(vectors, dtype=np.float32)})
        n_neighbors = min(NEIGHBORS, cells.n_obs - 1)
        sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])


def confusion(
    true: ArrayLike, predicted: ArrayLike, *, ax: Axes | None = None, normalize: bool = True
) -> Axes:
    """Draw a confusion matrix: a row for each true class, a column for each predicted one, in the same order.

    Parameters
    ----------
    true, predicted
        Labels ``(n,)``. Cells that lack one of the two (None, NaN, "") are left out, and counted below the figure.
    ax
        Axes to draw on; None makes a figure.
    normalize
        Shares of each row (a class that is never true has an empty row); False: counts.

    Returns
    -------
    The axes; the matrix is ``axes.images[0].get_array()``.

    Raises
    ------
    InputError
        Lengths differ, or no cell has both labels.
    """
    truth = _series(true, "true")
    guess = _series(predicted, "predicted")
    n_cells = len(truth)
    if n_cells != len(guess):
        raise InputError(
            f"there are {n_cells} true labels and {len(guess)} predicted ones; give one a cell each."
        )
    known = has_label(truth) & has_label(guess)
    n_known = int(known.sum())
    if not n_known:
        raise InputError("no cell has both a true and a predicted label.")
    rows = truth[known].astype(str)
    columns = guess[known].astype(str)
    counts = _counts(rows, columns)
    classes = list(counts.index)
    numbers = counts.to_numpy(dtype=float)
    total = numbers.sum(axis=1, keepdims=True)
    nothing = np.full_like(numbers, np.nan)
    shares = np.divide(numbers, total, out=nothing, where=total > 0)
    shown = shares if normalize else numbers
    n_classes = len(classes)
    wanted = 0.45 * n_classes + 1.5
    side = float(np.clip(wanted, 4, 14))
    if ax is None:
        ax = new_axes(side + 1, side)
    drawn = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None)
    _name_classes(ax, classes)
    xlabel = "predicted"
    if n_known < n_cells:
        n_left_out = n_cells - n_known
        xlabel += f"\n{n_left_out:,} of {n_cells:,} cells without a label left out"
    ax.set(xlabel=xlabel, ylabel="true")
    if n_classes <= _WRITTEN:
        _write_fields(ax, shares, shown, normalize)
    label = "share of the true class" if normalize else "cells"
    ax.figure.colorbar(drawn, ax=ax, shrink=0.6, aspect=25, label=label)
    return ax


def _counts(truth: pd.Series, guess: pd.Series) -> pd.DataFrame:
    """Return how often each class was predicted as each, rows and columns in natural order."""
    classes = sorted({*truth, *guess}, key=natural)
    table = pd.crosstab(truth, guess)
    return table.reindex(index=classes, columns=classes, fill_value=0)


def _name_classes(axes: Axes, classes: list[str]) -> None:
    """Write the names of classes beside rows and columns."""
    ticks = range(len(classes))
    fontsize = "small" if len(classes) <= _WRITTEN else "x-small"
    longest = max(len(name) for name in classes)
    rotation = 90 if longest > 3 else 0
    axes.set_xticks(ticks, classes, rotation=rotation, fontsize=fontsize)
    axes.set_yticks(ticks, classes, fontsize=fontsize)


def _write_fields(axes: Axes, shares: Floats, shown: Floats, normalize: bool) -> None:
    """Write the numbers into the fields, white on dark; not what rounds to nothing."""
    top = 1 if normalize else np.nanmax(shown)
    for (row, column), value in np.ndenumerate(shown):
        is_nothing = value < 0.005 if normalize else value == 0
        if is_nothing or not np.isfinite(shares[row, column]):
            continue
        text = f"{value:.2f}" if normalize else f"{value:,.0f}"
        color = "white" if value > 0.55 * top else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize="x-small", color=color)


def predicted_against_true(
    true: ArrayLike, predicted: ArrayLike, *, name: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw predicted numbers against true ones, with the line on which they are equal; Pearson's r in the title.

    Up to 5,000 pairs are dots; more are hexagons, darker where there are more pairs (logarithmic).

    Parameters
    ----------
    true, predicted
        Numbers of the same shape, ``(n,)`` or ``(n, k)``; several columns are drawn together. Pairs that are not
        finite are left out, and counted below the figure.
    name
        What it is, for the title; where both are DataFrames, the one column to draw.
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        Shapes or columns differ, values are not numbers, there is no such column, or fewer than two finite pairs.
    """
    x, y = _pairs(true, predicted, name)
    n_pairs = len(x)
    finite = np.isfinite(x) & np.isfinite(y)
    n_finite = int(finite.sum())
    if n_finite < 2:
        raise InputError(f"there are {n_finite} pairs of finite numbers; two or more are needed.")
    x = x[finite]
    y = y[finite]
    low = min(x.min(), y.min())
    high = max(x.max(), y.max())
    margin = 0.03 * (high - low) or 0.5
    edges = (low - margin, high + margin)
    if ax is None:
        ax = new_axes(_SIDE + 0.3, _SIDE)
    if n_finite <= _SCATTER:
        area = float(np.clip(8_000 / n_finite, 4, 30))
        ax.scatter(x, y, s=area, alpha=0.5, linewidths=0, color="C0")
    else:
        _hexagons(ax, x, y, edges)
    ax.plot(edges, edges, color="0.4", linewidth=1, linestyle="--")
    xlabel = "true"
    if n_finite < n_pairs:
        n_left_out = n_pairs - n_finite
        xlabel += f"\n{n_left_out:,} of {n_pairs:,} pairs left out: not finite"
    ax.set(xlim=edges, ylim=edges, aspect="equal", xlabel=xlabel)
    ax.set_ylabel("predicted")
    title = _correlation(x, y)
    if name is not None:
        title = f"{name}: {title}"
    ax.set_title(title, fontsize="medium")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _hexagons(axes: Axes, x: Floats, y: Floats, edges: tuple[float, float]) -> None:
    """Draw many pairs as hexagons, with a scale of their number."""
    from matplotlib.colors import LogNorm

    drawn = axes.hexbin(
        x,
        y,
        gridsize=50,
        extent=(*edges, *edges),
        mincnt=1,
        norm=LogNorm(),
        cmap=MAP,
        linewidths=0,
    )
    axes.figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=25, label="pairs")


def _correlation(x: Floats, y: Floats) -> str:
    """Return Pearson's r in words."""
    # by the range: the spread of equal numbers is rounding error
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "Pearson undefined: one side is constant"
    r = np.corrcoef(x, y)[0, 1]
    return f"Pearson {r:.3f}"


def _series(labels: ArrayLike, side: str) -> pd.Series:
    """Return labels as a column."""
    n_dimensions = np.ndim(labels)
    if n_dimensions != 1:
        raise InputError(
            f"the {side} labels have {n_dimensions} dimensions; give one label a cell."
        )
    return pd.Series(labels).reset_index(drop=True)


def _pairs(true: Any, predicted: Any, name: str | None) -> tuple[Floats, Floats]:
    """Return both sides as float64 ``(m,)``, column after column."""
    if isinstance(true, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        if list(true.columns) != list(predicted.columns):
            raise InputError(
                "the true and the predicted table have other columns; "
                "give the same in the same order."
            )
        if name is not None and name not in true.columns:
            raise InputError(
                f"the tables have no column {name!r}; leave name out to draw all of them together."
            )
        if name is not None:
            true = true[name]
            predicted = predicted[name]
    x = _numbers(true)
    y = _numbers(predicted)
    if x.shape != y.shape:
        raise InputError(f"true has shape {x.shape}, predicted {y.shape}; they must be the same.")
    return x.ravel(), y.ravel()


def _numbers(values: Any) -> Floats:
    """Return numbers dense."""
    check_matrix(values, "the values")
    dense = values.toarray() if hasattr(values, "toarray") else values
    try:
        return np.asarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"true and predicted must be numbers ({error}).") from error
