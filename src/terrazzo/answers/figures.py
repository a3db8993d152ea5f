"""Figures of an answer: the score by the number of regions, and marker genes as dots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo.answers.result import first_genes, short_name
from terrazzo.arrays import Floats, Ints
from terrazzo.expression import gene_columns, log_counts
from terrazzo.slices import Slice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curve", "draw_markers", "draw_tissue"]

N_GENES = 3  # markers of each region that are drawn

MAX_CELLS = 20_000  # of each slice, for the means

MAX_DRAWN = 12  # slices in a figure

# of reading, that a figure needs, too
SHOWN_OPTIONS = ("layer", "spatial_key", "organism", "technology", "unit", "microns_per_unit")


def draw_tissue(
    slices: Sequence[AnnData],
    names: Sequence[str],
    column: str,
    title: str,
    options: Mapping[str, Any],
) -> Any:
    """Draw a column of ``obs`` on the tissue of the first twelve slices.

    Parameters
    ----------
    slices, names
        Slices that have the column, and their names.
    column, title
        Of ``obs``, and what it is for a person.
    options
        Of reading the slices.
    """
    from terrazzo import plot

    reading = {name: options[name] for name in SHOWN_OPTIONS if name in options}
    shown = slices[:MAX_DRAWN]
    titles = [f"{name}: {title}" for name in names[:MAX_DRAWN]]
    if len(shown) == 1:
        return plot.spatial(shown[0], color=column, title=titles[0], **reading)
    return plot.spatial(list(shown), color=column, title=titles, **reading)


def draw_curve(curve: pd.DataFrame, k: int, kind: str) -> Figure:
    """Draw the score of held-out counts and the stability by the number of regions, with the chosen one marked."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(curve["k"], curve["score"], marker="o", color="#1f77b4", label="held-out counts")
    axes.set_xlabel(f"number of {kind}s")
    axes.set_ylabel("share of variance that is explained")
    axes.axvline(k, color="#555555", linestyle="--", linewidth=1, label=f"chosen: {k}")
    other = axes.twinx()
    other.plot(curve["k"], curve["stability"], marker="s", color="#ff7f0e", label="stability")
    other.set_ylabel("ARI between two halves of the counts")
    other.set_ylim(0, 1.02)
    lines = [*axes.get_lines(), *other.get_lines()]
    labels = [str(line.get_label()) for line in lines]
    figure.legend(lines, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_markers(
    markers: pd.DataFrame,
    names: Sequence[str],
    kind: str,
    tissues: Sequence[Slice],
    labels: Sequence[Ints],
) -> Figure | None:
    """Draw the first markers of each region in all regions: size is the share of cells, color the mean.

    Parameters
    ----------
    markers
        Table of :func:`terrazzo.answers.markers.marker_genes`.
    names, kind
        Of the regions.
    tissues, labels
        The slices, and the region of every cell.

    Returns
    -------
    The figure; None where there is no marker.
    """
    import matplotlib.pyplot as plt

    genes = _genes(markers, len(names))
    if not genes:
        return None
    means, shares = _by_region(genes, len(names), tissues, labels)
    least = means.min(axis=0)
    span = means.max(axis=0) - least
    relative = (means - least) / np.maximum(span, 1e-12)
    width = 2.5 + 0.26 * len(genes)
    height = 1.4 + 0.3 * len(names)
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    rows, columns = np.indices(shares.shape)
    dots = axes.scatter(
        columns.ravel(), rows.ravel(), s=90 * shares.ravel(), c=relative.ravel(), cmap="viridis"
    )
    axes.set_xticks(range(len(genes)), genes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), _short(names, kind), fontsize=8)
    axes.set_xlim(-0.7, len(genes) - 0.3)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title("size: share of cells with the gene", fontsize=8)
    figure.colorbar(dots, ax=axes, label="mean, 0 to 1 for each gene", shrink=0.8)
    return figure


def _short(names: Sequence[str], kind: str) -> list[str]:
    """Return names that fit beside an axis."""
    texts = []
    for number, name in enumerate(names):
        text = str(name)
        if len(text) > 30:
            text = f"{short_name(kind, number)} {text[:26]}..."
        texts.append(text)
    return texts


def _genes(markers: pd.DataFrame, k: int) -> list[str]:
    """Return the first markers of all regions, each once."""
    genes: list[str] = []
    for region in range(k):
        for gene in first_genes(markers, region, N_GENES):
            if gene not in genes:
                genes.append(gene)
    return genes


def _by_region(
    genes: Sequence[str], k: int, tissues: Sequence[Slice], labels: Sequence[Ints]
) -> tuple[Floats, Floats]:
    """Return the mean log count of genes in each region, and the share of cells that show them, ``(k, genes)``."""
    sums = np.zeros((k, len(genes)))
    shown = np.zeros((k, len(genes)))
    sizes = np.zeros(k)
    rng = np.random.default_rng(0)
    for tissue, own in zip(tissues, labels, strict=True):
        rows = np.arange(tissue.n_cells)
        if len(rows) > MAX_CELLS:
            rows = np.sort(rng.choice(rows, MAX_CELLS, replace=False))
        values = log_counts(tissue, _columns(genes, tissue), rows)
        for region in np.unique(own[rows]):
            part = values[own[rows] == region].toarray()
            sums[region] += part.sum(axis=0)
            shown[region] += (part > 0).sum(axis=0)
            sizes[region] += len(part)
    divisor = np.maximum(sizes, 1)[:, None]
    return sums / divisor, shown / divisor


def _columns(genes: Sequence[str], tissue: Slice) -> list[str]:
    """Return the names by which a slice has its columns, of genes that tables name by symbol."""
    known = gene_columns(tissue)
    by_symbol = dict(zip(tissue.gene_symbols, known, strict=False))
    return [gene if gene in known else str(by_symbol[gene]) for gene in genes]
