"""Whole files and folders, hashes of their content, and small JSON records that carry their own hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from terrazzo.errors import CorpusError
from terrazzo.parsing import parse_json, read_text

__all__ = [
    "exists",
    "hash_file",
    "hash_files",
    "hash_json",
    "hash_path",
    "read_record",
    "whole_file",
    "why_not",
    "write_bytes",
    "write_record",
    "write_text",
]

_BLOCK = 2**20  # bytes that are read at a time
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

    The name ends in ``.part``, so that drafts left by a killed process can be recognized.
    """
    place = Path(target)
    unique = uuid.uuid4().hex  # no other process or thread has this name
    draft = place.with_name(f".{place.name}.{unique}.part")
    try:
        yield draft
        draft.replace(place)
    finally:
        # The draft still exists only after an error, and that error is the one to report
        with suppress(OSError):
            draft.unlink()


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder beside the target to write into; it takes the target's place at the end, or is removed.

    An older folder of the target's name is moved aside before, and is back where that fails.
    """
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    aside = draft.with_suffix(".old")
    try:
        yield draft
        draft.chmod(0o755)
        try:
            if target.exists():
                target.rename(aside)
            draft.rename(target)
        except BaseException:
            if aside.exists() and not target.exists():
                aside.rename(target)
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


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
