"""A table on paper: Markdown, HTML, one figure and JSON; ours and what was published clearly apart."""

from __future__ import annotations

import html
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from terrazzo import plot
from terrazzo.bench.protocols import KEYS_OF_ROW, Protocol
from terrazzo.bench.run import COLUMNS, Table
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOWER_IS_BETTER = frozenset({"rmse", "mae", "mse", "chaos", "pas"})
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
STYLE = (
    "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}th,td{padding:.3rem .6rem;text-align:left;"
    "border-bottom:1px solid #ddd}th{border-bottom:2px solid #888}td+td{font-variant-numeric:tabular-nums}"
    ".published{background:#f5f1e8}img{max-width:100%}"
)


def write(table: Table, out: str | Path, *, command: str) -> Path:
    """Write ``<name>.md``, ``.html``, ``.png`` and ``.json`` (the scores too) into a folder.

    Parameters
    ----------
    table
        From :func:`terrazzo.bench.run.run`.
    out
        Folder.
    command
        That made it; printed in all of them.

    Returns
    -------
    The Markdown file.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    folder, name = Path(out), table.protocol.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _drawn(table):
            plot.save(figure(table), folder / f"{name}.png")
        record = to_record(table, command)
        write_text(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
        write_text(folder / f"{name}.html", to_html(table, command))
        target = folder / f"{name}.md"
        write_text(target, to_markdown(table, command))
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} could not be written ({error.strerror or error}).") from error
    return target


def machine() -> str:
    """Describe the machine in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    processor = next(
        (x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.machine()
    )
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def ours(table: Table, head: str, part: str) -> pd.DataFrame:
    """Return the printed table of one head and part: a row a system, a column a split and metric."""
    scores = table.summary()
    here = scores[(scores["head"].isin([head, "fine-tuning"])) & (scores["part"] == part)]
    columns = [
        (split, metric)
        for split in _splits(here)
        for metric in table.protocol.metrics
        if ((here["split"] == split) & (here["metric"] == metric)).any()
    ]
    rows: list[dict[str, str]] = []
    for system in dict.fromkeys(here["system"]):
        row = {"system": system}
        for split, metric in columns:
            cell = here[
                (here["system"] == system) & (here["split"] == split) & (here["metric"] == metric)
            ]
            row[f"{SPLITS.get(split, split)}: {TITLES.get(metric, metric)}"] = _number(cell)
        rows.append(row)
    gone = table.absent[table.absent["part"].isin(["", part])]["system"]
    for system in dict.fromkeys(gone):
        rows.append(
            {"system": system}
            | {f"{SPLITS.get(s, s)}: {TITLES.get(m, m)}": ABSENT for s, m in columns}
        )
    return pd.DataFrame(rows)


def by_gene(table: Table, head: str, part: str, metric: str) -> pd.DataFrame:
    """Return the printed table of the named genes: a row a system, a column a gene."""
    held = table.by_gene
    here = held[(held["head"] == head) & (held["part"] == part) & (held["metric"] == metric)]
    mean = here.groupby(["system", "gene"], sort=False)["value"].mean()
    genes, systems = (list(dict.fromkeys(here[column])) for column in ("gene", "system"))
    cells = {gene: [f"{mean.get((one, gene), np.nan):.3f}" for one in systems] for gene in genes}
    return pd.DataFrame(
        {"system": systems, **{k: [v.replace("nan", "") for v in c] for k, c in cells.items()}}
    )


def _splits(scores: pd.DataFrame) -> list[str]:
    """Return the splits in the order of :data:`SPLITS`; others (sizes of hidden squares) follow as they come."""
    found = list(dict.fromkeys(scores["split"]))
    return [*(s for s in SPLITS if s in found), *(s for s in found if s not in SPLITS)]


def _number(cell: pd.DataFrame) -> str:
    if cell.empty:
        return ""
    spread = f" ± {cell['sd'].iloc[0]:.3f}" if cell["n"].iloc[0] > 1 else ""
    return f"{cell['mean'].iloc[0]:.3f}{spread}"


def theirs(table: Table) -> pd.DataFrame:
    """Return the published rows: a row a system, a column a part and metric."""
    rows: dict[str, dict[str, str]] = {}
    for given in table.protocol.published.rows:
        row = rows.setdefault(str(given["model"]), {"system": str(given["model"])})
        for metric, value in given.items():
            if metric in KEYS_OF_ROW or metric.endswith("_sd"):
                continue
            spread = f" ± {given[f'{metric}_sd']}" if f"{metric}_sd" in given else ""
            row[
                " ".join(x for x in (str(given.get("part", "")), TITLES.get(metric, metric)) if x)
            ] = f"{value}{spread}"
    return pd.DataFrame(list(rows.values())).fillna("")


def to_markdown(table: Table, command: str) -> str:
    """Return the table as Markdown."""
    protocol = table.protocol
    lines = [f"# {protocol.title}", "", *[f"- {line}" for line in _facts(table, command)], ""]
    if protocol.note:
        lines += [protocol.note.strip(), ""]
    for heading, frame in sections(table):
        lines += [f"## {heading}", "", *_pipes(frame), ""]
    published = theirs(table)
    if not published.empty:
        lines += ["## Theirs, published", ""]
        lines += [f"{protocol.published.data.strip()}", ""] if protocol.published.data else []
        lines += [*_pipes(published), ""]
    lines += remarks(table)
    return "\n".join(lines).rstrip() + "\n"


def to_html(table: Table, command: str) -> str:
    """Return the table as one HTML page; the figure lies beside it."""
    protocol = table.protocol
    facts = "".join(f"<li>{html.escape(line)}</li>" for line in _facts(table, command))
    body = [
        f"<h1>{html.escape(protocol.title)}</h1><ul>{facts}</ul><p>{html.escape(protocol.note)}</p>"
    ]
    if _drawn(table):
        body.append(
            f'<img src="{html.escape(protocol.name)}.png" alt="{html.escape(protocol.title)}">'
        )
    body += [f"<h2>{html.escape(heading)}</h2>{_grid(frame)}" for heading, frame in sections(table)]
    published = theirs(table)
    if not published.empty:
        body.append(f"<h2>Theirs, published</h2><p>{html.escape(protocol.published.data)}</p>")
        body.append(f'<div class="published">{_grid(published)}</div>')
    body += [f"<p>{html.escape(line)}</p>" for line in remarks(table) if line]
    page = "\n".join(body)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(protocol.title)}</title>'
        f"<style>{STYLE}</style></head><body>{page}</body></html>\n"
    )


