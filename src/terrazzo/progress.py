"""Progress of long work: a rich bar with rate and time left on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], None]
BYTES = "B"  # the one unit whose amounts are shown in thousands and millions


class Stage:
    """One stage that is under way; called with the amount done."""

    def __init__(self, bar: Any = None, task: Any = None, unit: str = "") -> None:
        self._bar, self._task, self._unit = bar, task, unit

    def __call__(self, amount: int) -> None:
        """So much more is done."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)
            self._show()

    def of(self, total: int) -> None:
        """Say how much there is, where that is known only now."""
        if self._bar is not None and total > 0:
            self._bar.update(self._task, total=total)
            self._show()

    def _show(self) -> None:
        task = self._bar.tasks[0]
        rate = f"{_amount(task.speed, self._unit)}/s" if task.speed else ""
        whole = f" of {_amount(task.total, self._unit)}" if task.total else ""
        done = _amount(task.completed, "" if whole and self._unit != BYTES else self._unit)
        count = f"{done}{whole}" if task.completed else ""
        self._bar.update(self._task, count=count, rate=rate)


class Progress:
    """Stages of one job, each with a bar.

    Parameters
    ----------
    enabled
        None: only where standard error is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "cells") -> Iterator[Stage]:
        """Show one stage; the value is a function to call with the amount done.

        Without a total (one step that cannot be counted) the bar moves to and fro and says the time that went by.
        """
        if not self.enabled:
            yield Stage()
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        time = [TimeElapsedColumn()] if total is None else [TextColumn("left"), TimeRemainingColumn()]
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[count]}")]
        bar = Bar(*columns, TextColumn("{task.fields[rate]}"), *time, console=Console(stderr=True))
        with bar:
            task = bar.add_task(name, total=total or None, count="", rate="")
            yield Stage(bar, task, unit)


def _amount(value: float, unit: str) -> str:
    if unit != BYTES:
        return f"{value:,.0f} {unit}".strip() if value >= 10 or not value % 1 else f"{value:.1f} {unit}"
    for name in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.{0 if name == 'B' else 1}f} {name}"
        value /= 1000
    return f"{value:,.1f} GB"
