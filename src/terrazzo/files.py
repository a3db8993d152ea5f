"""Whole files and folders, hashes of their content, and small JSON records that carry their own hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terrazzo.errors import CorpusError, OutputError
from terrazzo.parsing import parse_json, read_text
from terrazzo.processes import TAG, own_tag, writer_of

__all__ = [
    "ASIDE",
    "DRAFT",
    "exists",
    "hash_file",
    "hash_files",
    "hash_json",
    "hash_path",
    "read_record",
    "short_name",
    "sweep",
    "whole_file",
    "whole_folder",
    "why_not",
    "work_folder",
    "write_bytes",
    "write_record",
    "write_text",
]

DRAFT = ".part"  # ends the name of what is half-written
ASIDE = ".old"  # of a folder that makes room for a new one

_DRAFT_NAME = re.compile(
    rf"\.(?P<name>.+)\.(?P<tag>{TAG})\.[0-9a-f]{{8}}({DRAFT}|{ASIDE})", re.DOTALL
)
_PRIVATE = 0o600
_LONGEST = 120  # bytes of a name that are taken over into that of its draft
_PATIENCE = 100  # attempts to take a name that other processes take, too
_BLOCK = 2**20  # bytes that are read at a time
_next_sweep: dict[Path, float] = {}  # folder -> time before which it is not swept again
_MAX_RECORD = 2**28  # bytes; of a corpus it lists thousands of files
_OWN_HASH = "record_sha256"  # the key under which a record carries its hash


def exists(path: Path) -> bool:
    """Say whether a path exists; a name that no file can have names none."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL in it
        return False


@contextmanager
def whole_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside the target to write to; it takes the target's place at the end, or is removed.

    The name ends in ``.part`` and names this process, so that the next writer can remove what a killed one left.
    A link is followed: the file that it leads to is replaced.
    """
    place = _followed(Path(target))
    _sweep_now_and_then(place.parent)
    draft = _beside(place, DRAFT)
    try:
        yield draft
        draft.replace(place)
    finally:
        # The draft still exists only after an error, and that error is the one to report
        with suppress(OSError):
            draft.unlink()


@contextmanager
def whole_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder beside the target to write into; it takes the target's place at the end, or is removed.

    An older folder of the target's name is moved aside only when the new one is complete; it is back where that
    fails, and the next writer moves it back where this process is killed in between.
    """
    place = _followed(Path(target))
    _sweep_now_and_then(place.parent)
    draft = _beside(place, DRAFT)
    aside = draft.with_suffix(ASIDE)
    draft.mkdir()
    try:
        yield draft
        _follow_umask(draft)
        _swap(draft, place, aside)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def work_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden folder in another one, for what is made on the way; it is removed at the end.

    The next run of the same folder removes what a killed one left.
    """
    sweep(folder)
    work = _beside(Path(folder) / "work", DRAFT)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _follow_umask(folder: Path) -> None:
    """Give files that only their owner may read, as libraries that write to temporary files leave them, the usual mode.

    The folder was made with all permissions but those of the umask.
    """
    usual = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 == _PRIVATE:
            path.chmod(usual)


def _swap(draft: Path, place: Path, aside: Path) -> None:
    """Give a finished folder its name; what has that name is moved aside, and back where it fails."""
    for _ in range(_PATIENCE):  # another process may write the same folder at the same time
        try:
            if os.path.lexists(place):
                if not place.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(place))
                shutil.rmtree(aside, ignore_errors=True)
                place.rename(aside)
            draft.rename(place)
            return
        except BaseException as error:
            was_taken = os.path.lexists(place)
            if os.path.lexists(aside) and not was_taken:
                aside.rename(place)
            is_race = isinstance(error, FileNotFoundError) or (
                isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            )
            if not is_race or not draft.exists():
                raise
    raise OutputError(f"{place} is being rewritten by other processes without end.")


def _followed(path: Path) -> Path:
    """Return where a link leads, any other path as it is."""
    return path.resolve() if path.is_symlink() else path


def _beside(place: Path, suffix: str) -> Path:
    """Return a hidden name beside a path, which no other process or thread has; long names are shortened."""
    unique = uuid.uuid4().hex[:8]
    return place.with_name(f".{short_name(place.name)}.{own_tag()}.{unique}{suffix}")


def short_name(name: str) -> str:
    """Return a name that leaves room for more letters; file systems take 255 bytes."""
    raw = os.fsencode(name)
    if len(raw) <= _LONGEST:
        return name
    digest = hashlib.sha256(raw).hexdigest()[:8]
    start = name[: _LONGEST // 4]
    return f"{start}~{digest}"


def sweep(folder: str | os.PathLike[str], *, deep: bool = False) -> None:
    """Remove drafts that killed processes of this machine left in a folder; those of running ones stay.

    A folder that was moved aside to make room for a new one, which then never came, is moved back.

    Parameters
    ----------
    folder
        Where; it may be missing.
    deep
        Below the folder, too.
    """
    places = [Path(folder)]
    if deep:
        places = [Path(place) for place, _, _ in os.walk(folder)]
    for place in places:
        for path in _drafts(place):
            match = _DRAFT_NAME.fullmatch(path.name)
            if match is None:
                continue
            writer = writer_of(match["tag"])
            if writer is not None and writer.is_dead():
                _remove_draft(path, match["name"])


def _sweep_now_and_then(folder: Path) -> None:
    """Sweep a folder, unless that would take a large part of the time of who writes many files into a full one."""
    start = time.monotonic()
    if start < _next_sweep.get(folder, 0.0):
        return
    sweep(folder)
    end = time.monotonic()
    _next_sweep[folder] = end + 100 * (end - start)


def _drafts(folder: Path) -> list[Path]:
    """Return what of a folder may be a draft."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:  # no such folder, or not to be read
        return []
    return [folder / name for name in names if name.endswith((DRAFT, ASIDE))]


