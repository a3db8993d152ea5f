"""Files that are whole or not there, whatever stops their writing: an error, a full disk, Ctrl-C."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside the target to write to; it takes the target's place at the end, or is removed.

    The name ends in ``.part``: what the operating system killed in between is known by it.
    """
    place = Path(target)
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex}.part")  # no other process or thread has this name
    try:
        yield draft
        draft.replace(place)
    finally:
        with suppress(OSError):  # it is there only where something went wrong, and what did is what is to be said
            draft.unlink()


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with whole_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


def why_not(error: Exception) -> str:
    """Say why something could not be written; libraries tell of a full disk in words of their own."""
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    return "the disk is full" if full else str(error)
