"""Results of tasks: tidy scores, predictions and what is needed to repeat them; to Parquet and JSON and back."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo._version import __version__
from terrazzo.errors import InputError, OutputError
from terrazzo.files import whole_file
from terrazzo.marks import KEY, Mark, guard
from terrazzo.parsing import parse_json, read_object
from terrazzo.records import now
from terrazzo.safe_tables import read_parquet
from terrazzo.tasks import display

__all__ = ["METRICS", "PREDICTIONS", "RECORD", "TaskResult", "check_free", "tidy"]

METRICS = "metrics.parquet"
PREDICTIONS = "predictions.parquet"
RECORD = "result.json"
FORMAT = 1
_GROUPS = (
    "system",
    "split",
    "metric",
)  # columns whose values name a score; the first may be absent


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
    date: str = field(default_factory=now)

    def __repr__(self) -> str:
        """Return what it holds in one line, and the scores of the first splits in one or two more."""
        scores: dict[str, list[str]] = {}
        for *where, metric, mean, sd, _ in self._score_rows():
            of_split = scores.setdefault(" ".join(where), [])
            of_split.append(f"{metric} {mean} ± {sd}")
        n_predictions = display.count(len(self.predictions), "prediction")
        n_notes = display.count(len(self.notes), "note")
        lines = [f"TaskResult({self.task!r}, {n_predictions}, {n_notes})"]
        for split, texts in scores.items():
            lines.append(f"  {split}: {display.line(texts)}")
        n_more = len(lines) - 2
        if n_more > 1:
            lines[2:] = [f"  and {n_more} more, see summary()"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return a table of the scores, the notes, and the settings folded, for notebooks."""
        rows = self._score_rows()
        header = [*_known_groups(self.metrics), "mean", "sd", "n"]
        return display.card(
            f"Result of {self.task}",
            display.table(header, rows),
            display.bullets(self.notes),
            display.fold("settings", display.settings_table(self.config)),
            display.fold("origin", display.settings_table(self._origin())),
        )

    def _score_rows(self) -> list[list[str]]:
        """Return the rows of the summary as texts."""
        if self.metrics.empty:
            return []
        rows = []
        for *where, mean, sd, n in self.summary().itertuples(index=False):
            texts = [str(name) for name in where]
            texts.append(display.number(mean))
            texts.append(display.number(sd))
            texts.append(str(n))
            rows.append(texts)
        return rows

    def _origin(self) -> dict[str, str]:
        return {"terrazzo": self.version, "date": self.date}

    def summary(self) -> pd.DataFrame:
        """Return mean, sd and number of every score over all cells, a row for each split and metric (and system)."""
        of_all_cells = self.metrics[self.metrics["part"] == ""]
        by = _known_groups(of_all_cells)
        values = of_all_cells.groupby(by, sort=False, observed=True)["value"]
        table = values.agg(mean="mean", sd=_population_sd, n="size")
        return table.reset_index()

    def score(self, metric: str, split: str | None = None, system: str | None = None) -> float:
        """Return the mean of one score; ``split`` and ``system`` may be left out where there is only one.

        Raises
        ------
        InputError
            No such score.
        """
        table = self.summary()
        wanted = table["metric"] == metric
        if split is not None:
            wanted &= table["split"] == split
        if system is not None:
            is_system = table["system"] == system if "system" in table else False
            wanted &= is_system
        rows = table[wanted]
        if len(rows) == 1:
            return float(rows["mean"].iloc[0])
        names = ", ".join(repr(name) for name in (split, system) if name)
        of_names = f" of {names}" if names else ""
        known = ", ".join(_score_names(table))
        raise InputError(f"there is no single score {metric!r}{of_names}; there are: {known}.")

    def save(
        self, folder: str | Path, *, overwrite: bool = False, mark: Mark | None = None
    ) -> Path:
        """Write ``metrics.parquet``, ``predictions.parquet`` and, last, ``result.json`` into a folder.

        Parameters
        ----------
        folder
            Other files in it stay.
        overwrite
            Replace a result of another task or of other cells, and files of these names that are not a result.
        mark
            What it was made from; None: its task and its cells.

        Raises
        ------
        OutputError
            The folder cannot be written, or has another result.
        """
        target = Path(folder)
        mark = mark or self._mark()
        check_free(target, mark, overwrite=overwrite)
        summary = self.summary().to_json(orient="records")
        record = {
            "format": FORMAT,
            "task": self.task,
            "config": self.config,
            "notes": list(self.notes),
            "terrazzo_version": self.version,
            "date": self.date,
            "summary": parse_json(summary, "the summary", finite=False),
            KEY: mark.text(),
        }
        text = json.dumps(record, indent=2) + "\n"
        try:
            target.mkdir(parents=True, exist_ok=True)
            # all are written before the first takes its name; the record, by which it is a result, is the last
            with (
                whole_file(target / RECORD) as record_draft,
                whole_file(target / PREDICTIONS) as predictions_draft,
                whole_file(target / METRICS) as metrics_draft,
            ):
                self.metrics.to_parquet(metrics_draft, index=False)
                self.predictions.to_parquet(predictions_draft)
                record_draft.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{target} could not be written ({reason}).") from error
        return target

    def _mark(self) -> Mark:
        """Return the mark of a result whose sources are not known: its task, its cells and their true values."""
        columns = [name for name in ("true",) if name in self.predictions]
        cells = self.predictions[columns].astype(str)
        hashes = pd.util.hash_pandas_object(cells).to_numpy()
        digest = hashlib.sha256(self.task.encode() + hashes.tobytes()).hexdigest()[:16]
        return Mark("task", digest, digest, self.task)

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
            record = read_object(source / RECORD, InputError, finite=False)
            return cls(
                task=record["task"],
                metrics=read_parquet(source / METRICS),
                predictions=read_parquet(source / PREDICTIONS),
                config=record["config"],
                notes=tuple(record["notes"]),
                version=record["terrazzo_version"],
                date=record["date"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            kind = type(error).__name__
            raise InputError(f"{source} is damaged ({kind}: {error}).") from error


def check_free(folder: Path, mark: Mark, *, overwrite: bool = False) -> None:
    """Refuse a folder that has a result of another mark, or files of its names that are not a result.

    Raises
    ------
    OutputError
        As :func:`terrazzo.marks.guard`.
    """
    for name in (RECORD, METRICS, PREDICTIONS):
        if os.path.lexists(folder / name):
            guard(folder / name, mark, overwrite=overwrite)
            return


def _known_groups(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table whose values name a score."""
    return [name for name in _GROUPS if name in table]


def _population_sd(values: pd.Series) -> float:
    return values.std(ddof=0)


def _score_names(summary: pd.DataFrame) -> list[str]:
    """Return every score of a summary with its split and system, as an error names it."""
    names = []
    groups = summary[_known_groups(summary)]
    for *where, metric in groups.itertuples(index=False):
        of_split = ", ".join(reversed(where))
        names.append(f"{metric} ({of_split})")
    return names


def tidy(scores: dict[str, float], split: str, number: int, part: str = "") -> list[dict[str, Any]]:
    """Return the rows of :attr:`TaskResult.metrics` for some scores."""
    rows = []
    for name, value in scores.items():
        row = {
            "split": split,
            "number": number,
            "metric": name,
            "value": float(value),
            "part": part,
        }
        rows.append(row)
    return rows
