"""What is printed of a table: tables of text with headings, facts and remarks; measured and published apart."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from terrazzo.bench.protocols import KEYS_OF_ROW
from terrazzo.bench.run import Table
from terrazzo.bench.scoring import FINE_TUNING

__all__ = [
    "ABSENT",
    "Section",
    "by_gene",
    "facts",
    "machine",
    "measured",
    "metric_title",
    "ordered_splits",
    "published",
    "remarks",
    "sections",
    "split_title",
]

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "ari": "ARI",
    "nmi": "NMI",
    "pearson": "Pearson",
    "pearson_overall": "Pearson, overall",
    "rmse": "RMSE",
    "mae": "MAE",
    "mse": "MSE",
    "mse_level": "MSE, level of the slice",
    "mse_pattern": "MSE, pattern in the slice",
    "chaos": "CHAOS",
    "pas": "PAS",
    "rmse_mean": "RMSE of the mean",
    "mae_mean": "MAE of the mean",
    "mse_mean": "MSE of the mean",
}
SPLITS = {
    "random": "within, random (leaks space)",
    "blocked": "within, blocked",
    "few-shot": "few-shot (leaks space)",
    "cross": "across slices",
    "whole": "zero-shot",
    "refined": "zero-shot, refined",
}
ABSENT = "not available"
GENE_METRICS = 2  # scores that are printed gene by gene


@dataclass(frozen=True)
class Section:
    """A printed table with its heading."""

    heading: str
    frame: pd.DataFrame


def metric_title(metric: str) -> str:
    """Return a metric as it is printed."""
    return TITLES.get(metric, metric)


def split_title(split: str) -> str:
    """Return a split as it is printed; sizes of hidden squares are printed as they are."""
    return SPLITS.get(split, split)


def ordered_splits(scores: pd.DataFrame) -> list[str]:
    """Return the splits in the order of :data:`SPLITS`; others (sizes of hidden squares) follow as they come."""
    present = list(dict.fromkeys(scores["split"]))
    known = [split for split in SPLITS if split in present]
    others = [split for split in present if split not in SPLITS]
    return known + others


def measured(table: Table, head: str, part: str) -> pd.DataFrame:
    """Return the printed table of one head and part: a row an entry, a column a split and metric."""
    summary = table.summary()
    of_head = summary["head"].isin([head, FINE_TUNING])
    scores = summary[of_head & (summary["part"] == part)]
    cells: dict[tuple[str, str, str], str] = {}
    for score in scores.itertuples():
        text = f"{score.mean:.3f}"
        if score.n > 1:
            text += f" ± {score.sd:.3f}"
        cells[score.system, score.split, score.metric] = text
    scored = {(split, metric) for _, split, metric in cells}
    columns = []
    for split in ordered_splits(scores):
        for metric in table.protocol.metrics:
            if (split, metric) in scored:
                columns.append((split, metric))
    rows: list[dict[str, str]] = []
    for title in dict.fromkeys(scores["system"]):
        row = {"system": title}
        for split, metric in columns:
            column = _column(split, metric)
            row[column] = cells.get((title, split, metric), "")
        rows.append(row)
    of_part = table.absent["part"].isin(["", part])
    absent = table.absent[of_part]
    for title in dict.fromkeys(absent["system"]):
        row = {"system": title}
        for split, metric in columns:
            row[_column(split, metric)] = ABSENT
        rows.append(row)
    return pd.DataFrame(rows)


def _column(split: str, metric: str) -> str:
    return f"{split_title(split)}: {metric_title(metric)}"


def by_gene(table: Table, head: str, part: str, metric: str) -> pd.DataFrame:
    """Return the printed table of the named genes: a row an entry, a column a gene."""
    scores = table.by_gene
    of_head = scores["head"] == head
    of_part = scores["part"] == part
    of_metric = scores["metric"] == metric
    scores = scores[of_head & of_part & of_metric]
    means = scores.groupby(["system", "gene"], sort=False)["value"].mean()
    rows = []
    for title in dict.fromkeys(scores["system"]):
        row = {"system": title}
        for gene in dict.fromkeys(scores["gene"]):
            mean = means.get((title, gene), math.nan)
            row[gene] = "" if math.isnan(mean) else f"{mean:.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def published(table: Table) -> pd.DataFrame:
    """Return the published rows: a row a model, a column a part and metric."""
    rows: dict[str, dict[str, str]] = {}
    for stated in table.protocol.published.rows:
        model = str(stated["model"])
        row = rows.setdefault(model, {"system": model})
        for metric, value in stated.items():
            if metric in KEYS_OF_ROW or metric.endswith("_sd"):
                continue
            text = str(value)
            if f"{metric}_sd" in stated:
                text += f" ± {stated[f'{metric}_sd']}"
            part = stated.get("part", "")
            column = f"{part} {metric_title(metric)}"
            row[column.strip()] = text
    return pd.DataFrame(list(rows.values())).fillna("")


def sections(table: Table) -> list[Section]:
    """Return the printed tables of what was measured, one for each part and head."""
    if table.scores.empty and table.absent.empty:
        return []
    if table.scores.empty:
        frame = table.absent.rename(columns={"reason": ABSENT})
        return [Section("Measured", frame)]
    scored_heads = set(table.scores["head"])
    heads = [head for head in table.protocol.heads if head in scored_heads]
    out = []
    genes = []
    for part in dict.fromkeys(table.scores["part"]):
        for head in heads:
            where = f"{part}, {head}" if len(heads) > 1 else part
            frame = measured(table, head, part)
            out.append(Section(f"Measured: {where}", frame))
            if table.by_gene.empty:
                continue
            for metric in table.protocol.metrics[:GENE_METRICS]:
                heading = f"Measured, gene by gene: {where}, {metric_title(metric)}"
                frame = by_gene(table, head, part, metric)
                genes.append(Section(heading, frame))
    return out + genes


def remarks(table: Table) -> list[str]:
    """Return what a reader must know: what the spread is, what is absent and why, notes."""
    lines = ["± is the standard deviation over draws, folds or seeds."]
    if not table.absent.empty:
        lines.append("")
    for row in table.absent.itertuples():
        of_part = f" ({row.part})" if row.part else ""
        lines.append(f"- {row.system}{of_part}: {ABSENT}, {row.reason}")
    if table.notes:
        lines.append("")
    for note in table.notes:
        lines.append(f"- {note}")
    return lines


def facts(table: Table, command: str) -> list[str]:
    """Return where the numbers come from."""
    minutes = sum(table.seconds.values()) / 60
    return [
        f"source: {table.protocol.source}",
        f"command: `{command}`",
        f"date: {table.date}",
        f"machine: {machine()}",
        f"terrazzo {table.version}; {minutes:.1f} minutes of embedding and heads",
    ]


def machine() -> str:
    """Describe the machine in a line."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.split(":")[1].strip()
                break
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"
