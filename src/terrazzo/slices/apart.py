"""Read a slice in a process of its own, and remember which slice is in work, so that one that crashes has a name."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError
from terrazzo.files import short_name
from terrazzo.processes import own_tag, writer_of
from terrazzo.slices.opened import Choices

__all__ = ["died_at", "in_work", "read_apart", "run_apart"]

_WORK = ".work"  # ends the name of a file that is there while a slice is in work


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
    process.start()
    sender.close()
    try:
        is_error, result = receiver.recv()
    except EOFError:
        process.join()
        raise InputError(
            f"a library crashed while it read the slice ({_cause(process.exitcode)}): the file is damaged, or memory "
            "ran out"
        ) from None
    finally:
        if process.is_alive():
            process.join(1)
            process.kill()
        process.join()
        receiver.close()
    if is_error:
        raise result
    return result


def _send(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a function and send what it returns or raises."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    try:
        sender.send((False, function(*arguments)))
    except Exception as error:
        sender.send((True, InputError(str(error) or type(error).__name__)))


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
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
    run_apart(_read, path, replace(choices), lean)


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
    has_died = False
    prefix = f".{short_name(target.name)}."
    try:
        names = os.listdir(target.parent)
    except OSError:
        return False
    for name in names:
        if not name.startswith(prefix) or not name.endswith(_WORK):
            continue
        tag = name[len(prefix) : -len(_WORK)]
        writer = writer_of(tag)
        if writer is not None and writer.is_dead():
            has_died = True
            with suppress(OSError):
                (target.parent / name).unlink()
    return has_died
