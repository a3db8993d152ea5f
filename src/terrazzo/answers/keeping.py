"""What was found, kept beside the results until they are complete: a stopped run goes on without finding again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo.answers.data import Data
from terrazzo.answers.finding import Found
from terrazzo.answers.projection import RECORD, Projection
from terrazzo.answers.result import Answer
from terrazzo.answers.sources import Fitted
from terrazzo.errors import CheckpointError, CorpusError, OutputError
from terrazzo.files import read_record, whole_folder, why_not, write_bytes, write_record

__all__ = ["FOLDER", "forget", "keep", "kept"]

FOLDER = "unfinished"  # in the folder of the results

ABOUT = "answer.json"

ARRAYS = "answer.safetensors"

TABLES = ("markers", "shares", "comparison", "curve")


def keep(out: Path, identity: dict[str, Any], answer: Answer) -> None:
    """Write what was found into a folder, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    try:
        with whole_folder(out / FOLDER) as draft:
            _write(draft, identity, answer)
    except OSError as error:
        raise OutputError(f"{out / FOLDER} could not be written: {why_not(error)}.") from error


def _write(folder: Path, identity: dict[str, Any], answer: Answer) -> None:
    from safetensors.numpy import save

    found = answer.found
    arrays = {
        "labels": np.concatenate(found.labels),
        "agreement": np.concatenate(found.agreement),
        "reproducibility": np.concatenate(found.reproducibility),
        "by_region": found.by_region,
        "levels": np.concatenate(answer.levels),
    }
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    write_bytes(folder / ARRAYS, save(contiguous))
    tables = (answer.markers, answer.shares, answer.comparison, found.curve)
    for name, table in zip(TABLES, tables, strict=True):
        table.to_parquet(folder / f"{name}.parquet", index=False)
    if answer.projection is not None:
        answer.projection.save(folder)
    about = {
        "identity": identity,
        "kind": answer.kind,
        "key": answer.key,
        "slices": answer.slice_names,
        "donors": answer.donors,
        "names": answer.names,
        "vectors": answer.vectors,
        "notes": list(answer.notes),
        "settings": answer.settings,
        "similarity": float(found.similarity),
        "by_itself": bool(found.by_itself),
        "between": [float(found.fitted.between_before), float(found.fitted.between_after)],
    }
    write_record(folder / ABOUT, about)


def kept(out: Path, identity: dict[str, Any], data: Data) -> Answer | None:
    """Return what an earlier run with the same identity found, written into the slices; None where there is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = out / FOLDER
    try:
        about = read_record(folder / ABOUT)
        if about["identity"] != identity:
            return None
        arrays = load((folder / ARRAYS).read_bytes())
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        projection = Projection.load(folder) if (folder / RECORD).exists() else None
    except (CorpusError, CheckpointError, SafetensorError, OSError, ValueError, KeyError):
        return None
    answer = _answer(about, arrays, tables, data)
    answer = replace(answer, projection=projection)
    answer.write()
    data.put_back()
    return answer


def _answer(
    about: dict[str, Any], arrays: dict[str, Any], tables: dict[str, pd.DataFrame], data: Data
) -> Answer:
    before, after = about["between"]
    found = Found(
        _cut(arrays["labels"], data),
        _cut(arrays["agreement"], data),
        _cut(arrays["reproducibility"], data),
        arrays["by_region"],
        len(about["names"]),
        tables["curve"],
        about["similarity"],
        Fitted([], None, before, after),
        [],
        about["by_itself"],
    )
    return Answer(
        about["kind"],
        about["key"],
        data.adatas,
        about["slices"],
        about["donors"],
        about["names"],
        found,
        tables["markers"],
        tables["shares"],
        _cut(arrays["levels"], data),
        tables["comparison"],
        about["vectors"],
        tuple(about["notes"]),
        about["settings"],
    )


def _cut(values: Any, data: Data) -> list[Any]:
    """Cut values of all cells into those of each slice."""
    sizes: Sequence[int] = [piece.tissue.n_cells for piece in data.pieces]
    return np.split(values, np.cumsum(sizes)[:-1])


def forget(out: Path) -> None:
    """Remove what was kept: the results are complete."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
