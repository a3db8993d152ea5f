"""What came out: an embedding in two dimensions, and predictions against the truth. Arrays in, axes out."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import records as representation
from terrazzo.errors import InputError
from terrazzo.plot.figures import add_legend, add_scale, legend_width, new_axes, scale_of
from terrazzo.plot.palettes import (
    MAP,
    MISSING,
    MISSING_COLOR,
    Palette,
    color_map,
    label_colors,
    natural,
    read_values,
    said,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    use_rep: str | representation.Vectors,
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
        Holds the embedding. Never written to: the neighbors and the two coordinates are made elsewhere.
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
    vectors = representation.vectors(adata, use_rep)
    if len(vectors) < LEAST_CELLS:
        raise InputError(f"UMAP needs at least {LEAST_CELLS} cells; there are {len(vectors)}.")
    values = read_values(adata, color)
    is_label = isinstance(values.dtype, pd.CategoricalDtype)
    names = label_colors(adata, color, values, palette) if is_label else {}
    scale = None if is_label else color_map(palette)
    order = np.random.default_rng(seed).permutation(len(vectors))[
        :MAX_CELLS
    ]  # shuffled: no label hides another
    places = umap_layout(vectors[np.sort(order)], seed)[np.argsort(np.argsort(order))]
    shown = values.iloc[order]
    missing = shown.isna().to_numpy()
    named = {**names, MISSING: MISSING_COLOR} if is_label and missing.any() else names
    axes = (
        ax
        if ax is not None
        else new_axes(_SIDE + (legend_width(named, _SIDE) if legend else 0.0), _SIDE)
    )
    look: dict[str, Any] = {
        "s": float(np.clip(_INK / len(order), 2, 60)),
        "linewidths": 0,
        "rasterized": True,
    }
    x, y = places.T
    axes.scatter(x[missing], y[missing], color=MISSING_COLOR, **look)
    if is_label:
        axes.scatter(
            x[~missing], y[~missing], color=[names[name] for name in shown[~missing]], **look
        )
        if legend:
            add_legend(axes, named)
    else:
        numbers = shown.to_numpy(dtype=float)[~missing]
        if len(numbers):
            drawn = axes.scatter(
                x[~missing], y[~missing], c=numbers, cmap=scale, norm=scale_of(numbers), **look
            )
            if legend:
                add_scale(axes, drawn, numbers)
    sampled = f"\n{len(order):,} of {len(vectors):,} cells" if len(order) < len(vectors) else ""
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", box_aspect=1)
    axes.set_title(f"{color if title is None else title}{sampled}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def umap_layout(vectors: representation.Vectors, seed: int) -> NDArray[np.float32]:
    """Return UMAP coordinates ``(n, 2)``: scanpy's, 15 neighbors; same seed, same places."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of its parts, about one another: nothing that a user can mend
        import scanpy as sc

        bare = AnnData(obsm={"X": np.asarray(vectors, dtype=np.float32)})
        sc.pp.neighbors(
            bare, n_neighbors=min(NEIGHBORS, bare.n_obs - 1), use_rep="X", random_state=seed
        )
        sc.tl.umap(bare, random_state=seed)
    return np.asarray(bare.obsm["X_umap"])


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
    truth, guess = _series(true, "true"), _series(predicted, "predicted")
    if len(truth) != len(guess):
        raise InputError(
            f"there are {len(truth)} true labels and {len(guess)} predicted ones; give one a cell each."
        )
    known = said(truth) & said(guess)
    if not known.any():
        raise InputError("no cell has both a true and a predicted label.")
    rows, columns = truth[known].astype(str), guess[known].astype(str)
    classes = sorted({*rows, *columns}, key=natural)
    counts = (
        pd.crosstab(rows, columns)
        .reindex(index=classes, columns=classes, fill_value=0)
        .to_numpy(dtype=float)
    )
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    shown = shares if normalize else counts
    side = float(np.clip(0.45 * len(classes) + 1.5, 4, 14))
    axes = ax if ax is not None else new_axes(side + 1, side)
    drawn = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None)
    ticks = range(len(classes))
    small = "small" if len(classes) <= _WRITTEN else "x-small"
    axes.set_xticks(
        ticks, classes, rotation=90 if max(map(len, classes)) > 3 else 0, fontsize=small
    )
    axes.set_yticks(ticks, classes, fontsize=small)
    left_out = (
        f"\n{len(known) - int(known.sum()):,} of {len(known):,} cells without a label left out"
    )
    axes.set(xlabel="predicted" + ("" if known.all() else left_out), ylabel="true")
    if len(classes) <= _WRITTEN:
        _write_fields(axes, shares, shown, normalize)
    axes.figure.colorbar(
        drawn,
        ax=axes,
        shrink=0.6,
        aspect=25,
        label="share of the true class" if normalize else "cells",
    )
    return axes


