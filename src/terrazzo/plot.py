"""Figures: labels, domains and values on the tissue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.errors import InputError, OutputError
from terrazzo.slices import Slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES_PER_POINT_AREA = 72.0**2
MAX_LEGEND = 20


def spatial(
    adata: AnnData,
    *,
    color: str,
    ax: Axes | None = None,
    title: str | None = None,
    legend: bool = True,
    **slice_options: Any,
) -> Axes:
    """Draw one obs column or gene on the tissue, y downwards as on a slide.

    Parameters
    ----------
    adata
        With ``obsm["spatial"]``.
    color
        Column of ``obs`` (categories or numbers) or a gene name.
    ax
        Axes to draw on; None makes a figure.
    title
        Title; None: ``color``.
    legend
        Name the categories (up to 20).
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`.

    Returns
    -------
    The axes.

    Raises
    ------
    InputError
        ``color`` is neither a column nor a gene.
    """
    import matplotlib.pyplot as plt

    coords = Slice.from_anndata(adata, **slice_options).coords
    axes = ax if ax is not None else plt.subplots(figsize=(5, 5), layout="constrained")[1]
    size = _point_size(axes, coords)
    values = _values(adata, color)
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = list(values.cat.categories)
        palette = plt.get_cmap("tab20" if len(names) > 10 else "tab10")
        for i, name in enumerate(names):
            here = (values == name).to_numpy()
            axes.scatter(
                coords[here, 0], coords[here, 1], s=size, color=palette(i % palette.N), label=str(name), linewidths=0
            )
        if legend and len(names) <= MAX_LEGEND:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small", markerscale=2)
    else:
        drawn = axes.scatter(
            coords[:, 0], coords[:, 1], s=size, c=values.to_numpy(dtype=float), cmap="viridis", linewidths=0
        )
        axes.figure.colorbar(drawn, ax=axes, shrink=0.6)
    axes.set(aspect="equal", xticks=[], yticks=[], title=color if title is None else title)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    return axes


def _values(adata: AnnData, color: str) -> pd.Series:
    if color in adata.obs:
        column = adata.obs[color]
        return column if pd.api.types.is_numeric_dtype(column) else column.astype("category")
    if color in adata.var_names:
        expression = adata[:, color].X
        dense = expression.toarray() if hasattr(expression, "toarray") else np.asarray(expression)
        return pd.Series(dense.ravel(), index=adata.obs_names)
    raise InputError(f"{color!r} is neither a column of obs ({', '.join(map(str, adata.obs))}) nor a gene.")


def _point_size(axes: Axes, coords: np.ndarray) -> float:
    """Area of a point, so that points about touch."""
    box = axes.get_window_extent().transformed(axes.figure.dpi_scale_trans.inverted())
    return float(np.clip(0.8 * box.width * box.height * INCHES_PER_POINT_AREA / max(len(coords), 1), 0.5, 120.0))


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure and close it."""
    import matplotlib.pyplot as plt

    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise OutputError(f"{path} could not be written ({error.strerror or error}).") from error
    finally:
        plt.close(figure)
    return Path(path)
