"""Read a slice in a process of its own, and remember which slice is in work, so that one that crashes has a name."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError
from terrazzo.files import short_name
from terrazzo.processes import TAG, accept_interrupts, interrupts_held, own_tag, writer_of
from terrazzo.slices.opened import Choices

__all__ = ["dead_notes", "died_at", "in_work", "read_apart", "run_apart"]

_WORK = ".work"  # ends the name of a file that is there while a slice is in work
_NOTE = re.compile(rf"\.(?P<name>.+)\.(?P<tag>{TAG}){re.escape(_WORK)}", re.DOTALL)


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call an importable function in a new process, and return what it returns.

    Raises
    ------
    InputError
        The process died; says of what.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments), daemon=True)
    try:
        with interrupts_held():
            process.start()
        sender.close()
        is_error, result = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode is not None and process.exitcode >= 0:
            raise RuntimeError(
                f"the process for it ended with exit code {process.exitcode}"
            ) from None
        raise InputError(
            f"a library crashed while it read the slice ({_cause(process.exitcode)}): the file is damaged, or memory "
            "ran out"
        ) from None
    finally:
        if process.is_alive():
            process.join(1)
            process.kill()
        if process.pid is not None:
            process.join()
        receiver.close()
    if is_error:
        raise result
    return result


def _send(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a function and send what it returns or raises."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    accept_interrupts()
    try:
        sender.send((False, function(*arguments)))
    except Exception as error:
        sender.send((True, InputError(str(error) or type(error).__name__)))


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "no exit code"
    with suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"


def read_apart(path: Path, choices: Choices, options: dict[str, Any]) -> None:
    """Read a slice in a process of its own, to see whether that goes well.

    Raises
    ------
    InputError
        As :func:`terrazzo.read`; or a library crashed.
    """
    lean = {name: value for name, value in options.items() if name != "image"}
    with suppress(
        RuntimeError
    ):  # a script without `if __name__ == "__main__"` cannot start processes
        run_apart(_read, path, choices, lean)


def _read(path: Path, choices: Choices, options: dict[str, Any]) -> None:
    from terrazzo.slices.reading import open_slice
    from terrazzo.slices.slice import Slice

    Slice.from_opened(open_slice(path, choices), **options)


@contextmanager
def in_work(target: Path, source: Path) -> Iterator[bool]:
    """Remember beside a target that a slice is in work for it; yield whether an earlier run died in that work."""
    has_died = died_at(target)
    note = target.with_name(f".{short_name(target.name)}.{own_tag()}{_WORK}")
    with suppress(OSError):
        note.write_bytes(os.fsencode(source))
    try:
        yield has_died
    finally:
        with suppress(OSError):
            note.unlink()


def died_at(target: Path) -> bool:
    """Return whether a process died in the work for a target; its note is removed."""
    notes = dead_notes(target.parent).get(short_name(target.name), [])
    for note in notes:
        with suppress(OSError):
            note.unlink()
    return bool(notes)


def dead_notes(folder: Path) -> dict[str, list[Path]]:
    """Return the notes of dead processes in a folder, by the (shortened) name of the target in work."""
    notes: dict[str, list[Path]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return notes
    for name in names:
        match = _NOTE.fullmatch(name)
        writer = None if match is None else writer_of(match["tag"])
        if match is not None and writer is not None and writer.is_dead():
            notes.setdefault(match["name"], []).append(folder / name)
    return notes
