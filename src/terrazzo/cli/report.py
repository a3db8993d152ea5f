"""Verb ``report``: one HTML file of slices, results and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from terrazzo.cli.options import SHOWING, Overwrite, Reading, Seed, say

__all__ = ["register"]


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(report, group=SHOWING)


def report(
    sources: Annotated[
        list[Path],
        Parameter(help="Slices, results of tasks, tables of bench, runs, or folders of these."),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="The .html file.")],
    title: Annotated[str, Parameter(help="Its headline.")] = "terrazzo report",
    use_rep: Annotated[
        list[str] | None,
        Parameter(name="--use-rep", help="Draw this embedding, or key:block (repeatable)."),
    ] = None,
    gene: Annotated[list[str] | None, Parameter(help="Store this gene, too (repeatable).")] = None,
    n_genes: Annotated[
        int | None,
        Parameter(
            help="Genes stored in the file. Default: all of a small slice, else 100.",
            validator=Number(gte=0),
        ),
    ] = None,
    projection: Annotated[
        Literal["auto", "umap", "pca"],
        Parameter(help="auto: UMAP up to 10,000 cells, else principal components."),
    ] = "auto",
    reading: Reading | None = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
) -> None:
    """Write one HTML file that opens offline: slices to look around in, results, losses.

    Example: terrazzo report embedded/a.h5ad tables/ runs/stofm --out report.html
    """
    import terrazzo as tz

    slice_options = (reading or Reading()).options()
    target = tz.report.write(
        sources,
        out,
        title=title,
        embeddings=use_rep,
        genes=gene or (),
        n_genes=n_genes,
        projection=projection,
        seed=seed,
        overwrite=overwrite,
        **slice_options,
    )
    size_mb = target.stat().st_size / 1e6
    say(f"Report: {target} ({size_mb:.1f} MB)")
