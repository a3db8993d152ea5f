"""The CSV file of a run's numbers, read: without Lightning, which writes it."""

from __future__ import annotations

import csv
from pathlib import Path

LOGS, CSV = "logs", "metrics.csv"  # in the folder of a run


FIRST = ("step", "epoch")


TAIL = 20  # logged lines whose mean is a run's final training loss


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a log, without a last one that a kill cut short; none where there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    return [row for row in rows if None not in row.values() and row.get("step")]


def final(path: Path) -> dict[str, float]:
    """Return the last validation losses of a log, and the mean of the last training losses."""
    rows, out = read(path), {}
    for name in rows[0] if rows else ():
        values = [float(row[name]) for row in rows if row[name]]
        if name.startswith("train/") and values:
            out[name] = sum(values[-TAIL:]) / len(values[-TAIL:])
        elif name.startswith("val/") and values:
            out[name] = values[-1]
    return out
