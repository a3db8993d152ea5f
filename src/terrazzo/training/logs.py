"""Reader of the CSV log of a run; it needs no Lightning."""

from __future__ import annotations

import csv
from pathlib import Path

__all__ = ["CSV", "FIRST", "LOGS", "TAIL", "final", "read"]

LOGS = "logs"  # in the folder of a run

CSV = "metrics.csv"

FIRST = ("step", "epoch")  # columns of every log

TAIL = 20  # logged lines whose mean is a run's final training loss


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a log, without a last one that a kill cut short; an empty list without a file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    end = text.rfind("\n") + 1
    complete = []
    for row in csv.DictReader(text[:end].splitlines()):
        if None not in row.values() and row.get("step"):
            complete.append(row)
    return complete


def final(path: Path) -> dict[str, float]:
    """Return the last validation losses of a log, and the mean of the last training losses."""
    rows = read(path)
    if not rows:
        return {}
    losses = {}
    for name in rows[0]:
        values = [float(row[name]) for row in rows if row[name]]
        if not values:
            continue
        if name.startswith("train/"):
            last = values[-TAIL:]
            losses[name] = sum(last) / len(last)
        elif name.startswith("val/"):
            losses[name] = values[-1]
    return losses
