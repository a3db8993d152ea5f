"""A probe's folder: probe.json and probe.safetensors, written whole or not at all, and read as data only."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo._version import __version__
from terrazzo.errors import CheckpointError, ConfigError, OutputError
from terrazzo.tasks.readouts import Readout, State, head_from_record, make

RECORD, ARRAYS = "probe.json", "probe.safetensors"
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
    folder: str | Path, record: Mapping[str, Any], state: State, *, overwrite: bool = False
) -> Path:
    """Write a probe's folder, all of it or nothing.

    Raises
    ------
    OutputError
        The folder holds something already (and ``overwrite`` is not given, or it is no probe), or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save

    target = Path(folder)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        ours = _is_ours(target)
        if not overwrite or not ours:
            mend = (
                "pass overwrite=True"
                if ours
                else "choose another folder (it holds other files, and no probe)"
            )
            raise OutputError(f"{target} exists already and is not empty: {mend}.")
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        arrays = save({name: np.ascontiguousarray(value) for name, value in state.items()})
        header = {
            "format": FORMAT,
            **record,
            "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
            "terrazzo_version": __version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        (draft / ARRAYS).write_bytes(arrays)
        (draft / RECORD).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"The probe could not be written to {target} ({error}); nothing was kept."
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def read(folder: str | Path) -> tuple[dict[str, Any], Readout]:
    """Return a probe's record and its fitted read-out.

    Raises
    ------
    CheckpointError
        Not a probe's folder, a damaged one, or one of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder)
    absent = [name for name in (RECORD, ARRAYS) if not (path / name).is_file()]
    if absent:
        raise CheckpointError(f"{path} is no probe's folder: it lacks {', '.join(absent)}.")
    record = _record(path / RECORD)
    try:
        found = (path / ARRAYS).read_bytes()
        if hashlib.sha256(found).hexdigest() != record["arrays_sha256"]:
            raise CheckpointError(
                f"{path / ARRAYS} is damaged, or does not belong to {RECORD}; save the probe again."
            )
        state = load(found)
        readout = make(
            head_from_record(record["head"]), record["kind"], len(record["names"])
        ).load_state(state)
    except (OSError, SafetensorError, ConfigError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged, or of another version ({error}).") from error
    odd = [name for name, value in state.items() if not np.isfinite(value).all()]
    if odd:
        raise CheckpointError(
            f"{path / ARRAYS} holds values that are not finite: {', '.join(odd)}."
        )
    return record, readout


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(record, dict) or "format" not in record:
        raise CheckpointError(f"{path} is not the record of a probe.")
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {record['format']!r}; this version reads {FORMAT}. Upgrade terrazzo?"
        )
    wrong = [
        k for k, kinds in _FIELDS.items() if k not in record or not isinstance(record[k], kinds)
    ]
    if wrong or record["kind"] not in KINDS or not all(isinstance(n, str) for n in record["names"]):
        raise CheckpointError(
            f"{path} lacks or misstates {', '.join(wrong) or 'kind or names'}; it is damaged."
        )
    return record


def _is_ours(folder: Path) -> bool:
    try:
        _record(folder / RECORD)
    except CheckpointError:
        return False
    return True
