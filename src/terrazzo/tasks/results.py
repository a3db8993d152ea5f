"""What every task returns: tidy scores, predictions, and what is needed to repeat it; to Parquet + JSON and back."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo._version import __version__
from terrazzo.errors import InputError, OutputError
from terrazzo.files import whole_file, write_text

METRICS, PREDICTIONS, RECORD = "metrics.parquet", "predictions.parquet", "result.json"
FORMAT = 1


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class TaskResult:
    """Scores and predictions of one task.

    Attributes
    ----------
    task
        Its name, e.g. ``"probe"``.
    metrics
        Tidy: a row a score, columns ``split`` (``"random"``, ``"blocked"``, ``"few-shot"``, ``"cross"``, ``"whole"``),
        ``number`` (fold, draw or seed), ``metric``, ``value``, and ``part`` (a gene, a cell type, or "" for all);
        ``system`` where a task compares several.
    predictions
        One row a cell (index: its name); columns depend on the task.
    config
        Everything that was chosen, JSON-able; seeds among them.
    notes
        What a reader must know: classes left out, cells without a label.
    version, date
        Of the library; of the run, UTC.
    """

    task: str
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    version: str = __version__
    date: str = field(default_factory=_now)

    def summary(self) -> pd.DataFrame:
        """Return mean, sd and number of every score over all cells, a row for each split and metric (and system)."""
        whole = self.metrics[self.metrics["part"] == ""]
        by = [column for column in ("system", "split", "metric") if column in whole]
        grouped = whole.groupby(by, sort=False, observed=True)["value"]
        return grouped.agg(mean="mean", sd=lambda v: v.std(ddof=0), n="size").reset_index()

    def score(self, metric: str, split: str | None = None, system: str | None = None) -> float:
        """Return the mean of one score; ``split`` and ``system`` may be left out where there is one.

        Raises
        ------
        InputError
            No such score.
        """
        table = self.summary()
        found = table[(table["metric"] == metric) & ((table["split"] == split) | (split is None))]
        if system is not None:
            found = found[found["system"] == system] if "system" in found else found[:0]
        if len(found) != 1:
            known = table[[column for column in ("system", "split", "metric") if column in table]]
            have = ", ".join(
                f"{row[-1]} ({', '.join(row[-2::-1])})" for row in known.itertuples(index=False)
            )
            wanted = ", ".join(repr(word) for word in (split, system) if word)
            raise InputError(
                f"there is no single score {metric!r}{f' of {wanted}' if wanted else ''}; there are: {have}."
            )
        return float(found["mean"].iloc[0])

    def save(self, folder: str | Path) -> Path:
        """Write ``metrics.parquet``, ``predictions.parquet`` and, last, ``result.json`` into a folder.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        target = Path(folder)
        record = {
            "format": FORMAT,
            "task": self.task,
            "config": self.config,
            "notes": list(self.notes),
            "terrazzo_version": self.version,
            "date": self.date,
            "summary": json.loads(self.summary().to_json(orient="records")),
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / RECORD).unlink(missing_ok=True)  # a folder without it is not a result
            with whole_file(target / METRICS) as draft:
                self.metrics.to_parquet(draft, index=False)
            with whole_file(target / PREDICTIONS) as draft:
                self.predictions.to_parquet(draft)
            write_text(target / RECORD, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise OutputError(
                f"{target} could not be written ({error.strerror or error})."
            ) from error
        return target

    @classmethod
    def load(cls, folder: str | Path) -> TaskResult:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            Not a result folder, or a damaged one.
        """
        source = Path(folder)
        if not (source / RECORD).is_file():
            raise InputError(
                f"{source} holds no {RECORD}: not a result, or its writing was stopped."
            )
        try:
            record = json.loads((source / RECORD).read_text(encoding="utf-8"))
            metrics, predictions = (
                pd.read_parquet(source / METRICS),
                pd.read_parquet(source / PREDICTIONS),
            )
            return cls(
                record["task"],
                metrics,
                predictions,
                record["config"],
                tuple(record["notes"]),
                record["terrazzo_version"],
                record["date"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{source} is damaged ({type(error).__name__}: {error}).") from error


def tidy(scores: dict[str, float], split: str, number: int, part: str = "") -> list[dict[str, Any]]:
    """Return the rows of :attr:`TaskResult.metrics` for some scores."""
    return [
        {"split": split, "number": number, "metric": name, "value": float(value), "part": part}
        for name, value in scores.items()
    ]
