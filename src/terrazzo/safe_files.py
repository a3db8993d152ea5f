"""Checks of foreign files before they are read: what they claim against what they have, and where links lead."""

from __future__ import annotations

import os
from pathlib import Path

from terrazzo.errors import InputError, TerrazzoError, shortened

__all__ = [
    "MAX_INFLATION",
    "SMALL",
    "check_claim",
    "check_inside",
    "check_memory",
    "check_name",
    "is_plain_name",
]

SMALL = 2**26
"""Bytes that are read whatever a file claims."""

MAX_INFLATION = 2000
"""Most bytes in memory for one on disk; deflate itself cannot do more than 1,032."""

_HUB_CACHE = ("models--", "datasets--")  # how folders of the Hugging Face hub's cache begin


def check_claim(
    claimed: int, stored: int, what: str, error: type[TerrazzoError] = InputError
) -> None:
    """Refuse what claims far more bytes than are stored: they would be made up as it is read.

    Raises
    ------
    error
        More than 64 MB, and more than 2,000 times what is stored.
    """
    if claimed > SMALL and claimed > MAX_INFLATION * stored:
        raise error(
            f"{what} claims {claimed:,} bytes, more than the {stored:,} that are stored can hold; it is damaged"
        )


def check_memory(needed: int, what: str, error: type[TerrazzoError] = InputError) -> None:
    """Refuse what this machine cannot hold, whatever else it does.

    Raises
    ------
    error
        It needs more bytes than there are, memory of all processes together.
    """
    present = _memory()
    if present is not None and needed > present:
        raise error(
            f"{what} needs {needed / 2**30:,.1f} GB of memory as it is read, and this machine has "
            f"{present / 2**30:,.1f} GB; take a part of it, or a larger machine"
        )


def _memory() -> int | None:
    """Return the bytes of memory of this machine; None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_inside(path: Path, folder: Path, error: type[TerrazzoError] = InputError) -> None:
    """Refuse a file of a folder that is a link to something outside of it.

    Files in the cache of the Hugging Face hub are links into the same repository.

    Raises
    ------
    error
        It leads outside, or nowhere.
    """
    try:
        target = path.resolve()
        root = _root_of(folder.resolve())
    except (OSError, RuntimeError, ValueError) as problem:  # the second of links in a circle
        raise error(f"{path} is a link that leads nowhere") from problem
    if not target.is_relative_to(root):
        raise error(
            f"{path} is a link to {target}; only links to files inside {folder.name or folder} are followed. "
            "Replace it by what it links to"
        )


def _root_of(folder: Path) -> Path:
    """Return the folder that files must be in: of a snapshot in the hub's cache that of its repository."""
    snapshots = folder.parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith(_HUB_CACHE):
        return snapshots.parent
    return folder


def is_plain_name(name: object) -> bool:
    """Say whether a text is the name of a file or folder, and no path: it stays where it is put."""
    if not isinstance(name, str) or name.strip() in ("", ".", ".."):
        return False
    return not any(letter in name for letter in "/\\\0") and name.isprintable()


def check_name(name: object, what: str, error: type[TerrazzoError] = InputError) -> None:
    """Refuse a name from a file that is not a plain one.

    Raises
    ------
    error
        It is empty, a path, or has letters that names of files cannot have.
    """
    if not is_plain_name(name):
        raise error(
            f"{what} is {shortened(name)}; it must be a plain name, without / and .. (it is used as a file's name)"
        )
