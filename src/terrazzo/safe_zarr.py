"""Checks of zarr folders as plain files, before any library opens them: no pickles, nothing from outside the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError

__all__ = ["MARKS", "read_attributes", "refuse_code", "refuse_links"]

MARKS = ("zarr.json", ".zgroup", ".zattrs")  # files of which any says that a folder is zarr
_METADATA = (*MARKS, ".zarray", ".zmetadata", "zmetadata")
_CODEC_KEYS = ("id", "name", "object_codec_id")
_MAX_METADATA = 2**26  # bytes of one metadata file


def refuse_code(folder: Path) -> None:
    """Refuse a zarr folder of which an array would be unpickled when it is read.

    Raises
    ------
    InputError
        A codec that unpickles is named anywhere in its metadata; metadata that cannot be read.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if name in _METADATA and _names_pickle(_read_json(path)):
                raise InputError(
                    f"{path}: the array is stored as Python pickles, which run code when they are read; "
                    "write it again as text or numbers"
                )


def refuse_links(folder: Path) -> None:
    """Refuse a folder of which reading or copying would reach other files than its own.

    Links to files inside of it are allowed.

    Raises
    ------
    InputError
        A link that leads outside, to a folder or nowhere; a pipe or a device; a list of Parquet files.
    """
    inside = folder.resolve()
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place, name)
            if path.is_symlink():
                target = path.resolve()
                if not (target.is_file() and target.is_relative_to(inside)):
                    raise InputError(
                        f"{path} is a link to {target}; only links to files inside the store are followed. "
                        "Replace it by what it links to"
                    )
            elif not (path.is_file() or path.is_dir()):
                raise InputError(f"{path} is neither a file nor a folder; remove it from the store")
            if name == "_metadata":
                raise InputError(
                    f"{path} lists Parquet files that may be anywhere; remove it, the store is whole without it"
                )


def read_attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of a zarr group or array; {} where there are none, or where they cannot be read."""
    for mark in ("zarr.json", ".zattrs"):
        path = folder / mark
        if not path.is_file():
            continue
        try:
            content = _read_json(path)
        except InputError:
            continue  # the library that opens it reports the error
        if mark == "zarr.json" and isinstance(content, dict):
            content = content.get("attributes")
        return content if isinstance(content, dict) else {}
    return {}


def _names_pickle(metadata: Any) -> bool:
    """Search all levels of a JSON value for a codec whose name contains "pickle"."""
    waiting = [metadata]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if any("pickle" in str(value.get(key, "")).lower() for key in _CODEC_KEYS):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > _MAX_METADATA:
            raise ValueError(f"{size:,} bytes, far more than metadata needs")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); it is damaged, truncated or not an AnnData or SpatialData"
        ) from error
