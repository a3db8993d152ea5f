"""Ctrl-C on the command line: exit code 130, one line that says what is kept and how to go on, nothing half-written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

EXIT_CODE = 130  # as shells have it: 128 and the number of the signal


PATIENCE = (
    2.0  # seconds in which an impatient second Ctrl-C does not spoil the tidying up after the first
)


AGAIN = "nothing half-written is left; the same command starts again."


KEPT = {  # by the words of the command; all others say AGAIN
    "embed": "finished slices are kept; the same command goes on with the others.",
    "pretrain": "the last checkpoint is kept; the same command with --resume goes on from it.",
    "corpus build": "finished slices are kept; the same command goes on with the others.",
    "finetune": "scores that were printed are kept, nothing half-written is left; the same command starts again.",
    "bench": "finished rows are kept; the same command goes on with the others (with --work, what was trained, too).",
    "domains": "finished slices are kept, nothing half-written is left; the same command starts again.",
    "predict-genes": "finished slices are kept, nothing half-written is left; the same command starts again.",
}


def kept(words: Sequence[str]) -> str:
    """Say what is kept of a command (its words, without the program's name) that was stopped, and how to go on."""
    return KEPT.get(" ".join(words[:2]), KEPT.get(words[0] if words else "", AGAIN))


@contextmanager
def stoppable() -> Iterator[None]:
    """Make a KeyboardInterrupt of Ctrl-C, once in a while, and put the former handler back.

    A process that is to ignore it (``nohup``, a job in the background of a script) goes on ignoring it.
    """
    before = (
        signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread()
        else None
    )
    if before in (None, signal.SIG_IGN):
        yield
        return
    last = -PATIENCE

    def stop(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
