"""Sources of a report, sorted: slices, results, logs; folders are searched."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo.errors import InputError
from terrazzo.report import curves, results
from terrazzo.safe_tables import first_line
from terrazzo.tasks.results import RECORD, TaskResult
from terrazzo.training import logs as log_files

__all__ = ["Found", "check_number", "collect"]

SLICES = 24  # in one page
DEPTH = 4  # of folders in folders
TAKES = (
    "slices (.h5ad, .zarr), results of tasks (a folder with result.json), tables of terrazzo bench (.json), runs of "
    "terrazzo pretrain (a folder with logs/metrics.csv), tables (.csv), or folders that hold such"
)
ZARR = ("zarr.json", ".zgroup", ".zattrs")
# of a corpus, a checkpoint, a probe: nothing in such a folder is shown
NOT_SEARCHED = ("manifest.parquet", "model.safetensors", "probe.json")


@dataclass
class Found:
    """What there is to show, in the order of the sources; slices by name, as a path or in memory."""

    slices: list[tuple[str, Any]] = field(default_factory=list)
    runs: list[curves.Run] = field(default_factory=list)
    results: list[results.Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(sources: Sequence[Any]) -> Found:
    """Sort the sources; slices are not read yet, all else is.

    Parameters
    ----------
    sources
        Paths, AnnData, SpatialData, or results of tasks.

    Raises
    ------
    InputError
        There is no source, or nothing in it; something that is neither; too many slices; results that cannot be read.
    """
    found = Found()
    seen: set[Path] = set()
    for number, source in enumerate(sources, 1):
        is_spatialdata = hasattr(source, "tables")  # without importing its package
        if isinstance(source, AnnData) or is_spatialdata:
            found.slices.append((f"slice {number}", source))
        elif isinstance(source, TaskResult):
            found.results.append(results.task(source, f"result {number}"))
        elif isinstance(source, str | Path):
            _add(Path(source), found, seen)
        else:
            raise InputError(
                f"a report takes {TAKES}, an AnnData or a TaskResult, not {type(source).__name__}."
            )
    if not sources:
        raise InputError(f"nothing is given; a report takes {TAKES}.")
    check_number(len(found.slices))
    return found


def check_number(n_slices: int) -> None:
    """Refuse more slices, or sections, than one page shows.

    Raises
    ------
    InputError
        There are too many.
    """
    if n_slices > SLICES:
        raise InputError(
            f"there are {n_slices} slices; one page shows at most {SLICES}: name fewer."
        )


def _add(path: Path, found: Found, seen: set[Path]) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist; a report takes {TAKES}.")
    if _take(path, found, seen):
        return
    if not path.is_dir():
        raise InputError(f"{path} is neither a slice nor a result; a report takes {TAKES}.")
    is_empty = True
    for inside in _walk(path, DEPTH):
        if _take(inside, found, seen, strict=False):
            is_empty = False
        elif inside.suffix in (".json", ".csv"):
            found.skipped.append(str(inside.relative_to(path)))
    if is_empty:
        raise InputError(f"{path} holds nothing that a report shows; it takes {TAKES}.")


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield files, and folders that are one thing, in order; hidden ones are left out."""
    inside = sorted(folder.iterdir())
    if not depth or any((folder / name).exists() for name in NOT_SEARCHED):
        return
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir() and not _is_one_thing(path):
            yield from _walk(path, depth - 1)
        else:
            yield path


def _is_one_thing(folder: Path) -> bool:
    if _is_zarr(folder):
        return True
    return (folder / RECORD).is_file() or _log_of(folder).is_file()


def _is_zarr(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in ZARR)


def _log_of(folder: Path) -> Path:
    return folder / log_files.LOGS / log_files.CSV


def _take(path: Path, found: Found, seen: set[Path], strict: bool = True) -> bool:
    """Take one source; False where it is none. Not strict: a table that cannot be shown is none either."""
    if path.resolve() in seen:
        return True
    suffix = path.suffix.lower()
    taken = False
    if path.is_dir():
        taken = _take_folder(path, found, seen)
    elif suffix == ".h5ad":
        found.slices.append((path.stem, path))
        taken = True
    elif suffix == ".json":
        taken = _take_json(path, found, strict)
    elif suffix == ".csv":
        taken = _take_csv(path, found, strict)
    if taken:
        seen.add(path.resolve())
    return taken


def _take_folder(folder: Path, found: Found, seen: set[Path]) -> bool:
    record = folder / RECORD
    log = _log_of(folder)
    if _is_zarr(folder):
        found.slices.append((folder.stem, folder))
    elif record.is_file():
        result = TaskResult.load(folder)
        found.results.append(results.task(result, folder.name))
        seen.add(record.resolve())
    elif log.is_file():
        found.runs.append(curves.read(log, folder.name))
        seen.add(log.resolve())
    else:
        return False
    return True


def _take_json(path: Path, found: Found, strict: bool) -> bool:
    record = results.read_json(path)
    kind = results.kind_of(record)
    where = str(path)
    if kind == "bench":
        found.results.append(results.bench(record, where))
    elif kind == "rows":
        found.results.append(results.rows(record, where))
    elif kind == "task":
        folder = path.parent
        result = TaskResult.load(folder)
        found.results.append(results.task(result, folder.name))
    elif strict:
        raise InputError(f"{path} is not a result that terrazzo wrote; a report takes {TAKES}.")
    return bool(kind)


def _take_csv(path: Path, found: Found, strict: bool) -> bool:
    try:
        header = first_line(path)
        if curves.is_log(header):
            name = path.stem
            if path.name == log_files.CSV:
                name = path.parent.parent.name
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
