"""Write answers into folders: slices, tables, figures and a report, atomic, and not again where nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import records
from terrazzo._version import __version__
from terrazzo.answers.annotating import Annotation, annotate
from terrazzo.answers.data import Data, open_all
from terrazzo.answers.figures import draw_curve, draw_markers
from terrazzo.answers.projection import ARRAYS, RECORD
from terrazzo.answers.result import AGREEMENT, Answer, names_from_csv, short_name
from terrazzo.answers.run import regions, types
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
from terrazzo.models.embed_files import (
    check_writable,
    hash_input,
    option_text,
    plan_targets,
    write_opened,
)
from terrazzo.parsing import parse_json
from terrazzo.progress import Progress
from terrazzo.slices import split_choices

__all__ = ["Written", "annotate_files", "regions_files", "types_files"]

NAMES = "names.csv"

REPORT = "report.html"

MAX_DRAWN = 12  # slices in a figure

SHOWN_OPTIONS = ("layer", "spatial_key", "organism", "technology", "unit", "microns_per_unit")


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


def regions_files(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    report: bool = True,
    overwrite: bool = False,
    slice_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Written:
    """Find regions of slices in files, and write them with tables, figures and a report into a folder.

    Parameters
    ----------
    sources
        Files and folders of slices.
    out
        Folder for ``NAME.h5ad`` (of a SpatialData a whole copy of the store), ``regions.csv``, ``markers.csv``,
        ``shares.csv``, ``curve.csv``, ``comparison.csv``, ``levels.parquet``, ``names.csv``, figures, ``report.html``,
        the files of the projection, and ``regions.json`` with settings and hashes.
    report
        Write ``report.html``.
    overwrite
        Replace files that an earlier run did not write.
    slice_options
        Of reading, as of :func:`terrazzo.regions`.
    **settings
        Of :func:`terrazzo.regions`.

    Returns
    -------
    What the folder holds.

    Raises
    ------
    InputError, ConfigError
        As :func:`terrazzo.regions`.
    OutputError
        The folder cannot be written, or has such files of another origin.
    """
    options = dict(slice_options or {})
    job = _Job("regions", regions, sources, Path(out), settings, options, report, overwrite)
    return job.run()


def types_files(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    report: bool = True,
    overwrite: bool = False,
    slice_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Written:
    """Find cell types of slices in files: as :func:`regions_files`, with ``types.csv`` and ``types.json``.

    Parameters
    ----------
    sources, out, report, overwrite, slice_options, **settings
        As of :func:`regions_files`, and of :func:`terrazzo.types`.

    Returns
    -------
    What the folder holds.

    Raises
    ------
    InputError, ConfigError, OutputError
        As :func:`regions_files`.
    """
    options = dict(slice_options or {})
    job = _Job("types", types, sources, Path(out), settings, options, report, overwrite)
    return job.run()


@dataclass
class _Folder:
    """A folder of results with the record by which a finished run is recognized.

    Attributes
    ----------
    path
        The folder.
    name
        Of the record.
    identity
        Everything that the results depend on, JSON-able.
    before
        Record of an earlier run; empty where there is none.
    written
        Files so far.
    """

    path: Path
    name: str
    identity: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self.before = read_record(self.path / self.name)
        except CorpusError:
            self.before = {}

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

    def check(self, names: Sequence[str], overwrite: bool) -> None:
        """Refuse to replace a file that an earlier run did not write."""
        own = self.before.get("files", {})
        for name in names:
            if (self.path / name).exists() and name not in own and not overwrite:
                raise OutputError(
                    f"{self.path / name} exists and was not written by this command: choose another --out, or "
                    "--overwrite."
                )

    def begin(self, names: Sequence[str]) -> None:
        """Note which files are about to be written, so that the next run knows them for its own."""
        sizes = dict(self.before.get("files", {}))
        for name in names:
            sizes.setdefault(name, 0)
        self._write({"finished": False, "identity": {}, "files": sizes, "lines": []})

    def finish(self, lines: Sequence[str]) -> None:
        """Note that everything is written."""
        sizes = {}
        hashes = {}
        for path in self.written:
            sizes[path.name] = path.stat().st_size if path.is_file() else 0
            if path.name == NAMES:
                hashes[path.name] = hash_file(path)
        record = {
            "finished": True,
            "identity": self.identity,
            "files": sizes,
            "sha256": hashes,
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
        self.written.append(plot.save(whole, self.path / name))
        plt.close(whole)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            write_record(self.path / self.name, record)
        except OSError as error:
            raise OutputError(
                f"{self.path / self.name} could not be written: {why_not(error)}."
            ) from error


@dataclass
class _Job:
    """One call of :func:`regions_files` or :func:`types_files`; arguments as there."""

    task: str
    find: Callable[..., Answer]
    sources: Sequence[str | Path]
    out: Path
    settings: dict[str, Any]
    options: dict[str, Any]
    report: bool
    overwrite: bool

    def run(self) -> Written:
        targets = plan_targets(self.sources, self.out)
        progress = self.settings.get("progress")
        check_writable(self.out)
        with Progress(progress).stage("check the slices", None):
            identity = _identity(self.task, self.sources, self.settings, self.options)
        identity["report"] = self.report
        folder = _Folder(self.out, f"{self.task}.json", identity)
        names = [target.name for _, target in targets]
        tables = [f"{self.task}.csv", "markers.csv", "shares.csv", NAMES]
        folder.check([*names, *tables], self.overwrite)
        if folder.is_finished():
            files = [self.out / name for name in folder.before["files"]]
            lines = [*folder.before["lines"], *self._edited(folder)]
            return Written(self.out, "unchanged", lines, files)
        data = open_all(list(self.sources), self.settings.get("donor"), self.options)
        answer = self.find(data, **self.settings)
        lines = _lines(answer, data)
        lines += self._edited(folder)
        folder.begin([*names, *tables])
        with Progress(progress).stage("write the slices", None):
            for source, (_, target) in zip(data.sources, targets, strict=True):
                write_opened(source.opened, target)
                folder.written.append(target)
        self._tables(folder, answer)
        self._figures(folder, answer, data)
        if self.report:
            self._report(folder, answer, [target for _, target in targets])
        folder.finish(lines)
        return Written(self.out, "written", lines, folder.written, answer)

    def _edited(self, folder: _Folder) -> list[str]:
        """Return a note where names.csv was edited and not passed."""
        if not self._is_edited(folder) or self.settings.get("names") is not None:
            return []
        path = self.out / NAMES
        return [f"{path} was edited, and is left as it is: pass --names {path} to use its names."]

    def _is_edited(self, folder: _Folder) -> bool:
        path = self.out / NAMES
        before = folder.before.get("sha256", {}).get(NAMES)
        return before is not None and path.is_file() and hash_file(path) != before

    def _tables(self, folder: _Folder, answer: Answer) -> None:
        folder.add_table(f"{self.task}.csv", answer.table)
        folder.add_table("markers.csv", _named_markers(answer))
        folder.add_table("shares.csv", answer.shares)
        if len(answer.found.curve):
            folder.add_table("curve.csv", answer.found.curve)
        if len(answer.comparison):
            folder.add_table("comparison.csv", answer.comparison)
        levels = _levels(answer)
        if levels is not None:
            folder.add("levels.parquet", lambda draft: levels.to_parquet(draft, index=False))
        if self._is_edited(folder) and self.settings.get("names") is None:
            folder.written.append(self.out / NAMES)
        else:
            shorts = [short_name(answer.kind, number) for number in range(answer.k)]
            folder.add_table(NAMES, pd.DataFrame({answer.kind: shorts, "name": answer.names}))
        if answer.projection is not None:
            answer.projection.save(self.out)
            folder.written += [self.out / RECORD, self.out / ARRAYS]

    def _figures(self, folder: _Folder, answer: Answer, data: Data) -> None:
        from terrazzo import plot

        options = {name: self.options[name] for name in SHOWN_OPTIONS if name in self.options}
        shown = answer.slices[:MAX_DRAWN]
        titles = [f"{name}: {answer.kind}s" for name in answer.slice_names[:MAX_DRAWN]]
        data_shown: Any = shown if len(shown) > 1 else shown[0]
        for name, key in ((self.task, answer.key), ("agreement", answer.key + AGREEMENT)):
            title = titles if name == self.task else "reproducibility"
            if name != self.task and len(shown) > 1:
                title = [f"{one}: reproducibility" for one in answer.slice_names[:MAX_DRAWN]]
            elif len(shown) == 1 and name == self.task:
                title = titles[0]
            drawn = plot.spatial(data_shown, color=key, title=title, **options)
            folder.add_figure(f"{name}.png", drawn)
        if len(answer.found.curve):
            figure = draw_curve(answer.found.curve, answer.k, answer.kind)
            folder.add_figure("curve.png", figure)
        dots = draw_markers(
            answer.markers, answer.names, answer.kind, data.slices, answer.found.labels
        )
        if dots is not None:
            folder.add_figure("markers.png", dots)

    def _report(self, folder: _Folder, answer: Answer, targets: Sequence[Path]) -> None:
        """Write the report of the written slices."""
        from terrazzo.report import write

        options = {name: value for name, value in self.options.items() if name != "bins"}
        about = f"{answer.headline}. {' '.join(_sentence(note) for note in answer.notes)}"
        genes = answer.markers.loc[answer.markers["rank"] <= 3, "gene"].unique()
        target = write(
            list(targets),
            self.out / REPORT,
            title=f"{answer.k} {answer.kind}s",
            about=about,
            genes=[str(gene) for gene in genes],
            answer=answer,
            progress=self.settings.get("progress"),
            **options,
        )
        folder.written.append(target)


def _sentence(note: str) -> str:
    text = note[:1].upper() + note[1:]
    return text if text.endswith(".") else f"{text}."


def _identity(
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
    inputs = {Path(source).name: hash_input(Path(source), choices) for source in sources}
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


def _lines(answer: Answer, data: Data) -> list[str]:
    """Return what was found, for a person."""
    lines = [answer.headline, *data.notes]
    notes = list(answer.notes)
    if len(answer.found.curve):
        lines.append(notes.pop(0))  # how many, and what else is plausible
    else:
        lines.append(f"{answer.k} {answer.kind}s.")
    table = answer.table
    width = max(len(str(name)) for name in table[answer.kind])
    header = f"  {answer.kind:<{width}}{'cells':>10}{'share':>8}{'reproducibility':>17}"
    has_draws = bool(np.isfinite(table["gene_agreement"]).any())
    if has_draws:
        header += f"{'over genes':>12}"
    lines.append(header)
    for row in table.itertuples(index=False):
        line = (
            f"  {row[0]!s:<{width}}{row.n_cells:>10,}{row.share:>8.1%}{row.reproducibility:>17.2f}"
        )
        if has_draws:
            line += f"{row.gene_agreement:>12.2f}"
        lines.append(line)
    lines.append("reproducibility: how surely it is found again, not how surely it is right.")
    lines += [f"note: {note}" for note in notes]
    return lines


def _named_markers(answer: Answer) -> pd.DataFrame:
    """Return the markers with the names of the regions."""
    markers = answer.markers.copy()
    numbers = markers.pop("region").to_numpy(dtype=np.int64)
    markers.insert(0, answer.kind, [answer.names[number] for number in numbers])
    return markers


def _levels(answer: Answer) -> pd.DataFrame | None:
    """Return slice, cell, and a column for each level of the tree; None without a tree."""
    tables = []
    for adata, name, levels in zip(answer.slices, answer.slice_names, answer.levels, strict=True):
        n_levels = levels.shape[1]
        if n_levels < 2:
            return None
        table = pd.DataFrame({"slice": name, "cell": adata.obs_names.astype(str)})
        for k in range(2, n_levels + 1):
            table[f"level_{k}"] = levels[:, k - 1]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


# ---- annotation


def annotate_files(
    sources: Sequence[str | Path],
    references: Sequence[str | Path],
    label: str,
    out: str | Path,
    *,
    report: bool = True,
    overwrite: bool = False,
    slice_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Written:
    """Carry labels over to slices in files, and write them with tables, a figure and a report into a folder.

    Parameters
    ----------
    sources, references
        Files and folders of slices; a reference may be dissociated cells.
    label
        Column of the references' ``obs``.
    out
        Folder for ``NAME.h5ad``, ``shares.csv``, ``confused.csv``, ``scores.csv``, ``labels.png``, ``report.html``,
        and ``annotation.json`` with settings and hashes.
    report, overwrite, slice_options
        As of :func:`regions_files`.
    **settings
        Of :func:`terrazzo.annotate`.

    Returns
    -------
    What the folder holds.

    Raises
    ------
    InputError, ConfigError
        As :func:`terrazzo.annotate`.
    OutputError
        The folder cannot be written, or has such files of another origin.
    """
    if not references:
        raise ConfigError("annotate takes at least one reference.")
    folder_path = Path(out)
    options = dict(slice_options or {})
    targets = plan_targets(sources, folder_path)
    check_writable(folder_path)
    plan_references = plan_targets(references, folder_path / "references")
    identity = _identity("annotate", sources, {**settings, "label": label}, options)
    reference_choices, _ = split_choices({})
    identity["references"] = [hash_input(path, reference_choices) for path, _ in plan_references]
    identity["report"] = report
    folder = _Folder(folder_path, "annotation.json", identity)
    names = [target.name for _, target in targets]
    tables = ["shares.csv", "confused.csv", "scores.csv"]
    folder.check([*names, *tables], overwrite)
    if folder.is_finished():
        files = [folder_path / name for name in folder.before["files"]]
        return Written(folder_path, "unchanged", folder.before["lines"], files)
    data = open_all(list(sources), None, options)
    result = annotate(data, list(references), label, **settings)
    lines = _annotation_lines(result, data)
    folder.begin([*names, *tables])
    for source, (_, target) in zip(data.sources, targets, strict=True):
        write_opened(source.opened, target)
        folder.written.append(target)
    folder.add_table("shares.csv", result.shares)
    folder.add_table("confused.csv", result.confused)
    scores = pd.DataFrame({"score": list(result.held_out), "value": list(result.held_out.values())})
    folder.add_table("scores.csv", scores)
    _annotation_figures(folder, result, options)
    if report:
        _annotation_report(folder, result, [target for _, target in targets], options)
    folder.finish(lines)
    return Written(folder_path, "written", lines, folder.written, result)


def _annotation_figures(folder: _Folder, result: Annotation, options: dict[str, Any]) -> None:
    from terrazzo import plot

    shown: Any = result.slices[:MAX_DRAWN]
    if len(shown) == 1:
        shown = shown[0]
    drawing = {name: options[name] for name in SHOWN_OPTIONS if name in options}
    folder.add_figure("labels.png", plot.spatial(shown, color=result.key, **drawing))


def _annotation_report(
    folder: _Folder, result: Annotation, targets: Sequence[Path], options: dict[str, Any]
) -> None:
    from terrazzo.report import write

    reading = {name: value for name, value in options.items() if name != "bins"}
    about = " ".join(_sentence(note) for note in result.notes)
    target = write(
        list(targets),
        folder.path / REPORT,
        title=f"{len(result.labels)} labels, carried over",
        about=about,
        **reading,
    )
    folder.written.append(target)


def _annotation_lines(result: Annotation, data: Data) -> list[str]:
    """Return how well it went, for a person."""
    scores = result.held_out
    lines = [
        f"labels from {result.used} (it tells held-out reference cells best)",
        *data.notes,
        f"held-out accuracy {scores['accuracy']:.2f}, macro-F1 {scores['macro_f1']:.2f} over {len(result.labels)} "
        f"labels; unknown below a probability of {result.threshold:.2f}: then {scores['kept']:.0%} of them get a "
        f"label, {scores['accuracy_kept']:.0%} of these the right one.",
    ]
    width = max(len(str(name)) for name in result.shares["label"])
    for slice_name, part in result.shares.groupby("slice", sort=False):
        lines.append(f"{slice_name}:")
        for row in part.itertuples(index=False):
            lines.append(f"  {row.label:<{width}}{row.n_cells:>10,}{row.share:>8.1%}")
    for row in result.confused.head(3).itertuples(index=False):
        lines.append(
            f"confused: {row.share:.0%} of held-out {row.true} are taken for {row.predicted}."
        )
    lines += [f"note: {note}" for note in result.notes]
    return lines
