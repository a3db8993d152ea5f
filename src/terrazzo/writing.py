"""Files that are whole or not there, whatever stops their writing: an error, a full disk, Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside the target to write to; it takes the target's place at the end, or is removed.

    The name ends in ``.part``: what the operating system killed in between is known by it.
    """
    place = Path(target)
    draft = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        yield draft
        draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with whole_file(target) as draft:
        draft.write_text(text, encoding="utf-8")
