"""Predicted expression beside measured, on the tissue, with the histology that it was predicted from underneath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError
from terrazzo.expression import PAPER_TOTAL, Scale, expression
from terrazzo.plot.figures import legend_width, scale_of
from terrazzo.plot.tissue import Underlay, draw, inches_of, place_of
from terrazzo.slices.panel import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 4  # genes that are drawn where none are named
_PANEL = 0.6  # of a figure with one panel


def predicted_genes(
    adata: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = "expression_predicted",
    image: Underlay = "auto",
    shared: bool = False,
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
        One scale of colors for measured and predicted values of a gene. By default each has its own: what is
        predicted varies less, and across patients its level is off.
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
    held = Panel.read(adata, layer)
    there = [gene for gene in predicted if gene in held.place]
    chosen = ([genes] if isinstance(genes, str) else list(genes or [])) or (
        there or list(predicted)
    )[:MOST]
    if gone := [gene for gene in chosen if gene not in predicted]:
        raise InputError(
            f"obsm[{key!r}] holds no {gone[0]!r}; it holds: {', '.join(list(predicted)[:20])}."
        )
    measured = expression(held, [gene for gene in chosen if gene in held.place], _scale(adata, key))
    place = place_of(adata, image, slice_options | {"layer": layer})
    columns = [
        name
        for name in ("histology", "measured", "predicted")
        if name != "histology" or place.pixels is not None
    ]
    width, height = (_PANEL * inch for inch in inches_of(place))
    inches = (
        len(columns) * width + (len(columns) - 1) * legend_width((), height),
        len(chosen) * (height + 0.35),
    )
    figure, axes = plt.subplots(
        len(chosen), len(columns), squeeze=False, layout="constrained", figsize=inches
    )
    nothing = pd.Series(np.full(adata.n_obs, np.nan))
    for row, gene in zip(axes, chosen, strict=True):
        true = measured[gene].reset_index(drop=True) if gene in measured else nothing
        values = {"measured": true, "predicted": predicted[gene].reset_index(drop=True)}
        both = np.concatenate([one.dropna().to_numpy(dtype=float) for one in values.values()])
        for ax, column in zip(row, columns, strict=True):
            if column == "histology":
                draw(ax, place, nothing[:0], {}, None, legend=False)
                ax.set_title("histology", fontsize="medium")
                continue
            norm = scale_of(both) if shared else None
            draw(
                ax, place, values[column].astype(float), {}, None, legend=True, norm=norm, size=size
            )
            ax.set_title(_title(gene, column, true, values["predicted"]), fontsize="medium")
    return figure


def _title(gene: str, column: str, true: pd.Series, predicted: pd.Series) -> str:
    known = true.notna().to_numpy()
    if column == "measured":
        return f"{gene}, measured" if known.any() else f"{gene}, not measured"
    if known.sum() < 2 or true[known].nunique() < 2 or predicted[known].nunique() < 2:
        return f"{gene}, predicted"
    return f"{gene}, predicted (r = {np.corrcoef(true[known], predicted[known])[0, 1]:.2f})"


def _predicted(adata: AnnData, key: str) -> pd.DataFrame:
    if key not in adata.obsm or f"{key}_names" not in adata.uns:
        raise InputError(
            f"obsm holds no {key!r} with names of genes; Probe.annotate of terrazzo.tasks.fit_image_to_gene writes it."
        )
    return pd.DataFrame(
        np.asarray(adata.obsm[key]), columns=[str(name) for name in adata.uns[f"{key}_names"]]
    )


def _scale(adata: AnnData, key: str) -> Scale:
    """Return what counts are scaled to, as the read-out learned them."""
    record = dict(dict(adata.uns.get(keys.UNS, {})).get(key, {}))
    said = json.loads(str(record.get("probe", "{}"))).get("scale", PAPER_TOTAL)
    return "median" if said == "median" else float(said)
