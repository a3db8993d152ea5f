"""Processes: names, by which a later run knows whether one that left a file still runs; and Ctrl-C in new ones."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "TAG",
    "Writer",
    "accept_interrupts",
    "interrupts_held",
    "is_fork",
    "own_tag",
    "writer_of",
]

# what a tag looks like: machine, process, second in which the process started
TAG = r"[0-9a-f]{8}-[0-9]+-[0-9]+"

_TOLERANCE = 2  # seconds: clocks are set, and the time of a start is computed from that of the boot


@dataclass(frozen=True)
class Writer:
    """A process, as a tag names it.

    Attributes
    ----------
    machine
        Hash of the host's name, and of the container's processes.
    pid
        Its number.
    started
        Second of its start, since 1970; another process may get the number later.
    """

    machine: str
    pid: int
    started: int

    def is_dead(self) -> bool:
        """Return whether the process certainly does not run any more; of another machine, nobody knows."""
        import psutil

        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            started = process.create_time()
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:  # another user's
            return False
        return abs(started - self.started) > _TOLERANCE


def own_tag() -> str:
    """Return the tag of this process."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_started(pid)}"


def writer_of(tag: str) -> Writer | None:
    """Return the process that a tag names; None for another text."""
    if re.fullmatch(TAG, tag) is None:
        return None
    machine, pid, started = tag.split("-")
    return Writer(machine, int(pid), int(started))


@functools.cache
def _started(pid: int) -> int:
    """Return the second in which this process started; of a fork, that of the fork."""
    import psutil

    return round(psutil.Process(pid).create_time())


@functools.cache
def _machine() -> str:
    """Return a hash of where process numbers hold: the host, and the container in it."""
    try:
        container = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        container = ""
    name = f"{socket.gethostname()} {container}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


class _Fork:
    """Whether this process is a fork of one in which terrazzo was imported."""

    is_child = False

    def note(self) -> None:
        """Note it, and leave the threads alone that the fork does not have: GNU's OpenMP would wait for them."""
        self.is_child = True
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)


_FORK = _Fork()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_FORK.note)


def is_fork() -> bool:
    """Return whether this process was forked, and has none of the threads of compiled libraries."""
    return _FORK.is_child


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from the processes that this thread starts, until they call :func:`accept_interrupts`.

    A process that is interrupted while it imports what it needs prints a traceback, whatever it does later.
    """
    before = _mask(signal.SIG_BLOCK) if _HAS_MASKS else set()
    try:
        yield
    finally:
        if signal.SIGINT not in before:
            accept_interrupts()


def accept_interrupts() -> None:
    """Let Ctrl-C through again, also one that came before."""
    if _HAS_MASKS:
        _mask(signal.SIG_UNBLOCK)


_HAS_MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows


def _mask(how: int) -> set[int]:
    return set(signal.pthread_sigmask(how, {signal.SIGINT}))
