"""Finished rows of a table, stored on disk, so that a run that was stopped goes on where it stopped."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrazzo.bench.entries import Entry
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.samples import LoadedPart
from terrazzo.config import from_dict, to_dict
from terrazzo.errors import ConfigError, CorpusError, OutputError
from terrazzo.files import hash_json, read_record, sweep, write_record
from terrazzo.tasks import TaskResult

__all__ = ["FinishedRows", "Row", "Scored", "lock_of"]

_FILE = r"[0-9a-f]{32}\.json"
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Scored:
    """What a task returned for one representation and head.

    Attributes
    ----------
    suffix
        End of the row's title: which block of the embedding; "": the whole.
    head
        Head or clustering method.
    result
        Of the task.
    """

    suffix: str
    head: str
    result: TaskResult


@dataclass(frozen=True)
class Row:
    """The scores of one entry on one part, JSON-able.

    Attributes
    ----------
    scores
        A dict a score: the columns of :class:`terrazzo.bench.run.Table`'s ``scores``, without the seed.
    by_gene
        Likewise for each named gene, with ``gene``.
    notes
        Of the tasks.
    headline
        The first scores, for people.
    seconds
        That it took.
    """

    scores: list[dict]
    by_gene: list[dict]
    notes: list[str]
    headline: str
    seconds: float


class FinishedRows:
    """A folder of finished rows, one record an entry and part.

    A row is taken over only if everything that it came from is the same: the table's settings, the slices with their
    labels and pictures, the entry's weights, and the library's own code.

    Parameters
    ----------
    folder
        Made when the first row is stored.
    protocol
        The table.
    """

    def __init__(self, folder: Path, protocol: Protocol) -> None:
        self.folder = folder
        sweep(folder)
        self._table = hash_json([to_dict(protocol), _code()])

    def get(self, loaded: LoadedPart, entry: Entry) -> Row | None:
        """Return a stored row; None where there is none, or where its file is damaged."""
        path = self._path(loaded, entry)
        if path is None or not path.is_file():
            return None
        try:
            return from_dict(Row, read_record(path), str(path))
        except CorpusError:  # computed again
            return None

    def put(self, loaded: LoadedPart, entry: Entry, row: Row) -> None:
        """Store a row, whole or not at all; of an entry without a mark nothing is stored.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        path = self._path(loaded, entry)
        if path is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_record(path, to_dict(row))
        except OSError as error:
            raise OutputError(
                f"{path} could not be written ({error.strerror or error})."
            ) from error

    def remove(self) -> None:
        """Remove the stored rows, and the folder where nothing else is in it."""
        for path in self.folder.glob("*.json"):
            if re.fullmatch(_FILE, path.name) is None:
                continue
            try:
                from_dict(Row, read_record(path), str(path))
            except (CorpusError, ConfigError):
                continue  # not a row
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, loaded: LoadedPart, entry: Entry) -> Path | None:
        if not entry.mark:
            return None
        key: list[Any] = [
            self._table,
            loaded.part.name,
            entry.title,
            entry.part,
            entry.reads,
            entry.mark,
            [sample.content for sample in loaded.samples],
        ]
        return self.folder / f"{hash_json(key)[:32]}.json"


def lock_of(protocol: Protocol) -> str:
    """Return the name of the file that locks a table in a folder."""
    return f".{protocol.name}.lock"


@functools.cache
def _code() -> str:
    """Return a hash of the library's source: what other code has computed is computed again."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
