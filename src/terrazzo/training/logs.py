"""Where the numbers of a run go: one CSV file that a resumed run continues, and TensorBoard's own beside it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from terrazzo.training.log_files import CSV, FIRST, read
from terrazzo.writing import whole_file


class CsvLog(Logger):
    """One wide CSV file, a line a logged step, written at once; columns join when they are first logged.

    Parameters
    ----------
    path
        The file.
    resumed
        Step that a resumed run continues from: later lines, which will be written again, are dropped.
    """

    def __init__(self, path: Path, resumed: int = 0) -> None:
        super().__init__()
        self._path, self._resumed = path, resumed
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Nothing: the file has a fixed place."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the file has a fixed place."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is saved beside the logs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
        row["epoch"] = int(row.get("epoch") or 0)
        if self._columns is None or set(row) - set(self._columns):
            self._widen(sorted(set(row) - {*FIRST, *(self._columns or ())}))
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns or []).writerow(row)

    def _widen(self, new: list[str]) -> None:
        """Write the file again with more columns; at first, with what a resumed run keeps of it."""
        rows = read(self._path)
        if self._columns is None:
            rows = [row for row in rows if int(row["step"]) < self._resumed]
            self._columns = list(rows[0]) if rows else list(FIRST)
        self._columns += [name for name in new if name not in self._columns]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def loggers(folder: Path, resumed: int) -> list[Logger]:
    """Return the loggers of a run that has done ``resumed`` steps."""
    board = TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=resumed)
    return [CsvLog(folder / CSV, resumed), board]
