"""Losses of a run as drawings: training and held out, beside what trivial answers cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.errors import InputError
from terrazzo.training import logs as log_files

WIDTH, HEIGHT = 460, 260  # of a drawing
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34  # margins
_TICKS = 5
_LINE = 13  # between two lines of text
_NO_LOSS = ("gradient_norm",)
_ALL = "loss"  # the sum that is minimized


@dataclass(frozen=True)
class Line:
    """One curve: what it is, its points as SVG has them, its last value."""

    kind: str
    points: str
    last: float


@dataclass(frozen=True)
class Trivial:
    """What a trivial answer costs on held-out data: its name, its cost, heights of its line and of its name."""

    name: str
    cost: float
    at: float
    label_at: float


@dataclass(frozen=True)
class Panel:
    """One loss over the steps."""

    title: str
    lines: list[Line]
    trivial: list[Trivial]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Run:
    """The losses of one run."""

    name: str
    panels: list[Panel]
    recipe: str


def read(path: Path, name: str) -> Run:
    """Read the log of a run.

    Raises
    ------
    InputError
        It cannot be read, or holds no loss.
    """
    try:
        rows = log_files.read(path)
        table = {
            c: [float(row[c]) if row[c] else math.nan for row in rows]
            for c in (rows[0] if rows else ())
        }
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the log of a run ({error}).") from error
    if not is_log(list(table)):
        raise InputError(
            f"{path} is not the log of a run: it needs columns step and train/..., and a line."
        )
    recipe = path.parent.parent / "recipe.yaml"
    text = (
        recipe.read_text(encoding="utf-8")
        if path.name == log_files.CSV and recipe.is_file()
        else ""
    )
    arrays = {column: np.asarray(values) for column, values in table.items()}
    return Run(
        name, [p for part in parts(list(table)) if (p := _panel(part, arrays)) is not None], text
    )


def is_log(columns: list[str]) -> bool:
    """Say whether these are the columns of a run's log."""
    return "step" in columns and any(column.startswith(("train/", "val/")) for column in columns)


def parts(columns: list[str]) -> list[str]:
    """Return the losses of a log: the parts first, then their sum, unless it is the only part's."""
    found = [column.removeprefix("train/") for column in columns if column.startswith("train/")]
    found = [part for part in found if part not in _NO_LOSS]
    split = [part for part in found if part != _ALL]
    return [*split, *(part for part in found if part == _ALL and len(split) != 1)]


def trivial_of(part: str, columns: list[str]) -> dict[str, str]:
    """Return the columns that say what trivial answers to a part cost, by their names in words."""
    longer = [other for other in parts(columns) if other != part and other.startswith(f"{part}_")]
    start = f"val/{part}_"
    return {
        column.removeprefix(start).replace("_", " "): column
        for column in columns
        if column.startswith(start)
        and not any(
            column == f"val/{other}" or column.startswith(f"val/{other}_") for other in longer
        )
    }


def _panel(part: str, table: dict[str, Any]) -> Panel | None:
    step = table["step"]
    curves = {
        kind: table[f"{short}/{part}"]
        for kind, short in (("training", "train"), ("held out", "val"))
        if f"{short}/{part}" in table and np.isfinite(table[f"{short}/{part}"]).any()
    }
    costs = {}
    for name, column in trivial_of(part, list(table)).items():
        known = table[column][np.isfinite(table[column])]
        if len(known):
            costs[name] = float(known[-1])
    if not curves:
        return None
    # a first step or two may cost many times what all others do
    most = [
        np.nanpercentile(v, 98) if kind == "training" else np.nanmax(v)
        for kind, v in curves.items()
    ]
    low = float(min([*(np.nanmin(v) for v in curves.values()), *costs.values()]))
    high = float(max([*most, *costs.values()]))
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    first, last = float(np.nanmin(step)), float(np.nanmax(step))
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: Any) -> Any:
        return LEFT + across * (value - first) / ((last - first) or 1.0)

    def y(value: Any) -> Any:
        return TOP + down * (high - np.clip(value, low, high)) / (high - low)

    lines = []
    for kind, values in curves.items():
        known = np.isfinite(values)
        places = zip(x(step[known]), y(values[known]), strict=True)
        lines.append(
            Line(kind, " ".join(f"{a:.1f},{b:.1f}" for a, b in places), float(values[known][-1]))
        )
    return Panel(
        part.replace("_", " "),
        lines,
        _apart([Trivial(n, c, float(y(c)), 0.0) for n, c in costs.items()]),
        [(float(x(t)), f"{t:,.0f}") for t in ticks(first, last)],
        [(float(y(t)), f"{t:.4g}") for t in ticks(low, high)],
    )


def _apart(trivial: list[Trivial]) -> list[Trivial]:
    """Place the names above their lines, none on another."""
    out: list[Trivial] = []
    floor = HEIGHT - BOTTOM - 3.0
    for one in sorted(trivial, key=lambda t: -t.at):
        height = min(one.at - 3, floor)
        out.append(Trivial(one.name, one.cost, one.at, height))
        floor = height - _LINE
    return out


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends, about five."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / _TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
