"""Verbs for public datasets: ``terrazzo data list|get``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from terrazzo.cli.options import OPTIONS, OTHERS, say

__all__ = ["data_app"]

data_app = App(
    name="data",
    group=OTHERS,
    group_arguments=OPTIONS,
    group_parameters=OPTIONS,
    help="Public datasets that terrazzo knows by name.\n\nExample: terrazzo data list",
)

Folder = Annotated[Path | None, Parameter(help="Folder of the datasets; default $TERRAZZO_DATA.")]


@data_app.command(name="list")
def list_datasets(*, data: Folder = None) -> None:
    """List the datasets: slices on this machine, platform, labels.

    Example: terrazzo data list --data data
    """
    from terrazzo import datasets

    base = datasets.folder(data)
    known = datasets.registry()
    width = max(len(name) for name in known) + 2
    say(f"{'name':<{width}}{'here':>8}  platform, organism, labels")
    for name, dataset in known.items():
        n_here = _n_here(base, name, dataset.slices)
        labels = ", ".join(dataset.labels) or "no labels"
        facts = f"{dataset.technology}, {dataset.organism}, {labels}"
        here = f"{n_here}/{len(dataset.slices)}"
        say(f"{name:<{width}}{here:>8}  {facts}")
    say(f"here: slices in {base}")


def _n_here(base: Path, name: str, slices: list[str]) -> int:
    from terrazzo import datasets

    n_here = 0
    for one in slices:
        paths = [base / name / f"{one}{suffix}" for suffix in datasets.SUFFIXES]
        n_here += any(path.exists() for path in paths)
    return n_here


@data_app.command
def get(
    name: Annotated[str, Parameter(help="Name of the dataset, as `terrazzo data list` has it.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="Folder for the files; default: the cache of terrazzo.")
    ] = None,
    file: Annotated[
        list[str] | None, Parameter(help="Only this public file (repeatable); default: all.")
    ] = None,
    sha256: Annotated[str | None, Parameter(help="Expected sha256 of the one file.")] = None,
    unchecked: Annotated[
        bool,
        Parameter(
            negative=(), help="Take files whose sha256 nobody has checked; it is noted beside them."
        ),
    ] = False,
) -> None:
    """Download the public files behind a dataset; files that are there already are kept.

    Example: terrazzo data get starmap_mpfc --unchecked --out downloads
    """
    from terrazzo import datasets
    from terrazzo.errors import ConfigError, DataMissing

    dataset = datasets.info(name)
    files = file or [public.file for public in dataset.files]
    if not files:
        raise DataMissing(
            f"{name} has no public files that terrazzo could download; get it from {dataset.where}."
        )
    if sha256 is not None and len(files) > 1:
        raise ConfigError(
            f"--sha256 is of one file, and there are {len(files)}: name it by --file."
        )
    for one in files:
        path = datasets.fetch(name, one, out, sha256=sha256, unchecked=unchecked)
        say(str(path))
    say(f"{dataset.title}. Cite: {dataset.citation}. License: {dataset.license}.")
