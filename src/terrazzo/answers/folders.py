"""Folders of answers: what makes a run the same again, what may be replaced, and files whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo import records
from terrazzo._version import __version__
from terrazzo.answers.annotating import Annotation
from terrazzo.answers.data import Data
from terrazzo.answers.projection import ARRAYS, RECORD
from terrazzo.answers.result import Answer, names_from_csv
from terrazzo.errors import ConfigError, CorpusError, OutputError
from terrazzo.files import (
    hash_file,
    hash_json,
    hash_path,
    read_record,
    whole_file,
    why_not,
    write_record,
)
from terrazzo.marks import Mark, mark_of
from terrazzo.models.embed_files import hash_input, option_text, write_opened
from terrazzo.parsing import parse_json
from terrazzo.slices import split_choices

__all__ = ["NAMES", "REPORT", "Folder", "Written", "identity_of", "sentence"]

NAMES = "names.csv"

REPORT = "report.html"


@dataclass(frozen=True)
class Written:
    """What a folder holds now.

    Attributes
    ----------
    folder
        The folder.
    status
        ``"written"`` now, or ``"unchanged"``: finished before from the same slices and settings, and left alone.
    lines
        What was found, for a person; the first line says from which vectors, and why.
    files
        Written files, the slices first.
    answer
        None where it was left alone.
    """

    folder: Path
    status: str
    lines: list[str]
    files: list[Path]
    answer: Answer | Annotation | None = None


def identity_of(
    task: str,
    sources: Sequence[str | Path],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that results depend on: version, settings, and the hash of every input."""
    choices, _ = split_choices(dict(options))
    deciding = {}
    for name, value in settings.items():
        if name != "progress" and value is not None:
            deciding[name] = _content(name, value)
    inputs = []
    for source in sources:
        path = Path(source)
        inputs.append([path.name, hash_input(path, choices)])
    identity = {
        "task": task,
        "terrazzo_version": __version__,
        "settings": deciding,
        "options": {name: value for name, value in options.items() if value is not None},
        "inputs": inputs,
    }
    text = json.dumps(identity, sort_keys=True, default=option_text)
    return dict(parse_json(text, "settings", ConfigError))


def _content(name: str, value: Any) -> Any:
    """Return a setting for the record: of files their content, for a path says nothing of it."""
    if name == "names" and isinstance(value, str | Path):
        return names_from_csv(value)
    if name == "to" and isinstance(value, str | Path):
        files = [Path(value) / RECORD, Path(value) / ARRAYS]
        return hash_json([hash_file(file) for file in files if file.is_file()])
    if name == "model" and isinstance(value, str | Path) and Path(value).is_dir():
        return hash_path(Path(value))
    return value


def sentence(note: str) -> str:
    """Return a note with a capital letter and a full stop."""
    text = note[:1].upper() + note[1:]
    return text if text.endswith(".") else f"{text}."