def to_record(table: Table, command: str) -> dict[str, Any]:
    """Return everything, JSON-able."""
    return {
        "table": table.protocol.name,
        "command": command,
        "date": table.date,
        "machine": machine(),
        "terrazzo_version": table.version,
        "protocol": to_dict(table.protocol),
        "summary": json.loads(table.summary().round(5).to_json(orient="records"))
        if len(table.scores)
        else [],
        "scores": json.loads(table.scores.round(5).to_json(orient="records")),
        "by_gene": json.loads(table.by_gene.round(5).to_json(orient="records")),
        "not_available": table.absent.to_dict(orient="records"),
        "seconds": {k: round(v, 1) for k, v in table.seconds.items()},
        "notes": list(table.notes),
    }


def from_record(record: Any, where: str) -> Table:
    """Return the table that :func:`to_record` made a record of.

    Parameters
    ----------
    record
        From JSON.
    where
        Name of the place, for error messages.

    Raises
    ------
    ConfigError, InputError
        A protocol that this version does not know; no such record, or a damaged one.
    """
    try:
        return Table(
            from_dict(Protocol, record["protocol"], f"{where}: protocol"),
            pd.DataFrame(record["scores"], columns=COLUMNS).astype({"value": float}),
            pd.DataFrame(record["not_available"], columns=["system", "part", "reason"]),
            {str(k): float(v) for k, v in record["seconds"].items()},
            tuple(map(str, record["notes"])),
            str(record["date"]),
            str(record["terrazzo_version"]),
        )
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where} is not a table of terrazzo bench ({type(error).__name__}: {error})."
        ) from error


