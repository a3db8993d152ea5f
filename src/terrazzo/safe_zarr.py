"""Checks of zarr folders as plain files, before a library opens them: no pickles, links out, or absurd sizes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.errors import InputError
from terrazzo.parsing import read_json
from terrazzo.safe_files import MAX_INFLATION, SMALL, check_claim, check_memory

__all__ = [
    "MARKS",
    "check_folder",
    "read_attributes",
    "refuse_code",
    "refuse_links",
    "refuse_sizes",
]

MARKS = ("zarr.json", ".zgroup", ".zattrs")  # files of which any says that a folder is zarr
_METADATA = (*MARKS, ".zarray", ".zmetadata", "zmetadata")
_CODEC_KEYS = ("id", "name", "object_codec_id")
_CODES = (
    "json2",
    "msgpack2",
)  # codecs of any objects, which neither anndata nor spatialdata writes
_MAX_METADATA = 2**26  # bytes of one metadata file
_SMALL_TOTAL = 16 * SMALL


def check_folder(folder: Path) -> None:
    """Check a zarr folder of which all arrays will be read into memory.

    Raises
    ------
    InputError
        As :func:`refuse_links`, :func:`refuse_code` and :func:`refuse_sizes`.
    """
    refuse_links(folder)
    refuse_code(folder)
    refuse_sizes(folder)


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
            if name not in _METADATA:
                continue
            codec = _unsafe_codec(_read_json(path))
            if codec == "":
                continue
            kind = "Python pickles, which run code when they are read"
            if "pickle" not in codec:
                kind = f"Python objects ({codec})"
            raise InputError(
                f"{path}: the array is stored as {kind}; write it again as text or numbers"
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
                target = _target_of(path)
                if not (target.is_file() and target.is_relative_to(inside)):
                    raise InputError(
                        f"{path} is a link to {target}; only links to files inside the store are followed. "
                        "Replace it by what it links to"
                    )
            elif not (path.is_file() or path.is_dir()):
                raise InputError(f"{path} is neither a file nor a folder; remove it from the store")
            if name == "_metadata" and path.is_file():
                raise InputError(
                    f"{path} lists Parquet files that may be anywhere; remove it, the store is whole without it"
                )


def _target_of(link: Path) -> Path:
    """Return where a link leads."""
    try:
        return link.resolve()
    except (OSError, RuntimeError) as error:  # the second of links in a circle
        raise InputError(
            f"{link} is a link that leads nowhere; remove it from the store"
        ) from error


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


def refuse_sizes(folder: Path) -> None:
    """Refuse a zarr folder of which arrays claim far more than is stored of them, or than this machine can hold.

    Raises
    ------
    InputError
        Names the array.
    """
    sizes = _stored(folder)
    total = 0
    for place, metadata in _arrays(folder):
        stored = sizes.get(place, 0)
        claimed, chunk = _claims(metadata, place)
        check_claim(max(claimed, chunk), stored, str(place))
        total += claimed
    stored = sizes.get(folder, 0)
    if total > _SMALL_TOTAL and total > MAX_INFLATION * stored:
        raise InputError(
            f"{folder}: its arrays claim {total:,} bytes, more than the {stored:,} that are stored can hold"
        )
    check_memory(total, str(folder))


def _stored(folder: Path) -> dict[Path, int]:
    """Return the bytes of all files in and below each folder."""
    sizes: dict[Path, int] = {}
    for place, folders, names in os.walk(folder, topdown=False):
        here = Path(place)
        total = 0
        for name in names:
            total += (here / name).lstat().st_size
        for name in folders:
            total += sizes.get(here / name, 0)
        sizes[here] = total
    return sizes


def _arrays(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and the metadata of every array, those of consolidated metadata too."""
    for place, _, names in os.walk(folder):
        here = Path(place)
        for name in names:
            if name not in _METADATA:
                continue
            content = _read_json(here / name)
            if not isinstance(content, dict):
                continue
            if _is_array(name, content):
                yield here, content
            for key, metadata in _consolidated(content).items():
                if ".." in key.split("/"):
                    raise InputError(f"{here / name} names what is outside of its folder ({key})")
                if isinstance(metadata, dict) and _is_array(key, metadata):
                    yield here / key.removesuffix(".zarray"), metadata


def _is_array(name: str, metadata: dict[str, Any]) -> bool:
    """Say whether metadata are those of an array; attributes may have a shape, too."""
    is_version_2 = name.rpartition("/")[2] == ".zarray"
    return is_version_2 or metadata.get("node_type") == "array"


def _consolidated(content: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of others in a file of metadata."""
    inner = content.get("consolidated_metadata", content)
    entries = inner.get("metadata") if isinstance(inner, dict) else None
    return entries if isinstance(entries, dict) else {}


def _claims(metadata: dict[str, Any], place: Path) -> tuple[int, int]:
    """Return the bytes of an array and of one of its chunks, as its metadata state them."""
    try:
        shape = [int(side) for side in metadata["shape"]]
        chunks = metadata.get("chunks")
        if chunks is None:
            chunks = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        sides = [int(side) for side in chunks]
        item = _item_size(metadata.get("dtype", metadata.get("data_type")))
        if min([*shape, *sides, item], default=0) < 0:
            raise ValueError("a negative size")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{place}: the metadata of this array are damaged ({error})") from error
    return math.prod(shape) * item, math.prod(sides) * item


def _item_size(kind: Any) -> int:
    """Return the bytes of one value of a type, as zarr v2 and v3 name it; of objects and texts the pointer."""
    if isinstance(kind, list):
        return sum(_item_size(field[1]) for field in kind)
    if isinstance(kind, dict):
        length = kind.get("configuration", {}).get("length_bytes", 8)
        return int(length)
    try:
        return np.dtype(str(kind)).itemsize or 8
    except TypeError:
        return 8


def _unsafe_codec(metadata: Any) -> str:
    """Search all levels of a JSON value for a codec of Python objects; return its name, "" for none."""
    waiting = [metadata]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key in _CODEC_KEYS:
                name = str(value.get(key, "")).lower()
                if "pickle" in name or name.removeprefix("numcodecs.") in _CODES:
                    return name
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return ""


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, InputError, finite=False, max_bytes=_MAX_METADATA)
    except InputError as error:
        raise InputError(
            f"{path} cannot be read ({error}); it is damaged, truncated or not an AnnData or SpatialData"
        ) from error
