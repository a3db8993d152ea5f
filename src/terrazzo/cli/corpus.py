"""Verbs for corpora: ``terrazzo corpus build|info|verify|plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Group, Parameter
from rich.console import Console
from rich.table import Table

from terrazzo.cli.options import OPTIONS, TRAINING, out_console

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["corpus_app"]

corpus_app = App(
    name="corpus",
    group=TRAINING,
    group_arguments=OPTIONS,
    group_parameters=OPTIONS,
    help="Many slices on disk, to train on.\n\nExample: terrazzo corpus build slices/*.h5ad --out corpus",
)


QUALITY = Group.create_ordered("What is kept")
SPLIT = Group.create_ordered("What is held out")
RUN = Group.create_ordered("Where it runs")

FLOORS = 8  # slices that a line names

Share = Annotated[float, Parameter(group=SPLIT, help="Share of the donors or slices, from 0.")]


@corpus_app.command
def build(
    sources: Annotated[
        list[Path], Parameter(help="Slices (.h5ad, .zarr), folders of slices, or tables of paths.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the corpus.")],
    published: Annotated[
        str | None,
        Parameter(help="Published corpus, by name or YAML file; SOURCES are then folders."),
    ] = None,
    min_genes: Annotated[
        int | None,
        Parameter(
            group=QUALITY,
            help="Expressed genes a cell; default: as published, else 100, or 5 % of a panel.",
        ),
    ] = None,
    min_cells: Annotated[
        int | None, Parameter(group=QUALITY, help="Cells a slice; default: as published, else 1.")
    ] = None,
    orthologs: Annotated[
        Path | None,
        Parameter(
            group=QUALITY,
            help="Two-column table to the genes of the corpus, or human or mouse: terrazzo's own.",
        ),
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        Parameter(group=QUALITY, help="Slices whose content must stay out (repeatable)."),
    ] = None,
    skip_failed: Annotated[
        bool, Parameter(group=QUALITY, negative=(), help="Leave out slices that cannot be used.")
    ] = False,
    slice_key: Annotated[
        str | None,
        Parameter(help="obs column that tells sections apart, each a member; none: all are one."),
    ] = None,
    vocabulary: Annotated[
        bool, Parameter(help="Write genes and medians of the training slices.")
    ] = True,
    split_by: Annotated[Literal["donor", "slice"], Parameter(group=SPLIT)] = "slice",
    validation: Share = 0.0,
    test: Share = 0.0,
    seed: Annotated[int, Parameter(group=SPLIT, help="Of the draw.")] = 0,
    scheduler: Annotated[
        str | None,
        Parameter(
            group=RUN, help="tcp://host:port of a dask.distributed scheduler; default: local."
        ),
    ] = None,
    workers: Annotated[
        int | None, Parameter(group=RUN, help="Local processes; default: one a core.")
    ] = None,
) -> None:
    """Build a corpus, or finish one whose build was stopped.

    Example: terrazzo corpus build slices.csv --out corpus --split-by donor --validation 0.1
    """
    from terrazzo import corpus

    splits = corpus.Splits(split_by, validation=validation, test=test, seed=seed)
    built = corpus.build(
        sources,
        out,
        published=published,
        min_genes=min_genes,
        min_cells=min_cells,
        orthologs=orthologs,
        vocabulary=vocabulary,
        splits=splits,
        exclude=exclude or (),
        slice_key=slice_key,
        skip_failed=skip_failed,
        scheduler=scheduler,
        workers=workers,
    )
    console = out_console()
    _print_tables(console, corpus.info(built))
    floors = built.about["floors"]
    if floors:
        console.print(_floors_in_words(floors), markup=False)
    n_dropped = len(built.about["dropped"])
    console.print(
        f"{out}: {len(built)} slices, {built.n_cells():,} cells; {n_dropped} slices left out"
    )


@corpus_app.command
def info(folder: Annotated[Path, Parameter(help="Folder of a corpus.")], /) -> None:
    """Print what is in a corpus, by technology, organism, tissue and split.

    Example: terrazzo corpus info corpus
    """
    from terrazzo import corpus

    opened = corpus.Corpus.open(folder)
    console = out_console()
    _print_tables(console, corpus.info(opened))
    content = opened.content_hash()[:16]
    console.print(f"{folder}: {len(opened)} slices, {opened.n_cells():,} cells; content {content}")
    for row in opened.about["dropped"]:
        console.print(f"  left out: {row['id']}: {row['reason']}", markup=False)


@corpus_app.command
def verify(folder: Annotated[Path, Parameter(help="Folder of a corpus.")], /) -> None:
    """Hash every file again; name those that are not as they were written (exit code 2).

    The same `corpus build` again makes damaged slices anew.

    Example: terrazzo corpus verify corpus
    """
    from terrazzo import corpus
    from terrazzo.corpus.verify import FIX
    from terrazzo.errors import CorpusError

    problems = corpus.verify(folder)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:50])
        raise CorpusError(f"{folder}: {len(problems)} problems; {FIX}:{shown}")
    out_console().print(f"{folder}: every file is as it was written")


@corpus_app.command
def plan(
    published: Annotated[str, Parameter(help="Published corpus, by name or YAML file.")],
    folders: Annotated[list[Path], Parameter(help="Folders of downloaded slices.")],
    /,
) -> None:
    """List which downloaded files belong to a published corpus, and what is missing.

    Example: terrazzo corpus plan stocorpus-88m downloads
    """
    from terrazzo import corpus

    planned = corpus.plan_corpus(published, folders)
    console = out_console()
    _print_tables(console, {planned.published.name: planned.table()})
    matched = planned.of("match")
    n_cells = sum(file.n_cells for file in matched)
    min_genes = planned.published.quality.min_genes
    needed = "a number by the panel of" if min_genes is None else min_genes
    console.print(
        f"will hold {len(matched)} slices, {n_cells:,} cells before quality control "
        f"(cells need {needed} expressed genes)"
    )
    for line in planned.missing():
        console.print(f"  missing: {line}", markup=False)
    for file in planned.files:
        if file.verdict != "match":
            console.print(f"  {file.verdict}: {file.path}: {file.reason}", markup=False)


def _floors_in_words(floors: dict[str, int]) -> str:
    """Say for which slices the floor of expressed genes was lowered."""
    pairs = [f"{id} {n_genes}" for id, n_genes in floors.items()]
    text = ", ".join(pairs[:FLOORS])
    if len(pairs) > FLOORS:
        text = f"{text} and {len(pairs) - FLOORS} more (corpus.json lists all)"
    return f"small panels: a cell needs 5 % of the panel's genes, not 100 (--min-genes sets a number): {text}"


def _print_tables(console: Console, tables: dict[str, pd.DataFrame]) -> None:
    for name, frame in tables.items():
        table = Table(title=name, title_justify="left", title_style="bold")
        for column in frame.columns:
            is_text = frame[column].dtype.kind == "O"
            header = str(column).replace("_", "\n", 1).replace("_", " ")
            table.add_column(header, justify="left" if is_text else "right", no_wrap=True)
        for row in frame.itertuples(index=False):
            table.add_row(*(_shown(value) for value in row))
        console.print(table)


def _shown(value: object) -> str:
    import pandas as pd

    if value is None or value is pd.NA:
        return "not stated"
    return str(value) if isinstance(value, str) else f"{value:,.0f}"
