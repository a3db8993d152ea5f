"""Warnings of a job of many steps: each is shown once, with the name of the slice that it is about."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from terrazzo.errors import TerrazzoWarning

__all__ = ["Notices"]

UNNAMED = "slice: "  # how messages on a slice without a name begin


class Notices:
    """Warnings and log messages of terrazzo while a job runs; those that differ only in numbers count as one."""

    def __init__(self) -> None:
        self._name = ""
        self._shown: set[str] = set()

    @contextmanager
    def once(self) -> Iterator[None]:
        """Show each warning once in this block."""
        show = warnings.showwarning
        logger = logging.getLogger("terrazzo")
        gate = _Gate(self)

        def show_new(message: Any, category: Any, *args: Any, **kwargs: Any) -> None:
            if not issubclass(category, TerrazzoWarning):
                show(message, category, *args, **kwargs)
                return
            text = self.named(str(message))
            if self.is_new(text):
                show(category(text), category, *args, **kwargs)

        propagates = logger.propagate
        with warnings.catch_warnings():
            warnings.showwarning = show_new
            logger.addHandler(gate)
            logger.propagate = False
            try:
                yield
            finally:
                logger.propagate = propagates
                logger.removeHandler(gate)

    @contextmanager
    def about(self, name: str) -> Iterator[None]:
        """Name the slice that warnings in this block are about."""
        before = self._name
        self._name = name
        try:
            yield
        finally:
            self._name = before

    def named(self, text: str) -> str:
        """Return a message with the name of its slice."""
        if not self._name or self._name in text:
            return text
        return f"{self._name}: {text.removeprefix(UNNAMED)}"

    def is_new(self, text: str) -> bool:
        """Return whether a message was not shown before, and remember it."""
        name, _, rest = text.partition(": ")
        key = f"{name}: {re.sub('[0-9]+', '0', rest)}"
        if key in self._shown:
            return False
        self._shown.add(key)
        return True


class _Gate(logging.Handler):
    """Handler that passes new messages on to those who listen."""

    def __init__(self, notices: Notices) -> None:
        super().__init__()
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = self._notices.named(text)
            if not self._notices.is_new(text):
                return
        record.msg = text
        record.args = ()
        listeners = list(logging.getLogger().handlers)
        if not listeners and logging.lastResort is not None:
            listeners.append(logging.lastResort)
        for listener in listeners:
            if record.levelno >= listener.level:
                listener.handle(record)
