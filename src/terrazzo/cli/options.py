"""Options and functions that several verbs share: reading and writing slices, printing lines."""

from __future__ import annotations

import re
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

    from terrazzo.marks import Mark
    from terrazzo.models.base import FoundationModel
    from terrazzo.models.baselines import Baseline
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
    "Across",
    "Batch",
    "CommonGenes",
    "Copies",
    "Embedded",
    "Head",
    "Out",
    "Overwrite",
    "Planned",
    "Predict",
    "Reading",
    "Rep",
    "RepOrModel",
    "Runs",
    "Seed",
    "SliceKey",
    "SlicePart",
    "Test",
    "about",
    "check_results",
    "common_options",
    "file_of_section",
    "key_of",
    "load_model",
    "only_one",
    "out_console",
    "plan",
    "read_slice",
    "report",
    "say",
    "say_aside",
    "sections_of",
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

RepOrModel = Annotated[
    str | None,
    Parameter(name="--use-rep", help="obsm key, or key:block, e.g. X_stofm:own; else --model."),
]

CommonGenes = Annotated[
    bool | None,
    Parameter(
        help="Cut all slices to the genes that all have; default: where held-out scores gain."
    ),
]

Copies = Annotated[
    bool | None,
    Parameter(
        help="Learn from copies at the other slices' genes and depth; default: where they differ."
    ),
]

Out = Annotated[Path, Parameter(help="Folder for the results.")]

Overwrite = Annotated[
    bool,
    Parameter(
        negative=(), help="Replace files that terrazzo did not write, or made from another source."
    ),
]

Head = Annotated[
    Literal["mlp3", "mlp512", "knn", "linear"], Parameter(help="Model fitted on the embeddings.")
]

Runs = Annotated[int, Parameter(group=SCORES, help="Seeds or draws.")]

Test = Annotated[
    Path | None,
    Parameter(group=SCORES, help="Score on this slice; else SLICES are split (one slice)."),
]

Predict = Annotated[list[Path] | None, Parameter(help="Slices to annotate (repeatable).")]


