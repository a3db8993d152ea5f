"""Proof that files are what was written: sha256 of files, and small JSON records that carry their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terrazzo.errors import CorpusError
from terrazzo.writing import whole_file

_BLOCK = 2**20
_SELF = "record_sha256"


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return relative name -> sha256 of every file below a folder, sorted by name."""
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    return {name: hash_file(path) for name, path in files}


def hash_json(content: Any) -> str:
    """Return the sha256 (hex) of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_path(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder with their names."""
    return hash_json(hash_files(path)) if path.is_dir() else hash_file(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as draft:
        draft.write_bytes(content)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON record with its own checksum, whole or not at all."""
    write_bytes(path, _text(content).encode())


def read_record(path: Path) -> dict[str, Any]:
    """Read what :func:`write_record` wrote.

    Raises
    ------
    CorpusError
        A missing file, or one that is not byte for byte as written.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} is damaged ({type(error).__name__})") from error
    stated = content.pop(_SELF, None) if isinstance(content, dict) else None
    if stated is None or text != _text(content):
        raise CorpusError(f"{path} is damaged: it is not as it was written")
    return dict(content)


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps({**content, _SELF: hash_json(dict(content))}, indent=1, sort_keys=True) + "\n"
