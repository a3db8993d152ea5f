"""Tables of results: of terrazzo bench with what was published, of tasks, of benchmarks, and plain ones."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo import parsing
from terrazzo.errors import InputError
from terrazzo.tasks.results import TaskResult

__all__ = [
    "Grid",
    "Result",
    "bench",
    "grid",
    "kind_of",
    "plain",
    "read_json",
    "rows",
    "task",
    "without_minus_zero",
]

ROWS = 400  # of a table that is shown
COLUMNS = 60
MINUS_ZERO = re.compile(r"-0(\.0+)?( ± .*)?")  # a small loss, rounded
PARTS = 100  # genes or cell types with a row of their own
KINDS = {  # of JSON files: the keys that they have
    "bench": {"table", "protocol", "scores"},
    "rows": {"title", "rows"},
    "task": {"task", "summary", "format"},
}


@dataclass(frozen=True)
class Grid:
    """One table: its heading, the names of its columns, its cells as text; published: from a paper, not measured."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    published: bool = False
    note: str = ""


@dataclass(frozen=True)
class Result:
    """The results of one file or folder."""

    title: str
    facts: list[str]
    grids: list[Grid]
    remarks: list[str] = field(default_factory=list)
    settings: str = ""


def grid(heading: str, frame: pd.DataFrame, *, published: bool = False, note: str = "") -> Grid:
    """Return a table as text: numbers with four digits, gaps empty."""
    columns = [str(column) for column in frame.columns]
    rows = []
    for row in frame.itertuples(index=False):
        rows.append([_text(value) for value in row])
    return Grid(heading, columns, rows, published, note)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value + 0.0:.4g}"  # + 0.0: -0 is 0
    if isinstance(value, dict | list):
        return json.dumps(value)
    return without_minus_zero(str(value))


def without_minus_zero(text: str) -> str:
    """Return a number, or a mean with its deviation, whose zero has no sign; other texts as they are."""
    return text[1:] if MINUS_ZERO.fullmatch(text) else text


def kind_of(record: Any) -> str:
    """Return which kind of results a JSON file has: "bench", "rows", "task", or "" for none."""
    if isinstance(record, dict):
        for kind, needed in KINDS.items():
            if needed <= set(record):
                return kind
    return ""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        It cannot be read, or is not JSON.
    """
    return parsing.read_json(path, InputError, finite=False)


def bench(record: dict[str, Any], where: str) -> Result:
    """Return a table of ``terrazzo bench``: what was measured, a table a part; then the published numbers, apart.

    Raises
    ------
    InputError, ConfigError
        As :func:`terrazzo.bench.render.from_record`.
    """
    from terrazzo.bench import printed, render

    table = render.from_record(record, where)
    protocol = table.protocol
    grids = []
    for section in printed.sections(table):
        grids.append(grid(section.heading, section.frame))
    published = printed.published(table)
    if not published.empty:
        note = protocol.published.data.strip()
        grids.append(grid(render.PUBLISHED, published, published=True, note=note))
    facts = [
        f"source: {protocol.source}",
        f"command: {record.get('command', 'unknown')}",
        f"date: {table.date}",
        f"machine: {record.get('machine', 'unknown')}",
        f"terrazzo {table.version}",
    ]
    remarks = [protocol.note.strip()] if protocol.note else []
    for line in printed.remarks(table):
        if line:
            remarks.append(line.removeprefix("- "))
    return Result(protocol.title, facts, grids, remarks)


def rows(record: dict[str, Any], where: str) -> Result:
    """Return what a script of ``benchmarks/`` measured.

    Raises
    ------
    InputError
        Its rows are not a table.
    """
    try:
        frame = pd.DataFrame(record["rows"])
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: rows are not a table ({error}).") from error
    facts = []
    for key in ("command", "date"):
        if key in record:
            facts.append(f"{key}: {record[key]}")
    notes = record.get("notes", [])
    if not isinstance(notes, list):
        notes = [notes]
    remarks = [str(note) for note in notes]
    title = str(record["title"])
    return Result(title, facts, [grid("", frame)], remarks)


def task(result: TaskResult, name: str) -> Result:
    """Return the scores of a task: over all cells, and for each gene or cell type where there are some."""
    remarks = [*result.notes, "± is the standard deviation over draws, folds or seeds."]
    grids = [grid("", _whole_scores(result))]
    by_part = _scores_by_part(result)
    n_parts = len(by_part)
    if n_parts:
        if n_parts > PARTS:
            remarks.append(f"the first {PARTS} of {n_parts:,} genes or types are listed")
        grids.append(grid("Each gene or type, mean", by_part.head(PARTS)))
    facts = [
        f"date: {result.date}",
        f"terrazzo {result.version}",
        f"{len(result.predictions):,} cells predicted",
    ]
    settings = json.dumps(result.config, indent=1, default=str)
    return Result(f"{name}: {result.task}", facts, grids, remarks, settings)


def _whole_scores(result: TaskResult) -> pd.DataFrame:
    """Return the scores over all cells: a row a split, a column a metric."""
    summary = result.summary()
    scores = []
    for row in summary.itertuples():
        text = f"{row.mean:.3f}"
        text = without_minus_zero(text)
        if row.n > 1:
            text += f" ± {row.sd:.3f}"
        scores.append(text)
    summary["score"] = scores
    rows = [column for column in ("system", "split") if column in summary]
    wide = summary.pivot_table(
        index=rows, columns="metric", values="score", aggfunc="first", sort=False
    )
    return wide.reset_index().fillna("")


def _scores_by_part(result: TaskResult) -> pd.DataFrame:
    """Return the mean scores of each gene or cell type."""
    of_parts = result.metrics["part"] != ""
    scores = result.metrics[of_parts]
    if scores.empty:
        return scores
    rows = [column for column in ("system", "split", "part") if column in scores]
    wide = scores.pivot_table(
        index=rows, columns="metric", values="value", aggfunc="mean", sort=False
    )
    return wide.reset_index()


def plain(path: Path) -> Result:
    """Return a CSV file as a table.

    Raises
    ------
    InputError
        It cannot be read, holds nothing, or is too large to be read by people.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=ROWS + 1)
    except (OSError, ValueError) as error:  # pandas' parsing errors are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable table ({reason}).") from error
    n_rows, n_columns = frame.shape
    if frame.empty or n_rows > ROWS or n_columns > COLUMNS:
        raise InputError(
            f"{path} is not a table for a page: 1 to {ROWS} rows and at most {COLUMNS} columns are shown."
        )
    return Result(path.stem, [], [grid("", frame)])