def _write_fields(
    axes: Axes, shares: NDArray[np.float64], shown: NDArray[np.float64], normalize: bool
) -> None:
    """Write the numbers into the fields, white on dark; not what rounds to nothing."""
    top = np.nanmax(shown)
    for (row, column), value in np.ndenumerate(shown):
        if value < 0.005 if normalize else value == 0:
            continue
        if np.isfinite(shares[row, column]):
            text = f"{value:.2f}" if normalize else f"{value:,.0f}"
            color = "white" if value > 0.55 * (1 if normalize else top) else "black"
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
    from matplotlib.colors import LogNorm

    x, y = _pairs(true, predicted, name)
    finite = np.isfinite(x) & np.isfinite(y)
    if finite.sum() < 2:
        raise InputError(
            f"there are {int(finite.sum())} pairs of finite numbers; two or more are needed."
        )
    left_out = f"\n{int((~finite).sum()):,} of {len(x):,} pairs left out: not finite"
    x, y = x[finite], y[finite]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.03 * (high - low) or 0.5
    edges = (low - margin, high + margin)
    axes = ax if ax is not None else new_axes(_SIDE + 0.3, _SIDE)
    if len(x) <= _SCATTER:
        axes.scatter(
            x, y, s=float(np.clip(8_000 / len(x), 4, 30)), alpha=0.5, linewidths=0, color="C0"
        )
    else:
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
    axes.plot(edges, edges, color="0.4", linewidth=1, linestyle="--")
    # exactly: the spread of equal numbers is rounding error
    varies = np.ptp(x) > 0 and np.ptp(y) > 0
    words = (
        f"Pearson {np.corrcoef(x, y)[0, 1]:.3f}"
        if varies
        else "Pearson undefined: one side is constant"
    )
    axes.set(
        xlim=edges, ylim=edges, aspect="equal", xlabel="true" + ("" if finite.all() else left_out)
    )
    axes.set_ylabel("predicted")
    axes.set_title(words if name is None else f"{name}: {words}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _series(labels: ArrayLike, side: str) -> pd.Series:
    if np.ndim(labels) != 1:
        raise InputError(
            f"the {side} labels have {np.ndim(labels)} dimensions; give one label a cell."
        )
    return pd.Series(labels).reset_index(drop=True)


def _pairs(
    true: Any, predicted: Any, name: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both sides as float64 ``(m,)``, column after column."""
    if isinstance(true, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        if list(true.columns) != list(predicted.columns):
            raise InputError(
                "the true and the predicted table have other columns; give the same in the same order."
            )
        if name is not None:
            if name not in true.columns:
                raise InputError(
                    f"the tables have no column {name!r}; leave name out to draw all of them together."
                )
            true, predicted = true[name], predicted[name]
    sides = []
    for values in (true, predicted):
        dense = values.toarray() if hasattr(values, "toarray") else values
        try:
            sides.append(np.asarray(dense, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InputError(f"true and predicted must be numbers ({error}).") from error
    if sides[0].shape != sides[1].shape:
        raise InputError(
            f"true has shape {sides[0].shape}, predicted {sides[1].shape}; they must be the same."
        )
    return sides[0].ravel(), sides[1].ravel()
