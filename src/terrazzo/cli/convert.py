"""Verb ``convert``: published weights to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from terrazzo.cli.options import TRAINING, say, working

__all__ = ["register"]


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(convert, group=TRAINING)


def convert(
    kind: Annotated[
        str, Parameter(help="Whose weights: stofm, geneformer, scgpt, uni (an image encoder).")
    ],
    published: Annotated[Path, Parameter(help="Folder as it was published.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder to write.")],
    gene_dictionaries: Annotated[
        Path | None,
        Parameter(
            help="Folder with Geneformer's dictionaries (.pkl); stofm and geneformer need it."
        ),
    ] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), help="Replace an existing checkpoint.")
    ] = False,
) -> None:
    """Convert published weights to a checkpoint folder, for equal outputs.

    Example: terrazzo convert stofm DOWNLOADED --gene-dictionaries GENEFORMER --out checkpoint
    Example: terrazzo convert uni DOWNLOADED --out uni
    """
    import terrazzo as tz

    with working(f"convert {kind}"):
        target = tz.convert(
            kind, published, out, gene_dictionaries=gene_dictionaries, overwrite=overwrite
        )
    say(f"Written to {target}")
