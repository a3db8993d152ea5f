"""The door to a SpatialData, a folder on disk or an object; and what is looked at before a store is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError
from terrazzo.sdata.container import Container
from terrazzo.sdata.inmemory import open_object

ELEMENTS = ("images", "labels", "shapes", "points")
TABLES = ("tables", "table")  # "table": before containers had a version
MARKS = ("zarr.json", ".zgroup", ".zattrs")
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata", "zmetadata")
_MOST_JSON = 2**26  # bytes


def open_container(source: Any) -> Container:
    """Open a SpatialData: the path of a store, or an object.

    Raises
    ------
    InputError
        It is neither; the store is damaged.
    """
    if isinstance(source, Container):
        return source
    if isinstance(source, str | os.PathLike):
        from terrazzo.sdata.ondisk import open_store

        return open_store(Path(source))
    if not any(isinstance(getattr(source, kind, None), Mapping) for kind in ("tables", *ELEMENTS)):
        raise InputError(
            f"not a SpatialData (with .tables), nor the path of one, but {type(source).__name__}"
        )
    return open_object(source)


def is_store(path: Path) -> bool:
    """Say whether a folder is a whole SpatialData store; a table of it is none, nor is an AnnData."""
    if (
        not path.is_dir()
        or not any((path / mark).is_file() for mark in MARKS)
        or (path / "obs").is_dir()
    ):
        return False
    attributes = _attributes(path)
    if str(attributes.get("encoding-type", "")) == "anndata":
        return False
    return "spatialdata_attrs" in attributes or any(
        (path / kind).is_dir() for kind in (*TABLES, "shapes", "labels")
    )


def refuse_code(path: Path) -> None:
    """Refuse a zarr folder of which an array would be unpickled when it is read.

    Raises
    ------
    InputError
        A codec that unpickles is named anywhere in its metadata.
    """
    for folder, _, files in os.walk(path):
        for name in files:
            if name in _METADATA and _names_pickle(_read_json(Path(folder) / name)):
                raise InputError(
                    f"{Path(folder) / name}: the array is stored as Python pickles, which run code when they are read; "
                    "write it again as text or numbers"
                )


def _names_pickle(content: Any) -> bool:
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if any(
                "pickle" in str(one.get(key, "")).lower()
                for key in ("id", "name", "object_codec_id")
            ):
                return True
            waiting += [held for held in one.values() if isinstance(held, dict | list)]
        elif isinstance(one, list):
            waiting += [held for held in one if isinstance(held, dict | list)]
    return False


def _attributes(path: Path) -> dict[str, Any]:
    for mark in ("zarr.json", ".zattrs"):
        if (path / mark).is_file():
            try:
                content = _read_json(path / mark)
            except InputError:
                continue  # it is said where it is opened
            content = (
                content.get("attributes", {})
                if mark == "zarr.json" and isinstance(content, dict)
                else content
            )
            return content if isinstance(content, dict) else {}
    return {}


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise InputError(
                f"{path} is {path.stat().st_size:,} bytes, far more than a description needs"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); it is damaged, truncated or not an AnnData or SpatialData"
        ) from error
