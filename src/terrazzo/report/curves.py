"""Losses of a run as drawings: training and validation, beside what trivial answers cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.arrays import Floats
from terrazzo.errors import InputError
from terrazzo.training import logs as log_files

__all__ = [
    "Line",
    "Panel",
    "Run",
    "Tick",
    "Trivial",
    "is_log",
    "parts",
    "read",
    "scores",
    "ticks",
    "trivial_of",
]

WIDTH = 460  # of a drawing
HEIGHT = 260
LEFT = 52  # margins
RIGHT = 14
TOP = 14
BOTTOM = 34
N_TICKS = 5
TEXT_HEIGHT = 13
CURVES = {"train": "training", "val": "held out"}  # prefix of the column to name of the curve
NO_LOSS = ("gradient_norm",)
CHANCE = "_chance"  # suffix of the column that says what chance scores
# in names of columns that are scores and not losses
SCORE_WORDS = frozenset(
    (
        "accuracy",
        "ami",
        "ari",
        "auc",
        "auroc",
        "f1",
        "nmi",
        "pearson",
        "precision",
        "r2",
        "recall",
        "spearman",
    )
)
SUM = "loss"  # that is minimized
FIRST_STEPS = 98  # percentile: a first step or two may cost many times what all others do


@dataclass(frozen=True)
class Line:
    """One curve: its name, its points in SVG's notation, its last value."""

    kind: str
    points: str
    last: float


@dataclass(frozen=True)
class Trivial:
    """The cost of a trivial answer on held-out data: its name, its cost, heights of its line and of its name."""

    name: str
    cost: float
    at: float
    label_at: float


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in the drawing, its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One loss over the steps."""

    title: str
    lines: list[Line]
    trivial: list[Trivial]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


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
        table = _columns(log_files.read(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not the log of a run ({error}).") from error
    if not is_log(list(table)):
        raise InputError(
            f"{path} is not the log of a run: it needs columns step and train/..., and a line."
        )
    recipe = ""
    recipe_file = path.parent.parent / "recipe.yaml"
    if path.name == log_files.CSV and recipe_file.is_file():
        recipe = recipe_file.read_text(encoding="utf-8")
    panels = []
    for part in [*parts(list(table)), *scores(list(table))]:
        panel = _panel(part, table)
        if panel is not None:
            panels.append(panel)
    return Run(name, panels, recipe)


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, Floats]:
    """Return the columns of a log as numbers; NaN where a line has none."""
    out: dict[str, Floats] = {}
    if not rows:
        return out
    for column in rows[0]:
        texts = [row[column] or "nan" for row in rows]
        out[column] = np.asarray([float(text) for text in texts])
    return out


def is_log(columns: list[str]) -> bool:
    """Return whether these are the columns of a run's log."""
    has_loss = any(column.startswith(("train/", "val/")) for column in columns)
    return has_loss and "step" in columns


def parts(columns: list[str]) -> list[str]:
    """Return the losses of a log: the parts first, then their sum, unless it is the only part's."""
    out = []
    has_sum = False
    for column in columns:
        if not column.startswith("train/"):
            continue
        part = column.removeprefix("train/")
        if part == SUM:
            has_sum = True
        elif part not in NO_LOSS:
            out.append(part)
    if has_sum and len(out) != 1:
        out.append(SUM)
    return out


def scores(columns: list[str]) -> list[str]:
    """Return what is scored on held-out data and is not a loss: recall, accuracy and the like, higher is better."""
    names = [column.removeprefix("val/") for column in columns if column.startswith("val/")]
    losses = set(parts(columns))
    out = []
    for name in names:
        is_chance = name.endswith(CHANCE)
        if name in losses or is_chance:
            continue
        if f"{name}{CHANCE}" in names or SCORE_WORDS & set(name.lower().split("_")):
            out.append(name)
    return out