def figure(table: Table) -> Figure:
    """Draw the first metric: a panel a part, a row a system, a mark a split, bars for the spread; published apart."""
    import matplotlib.pyplot as plt

    metric, shown = table.protocol.metrics[0], _shown(table)
    parts, published = list(dict.fromkeys(shown["part"])), _published(table, metric)
    systems = list(dict.fromkeys(shown["system"]))
    panels = len(parts) + bool(published)
    height = 1.2 + 0.3 * max(len(systems), len(published))
    drawn, axes = plt.subplots(
        1, panels, figsize=(1.5 + 3.6 * panels, height), layout="constrained", squeeze=False
    )
    for place, (ax, part) in enumerate(zip(axes[0], parts, strict=False)):
        here = shown[shown["part"] == part]
        splits = _splits(here)
        step = min(0.16, 0.7 / len(splits))
        for number, split in enumerate(splits):
            one = here[here["split"] == split].set_index("system").reindex(systems)
            offset = [i + step * (number - (len(splits) - 1) / 2) for i in range(len(systems))]
            label = SPLITS.get(split, split)
            ax.errorbar(
                one["mean"],
                offset,
                xerr=one["sd"],
                fmt="os^Dv*"[number % 6],
                markersize=4,
                label=label,
            )
        ax.set(
            yticks=range(len(systems)),
            yticklabels=systems if place == 0 else [],
            title=f"ours: {part}",
        )
        ax.legend(frameon=False, fontsize="x-small")
    if published:
        ax = axes[0][-1]
        ax.plot(
            list(published.values()),
            range(len(published)),
            "D",
            color="0.45",
            markerfacecolor="none",
        )
        ax.set(yticks=range(len(published)), yticklabels=list(published), title="theirs, published")
        ax.set_facecolor("#f5f1e8")
    for ax in axes[0]:
        ax.invert_yaxis()
        ax.grid(axis="x", alpha=0.3)
        direction = "lower" if metric in LOWER_IS_BETTER else "higher"
        ax.set_xlabel(f"{TITLES.get(metric, metric)} ({direction} is better)")
    return drawn


def _shown(table: Table) -> pd.DataFrame:
    """Return what the figure is about: the first metric, read by the first head."""
    scores, heads = table.summary(), [table.protocol.heads[0], "fine-tuning"]
    return scores[(scores["metric"] == table.protocol.metrics[0]) & scores["head"].isin(heads)]


def _drawn(table: Table) -> bool:
    return not table.scores.empty and not _shown(table).empty


def _published(table: Table, metric: str) -> dict[str, float]:
    """Return the published values of a metric, by system and part."""
    rows = [r for r in table.protocol.published.rows if metric in r]
    names = [" ".join(x for x in (str(r["model"]), str(r.get("part", ""))) if x) for r in rows]
    return dict(zip(names, [float(r[metric]) for r in rows], strict=True))


def _facts(table: Table, command: str) -> list[str]:
    spent = sum(table.seconds.values())
    return [
        f"source: {table.protocol.source}",
        f"command: `{command}`",
        f"date: {table.date}",
        f"machine: {machine()}",
        f"terrazzo {table.version}; {spent / 60:.1f} minutes of embedding and heads",
    ]


def sections(table: Table) -> list[tuple[str, pd.DataFrame]]:
    """Return our printed tables with their headings, one for each part and head."""
    if table.scores.empty:
        return (
            [("Ours", table.absent.rename(columns={"reason": ABSENT}))] if len(table.absent) else []
        )
    heads = [h for h in table.protocol.heads if (table.scores["head"] == h).any()]
    parts = list(dict.fromkeys(table.scores["part"]))
    many = len(heads) > 1
    out = [
        (f"Ours: {p}{f', {h}' if many else ''}", ours(table, h, p)) for p in parts for h in heads
    ]
    for part in parts if len(table.by_gene) else []:
        out += [
            (
                f"Ours, gene by gene: {part}{f', {h}' if many else ''}, {TITLES[m]}",
                by_gene(table, h, part, m),
            )
            for h in heads
            for m in table.protocol.metrics[:2]
        ]
    return out


def remarks(table: Table) -> list[str]:
    """Return what a reader must know: what the spread is, who is absent and why, notes."""
    lines = ["± is the standard deviation over draws, folds or seeds."]
    gone = [
        f"- {r.system}{f' ({r.part})' if r.part else ''}: {ABSENT}, {r.reason}"
        for r in table.absent.itertuples()
    ]
    lines += ["", *gone] if gone else []
    lines += ["", *[f"- {note}" for note in table.notes]] if table.notes else []
    return lines


def _pipes(frame: pd.DataFrame) -> list[str]:
    head = "| " + " | ".join(map(str, frame)) + " |"
    rows = [
        "| " + " | ".join(str(v).replace("|", "/") for v in r) + " |"
        for r in frame.itertuples(index=False)
    ]
    return [head, "|" + "---|" * frame.shape[1], *rows]


def _grid(frame: pd.DataFrame) -> str:
    return frame.to_html(index=False, border=0, escape=True)
