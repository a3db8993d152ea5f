"""Options and functions that several verbs share: reading and writing slices, printing lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number
from rich.console import Console

from terrazzo.errors import printable
from terrazzo.progress import Progress, Stage

if TYPE_CHECKING:
    from anndata import AnnData

    from terrazzo.tasks import TaskResult


__all__ = [
    "FIRST",
    "GRID",
    "HISTOLOGY",
    "OPTIONS",
    "OTHERS",
    "SCORES",
    "SHOWING",
    "SLICE",
    "TASKS",
    "TRAINING",
    "Embedded",
    "Head",
    "Out",
    "Predict",
    "Reading",
    "Rep",
    "Runs",
    "Seed",
    "SlicePart",
    "Test",
    "about",
    "only_one",
    "out_console",
    "read_slice",
    "report",
    "say",
    "say_aside",
    "targets_of",
    "working",
    "write_slice",
]

# groups of verbs, in the order of `terrazzo --help`
LONGEST = 100_000  # letters of what is printed at once

FIRST = Group.create_ordered("Start here")

TASKS = Group.create_ordered("Ask a question")

TRAINING = Group.create_ordered("Train your own")

SHOWING = Group.create_ordered("Compare and show")

OTHERS = Group.create_ordered("More")

# groups of options, in the order of a verb's help
OPTIONS = Group.create_ordered("Options")

GRID = Group.create_ordered("Grid of the slice (ST as images)")

HISTOLOGY = Group.create_ordered("Histology (ST-Align, and figures)")

SCORES = Group.create_ordered("Scores")

SLICE = Group.create_ordered("How to read the slice")

Embedded = Annotated[
    list[Path], Parameter(help="Embedded slices (.h5ad, .zarr), as `terrazzo embed` writes them.")
]

Rep = Annotated[str, Parameter(name="--use-rep", help="obsm key, or key:block, e.g. X_stofm:own.")]

Out = Annotated[Path, Parameter(help="Folder for the results.")]

Head = Annotated[
    Literal["mlp3", "mlp512", "knn", "linear"], Parameter(help="Model fitted on the embeddings.")
]

Runs = Annotated[int, Parameter(group=SCORES, help="Seeds or draws.")]

Test = Annotated[
    Path | None,
    Parameter(group=SCORES, help="Score on this slice; else SLICES are split (one slice)."),
]

Predict = Annotated[list[Path] | None, Parameter(help="Slices to annotate (repeatable).")]


@Parameter(name="*", group=SLICE)
@dataclass(frozen=True)
class SlicePart:
    """Options for the part of a path that is the slice; a table is named by its path, x.zarr/tables/NAME."""

    bins: Annotated[
        str | None, Parameter(help="Visium HD: um (8). Stereo-seq: spots a side (50), or cell.")
    ] = None
    region: Annotated[
        str | None, Parameter(help="Of a SpatialData; needed where its table annotates several.")
    ] = None
    coordinate_system: Annotated[
        str | None, Parameter(help='Of a SpatialData; default "global".')
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the options that are set, as keywords."""
        return {key: value for key, value in vars(self).items() if value is not None}


@Parameter(name="*", group=SLICE)
@dataclass(frozen=True)
class Reading(SlicePart):
    """Options of reading a slice: the part of it, its image, and facts that its file lacks."""

    image: Annotated[
        Path | None,
        Parameter(help="Histology: a file, or a name in the store; default: that in the slice."),
    ] = None
    image_scale: Annotated[
        float | None,
        Parameter(help="Its pixels per coordinate unit; default 1: coordinates are its pixels."),
    ] = None
    layer: Annotated[str | None, Parameter(help="Layer with the raw counts.")] = None
    spatial_key: Annotated[str, Parameter(help="obsm key of the coordinates.")] = "spatial"
    organism: Annotated[
        Literal["human", "mouse"] | None, Parameter(help="Default: from the gene names.")
    ] = None
    technology: Annotated[
        str | None, Parameter(help="e.g. Visium, ST, Xenium, MERFISH, CosMx.")
    ] = None
    microns_per_unit: Annotated[
        float | None, Parameter(help="Micrometers per coordinate unit.")
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the options that are set, as keywords of :func:`terrazzo.read`; the image is opened.

        Raises
        ------
        ConfigError
            A scale without an image.
        """
        import terrazzo as tz
        from terrazzo.errors import ConfigError

        options = super().options()
        image = options.pop("image", None)
        scale = options.pop("image_scale", None)
        if image is None:
            if scale is not None:
                raise ConfigError(
                    "--image-scale belongs to --image FILE; the slice's own image has its scale."
                )
            return options
        is_name = not image.suffix and len(image.parts) == 1 and not image.exists()
        if is_name:  # of an image in the store or folder
            options["image"] = str(image)
        else:
            options["image"] = tz.TissueImage.from_file(
                image, scale=1.0 if scale is None else scale
            )
        return options


Seed = Annotated[int, Parameter(help="Seed.", validator=Number(gte=0))]


def out_console() -> Console:
    """Return a console on the current standard output."""
    return Console(soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line."""
    out_console().print(printable(line, LONGEST), markup=False)


def say_aside(line: str) -> None:
    """Print a line to the error stream: progress."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        printable(line, LONGEST), markup=False
    )


def working(
    what: str, total: int | None = None, unit: str = "slices"
) -> AbstractContextManager[Stage]:
    """Show a progress bar on a terminal."""
    return Progress().stage(what, total, unit)


def read_slice(path: Path, part: SlicePart | None = None) -> AnnData:
    """Read a slice from a file or a vendor's folder, and print what was left out."""
    from terrazzo.slices import Choices, open_slice

    with working(f"read {path.name}"):
        opened = open_slice(path, Choices(**(part or SlicePart()).options()))
    for note in opened.notes:
        say_aside(f"{path}: {note}")
    return opened.adata


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put a file's path in front of an error about its slice."""
    from terrazzo.errors import InputError

    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise type(error)(f"{path}: {error}") from error


def write_slice(adata: AnnData, target: Path, source: Path, part: SlicePart | None = None) -> None:
    """Write a slice that was read from a source, whole or not at all; of a store, a copy of it."""
    from terrazzo.models.embed_files import check_writable, write_back

    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with working(f"write {target.name}"):
        write_back(adata, target, source, **(part or SlicePart()).options())


def only_one(slices: list[Any]) -> Any:
    """Return the one slice; raise ConfigError where there are several."""
    from terrazzo.errors import ConfigError

    if len(slices) != 1:
        raise ConfigError(
            f"there are {len(slices)} slices; pass --test, or one slice, which is split."
        )
    return slices[0]


def targets_of(sources: list[Path], out: Path) -> list[Path]:
    """Return the output file of each slice, before any work is done; none may be its own input."""
    from terrazzo.models.embed_files import plan_targets

    return [target for _, target in plan_targets(sources, out)]


def report(result: TaskResult, folder: Path) -> None:
    """Write a result and print its scores."""
    target = result.save(folder)
    for row in result.summary().itertuples():
        system = f"{row.system:<24} " if "system" in result.metrics else ""
        say(f"  {system}{row.split:<10}{row.metric:<18}{row.mean:.4f} ± {row.sd:.4f} (n = {row.n})")
    for note in result.notes:
        say(f"  note: {note}")
    say(f"Scores and predictions: {target}")