def trivial_of(part: str, columns: list[str]) -> dict[str, str]:
    """Return the columns that say what trivial answers to a part cost, by their names in words.

    Those of a score are what chance scores.
    """
    start = f"val/{part}_"
    of_longer: set[str] = set()  # columns of parts whose names begin with this one's
    for other in [*parts(columns), *scores(columns)]:
        if other.startswith(f"{part}_"):
            of_longer.add(f"val/{other}")
            of_longer.update(name for name in columns if name.startswith(f"val/{other}_"))
    out = {}
    for column in columns:
        if column.startswith(start) and column not in of_longer:
            name = column.removeprefix(start)
            out[name.replace("_", " ")] = column
    return out


@dataclass(frozen=True)
class _Axes:
    """Ends of both axes, and their places in the drawing."""

    first: float
    last: float
    low: float
    high: float

    def x(self, steps: Any) -> Any:
        """Return where steps are drawn."""
        width = WIDTH - LEFT - RIGHT
        span = (self.last - self.first) or 1.0
        return LEFT + width * (steps - self.first) / span

    def y(self, values: Any) -> Any:
        """Return where values are drawn; those beyond the ends, at the ends."""
        height = HEIGHT - TOP - BOTTOM
        inside = np.clip(values, self.low, self.high)
        return TOP + height * (self.high - inside) / (self.high - self.low)


def _panel(part: str, table: Mapping[str, Floats]) -> Panel | None:
    step = table["step"]
    curves = {}
    for prefix, kind in CURVES.items():
        values = table.get(f"{prefix}/{part}")
        if values is not None and np.isfinite(values).any():
            curves[kind] = values
    if not curves:
        return None
    costs = {}
    for name, column in trivial_of(part, list(table)).items():
        values = table[column]
        finite = values[np.isfinite(values)]
        if len(finite):
            costs[name] = float(finite[-1])
    axes = _axes(step, curves, costs)
    lines = []
    for kind, values in curves.items():
        lines.append(_line(kind, step, values, axes))
    trivial = []
    for name, cost in costs.items():
        height = float(axes.y(cost))
        trivial.append(Trivial(name, cost, height, height))
    x_ticks = []
    for step_shown in ticks(axes.first, axes.last):
        place = float(axes.x(step_shown))
        x_ticks.append(Tick(place, f"{step_shown:,.0f}"))
    y_ticks = []
    for loss_shown in ticks(axes.low, axes.high):
        place = float(axes.y(loss_shown))
        y_ticks.append(Tick(place, f"{loss_shown:.4g}"))
    title = part.replace("_", " ")
    if part in scores(list(table)):
        title += " (a score: higher is better)"
    return Panel(title, lines, _apart(trivial), x_ticks, y_ticks)


def _axes(step: Floats, curves: Mapping[str, Floats], costs: Mapping[str, float]) -> _Axes:
    lows = list(costs.values())
    highs = list(costs.values())
    for kind, values in curves.items():
        lows.append(float(np.nanmin(values)))
        if kind == CURVES["train"]:
            highs.append(float(np.nanpercentile(values, FIRST_STEPS)))
        else:
            highs.append(float(np.nanmax(values)))
    low = min(lows)
    high = max(highs)
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    first = float(np.nanmin(step))
    last = float(np.nanmax(step))
    return _Axes(first, last, low - margin, high + margin)


def _line(kind: str, step: Floats, values: Floats, axes: _Axes) -> Line:
    finite = np.isfinite(values)
    xs = axes.x(step[finite])
    ys = axes.y(values[finite])
    points = []
    for x, y in zip(xs, ys, strict=True):
        points.append(f"{x:.1f},{y:.1f}")
    last = float(values[finite][-1])
    return Line(kind, " ".join(points), last)


def _apart(trivial: list[Trivial]) -> list[Trivial]:
    """Place the names above their lines, none on another."""
    out: list[Trivial] = []
    floor = HEIGHT - BOTTOM - 3.0
    for one in sorted(trivial, key=lambda t: -t.at):
        height = min(one.at - 3, floor)
        out.append(replace(one, label_at=height))
        floor = height - TEXT_HEIGHT
    return out


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends, about five."""
    span = high - low
    if not span > 0:
        return [low]
    wanted = span / N_TICKS
    size = 10.0 ** math.floor(math.log10(wanted))
    steps = [multiple * size for multiple in (1, 2, 2.5, 5, 10)]
    step = next(step for step in steps if step >= wanted * 0.999)
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]  # + 0.0: -0 is 0
