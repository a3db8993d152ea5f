"""Marks in results, by which a later run knows that terrazzo made a file, and from which source; nothing else goes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from terrazzo.errors import OutputError
from terrazzo.sdata import TABLES, is_store

__all__ = [
    "ATTRIBUTE",
    "KEY",
    "Mark",
    "find_mark",
    "guard",
    "mark_file",
    "mark_of",
    "quick_hash",
]

ATTRIBUTE = "terrazzo_mark"  # of an .h5ad file, or of a table of a SpatialData
KEY = "mark"  # in JSON records

_TEXT = re.compile(rb"terrazzo-mark:1:([a-z -]*):([0-9a-f]{16}):([0-9a-f]{16}):([\w.%~+-]*):")
_RECORDS = ("result.json", "probe.json")  # files of a folder that have its mark
_HOW = ("slice_key", "image")  # choices that make no other source
_END = 2**17  # bytes at the start and at the end of a file in which a mark is looked for
_SAMPLE = 2**16  # bytes that are hashed at a time
_N_SAMPLES = 64  # of a large file
_MAX_NAME = 60  # letters of a source's name

_OF_A_STORE = {
    "images",
    "labels",
    "points",
    "shapes",
    TABLES,
    "zarr.json",
    "zmetadata",
    ".zattrs",
    ".zgroup",
    ".zmetadata",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ADVICE = "choose another --out, or replace it with --overwrite (overwrite=True)."


@dataclass(frozen=True)
class Mark:
    """What a result was made by, and from.

    Attributes
    ----------
    made_by
        Verb of the command line, or what stands for it.
    place
        Hash of the sources' absolute paths, and of which part of them was read.
    content
        Hash of the sources' content, and of which part of it was read: they may be moved.
    name
        The sources for people: the last parts of the first path.
    """

    made_by: str
    place: str
    content: str
    name: str

    def text(self) -> str:
        """Return the mark as it is in files: printable ASCII without quotes, a word of HTML, JSON and PDF alike."""
        name = quote(self.name, safe="", errors="replace")
        return f"terrazzo-mark:1:{self.made_by}:{self.place}:{self.content}:{name}:"

    def is_like(self, other: Mark) -> bool:
        """Return whether the same verb made both from the same source, at its place or moved."""
        is_source = self.place == other.place or self.content == other.content
        return self.made_by == other.made_by and is_source

    @classmethod
    def parse(cls, content: bytes) -> Mark | None:
        """Return the last mark in some bytes; None where there is none."""
        found = None
        for match in _TEXT.finditer(content):
            made_by, place, digest, name = (group.decode("ascii") for group in match.groups())
            found = cls(made_by, place, digest, unquote(name))
        return found


def mark_of(
    made_by: str,
    sources: Iterable[str | os.PathLike[str]],
    choices: Mapping[str, Any] | None = None,
) -> Mark:
    """Return the mark of what is made from some paths.

    Parameters
    ----------
    made_by
        The verb.
    sources
        Files and folders.
    choices
        Which part of them is read, and what else makes another result of it. How that is taken does not count: a
        column of sections, an image.
    """
    paths = [Path(source) for source in sources]
    chosen = []
    for name, value in sorted((choices or {}).items()):
        if value is not None and name not in _HOW:
            chosen.append((name, str(value)))
    places = [os.fsencode(os.path.realpath(path)).hex() for path in paths]
    contents = [quick_hash(path) for path in paths]
    return Mark(
        made_by,
        _digest([places, chosen]),
        _digest([contents, chosen]),
        _name(paths),
    )


def _name(paths: Sequence[Path]) -> str:
    """Return the last two parts of the first path, and how many more there are."""
    if not paths:
        return ""
    name = "/".join(paths[0].absolute().parts[-2:]).lstrip("/")
    if len(name) > _MAX_NAME:
        name = f"...{name[-_MAX_NAME:]}"
    n_more = len(paths) - 1
    return f"{name} and {n_more} more" if n_more else name


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def quick_hash(path: Path) -> str:
    """Return a hash of a file's size and of samples of it, or of the names and sizes of a folder's files.

    It tells sources apart in a moment; a change of a few bytes may pass. What cannot be read has the hash of its name.
    """
    digest = hashlib.sha256()
    try:
        if not path.is_dir():
            _add_samples(digest, path)
            return digest.hexdigest()
        for folder, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                file = Path(folder, name)
                digest.update(os.fsencode(file.relative_to(path)))
                digest.update(f":{file.stat().st_size};".encode())
                if name.endswith(".json"):
                    digest.update(file.read_bytes()[:_SAMPLE])
    except OSError:
        digest.update(os.fsencode(path))
    return digest.hexdigest()


def _add_samples(digest: Any, path: Path) -> None:
    """Add size and samples of a file to a hash."""
    size = path.stat().st_size
    digest.update(f"{size};".encode())
    step = max(_SAMPLE, size // _N_SAMPLES)
    with path.open("rb") as stream:
        for start in range(0, size, step):
            stream.seek(start)
            digest.update(stream.read(_SAMPLE))


def find_mark(path: Path) -> Mark | None:
    """Return the mark of a result; None of what terrazzo did not write, or of what was saved again by others."""
    try:
        if path.is_dir():
            return _mark_of_folder(path)
        with path.open("rb") as stream:
            start = stream.read(_END)
            if start.startswith(_HDF5):
                return _mark_of_hdf5(path)
            end = max(len(start), path.stat().st_size - _END)
            stream.seek(end)
            return Mark.parse(start) or Mark.parse(stream.read(_END))
    except (OSError, ValueError):
        return None


def _mark_of_folder(folder: Path) -> Mark | None:
    files = [folder / name for name in _RECORDS]
    for table in sorted((folder / TABLES).glob("*")):
        files.append(table / "zarr.json")
        files.append(table / ".zattrs")
    for file in files:
        if file.is_file():
            mark = Mark.parse(file.read_bytes()[:_END])
            if mark is not None:
                return mark
    return None


def _mark_of_hdf5(path: Path) -> Mark | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            value = file.attrs.get(ATTRIBUTE, "")
    except (OSError, KeyError, TypeError, RuntimeError):
        return None
    return Mark.parse(value.encode()) if isinstance(value, str) else None


def mark_file(path: Path, mark: Mark) -> None:
    """Write the mark into an HDF5 file that is complete otherwise."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs[ATTRIBUTE] = mark.text()


