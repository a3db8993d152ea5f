"""Verbs from slices to answers: regions, types, annotate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from terrazzo.cli.options import (
    FIRST,
    TASKS,
    CommonGenes,
    Copies,
    Out,
    Overwrite,
    Reading,
    Seed,
    common_options,
    say,
)

if TYPE_CHECKING:
    from terrazzo.answers.folders import Written

__all__ = ["register"]

Slices = Annotated[
    list[Path],
    Parameter(help="Slices: .h5ad, .zarr (AnnData, SpatialData), folders of vendors."),
]

NoReport = Annotated[bool, Parameter(negative=(), help="Write no report.html.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Finding:
    """Options of finding regions or types."""

    model: Annotated[
        str, Parameter(help="Checkpoint, baseline such as t3, or obsm key; auto: no weights.")
    ] = "auto"
    k: Annotated[str, Parameter(name=["-k"], help="How many: a number, or auto.")] = "auto"
    names: Annotated[
        Path | None, Parameter(help="Edited names.csv of an earlier run: names that you gave.")
    ] = None
    to: Annotated[
        Path | None, Parameter(help="Folder of an earlier result, which is found again here.")
    ] = None
    group: Annotated[
        str | None, Parameter(help="obs column: compare shares between groups of donors.")
    ] = None
    donor: Annotated[str | None, Parameter(help="obs column of the donor; default: donor.")] = None
    key_added: Annotated[str | None, Parameter(help="obs column to write.")] = None
    seeds: Annotated[
        int, Parameter(help="Each gives two partitions of the vote.", validator=Number(gte=1))
    ] = 5
    bootstraps: Annotated[
        int, Parameter(help="Draws of genes, for how sure it is.", validator=Number(gte=0))
    ] = 16

    def settings(self) -> dict[str, Any]:
        """Return the options as keywords of :func:`terrazzo.regions`.

        Raises
        ------
        ConfigError
            A number of regions that is none.
        """
        from terrazzo.errors import ConfigError

        settings = dict(vars(self))
        settings["n_seeds"] = settings.pop("seeds")
        if self.k != "auto":
            try:
                settings["k"] = int(self.k)
            except ValueError as error:
                raise ConfigError(
                    f"-k is {self.k!r}; it must be a whole number from 1, or auto."
                ) from error
        return settings


def register(app: App) -> None:
    """Add the verbs to the command line."""
    app.command(regions, group=FIRST)
    for verb in (types, annotate):
        app.command(verb, group=TASKS)


def regions(
    slices: Slices,
    /,
    *,
    out: Out,
    finding: Finding | None = None,
    no_report: NoReport = False,
    overwrite: Overwrite = False,
    reading: Reading | None = None,
    seed: Seed = 0,
) -> None:
    """Find tissue regions, how sure they are, and the genes that mark them; joint over slices.

    Example: terrazzo regions slice.h5ad --out regions
    Example: terrazzo regions a.h5ad b.h5ad -k 7 --names regions/names.csv --out regions
    """
    from terrazzo.answers.files import regions_files

    written = regions_files(
        slices,
        out,
        report=not no_report,
        overwrite=overwrite,
        slice_options=(reading or Reading()).options(),
        seed=seed,
        **(finding or Finding()).settings(),
    )
    _show(written)


def types(
    slices: Slices,
    /,
    *,
    out: Out,
    finding: Finding | None = None,
    no_report: NoReport = False,
    overwrite: Overwrite = False,
    reading: Reading | None = None,
    seed: Seed = 0,
) -> None:
    """Find cell types: as regions, by the cell alone, without its surroundings.

    Example: terrazzo types cells.h5ad --out types
    """
    from terrazzo.answers.files import types_files

    written = types_files(
        slices,
        out,
        report=not no_report,
        overwrite=overwrite,
        slice_options=(reading or Reading()).options(),
        seed=seed,
        **(finding or Finding()).settings(),
    )
    _show(written)


def annotate(
    slices: Slices,
    /,
    *,
    reference: Annotated[
        list[Path],
        Parameter(help="Annotated slices, or dissociated cells.", consume_multiple=True),
    ],
    label: Annotated[str, Parameter(help="obs column of the references.")],
    out: Out,
    threshold: Annotated[
        float | None,
        Parameter(
            help="Probability below which a cell is unknown; default: chosen on held-out cells."
        ),
    ] = None,
    key_added: Annotated[str, Parameter(help="obs column to write.")] = "terrazzo_label",
    common_genes: CommonGenes = None,
    copies: Copies = None,
    no_report: NoReport = False,
    overwrite: Overwrite = False,
    reading: Reading | None = None,
    seed: Seed = 0,
) -> None:
    """Carry labels of annotated slices or dissociated cells over to other slices.

    Example: terrazzo annotate a.h5ad --reference atlas.h5ad --label cell_type --out annotated
    """
    from terrazzo.answers.annotation_files import annotate_files

    written = annotate_files(
        slices,
        reference,
        label,
        out,
        report=not no_report,
        overwrite=overwrite,
        slice_options=(reading or Reading()).options(),
        threshold=threshold,
        key_added=key_added,
        seed=seed,
        **common_options(common_genes, copies),
    )
    _show(written)


def _show(written: Written) -> None:
    """Print what was found, and where it is."""
    for line in written.lines:
        say(line)
    if written.status == "unchanged":
        say(f"{written.folder}: finished before from the same slices and settings; left alone")
        return
    say(f"Written to {written.folder}: {', '.join(file.name for file in written.files)}")
