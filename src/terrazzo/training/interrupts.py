"""Ctrl-C during training: Lightning makes an exit of it and leaves the signal ignored; here it stays an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let an interrupt of a Trainer out as KeyboardInterrupt, and give back the handlers that were there before.

    Raises
    ------
    KeyboardInterrupt
        In place of the SystemExit that Lightning makes of it.
    """
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
