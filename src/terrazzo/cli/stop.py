"""Ctrl-C on the command line: exit code 130, and one line on how to go on; no incomplete file remains."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["EXIT_CODE", "MESSAGES", "PATIENCE", "RESTART", "how_to_go_on", "stoppable"]

EXIT_CODE = 130  # as in shells: 128 and the number of the signal

PATIENCE = 2.0  # seconds in which a second Ctrl-C does not disturb the cleaning up after the first

RESTART = "nothing half-written is left; the same command starts again."

# by the words of the command; RESTART for all others
MESSAGES = {
    "embed": "finished slices are kept; the same command goes on with the others.",
    "pretrain": "the last checkpoint is kept; the same command with --resume goes on from it.",
    "corpus build": "finished slices are kept; the same command goes on with the others.",
    "finetune": "scores that were printed are kept, nothing half-written is left; the same command starts again.",
    "bench": "finished rows are kept (with --work, trained models, too); the same command goes on with the others.",
    "domains": "finished slices are kept, nothing half-written is left; the same command starts again.",
    "predict-genes": "finished slices are kept, nothing half-written is left; the same command starts again.",
}


def how_to_go_on(words: Sequence[str]) -> str:
    """Return a line on the results of a command that was stopped; ``words``: without the program's name."""
    for n_words in (2, 1):
        message = MESSAGES.get(" ".join(words[:n_words]))
        if message is not None:
            return message
    return RESTART


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, at most every few seconds; restore the former handler at the end.

    A process that ignores the signal (``nohup``, a job in the background of a script) goes on ignoring it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
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
