"""Verb ``info``: facts of a slice with their units, and what each system can do with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.markup import escape

from terrazzo.cli.options import (
    FIRST,
    GRID,
    HISTOLOGY,
    Overwrite,
    Reading,
    file_of_section,
    out_console,
    say,
    working,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from terrazzo import Slice
    from terrazzo.marks import Mark

__all__ = ["register"]

SHOWN = 8  # names of embeddings, or of labels


def register(app: App) -> None:
    """Add the verb to the command line."""
    app.command(info, group=FIRST)


def info(
    slices: Annotated[
        list[Path],
        Parameter(help="Slices: .h5ad, .zarr (AnnData, SpatialData), folders of vendors."),
    ],
    /,
    *,
    model: Annotated[
        Path | None, Parameter(help="Also print how many genes this checkpoint knows.")
    ] = None,
    grid: Annotated[
        Path | None,
        Parameter(
            group=GRID, help="Draw to this file how one slice becomes windows; print its grid."
        ),
    ] = None,
    layout: Annotated[
        Literal["auto", "hex", "square", "rank", "bin"] | None, Parameter(group=GRID)
    ] = None,
    bin_um: Annotated[
        float | None, Parameter(group=GRID, help="Side of a bin, for single cells.")
    ] = None,
    window: Annotated[
        int | None, Parameter(group=GRID, help="Sites on a side of a window.")
    ] = None,
    overlay: Annotated[
        Path | None,
        Parameter(
            group=HISTOLOGY, help="Draw to this file where one slice's spots are on its histology."
        ),
    ] = None,
    spot_um: Annotated[
        float | None,
        Parameter(
            group=HISTOLOGY, help="Diameter of a spot in micrometers; default: the platform's."
        ),
    ] = None,
    reading: Reading | None = None,
    overwrite: Overwrite = False,
) -> None:
    """Print what is in a slice: cells, genes, units, spacing, and what it can be used for.

    Example: terrazzo info slice.h5ad --model checkpoint
    Example: terrazzo info cells.h5ad --grid grid.png --bin-um 20
    Example: terrazzo info slice.h5ad --overlay overlay.png --image he.jpg --image-scale 0.5
    """
    import terrazzo as tz
    from terrazzo.errors import ConfigError
    from terrazzo.marks import guard, mark_of
    from terrazzo.models.embed_files import check_writable

    settings: dict[str, Any] = {"layout": layout, "bin_um": bin_um, "window": window}
    grid_options = {name: value for name, value in settings.items() if value is not None}
    if grid_options and grid is None:
        raise ConfigError(
            f"{', '.join(grid_options)} belong to the figure of a grid: add --grid FILE.png."
        )
    for flag, figure_file in (("--grid", grid), ("--overlay", overlay)):
        if figure_file is not None and len(slices) > 1:
            raise ConfigError(f"{flag} draws one slice to {figure_file}; there are {len(slices)}.")
    marks = {}
    for name, figure_file in (("grid", grid), ("overlay", overlay)):
        if figure_file is not None:
            marks[name] = mark_of(f"info --{name}", slices)
            guard(figure_file, marks[name], overwrite=overwrite)
            check_writable(figure_file.parent)
    options = (reading or Reading()).options()
    if "image" in options and len(slices) > 1:
        raise ConfigError(f"--image is the histology of one slice; there are {len(slices)}.")
    loaded = tz.load(model) if model is not None else None
    extras = _Extras(loaded, grid, grid_options, overlay, spot_um, marks, overwrite)
    for path in slices:
        print_slices(path, options, extras)


@dataclass(frozen=True)
class _Extras:
    """What is printed and drawn of a slice beside its facts; see :func:`info`."""

    model: Any
    grid: Path | None
    grid_options: dict[str, Any]
    overlay: Path | None
    spot_um: float | None
    marks: dict[str, Mark]
    overwrite: bool

    def show(self, tissue: Slice, section: str | None) -> None:
        """Print and draw; the figures of a section have its name."""
        import terrazzo as tz

        if self.model is not None:
            print_fact("coverage", self.model.vocabulary.coverage(tissue))
        if self.grid is not None:
            figure = tz.plot.grid(tissue, **self.grid_options)
            print_fact("grid", figure.get_suptitle())
            self._save(figure, self.grid, section, "grid")
        if self.overlay is not None:
            figure = tz.plot.overlay(tissue, spot_um=self.spot_um)
            print_fact("overlay", figure.get_suptitle())
            self._save(figure, self.overlay, section, "overlay")

    def _save(self, figure: Any, file: Path, section: str | None, kind: str) -> None:
        import terrazzo as tz

        target = file_of_section(file, section)
        mark = self.marks[kind]
        print_fact("figure", tz.plot.save(figure, target, mark=mark, overwrite=self.overwrite))


def print_fact(name: str, value: object) -> None:
    """Print a fact after its name."""
    say(f"  {name.replace('_', ' '):<22}{value}")


def print_slices(path: Path, options: dict[str, Any], extras: _Extras) -> None:
    """Read a slice, or the sections of a file, and print the facts of each; ``options`` as of :func:`terrazzo.read`."""
    from terrazzo.errors import InputError
    from terrazzo.models.inputs import check_image
    from terrazzo.slices import Opened, Slice, open_slice, split_choices

    choices, rest = split_choices(options)
    with working(f"read {path.name}"):
        opened = open_slice(path, choices)
    check_image(opened, rest)

    def print_one(one: Opened) -> None:
        title = str(path) if one is opened else f"{path}: {one.section}"
        tissue = Slice.from_opened(one, allow_normalized=True, **rest)
        _print_slice(title, tissue, one.adata, extras.spot_um)
        extras.show(tissue, one.section)

    try:
        opened.each(print_one)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def _print_slice(title: str, tissue: Slice, adata: AnnData, spot_um: float | None) -> None:
    """Print the facts of a slice."""
    from terrazzo.models.uses import uses

    out_console().print(f"[bold]{escape(title)}[/bold]")
    for name, value in tissue.describe().items():
        print_fact(name, _in_words(name, value, tissue.unit))
    if tissue.organism == "mouse":
        print_fact("human orthologs", _human_orthologs(tissue))
    for name, value in _tables(adata).items():
        print_fact(name, value)
    for name, line in uses(tissue, spot_um).items():
        print_fact(name, line)


def _human_orthologs(tissue: Slice) -> str:
    """Return how many genes of a mouse slice a model of human genes could know."""
    from terrazzo.genes.orthologs import n_with_ortholog

    ids = tissue.gene_ids.tolist()
    symbols = tissue.gene_symbols.tolist()
    n_genes = n_with_ortholog(ids, symbols, tissue.organism)
    return f"{n_genes:,} of {tissue.n_genes:,} genes (table of terrazzo, from Ensembl)"


def _in_words(name: str, value: Any, unit: str) -> str:
    """Return a fact with its unit, and at most four digits."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no: normalized values"
    suffix = ""
    if name in ("extent", "spacing") and unit in ("um", "pixel"):
        suffix = f" {unit}"
    elif name == "image":
        suffix = " pixels"
    if isinstance(value, list):
        return " x ".join(_number(one) for one in value) + suffix
    if isinstance(value, int | float):
        return _number(value) + suffix
    return f"{value}{suffix}"


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) < 1000:
        return f"{value:,.4g}"
    return f"{value:,.0f}"


def _tables(adata: AnnData) -> dict[str, str]:
    """Return the names of embeddings (``--use-rep``) and labels (``--label``)."""
    labels = [str(name) for name in adata.obs if adata.obs[name].dtype.kind not in "fiu"]
    reps = [str(name) for name in adata.obsm if str(name).startswith("X_")]
    return {"embeddings": _some(reps), "labels": _some(labels)}


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:SHOWN])
    if len(names) > SHOWN:
        return f"{shown} and {len(names) - SHOWN} more"
    return shown
