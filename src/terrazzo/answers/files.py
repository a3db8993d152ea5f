"""Regions and types from files into folders: slices, tables, figures and a report; a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo.answers.data import Data, open_all
from terrazzo.answers.figures import draw_curve, draw_markers, draw_tissue
from terrazzo.answers.folders import NAMES, REPORT, Folder, Written, identity_of
from terrazzo.answers.keeping import forget, keep, kept
from terrazzo.answers.projection import ARRAYS, RECORD
from terrazzo.answers.result import AGREEMENT, Answer, short_name
from terrazzo.answers.run import regions, types
from terrazzo.locks import alone
from terrazzo.models.embed_files import check_writable, plan_targets
from terrazzo.progress import Progress

__all__ = ["regions_files", "types_files"]

TABLES = (
    "markers.csv",
    "shares.csv",
    "curve.csv",
    "comparison.csv",
    "levels.parquet",
    NAMES,
    RECORD,
    ARRAYS,
    "agreement.png",
    "curve.png",
    "markers.png",
    REPORT,
)


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
        """Do it, unless it was done before; one run at a time writes to a folder."""
        targets = plan_targets(self.sources, self.out)
        check_writable(self.out)
        with alone(self.out):
            return self._run([target for _, target in targets])

    def _run(self, targets: list[Path]) -> Written:
        bars = Progress(self.settings.get("progress"))
        with bars.stage("check the slices", None):
            identity = identity_of(self.task, self.sources, self.settings, self.options)
        identity["report"] = self.report
        names = [f"{self.task}.csv", f"{self.task}.png", *TABLES]
        folder = Folder.open(
            self.out, f"{self.task}.json", self.sources, identity, names, overwrite=self.overwrite
        )
        folder.check(targets)
        if folder.is_finished():
            forget(self.out)
            return folder.unchanged(self._edited(folder))
        with bars.stage("read the slices", None):
            data = open_all(list(self.sources), self.settings.get("donor"), self.options)
        answer = kept(self.out, identity, data)
        if answer is None:
            answer = self.find(data, **self.settings)
            keep(self.out, identity, answer)
        found = replace(answer.found, fitted=replace(answer.found.fitted, views=[]))
        answer = replace(answer, found=found)  # vectors are large, and not needed any more
        lines = _lines(answer, data)
        lines += self._edited(folder)
        folder.begin(targets)
        with bars.stage("write the slices", None):
            folder.add_slices(data, targets)
        with bars.stage("write tables and figures", None):
            self._tables(folder, answer)
            self._figures(folder, answer, data)
        if self.report:
            self._report(folder, answer, targets)
        folder.finish(lines)
        forget(self.out)
        return Written(self.out, "written", lines, folder.written, answer)

    def _edited(self, folder: Folder) -> list[str]:
        """Return a note where names.csv was edited and not passed."""
        if not folder.is_edited() or self.settings.get("names") is not None:
            return []
        path = self.out / NAMES
        return [f"{path} was edited, and is left as it is: pass --names {path} to use its names."]

    def _tables(self, folder: Folder, answer: Answer) -> None:
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
        if folder.is_edited() and self.settings.get("names") is None:
            folder.written.append(self.out / NAMES)
        else:
            shorts = [short_name(answer.kind, number) for number in range(answer.k)]
            folder.add_names(pd.DataFrame({answer.kind: shorts, "name": answer.names}))
        if answer.projection is not None:
            answer.projection.save(self.out)
            folder.written += [self.out / RECORD, self.out / ARRAYS]

    def _figures(self, folder: Folder, answer: Answer, data: Data) -> None:
        columns = {
            self.task: (answer.key, f"{answer.kind}s"),
            "agreement": (answer.key + AGREEMENT, "reproducibility"),
        }
        for name, (column, title) in columns.items():
            drawn = draw_tissue(answer.slices, answer.slice_names, column, title, self.options)
            folder.add_figure(f"{name}.png", drawn)
        if len(answer.found.curve):
            figure = draw_curve(answer.found.curve, answer.k, answer.kind)
            folder.add_figure("curve.png", figure)
        dots = draw_markers(
            answer.markers, answer.names, answer.kind, data.slices, answer.found.labels
        )
        if dots is not None:
            folder.add_figure("markers.png", dots)

    def _report(self, folder: Folder, answer: Answer, targets: Sequence[Path]) -> None:
        """Write the report of the written slices."""
        genes = answer.markers.loc[answer.markers["rank"] <= 3, "gene"].unique()
        folder.add_report(
            targets,
            f"{answer.k} {answer.kind}s",
            [f"{answer.headline}.", *answer.notes[:1]],  # the others are below the pictures
            self.options,
            genes=[str(gene) for gene in genes],
            answer=answer,
            progress=self.settings.get("progress"),
        )


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
