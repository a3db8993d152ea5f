"""Progress bars of tqdm, in a terminal and in a notebook; none elsewhere.

Stages may be nested: the bar of an inner one is below that of the outer one, while it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BYTES", "Advance", "Progress", "Stage", "in_notebook", "make_bar"]

Advance = Callable[[int], None]

BYTES = "B"  # the one unit whose amounts are shown in thousands and millions

# formats of bars: with a total, without one, and of a single step
COUNTED = "{l_bar}{bar:12}| {n_fmt}/{total_fmt} {unit} [left {remaining}, {rate_fmt}{postfix}]"

UNCOUNTED = "{desc}: {n_fmt} {unit} [{elapsed}]"

ONE_STEP = "{desc} [{elapsed}]"


class Stage:
    """The bar of one stage; call it with the amount done."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar

    def __call__(self, amount: int) -> None:
        """Advance the bar; does nothing after the end of the stage."""
        if self._bar is not None:
            self._bar.update(amount)

    def of(self, total: int) -> None:
        """Set a total that is known only now."""
        if self._bar is not None and total > 0:
            self._bar.bar_format = COUNTED
            self._bar.total = total
            self._bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Progress:
    """Stages of one job, each with a bar.

    Parameters
    ----------
    enabled
        None: where standard error is a terminal, and in a notebook.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        if enabled is None:
            enabled = sys.stderr.isatty() or in_notebook()
        self.enabled = enabled

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str = "cells") -> Iterator[Stage]:
        """Show one stage; yields its bar, which is called with the amount done.

        Without a total (one step that cannot be counted) the elapsed time is shown.
        """
        if not self.enabled:
            yield Stage()
            return
        stage = Stage(make_bar(name, total, unit))
        try:
            yield stage
        finally:
            stage.close()


def make_bar(name: str, total: int | None, unit: str, *, done: int = 0) -> Any:
    """Return a tqdm bar that is removed when it is closed."""
    from tqdm.auto import tqdm

    bar_format = COUNTED
    if total is None:
        bar_format = ONE_STEP
    elif not total:
        bar_format = UNCOUNTED
    return tqdm(
        desc=name,
        total=total or None,
        initial=done,
        unit=unit,
        unit_scale=unit == BYTES,
        bar_format=bar_format,
        dynamic_ncols=True,
        leave=False,
        delay=0,
    )


def in_notebook() -> bool:
    """Return True if this runs in a Jupyter kernel, without importing IPython."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    shell = ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"