SliceKey = Annotated[
    str | None,
    Parameter(
        group=SLICE, help="obs column that tells sections apart, each a slice; none: all are one."
    ),
]


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
    slice_key: SliceKey = None

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
    unit: Annotated[
        Literal["um", "mm", "pixel", "array", "unknown"] | None,
        Parameter(help="Of the coordinates; default: by the evidence that `terrazzo info` shows."),
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


@Parameter(name="*")
@dataclass(frozen=True)
class Across:
    """Options of what is learned on some slices for others: the model that embeds them together."""

    model: Annotated[
        str | None,
        Parameter(help="Checkpoint or baseline (t3) that embeds the slices here, from raw counts."),
    ] = None
    common_genes: CommonGenes = None
    copies: Copies = None

    def options(self) -> dict[str, Any]:
        """Return the options as keywords of :func:`terrazzo.tasks.probe`; the model is loaded."""
        model = None if self.model is None else load_model(self.model)
        return {"model": model, **common_options(self.common_genes, self.copies)}


def common_options(common_genes: bool | None, copies: bool | None) -> dict[str, Any]:
    """Return flags as keywords of Python: not set is chosen."""
    chosen = "auto" if common_genes is None else common_genes
    return {"common_genes": chosen, "copies": copies}


def load_model(name: str, device: str = "cpu") -> FoundationModel | Baseline:
    """Return a baseline by its name, or the model of a checkpoint; errors as :func:`terrazzo.load`."""
    import terrazzo as tz
    from terrazzo.models.baselines import KINDS

    if name in KINDS and not Path(name).exists():
        return tz.Baseline(name)
    return tz.load(name, device=device)


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


def read_slice(path: Path, part: SlicePart | None = None, *, to_write: bool = False) -> AnnData:
    """Read a slice from a file or a vendor's folder, and print what was left out.

    With ``to_write`` what cannot be written is renamed or refused now, before any work.
    """
    from terrazzo.models.embed_files import writable
    from terrazzo.slices import Choices, open_slice

    with working(f"read {path.name}"):
        opened = open_slice(path, Choices(**(part or SlicePart()).options()))
        notes = list(opened.notes)
        with about(path):
            notes.append(opened.check_sections())
            if to_write:
                notes += writable(opened)
    for note in filter(None, notes):
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


@dataclass(frozen=True)
class Planned:
    """A slice, and where its result goes.

    Attributes
    ----------
    source, target
        Of the slice.
    mark
        That the result will have.
    """

    source: Path
    target: Path
    mark: Mark

    @property
    def figure(self) -> Path:
        """The picture beside the result."""
        return self.target.with_suffix(".png")


def plan(
    verb: str,
    sources: list[Path],
    out: Path,
    part: SlicePart | None = None,
    *,
    overwrite: bool = False,
    with_figures: bool = False,
) -> list[Planned]:
    """Return where the result of each slice goes, before any work is done.

    Raises
    ------
    InputError
        Two results of one name; a result onto its own input.
    OutputError
        There is a file already that is not an earlier result of the same slice; the folder cannot be written.
    """
    from terrazzo.marks import guard, mark_of
    from terrazzo.models.embed_files import check_writable, plan_targets

    choices = (part or SlicePart()).options()
    planned = []
    for source, target in plan_targets(sources, out):
        one = Planned(source, target, mark_of(verb, [source], choices))
        guard(one.target, one.mark, overwrite=overwrite)
        if with_figures:
            guard(one.figure, one.mark, overwrite=overwrite)
        planned.append(one)
    if planned:
        check_writable(out)
    return planned


def check_results(
    folder: Path, verb: str, sources: list[Path], part: SlicePart | None, *, overwrite: bool
) -> Mark:
    """Check, before any work is done, that the scores of some slices can be written to a folder; return their mark.

    Raises
    ------
    OutputError
        It has scores of other slices, or other files of these names; it cannot be written.
    """
    from terrazzo.marks import mark_of
    from terrazzo.models.embed_files import check_writable
    from terrazzo.tasks import results

    mark = mark_of(verb, sources, (part or SlicePart()).options())
    results.check_free(folder, mark, overwrite=overwrite)
    check_writable(folder.parent)
    return mark


class Batch:
    """Work on several slices: one that fails is named, and the others go on.

    Parameters
    ----------
    n
        Number of slices; of one alone, the error is raised as it is.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.n_failed = 0

    @contextmanager
    def one(self, planned: Planned, part: SlicePart | None = None) -> Iterator[None]:
        """Work on one slice."""
        from terrazzo.errors import TerrazzoError
        from terrazzo.slices import Choices
        from terrazzo.slices.apart import in_work, read_apart

        path = planned.source
        try:
            with about(path), in_work(planned.target, path) as has_died:
                if has_died:
                    read_apart(path, Choices(**(part or SlicePart()).options()), {})
                yield
        except TerrazzoError as error:
            self._fail(path, error, str(error))
        except Exception as error:
            self._fail(path, error, f"unexpected error: {type(error).__name__}: {error}")

    def _fail(self, path: Path, error: Exception, reason: str) -> None:
        if self.n == 1:
            raise error
        self.n_failed += 1
        say(f"{path}: failed: {reason.removeprefix(f'{path}: ')}")

    def end(self) -> None:
        """Report how many slices failed.

        Raises
        ------
        InputError
            Some did.
        """
        from terrazzo.errors import InputError

        if self.n_failed:
            raise InputError(
                f"{self.n_failed} of {self.n} slices could not be used; the others are done."
            )


def write_slice(adata: AnnData, planned: Planned, part: SlicePart | None = None) -> None:
    """Write a slice that was read from a source, whole or not at all; of a store, a copy of it."""
    from terrazzo.models.embed_files import check_writable, write_back
    from terrazzo.slices.writable import check_space

    target = planned.target
    check_writable(target.parent)
    check_space(adata, target.parent)
    choices = (part or SlicePart()).options()
    with working(f"write {target.name}"):
        write_back(adata, target, planned.source, planned.mark, **choices)


def key_of(part: SlicePart | None) -> str | None:
    """Return the column that tells sections apart."""
    return None if part is None else part.slice_key


def sections_of(adata: AnnData, part: SlicePart | None) -> dict[str | None, AnnData]:
    """Return the sections of a slice by their labels; where nothing tells them apart the slice alone, under None."""
    from terrazzo.slices.parts import split, takes_all

    slice_key = key_of(part)
    if takes_all(slice_key):
        return {None: adata}
    return {one.value: one.adata for one in split(adata, str(slice_key))}


def file_of_section(target: Path, section: str | None) -> Path:
    """Return the file for one section of a slice: that of the slice, with the section's label in its name."""
    if section is None:
        return target
    ending = re.sub(r"[^\w.+-]+", "_", section)
    return target.with_name(f"{target.stem}_{ending}{target.suffix}")


def only_one(slices: list[Any]) -> Any:
    """Return the one slice; raise ConfigError where there are several."""
    from terrazzo.errors import ConfigError

    if len(slices) != 1:
        raise ConfigError(
            f"there are {len(slices)} slices; pass --test, or one slice, which is split."
        )
    return slices[0]


def report(
    result: TaskResult, folder: Path, mark: Mark | None = None, *, overwrite: bool = False
) -> None:
    """Write a result and print its scores."""
    target = result.save(folder, mark=mark, overwrite=overwrite)
    for row in result.summary().itertuples():
        system = f"{row.system:<24} " if "system" in result.metrics else ""
        say(f"  {system}{row.split:<10}{row.metric:<18}{row.mean:.4f} ± {row.sd:.4f} (n = {row.n})")
    for note in result.notes:
        say(f"  note: {note}")
    say(f"Scores and predictions: {target}")
