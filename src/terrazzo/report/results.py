"""Tables of results: of terrazzo bench with what was published, of tasks, of benchmarks, and plain ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.errors import InputError
from terrazzo.tasks.results import TaskResult

ROWS, COLUMNS = 400, 60  # of a table that is shown
_PARTS = 100  # genes or cell types with a row of their own


@dataclass(frozen=True)
class Grid:
    """One table: its heading, the names of its columns, its cells as text; published: theirs, not measured here."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    published: bool = False
    note: str = ""


@dataclass(frozen=True)
class Result:
    """What one file or folder of results says."""

    title: str
    facts: list[str]
    grids: list[Grid]
    remarks: list[str] = field(default_factory=list)
    settings: str = ""


def grid(heading: str, frame: pd.DataFrame, *, published: bool = False, note: str = "") -> Grid:
    """Return a table as text: numbers with four digits, gaps empty."""
    rows = [[_text(value) for value in row] for row in frame.itertuples(index=False)]
    return Grid(heading, list(map(str, frame)), rows, published, note)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def kind_of(record: Any) -> str:
    """Return which kind of results a JSON file holds: "bench", "rows", "task", or "" for none."""
    held = set(record) if isinstance(record, dict) else set()
    kinds = {
        "bench": {"table", "protocol", "scores"},
        "rows": {"title", "rows"},
        "task": {"task", "summary", "format"},
    }
    return next((kind for kind, needed in kinds.items() if needed <= held), "")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        It cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}).") from error


def bench(record: dict[str, Any], where: str) -> Result:
    """Return a table of ``terrazzo bench``: ours, a table a part; then theirs, apart.

    Raises
    ------
    InputError, ConfigError
        As :func:`terrazzo.bench.render.from_record`.
    """
    from terrazzo.bench import render

    table = render.from_record(record, where)
    protocol, theirs = table.protocol, render.theirs(table)
    grids = [grid(heading, frame) for heading, frame in render.sections(table)]
    if not theirs.empty:
        grids.append(
            grid("Theirs, published", theirs, published=True, note=protocol.published.data.strip())
        )
    facts = [
        f"source: {protocol.source}",
        f"command: {record.get('command', 'unknown')}",
        f"date: {table.date}",
        f"machine: {record.get('machine', 'unknown')}",
        f"terrazzo {table.version}",
    ]
    remarks = [line.removeprefix("- ") for line in render.remarks(table) if line]
    return Result(
        protocol.title,
        facts,
        grids,
        [*([protocol.note.strip()] if protocol.note else []), *remarks],
    )


def rows(record: dict[str, Any], where: str) -> Result:
    """Return what a script of ``benchmarks/`` measured.

    Raises
    ------
    InputError
        Its rows are no table.
    """
    try:
        frame = pd.DataFrame(record["rows"])
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: rows are no table ({error}).") from error
    facts = [f"{key}: {record[key]}" for key in ("command", "date") if key in record]
    notes = record.get("notes", [])
    remarks = [str(note) for note in notes] if isinstance(notes, list) else [str(notes)]
    return Result(str(record["title"]), facts, [grid("", frame)], remarks)


def task(result: TaskResult, name: str) -> Result:
    """Return the scores of a task: over all cells, and for each gene or cell type where there are some."""
    summary = result.summary()
    summary["score"] = [
        f"{mean:.3f}" + (f" ± {sd:.3f}" if n > 1 else "")
        for mean, sd, n in zip(summary["mean"], summary["sd"], summary["n"], strict=True)
    ]
    titled = [column for column in ("system", "split") if column in summary]
    wide = summary.pivot_table(
        index=titled, columns="metric", values="score", aggfunc="first", sort=False
    )
    grids = [grid("", wide.reset_index().fillna(""))]
    parts = result.metrics[result.metrics["part"] != ""]
    remarks = [*result.notes, "± is the standard deviation over draws, folds or seeds."]
    if len(parts):
        by = [column for column in ("system", "split", "part") if column in parts]
        each = parts.pivot_table(
            index=by, columns="metric", values="value", aggfunc="mean", sort=False
        ).reset_index()
        if len(each) > _PARTS:
            remarks.append(f"the first {_PARTS} of {len(each):,} genes or types are listed")
        grids.append(grid("Each gene or type, mean", each.head(_PARTS)))
    facts = [
        f"date: {result.date}",
        f"terrazzo {result.version}",
        f"{len(result.predictions):,} cells predicted",
    ]
    return Result(
        f"{name}: {result.task}",
        facts,
        grids,
        remarks,
        json.dumps(result.config, indent=1, default=str),
    )


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
        raise InputError(
            f"{path} is not a readable table ({' '.join(str(error).split())})."
        ) from error
    if len(frame) > ROWS or frame.shape[1] > COLUMNS or frame.empty:
        raise InputError(
            f"{path} is no table for a page: 1 to {ROWS} rows and at most {COLUMNS} columns are shown."
        )
    return Result(path.stem, [], [grid("", frame)])
