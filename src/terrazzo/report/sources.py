"""What is given to a report: which of it are slices, which results, which logs; folders are looked through."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo.errors import InputError
from terrazzo.report import curves, results
from terrazzo.tasks.results import RECORD, TaskResult
from terrazzo.training import logs as log_files

SLICES = 24  # in one page
_DEPTH = 4  # of folders in folders
_TAKES = (
    "slices (.h5ad, .zarr), results of tasks (a folder with result.json), tables of terrazzo bench (.json), runs of "
    "terrazzo pretrain (a folder with logs/metrics.csv), tables (.csv), or folders that hold such"
)
_ZARR = ("zarr.json", ".zgroup", ".zattrs")
_CLOSED = (
    "manifest.parquet",
    "model.safetensors",
    "probe.json",
)  # a corpus, a checkpoint, a probe: nothing to see


@dataclass
class Found:
    """What there is to show, in the order given; slices by name, as a path or in memory."""

    slices: list[tuple[str, Any]] = field(default_factory=list)
    runs: list[curves.Run] = field(default_factory=list)
    results: list[results.Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(sources: Sequence[Any]) -> Found:
    """Sort what is given; slices are not read yet, all else is.

    Parameters
    ----------
    sources
        Paths, AnnData, SpatialData, or results of tasks.

    Raises
    ------
    InputError
        Nothing is given or found; something that is neither; too many slices; results that cannot be read.
    """
    found, seen = Found(), set[Path]()
    for number, source in enumerate(sources, 1):
        if isinstance(source, AnnData) or hasattr(
            source, "tables"
        ):  # SpatialData, without importing it
            found.slices.append((f"slice {number}", source))
        elif isinstance(source, TaskResult):
            found.results.append(results.task(source, f"result {number}"))
        elif isinstance(source, str | Path):
            _given(Path(source), found, seen)
        else:
            raise InputError(
                f"a report takes {_TAKES}, an AnnData or a TaskResult, not {type(source).__name__}."
            )
    if not sources:
        raise InputError(f"nothing is given; a report takes {_TAKES}.")
    if len(found.slices) > SLICES:
        raise InputError(
            f"there are {len(found.slices)} slices; one page shows at most {SLICES}: name fewer."
        )
    return found


def _given(path: Path, found: Found, seen: set[Path]) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist; a report takes {_TAKES}.")
    if _take(path, found, seen):
        return
    if not path.is_dir():
        raise InputError(f"{path} is neither a slice nor a result; a report takes {_TAKES}.")
    held = False
    for inside in _walk(path, _DEPTH):
        if _take(inside, found, seen, strict=False):
            held = True
        elif inside.suffix in (".json", ".csv"):
            found.skipped.append(str(inside.relative_to(path)))
    if not held:
        raise InputError(f"{path} holds nothing that a report shows; it takes {_TAKES}.")


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield files, and folders that are one thing, in order; hidden ones and what is closed are left out."""
    inside = sorted(folder.iterdir())
    if any((folder / name).exists() for name in _CLOSED) or not depth:
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if not path.is_dir() or _is_one_thing(path):
            yield path
        else:
            yield from _walk(path, depth - 1)


def _is_one_thing(folder: Path) -> bool:
    return _is_zarr(folder) or (folder / RECORD).is_file() or _log_of(folder).is_file()


def _is_zarr(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _ZARR)


def _log_of(folder: Path) -> Path:
    return folder / log_files.LOGS / log_files.CSV


def _take(path: Path, found: Found, seen: set[Path], strict: bool = True) -> bool:
    """Take one thing; False where it is none. Not strict: a table that cannot be shown is none either."""
    if path.resolve() in seen:
        return True
    if path.is_dir():
        taken = _take_folder(path, found, seen)
    elif path.suffix.lower() == ".h5ad":
        found.slices.append((path.stem, path))
        taken = True
    elif path.suffix.lower() == ".json":
        taken = _take_json(path, found, strict)
    else:
        taken = path.suffix.lower() == ".csv" and _take_csv(path, found, strict)
    if taken:
        seen.add(path.resolve())
    return taken


def _take_folder(folder: Path, found: Found, seen: set[Path]) -> bool:
    if _is_zarr(folder):
        found.slices.append((folder.stem, folder))
    elif (folder / RECORD).is_file():
        found.results.append(results.task(TaskResult.load(folder), folder.name))
        seen.add((folder / RECORD).resolve())
    elif _log_of(folder).is_file():
        found.runs.append(curves.read(_log_of(folder), folder.name))
        seen.add(_log_of(folder).resolve())
    else:
        return False
    return True


def _take_json(path: Path, found: Found, strict: bool) -> bool:
    record = results.read_json(path)
    kind = results.kind_of(record)
    if kind == "bench":
        found.results.append(results.bench(record, str(path)))
    elif kind == "rows":
        found.results.append(results.rows(record, str(path)))
    elif kind == "task":
        found.results.append(results.task(TaskResult.load(path.parent), path.parent.name))
    elif strict:
        raise InputError(f"{path} is not a result that terrazzo wrote; a report takes {_TAKES}.")
    return bool(kind)


def _take_csv(path: Path, found: Found, strict: bool) -> bool:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header = next(csv.reader(stream), [])
        if curves.is_log(header):
            name = path.parent.parent.name if path.name == log_files.CSV else path.stem
            found.runs.append(curves.read(path, name))
        else:
            found.results.append(results.plain(path))
    except InputError:
        if strict:
            raise
        return False
    except (OSError, ValueError, csv.Error) as error:
        if strict:
            raise InputError(f"{path} is not a readable table ({error}).") from error
        return False
    return True
