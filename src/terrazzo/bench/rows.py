"""Rows of a table that are finished: kept on disk, so that a run that was stopped goes on where it stopped."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terrazzo.bench.protocols import Protocol
from terrazzo.bench.samples import Scene
from terrazzo.bench.systems import System
from terrazzo.config import to_dict
from terrazzo.errors import CorpusError, OutputError
from terrazzo.files import hash_json, read_record, write_record

PACKAGE = Path(__file__).resolve().parents[1]


class Kept:
    """A folder of finished rows, one record a system and part.

    A row is taken over only if everything that it came from is the same: the table's settings, the slices with their
    labels and pictures, the system's weights, and the library's own code.

    Parameters
    ----------
    folder
        Made when the first row is kept.
    protocol
        The table.
    """

    def __init__(self, folder: Path, protocol: Protocol) -> None:
        self.folder, self._table = folder, hash_json([to_dict(protocol), _code()])

    def get(self, scene: Scene, system: System) -> dict[str, Any] | None:
        """Return what was kept of a row; None where it was not, or where its file is damaged."""
        path = self._path(scene, system)
        if path is None or not path.is_file():
            return None
        try:
            return read_record(path)
        except CorpusError:  # made again
            return None

    def put(self, scene: Scene, system: System, row: Mapping[str, Any]) -> None:
        """Keep a row, whole or not at all; of a system without a mark nothing is kept.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        path = self._path(scene, system)
        if path is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_record(path, row)
        except OSError as error:
            raise OutputError(
                f"{path} could not be written ({error.strerror or error})."
            ) from error

    def _path(self, scene: Scene, system: System) -> Path | None:
        if not system.mark:
            return None
        slices = [sample.content for sample in (scene.test, *scene.train)]
        key = [
            self._table,
            scene.part.name,
            system.title,
            system.part,
            system.reads,
            system.mark,
            slices,
        ]
        return self.folder / f"{hash_json(key)[:32]}.json"


@functools.cache
def _code() -> str:
    """Return a hash of the library's source: what other code has computed is computed again."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