def _remove_draft(path: Path, name: str) -> None:
    """Remove a draft; a folder that was moved aside goes back where nothing took its place."""
    place = path.with_name(name)
    with suppress(OSError):
        if path.suffix == ASIDE and short_name(name) == name and not os.path.lexists(place):
            path.rename(place)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with whole_file(target) as draft:
        draft.write_text(text, encoding="utf-8")


def why_not(error: Exception) -> str:
    """Say why something could not be written; libraries have their own words for a full disk."""
    is_full = getattr(error, "errno", None) == errno.ENOSPC
    if is_full or "No space left" in str(error):
        return "the disk is full"
    return str(error)


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return relative name -> sha256 of every file below a folder, sorted by name."""
    files = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = path
    return {name: hash_file(files[name]) for name in sorted(files)}


def hash_json(content: Any) -> str:
    """Return the sha256 (hex) of a JSON-able value."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_path(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder with their names."""
    if path.is_dir():
        return hash_json(hash_files(path))
    return hash_file(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as draft:
        draft.write_bytes(content)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON record with its own checksum, whole or not at all."""
    text = _record_text(content)
    write_bytes(path, text.encode())


def read_record(path: Path) -> dict[str, Any]:
    """Read what :func:`write_record` wrote.

    Raises
    ------
    CorpusError
        A missing file, or one that is not byte for byte as written.
    """
    try:
        text = read_text(path, CorpusError, _MAX_RECORD)
        content = parse_json(text, str(path), CorpusError, finite=False)
    except CorpusError as error:
        if not path.exists():
            raise CorpusError(f"{path} is missing") from error
        raise CorpusError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or _OWN_HASH not in content:
        raise CorpusError(f"{path} is damaged: it is not a record with its hash")
    del content[_OWN_HASH]
    if text != _record_text(content):
        raise CorpusError(f"{path} is damaged: it is not as it was written")
    return content


def _record_text(content: Mapping[str, Any]) -> str:
    """Return the JSON text of a record, with its own hash in it."""
    record = dict(content)
    record[_OWN_HASH] = hash_json(dict(content))
    return json.dumps(record, indent=1, sort_keys=True) + "\n"
