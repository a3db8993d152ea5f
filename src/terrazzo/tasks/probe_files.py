"""Probes on disk: a folder with probe.json and probe.safetensors, written whole or not at all, read as data only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.errors import CheckpointError, ConfigError, OutputError
from terrazzo.files import whole_folder
from terrazzo.marks import KEY, Mark, find_mark
from terrazzo.parsing import read_object
from terrazzo.records import stamp
from terrazzo.tasks.experiments import make_head
from terrazzo.tasks.heads import Head, State, head_from_record

__all__ = ["check_free", "is_probe", "read", "write"]

RECORD = "probe.json"
ARRAYS = "probe.safetensors"
FORMAT = 1
KINDS = ("classes", "values", "proportions")
_FIELDS: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "names": (list,),
    "use_rep": (str, type(None)),
    "target": (str,),
    "origins": (list,),
    "head": (dict,),
    "info": (dict,),
    "arrays_sha256": (str,),
}


def write(
    folder: str | Path,
    record: Mapping[str, Any],
    state: State,
    *,
    overwrite: bool = False,
    mark: Mark | None = None,
) -> Path:
    """Write a probe's folder, all of it or nothing.

    Raises
    ------
    OutputError
        As :func:`check_free`; or it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    target = Path(folder)
    check_free(target, overwrite=overwrite, mark=mark)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: np.ascontiguousarray(value) for name, value in state.items()}
        arrays = save(contiguous)
        content = {
            "format": FORMAT,
            **record,
            "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
            **stamp(),
        }
        if mark is not None:
            content[KEY] = mark.text()
        text = json.dumps(content, indent=2) + "\n"
        with whole_folder(target) as draft:
            (draft / ARRAYS).write_bytes(arrays)
            (draft / RECORD).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"The probe could not be written to {target} ({error}); nothing was left there."
        ) from error
    return target


def check_free(target: Path, *, overwrite: bool = False, mark: Mark | None = None) -> None:
    """Refuse a folder that has anything but a probe that may be replaced: of the same mark, or any with ``overwrite``.

    Raises
    ------
    OutputError
        It is not free.
    """
    if not os.path.lexists(target):
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    problem = f"{target} exists already and is not empty"
    if not is_probe(target):
        raise OutputError(
            f"{problem}: choose another folder (it holds other files, and not just a probe)."
        )
    if overwrite:
        return
    if mark is None:
        raise OutputError(f"{problem}: pass overwrite=True.")
    before = find_mark(target)
    if before is None or not before.is_like(mark):
        origin = "another source" if before is None else f"another source ({before.name})"
        raise OutputError(
            f"{target} holds a probe that was learned from {origin}: choose another --out, or replace it with "
            "--overwrite (overwrite=True)."
        )


def read(folder: str | Path) -> tuple[dict[str, Any], Head]:
    """Return a probe's record and its fitted head.

    Raises
    ------
    CheckpointError
        Not a probe's folder, a damaged one, or one of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder)
    missing = [name for name in (RECORD, ARRAYS) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} is not a probe's folder: it lacks {', '.join(missing)}.")
    record = _record(path / RECORD)
    arrays_path = path / ARRAYS
    try:
        arrays = arrays_path.read_bytes()
        if hashlib.sha256(arrays).hexdigest() != record["arrays_sha256"]:
            raise CheckpointError(
                f"{arrays_path} is damaged, or does not belong to {RECORD}; save the probe again."
            )
        state = load(arrays)
        config = head_from_record(record["head"])
        head = make_head(config, record["kind"], len(record["names"]))
        head.load_state(state)
    except (OSError, SafetensorError, ConfigError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged, or of another version ({error}).") from error
    not_finite = []
    for name, value in state.items():
        if not np.isfinite(value).all():
            not_finite.append(name)
    if not_finite:
        raise CheckpointError(
            f"{arrays_path} holds values that are not finite: {', '.join(not_finite)}."
        )
    return record, head


def _record(path: Path) -> dict[str, Any]:
    """Read a probe's record, its fields checked."""
    record = read_object(path, CheckpointError, finite=False)
    if "format" not in record:
        raise CheckpointError(f"{path} is not the record of a probe.")
    version = record["format"]
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}; this version reads {FORMAT}. Upgrade terrazzo?"
        )
    wrong = []
    for name, types in _FIELDS.items():
        if name not in record or not isinstance(record[name], types):
            wrong.append(name)
    if wrong:
        raise CheckpointError(f"{path} lacks or misstates {', '.join(wrong)}; it is damaged.")
    names_are_text = all(isinstance(name, str) for name in record["names"])
    if record["kind"] not in KINDS or not names_are_text:
        raise CheckpointError(f"{path} lacks or misstates kind or names; it is damaged.")
    return record


def is_probe(folder: Path) -> bool:
    """Return whether a folder holds a probe, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != {RECORD, ARRAYS}:
        return False
    try:
        _record(folder / RECORD)
    except CheckpointError:
        return False
    return True