def _is_only_store(folder: Path) -> bool:
    """Return whether a folder is a SpatialData store, with nothing in it that does not belong to one."""
    return is_store(folder) and {path.name for path in folder.iterdir()} <= _OF_A_STORE


def guard(target: Path, mark: Mark, *, overwrite: bool = False) -> None:
    """Refuse to replace a file or folder that terrazzo did not write, or that it made from another source.

    Parameters
    ----------
    target
        What will be written.
    mark
        That it will have.
    overwrite
        Replace a file nevertheless; a folder only where it is a result, or a SpatialData store and nothing else.

    Raises
    ------
    OutputError
        It exists, and is not such a result.
    """
    if not os.path.lexists(target):
        return
    before = find_mark(target)
    if before is None:
        if overwrite and (not target.is_dir() or _is_only_store(target)):
            return
        if target.is_dir():
            raise OutputError(
                f"{target} is a folder that was not written by terrazzo: choose another --out; --overwrite does not "
                "remove folders."
            )
        raise OutputError(f"{target} exists and was not written by terrazzo: {_ADVICE}")
    if overwrite or before.is_like(mark):
        return
    if before.made_by != mark.made_by:
        raise OutputError(
            f"{target} is a result of terrazzo {before.made_by}, which would be lost: {_ADVICE}"
        )
    raise OutputError(
        f"{target} was made from another source ({before.name}, and now {mark.name}), and would be lost: {_ADVICE}"
    )
