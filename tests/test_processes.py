"""Ctrl-C in processes that have only just been started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from terrazzo.corpus import scheduler
from terrazzo.processes import interrupts_held

NEWBORN = """
import signal
from terrazzo.processes import accept_interrupts
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append("interrupted"))
assert not seen
accept_interrupts()
print(*seen)
"""


def test_an_interrupt_waits_until_a_new_process_is_ready_for_it():
    with interrupts_held():
        process = subprocess.Popen(
            [sys.executable, "-c", NEWBORN],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.kill(os.getpid(), signal.SIGINT),
        )
    output, errors = process.communicate(timeout=600)
    assert (process.returncode, output.strip(), errors) == (0, "interrupted", "")


def test_this_thread_gets_its_interrupt_afterwards():
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_what_was_held_before_stays_held():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with interrupts_held():
            pass
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def test_a_worker_that_was_interrupted_between_two_tasks_does_not_begin_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "_interrupted", threading.Event())
    assert scheduler._stoppable(len, "abc") == 3
    scheduler._note_interrupt()
    with pytest.raises(KeyboardInterrupt):
        scheduler._stoppable(len, "abc")
