"""Progress of long work: a rich bar with rate and time left on a terminal, nothing elsewhere.

Stages may lie within each other: the bar of an inner one stands below that of the outer one, while it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Advance = Callable[[int], None]
BYTES = "B"  # the one unit whose amounts are shown in thousands and millions
_SHOWN: ContextVar[Any] = ContextVar(
    "shown", default=None
)  # the bars on the terminal: there can be one set


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

    def close(self) -> None:
        """Say that it is over."""
        self._bar = None

    def _show(self) -> None:
        task = next(one for one in self._bar.tasks if one.id == self._task)
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
        outer = _SHOWN.get()
        bar = outer or _make_bars()
        task = bar.add_task(name, total=total or None, count="", rate="", counted=total is not None)
        stage = Stage(bar, task, unit)
        try:
            if outer is not None:
                yield stage
                return
            _SHOWN.set(bar)
            with bar:
                yield stage
        finally:
            stage.close()
            if outer is not None:
                bar.refresh()  # the last state of it, however short it was
                bar.remove_task(task)
            else:
                _SHOWN.set(None)  # not reset: a generator may be closed in another context


def _make_bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.text import Text

    left, elapsed = TimeRemainingColumn(), TimeElapsedColumn()

    class Time(ProgressColumn):
        """The time left, or that which went by where nothing can be counted."""

        def render(self, task: Any) -> Text:
            if not task.fields["counted"]:
                return elapsed.render(task)
            return Text.assemble("left ", left.render(task))

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]}"),
    ]
    # what is printed goes above the bars, and to a file where standard output is one
    return Bar(
        *columns,
        TextColumn("{task.fields[rate]}"),
        Time(),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),
    )


def _amount(value: float, unit: str) -> str:
    if unit != BYTES:
        return (
            f"{value:,.0f} {unit}".strip()
            if value >= 10 or not value % 1
            else f"{value:.1f} {unit}"
        )
    for name in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.{0 if name == 'B' else 1}f} {name}"
        value /= 1000
    return f"{value:,.1f} GB"
