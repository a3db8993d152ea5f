"""Predicted expression beside measured, on the tissue, with the histology that it was predicted from underneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import records
from terrazzo.errors import InputError
from terrazzo.expression import PAPER_TOTAL, Scale, expression
from terrazzo.plot.figures import legend_width, scale_of
from terrazzo.plot.tissue import Underlay, draw, inches_of, place_of
from terrazzo.slices.panel import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["predicted_genes"]

MOST = 4  # genes that are drawn where none are named
_SMALLER = 0.6  # a panel, of a figure with one panel


def predicted_genes(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = "expression_predicted",
    image: Underlay = "auto",
    shared: bool = True,
    layer: str | None = None,
    size: float | None = None,
    **slice_options: Any,
) -> Figure:
    """Draw genes in rows: the histology, what was measured, and what was predicted from the histology.

    Parameters
    ----------
    adata
        A slice that ``Probe.annotate`` of :func:`terrazzo.tasks.fit_image_to_gene` wrote into. Never written to.
    genes
        Some of those predicted; None: the first four, where they are measured.
    key
        ``obsm`` key of the prediction.
    image
        Histology under the spots, as in :func:`terrazzo.plot.spatial`; the first column shows it alone.
    shared
        One scale of colors for measured and predicted values of a gene: what is predicted varies less, and across
        patients its level is off. False: each has its own.
    layer
        Of the counts.
    size
        Diameter of a spot, as in :func:`terrazzo.plot.spatial`.
    **slice_options
        Passed to :meth:`terrazzo.Slice.from_anndata`.

    Returns
    -------
    The figure; see :func:`terrazzo.plot.save`. Titles of predictions give the correlation with what was measured; a
    gene that was not measured is gray.

    Raises
    ------
    InputError
        No prediction under this key, or a gene that it does not hold; errors of :func:`terrazzo.plot.spatial`.
    """
    import matplotlib.pyplot as plt

    predicted = _predicted(adata, key)
    panel = Panel.read(adata, layer)
    chosen = _chosen(genes, predicted, panel, key)
    in_panel = [gene for gene in chosen if gene in panel.place]
    measured = expression(panel, in_panel, _scale(adata, key))
    place = place_of(adata, image, {**slice_options, "layer": layer})
    columns = ["measured", "predicted"]
    if place.pixels is not None:
        columns.insert(0, "histology")
    width, height = inches_of(place)
    panel_width = _SMALLER * width
    panel_height = _SMALLER * height
    beside = legend_width((), panel_height)
    across = len(columns)
    down = len(chosen)
    figure_width = across * panel_width + (across - 1) * beside
    figure_height = down * (panel_height + 0.35)
    figure, axes = plt.subplots(
        down,
        across,
        squeeze=False,
        layout="constrained",
        figsize=(figure_width, figure_height),
    )
    nothing = pd.Series(np.full(adata.n_obs, np.nan))
    for row, gene in zip(axes, chosen, strict=True):
        true = nothing
        if gene in measured:
            true = measured[gene].reset_index(drop=True).astype(float)
        values = {
            "measured": true,
            "predicted": predicted[gene].reset_index(drop=True).astype(float),
        }
        norm = None
        if shared:
            both = pd.concat(list(values.values())).dropna()
            norm = scale_of(both.to_numpy())
        for ax, column in zip(row, columns, strict=True):
            if column == "histology":
                draw(ax, place, nothing[:0], {}, None, legend=False)
                ax.set_title("histology", fontsize="medium")
                continue
            draw(ax, place, values[column], {}, None, legend=True, norm=norm, size=size)
            title = _title(gene, column, true, values["predicted"])
            ax.set_title(title, fontsize="medium")
    return figure


def _chosen(
    genes: str | Sequence[str] | None, predicted: pd.DataFrame, panel: Panel, key: str
) -> list[str]:
    """Return the genes to draw: the named ones, else the first of those that are measured, else the first."""
    if not genes:
        in_panel = [gene for gene in predicted if gene in panel.place]
        return (in_panel or list(predicted))[:MOST]
    chosen = [genes] if isinstance(genes, str) else list(genes)
    for gene in chosen:
        if gene not in predicted:
            known = ", ".join(list(predicted)[:20])
            raise InputError(f"obsm[{key!r}] holds no {gene!r}; it holds: {known}.")
    return chosen


def _title(gene: str, column: str, true: pd.Series, predicted: pd.Series) -> str:
    """Return the title of a panel: of predicted values, with their correlation with what was measured."""
    known = true.notna().to_numpy()
    if column == "measured":
        return f"{gene}, measured" if known.any() else f"{gene}, not measured"
    true_known = true[known]
    predicted_known = predicted[known]
    if true_known.nunique() < 2 or predicted_known.nunique() < 2:
        return f"{gene}, predicted"
    r = np.corrcoef(true_known, predicted_known)[0, 1]
    return f"{gene}, predicted (r = {r:.2f})"


def _predicted(adata: AnnData, key: str) -> pd.DataFrame:
    """Return predicted genes with their names."""
    if key not in adata.obsm or f"{key}_names" not in adata.uns:
        raise InputError(
            f"obsm holds no {key!r} with names of genes; "
            "Probe.annotate of terrazzo.tasks.fit_image_to_gene writes it."
        )
    names = [str(name) for name in adata.uns[f"{key}_names"]]
    return pd.DataFrame(np.asarray(adata.obsm[key]), columns=names)


def _scale(adata: AnnData, key: str) -> Scale:
    """Return what counts are scaled to, as the probe learned them."""
    record = records.records_of(adata).get(key, {})
    scale = records.parsed(record, "probe").get("scale", PAPER_TOTAL)
    if scale == "median":
        return "median"
    return float(scale) if isinstance(scale, int | float) else PAPER_TOTAL
