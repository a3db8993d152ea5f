"""Ctrl-C and the end of a job on the command line: one line on how to go on; no incomplete file remains.

Exit codes are those of shells: 130 after Ctrl-C, 143 after SIGTERM (``kill``, a scheduler's time limit), 129 after a
closed terminal.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["EXIT_CODE", "MESSAGES", "PATIENCE", "RESTART", "Stop", "how_to_go_on", "stoppable"]

EXIT_CODE = 130  # as in shells: 128 and the number of the signal

PATIENCE = 2.0  # seconds in which a second Ctrl-C does not disturb the cleaning up after the first

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

RESTART = "nothing half-written is left; the same command starts again."

# by the words of the command; RESTART for all others
MESSAGES = {
    "embed": "finished slices are kept; the same command goes on with the others.",
    "regions": "what was found and finished slices are kept; the same command goes on.",
    "types": "what was found and finished slices are kept; the same command goes on.",
    "pretrain": "the same command with --resume goes on from the last checkpoint, or starts again where there is none.",
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


class Stop:
    """What stopped a command.

    Attributes
    ----------
    exit_code
        128 and the number of the signal.
    """

    def __init__(self) -> None:
        self.exit_code = EXIT_CODE
        self._last = -PATIENCE

    def handle(self, number: int, frame: Any) -> None:
        """Raise KeyboardInterrupt, at most every few seconds."""
        now = time.monotonic()
        if now - self._last >= PATIENCE:
            self._last = now
            self.exit_code = 128 + number
            raise KeyboardInterrupt


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Raise KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP; restore the former handlers at the end.

    A process that ignores a signal (``nohup``, a job in the background of a script) goes on ignoring it.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[int, Any] = {}
    for name in _SIGNALS:
        if not hasattr(signal, name):  # Windows lacks some
            continue
        number = int(getattr(signal, name))
        before = signal.getsignal(number)
        if before not in (None, signal.SIG_IGN):
            handlers[number] = before
            signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
