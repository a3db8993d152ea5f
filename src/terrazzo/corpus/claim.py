"""The folder of a corpus before a build: whether it is one, and what a killed build left in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from terrazzo.corpus.members import WAITING, Job
from terrazzo.corpus.store import ABOUT, MANIFEST, MEMBERS, VOCABULARY
from terrazzo.errors import CorpusError, OutputError
from terrazzo.files import read_record, short_name, sweep
from terrazzo.locks import LOCK
from terrazzo.slices.apart import dead_notes

__all__ = ["BUILDING", "claim", "clear", "remove_if_empty", "sweep_drafts", "vocabulary_draft"]

BUILDING = "build.json"  # marks the folder until it has a corpus.json

_TEXT = '{"what": "terrazzo builds a corpus in this folder"}\n'
_SUFFIX = ".part"  # of what is half-written
_TABLES = (ABOUT, MANIFEST, VOCABULARY)


def vocabulary_draft(folder: Path) -> Path:
    """Return where the vocabulary is written."""
    return folder / f".{VOCABULARY}{_SUFFIX}"


def claim(folder: Path) -> None:
    """Make the folder, mark it as a corpus, and prove that it can be written; a foreign one stays as it is.

    Raises
    ------
    CorpusError
        It has files that are not of a corpus.
    OutputError
        It cannot be written.
    """
    if not _is_ours(folder):
        raise CorpusError(f"{folder} is not empty and is not a corpus: choose another --out")
    members = folder / MEMBERS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ABOUT).is_file():
            (folder / BUILDING).write_text(_TEXT, encoding="utf-8")
        members.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror or error}): choose another --out."
        ) from error


def _is_ours(folder: Path) -> bool:
    """Return whether a folder is new, empty, or a corpus, complete or not."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if names <= {LOCK} or _is_building(folder / BUILDING, is_alone=names <= {LOCK, BUILDING}):
        return True
    if not (folder / MEMBERS).is_dir():
        return False
    with suppress(CorpusError):
        read_record(folder / ABOUT)
        return True
    return _has_members(folder / MEMBERS) and names <= {LOCK, *_TABLES, MEMBERS}


def _is_building(mark: Path, *, is_alone: bool) -> bool:
    """Return whether a file is the mark of a build; where nothing else is there, one that a kill cut short counts."""
    if not mark.is_file() or mark.is_symlink():
        return False
    content = mark.read_bytes()[: len(_TEXT) + 1]
    whole = _TEXT.encode()
    return content == whole or (is_alone and whole.startswith(content))


def _has_members(members: Path) -> bool:
    """Return whether a folder has members with their records, and nothing else."""
    ids = set()
    for path in members.glob("*.json"):
        try:
            read_record(path)
        except CorpusError:
            return False
        ids.add(path.stem)
    visible = [path for path in members.iterdir() if not path.name.startswith(".")]
    are_members = all(path.stem in ids and path.suffix in (".json", ".zarr") for path in visible)
    return bool(ids) and are_members


def sweep_drafts(folder: Path) -> None:
    """Remove what is half-written, and notes of slices in work; only in a folder that is a corpus."""
    members = folder / MEMBERS
    vocabulary_draft(folder).unlink(missing_ok=True)
    sweep(folder)
    for place in (members, members / WAITING):
        sweep(place)
        for path in place.glob(f".*.zarr{_SUFFIX}"):
            shutil.rmtree(path, ignore_errors=True)
        for path in place.glob(".*.zarr.*.work"):
            path.unlink(missing_ok=True)
    remove_if_empty(members / WAITING)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder where nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


def clear(folder: Path, jobs: list[Job]) -> list[str]:
    """Remove what a killed build left, and check that nothing in the folder is foreign.

    Returns
    -------
    Slices in whose work a build died.
    """
    members = folder / MEMBERS
    notes = {**dead_notes(members), **dead_notes(members / WAITING)}
    died = [job.source.id for job in jobs if short_name(job.target.name) in notes]
    sweep_drafts(folder)
    ids = {job.source.id for job in jobs}
    present = {path.stem for path in members.glob("*.zarr")}
    foreign = sorted(present - ids)
    if foreign:
        first = foreign[0]
        raise CorpusError(
            f"{folder} has {len(foreign)} members that are not among the sources, e.g. {first!r}: add them, "
            f"or choose another --out, or delete {MEMBERS}/{first}.zarr"
        )
    for path in members.glob("*.json"):
        if path.stem not in ids:  # the record of a slice that was left out and is not a source now
            with suppress(CorpusError):
                read_record(path)
                path.unlink()
    return died
