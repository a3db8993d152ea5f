"""Labels carried over from files into folders: slices, tables, a figure and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.answers.annotating import Annotation, annotate
from terrazzo.answers.data import Data, open_all
from terrazzo.answers.figures import draw_tissue
from terrazzo.answers.folders import REPORT, Folder, Written, identity_of
from terrazzo.errors import ConfigError
from terrazzo.locks import alone
from terrazzo.models.embed_files import check_writable, hash_input, plan_targets
from terrazzo.slices import split_choices

__all__ = ["annotate_files"]

TABLES = ("shares.csv", "confused.csv", "scores.csv", "labels.png", REPORT)


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
        As of :func:`terrazzo.answers.files.regions_files`.
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
    place = Path(out)
    options = dict(slice_options or {})
    targets = [target for _, target in plan_targets(sources, place)]
    known = [path for path, _ in plan_targets(references, place / "references")]
    check_writable(place)
    with alone(place):
        identity = identity_of("annotate", sources, {**settings, "label": label}, options)
        choices, _ = split_choices({})
        identity["references"] = [hash_input(path, choices) for path in known]
        identity["report"] = report
        folder = Folder.open(
            place, "annotation.json", sources, identity, TABLES, overwrite=overwrite
        )
        folder.check(targets)
        if folder.is_finished():
            return folder.unchanged()
        data = open_all(list(sources), None, options)
        result = annotate(data, list(references), label, **settings)
        folder.begin(targets)
        folder.add_slices(data, targets)
        _add_tables(folder, result, options)
        if report:
            title = f"{len(result.labels)} labels, carried over"
            folder.add_report(targets, title, result.notes, options)
        lines = _lines(result, data)
        folder.finish(lines)
    return Written(place, "written", lines, folder.written, result)


def _add_tables(folder: Folder, result: Annotation, options: Mapping[str, Any]) -> None:
    """Write the tables and the figure."""
    folder.add_table("shares.csv", result.shares)
    folder.add_table("confused.csv", result.confused)
    scores = pd.DataFrame({"score": list(result.held_out), "value": list(result.held_out.values())})
    folder.add_table("scores.csv", scores)
    names = list(result.shares["slice"].unique())
    folder.add_figure(
        "labels.png", draw_tissue(result.slices, names, result.key, "labels", options)
    )


def _lines(result: Annotation, data: Data) -> list[str]:
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