@dataclass
class Folder:
    """A folder of results with the record by which a finished run is recognized, and an unfinished one goes on.

    Attributes
    ----------
    path
        The folder.
    name
        Of the record.
    identity
        Everything that the results depend on, JSON-able.
    mark
        Of the slices: results of others are not replaced.
    tables
        Files that may be written beside the slices.
    overwrite
        Replace files that an earlier run did not write, or that it made from other slices.
    before
        Record of an earlier run; empty where there is none.
    written
        Files so far.
    """

    path: Path
    name: str
    identity: dict[str, Any]
    mark: Mark
    tables: tuple[str, ...]
    overwrite: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        path: Path,
        name: str,
        sources: Sequence[str | Path],
        identity: dict[str, Any],
        tables: Sequence[str],
        *,
        overwrite: bool,
    ) -> Folder:
        """Read the record of an earlier run, if there is one."""
        mark = mark_of(identity["task"], [Path(source) for source in sources])
        folder = cls(path, name, identity, mark, tuple(tables), overwrite)
        try:
            folder.before = read_record(path / name)
        except CorpusError:
            folder.before = {}
        return folder

    def is_finished(self) -> bool:
        """Whether an earlier run with the same identity finished, and its files are as they were."""
        if not self.before.get("finished") or self.before.get("identity") != self.identity:
            return False
        for name, size in self.before["files"].items():
            path = self.path / name
            if not path.exists():
                return False
            if name != NAMES and path.is_file() and path.stat().st_size != size:
                return False
        return True

    def unchanged(self, notes: Sequence[str] = ()) -> Written:
        """Return what an earlier run finished."""
        files = [self.path / name for name in self.before["files"]]
        lines = [*self.before["lines"], *notes]
        return Written(self.path, "unchanged", lines, files)

    def check(self, targets: Sequence[Path]) -> None:
        """Refuse to replace a file that an earlier run did not write, or that it made from other slices.

        Raises
        ------
        OutputError
            There is such a file.
        """
        if self.overwrite:
            return
        own = self.before.get("files", {})
        for name in self._names(targets):
            if (self.path / name).exists() and name not in own:
                raise OutputError(
                    f"{self.path / name} exists and was not written by this command: choose another --out, or "
                    "--overwrite."
                )
        before = Mark.parse(str(self.before.get("mark", "")).encode())
        if before is not None and not before.is_like(self.mark):
            raise OutputError(
                f"{self.path} has the {self.identity['task']} of other slices ({before.name}, and now "
                f"{self.mark.name}), which would be lost: choose another --out, or --overwrite."
            )

    def _names(self, targets: Sequence[Path]) -> list[str]:
        return [*(target.name for target in targets), *self.tables]

    def begin(self, targets: Sequence[Path]) -> None:
        """Note which files are about to be written, so that the next run knows them for its own."""
        sizes = dict(self.before.get("files", {}))
        for name in self._names(targets):
            sizes.setdefault(name, 0)
        done = {}
        if self.before.get("identity") == self.identity:
            done = self.before.get("done", {})
        self.before = {
            "finished": False,
            "identity": self.identity,
            "mark": self.mark.text(),
            "files": sizes,
            "done": done,
            "sha256": dict(self.before.get("sha256", {})),
            "lines": [],
        }
        self._write(self.before)

    def add_names(self, table: pd.DataFrame) -> None:
        """Write the table of names, and note how it is before a person edits it."""
        self.add_table(NAMES, table)
        self.before["sha256"][NAMES] = hash_file(self.path / NAMES)
        self._write(self.before)

    def is_edited(self) -> bool:
        """Whether a person edited the names of an earlier run."""
        path = self.path / NAMES
        before = self.before.get("sha256", {}).get(NAMES)
        return before is not None and path.is_file() and hash_file(path) != before

    def add_slices(self, data: Data, targets: Sequence[Path]) -> None:
        """Write the slices one by one; what the same run wrote before it was stopped is left alone."""
        done = self.before["done"]
        for source, target in zip(data.sources, targets, strict=True):
            if target.exists() and done.get(target.name) == _size(target):
                self.written.append(target)
                continue
            write_opened(source.opened, target)
            self._note(target)

    def _note(self, target: Path) -> None:
        """Note that a slice is written."""
        self.written.append(target)
        self.before["done"][target.name] = _size(target)
        self._write(self.before)

    def finish(self, lines: Sequence[str]) -> None:
        """Note that everything is written; remove tables and figures of an earlier run that this one has not."""
        sizes = {path.name: _size(path) for path in self.written}
        own = self.before.get("files", {})
        for name in self.tables:
            if name in own and name not in sizes:
                (self.path / name).unlink(missing_ok=True)
        record = {
            "finished": True,
            "identity": self.identity,
            "mark": self.mark.text(),
            "files": sizes,
            "sha256": self.before["sha256"],
            "lines": list(lines),
            **records.stamp(),
        }
        self._write(record)

    def add_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table."""
        self.add(name, lambda draft: table.to_csv(draft, index=False))

    def add(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file whole or not at all; ``write`` is called with the name to write to."""
        target = self.path / name
        try:
            with whole_file(target) as draft:
                write(draft)
        except OSError as error:
            raise OutputError(
                f"{target} could not be written: {why_not(error)}. Nothing of it was kept."
            ) from error
        self.written.append(target)

    def add_figure(self, name: str, figure: Any) -> None:
        """Write a figure, and close it."""
        import matplotlib.pyplot as plt

        from terrazzo import plot

        whole: Any = figure.figure if hasattr(figure, "figure") else figure
        self.written.append(plot.save(whole, self.path / name, overwrite=self.overwrite))
        plt.close(whole)

    def add_report(
        self,
        targets: Sequence[Path],
        title: str,
        notes: Sequence[str],
        options: Mapping[str, Any],
        **more: Any,
    ) -> None:
        """Write the report of the written slices, with the notes on top."""
        from terrazzo.report import write

        reading = {name: value for name, value in options.items() if name != "bins"}
        target = write(
            list(targets),
            self.path / REPORT,
            title=title,
            about=" ".join(sentence(note) for note in notes),
            overwrite=self.overwrite,
            **more,
            **reading,
        )
        self.written.append(target)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            write_record(self.path / self.name, record)
        except OSError as error:
            raise OutputError(
                f"{self.path / self.name} could not be written: {why_not(error)}."
            ) from error


def _size(path: Path) -> int:
    """Return the size of a file; 0 for a folder."""
    return path.stat().st_size if path.is_file() else 0
