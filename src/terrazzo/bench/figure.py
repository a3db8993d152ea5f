"""The figure of a table: its first metric, a panel for each part, published numbers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from terrazzo.bench.printed import metric_title, ordered_splits, split_title
from terrazzo.bench.run import Table
from terrazzo.bench.scoring import FINE_TUNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure", "has_figure"]

LOWER_IS_BETTER = frozenset({"rmse", "mae", "mse", "chaos", "pas"})
MARKERS = "os^Dv*"
PUBLISHED_COLOR = "#f5f1e8"  # background of the published numbers


def has_figure(table: Table) -> bool:
    """Return whether there is a number to draw."""
    return not table.scores.empty and not _drawn_scores(table).empty


def figure(table: Table) -> Figure:
    """Draw the first metric: a row an entry, a mark a split, bars for the spread."""
    import matplotlib.pyplot as plt

    metric = table.protocol.metrics[0]
    scores = _drawn_scores(table)
    parts = list(dict.fromkeys(scores["part"]))
    titles = list(dict.fromkeys(scores["system"]))
    published = _published_values(table, metric)
    n_panels = len(parts)
    if published:
        n_panels += 1
    n_rows = max(len(titles), len(published))
    size = (1.5 + 3.6 * n_panels, 1.2 + 0.3 * n_rows)
    out, axes = plt.subplots(1, n_panels, figsize=size, layout="constrained", squeeze=False)
    panels = list(axes[0])
    for part, ax in zip(parts, panels, strict=False):
        of_part = scores["part"] == part
        _draw_part(ax, scores[of_part], titles)
        ax.set_title(f"measured: {part}")
    panels[0].set_yticklabels(titles)
    if published:
        _draw_published(panels[-1], published)
    direction = "lower" if metric in LOWER_IS_BETTER else "higher"
    for ax in panels:
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
        ax.set_xlabel(f"{metric_title(metric)} ({direction} is better)")
    return out


def _draw_part(ax: Axes, scores: pd.DataFrame, titles: list[str]) -> None:
    splits = ordered_splits(scores)
    rows = np.arange(len(titles))
    step = min(0.16, 0.7 / len(splits))
    middle = (len(splits) - 1) / 2
    for number, split in enumerate(splits):
        of_split = scores[scores["split"] == split]
        drawn = of_split.set_index("system").reindex(titles)
        heights = rows + step * (number - middle)
        marker = MARKERS[number % len(MARKERS)]
        ax.errorbar(
            drawn["mean"],
            heights,
            xerr=drawn["sd"],
            fmt=marker,
            markersize=4,
            label=split_title(split),
        )
    ax.set_yticks(rows)
    ax.set_yticklabels([])
    ax.legend(frameon=False, fontsize="x-small")


def _draw_published(ax: Axes, published: dict[str, float]) -> None:
    rows = np.arange(len(published))
    values = list(published.values())
    ax.plot(values, rows, "D", color="0.45", markerfacecolor="none")
    ax.set_yticks(rows)
    ax.set_yticklabels(list(published))
    ax.set_title("published")
    ax.set_facecolor(PUBLISHED_COLOR)


def _drawn_scores(table: Table) -> pd.DataFrame:
    """Return the first metric of the first head."""
    protocol = table.protocol
    scores = table.summary()
    of_metric = scores["metric"] == protocol.metrics[0]
    of_head = scores["head"].isin([protocol.heads[0], FINE_TUNING])
    return scores[of_metric & of_head]


def _published_values(table: Table, metric: str) -> dict[str, float]:
    """Return the published values of a metric, by model and part."""
    out = {}
    for row in table.protocol.published.rows:
        if metric in row:
            name = f"{row['model']} {row.get('part', '')}"
            out[name.strip()] = float(row[metric])
    return out
