"""The command line: one thin function a verb. Exit codes: 0 done; 2 wrong usage or bad input; 130 Ctrl-C; 1 else."""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape

from terrazzo._version import __version__
from terrazzo.cli import convert as cli_convert
from terrazzo.cli import genes as cli_genes
from terrazzo.cli import report as cli_report
from terrazzo.cli import tasks as cli_tasks
from terrazzo.cli.corpus import corpus_app
from terrazzo.cli.help import OneScreen
from terrazzo.cli.info import say_fact, say_slice
from terrazzo.cli.options import (
    CUT,
    FIRST,
    GRID,
    OPTIONS,
    OTHERS,
    PICTURE,
    SLICE,
    TRAINING,
    Chosen,
    Image,
    ImageScale,
    Layer,
    Microns,
    Organism,
    SpatialKey,
    Technology,
    image_option,
    out_console,
    slice_options,
)
from terrazzo.cli.stop import EXIT_CODE, kept, stoppable
from terrazzo.errors import TerrazzoError, TerrazzoWarning

HINT = "Add --debug to any command for a full traceback."


app = App(
    name="terrazzo",
    help="Foundation models for spatial transcriptomics: one good vector per cell.\n\n"
    f"Example: terrazzo embed slice.h5ad --model checkpoint --out embedded\n\nMore: terrazzo VERB --help. {HINT}",
    group_arguments=OPTIONS,
    group_parameters=OPTIONS,
    group_commands=OTHERS,
    default_parameter=Parameter(negative_iterable=()),  # no --empty-... beside every list
    help_format="plaintext",
    help_formatter=OneScreen(),
    version=__version__,
    suppress_keyboard_interrupt=False,  # main says what an interrupt leaves
)


cli_convert.register(app)


app.command(corpus_app)


cli_tasks.register(app)


cli_genes.register(app)


cli_report.register(app)


GridLayout = Annotated[
    Literal["auto", "hex", "square", "rank", "bin"] | None, Parameter(group=GRID)
]


BinUm = Annotated[float | None, Parameter(group=GRID, help="Side of a bin, for single cells.")]


WindowSide = Annotated[int | None, Parameter(group=GRID, help="Sites on a side of a window.")]


SpotUm = Annotated[
    float | None,
    Parameter(group=PICTURE, help="Diameter of a spot in micrometers; default: the platform's."),
]


@app.command(group=FIRST)
def info(
    slices: Annotated[
        list[Path],
        Parameter(help="Slices: .h5ad, .zarr (AnnData, SpatialData), folders of vendors."),
    ],
    /,
    *,
    model: Annotated[
        Path | None, Parameter(help="Also say how the genes meet this checkpoint.")
    ] = None,
    grid: Annotated[
        Path | None,
        Parameter(
            group=GRID, help="Draw to this file how one slice becomes windows, and say its grid."
        ),
    ] = None,
    layout: GridLayout = None,
    bin_um: BinUm = None,
    window: WindowSide = None,
    overlay: Annotated[
        Path | None,
        Parameter(
            group=PICTURE, help="Draw to this file where one slice's spots lie on its histology."
        ),
    ] = None,
    image: Image = None,
    image_scale: ImageScale = None,
    spot_um: SpotUm = None,
    layer: Layer = None,
    spatial_key: SpatialKey = "spatial",
    organism: Organism = None,
    technology: Technology = None,
    microns_per_unit: Microns = None,
    part: Chosen | None = None,
) -> None:
    """Say what is in a slice: cells, genes, units, spacing, and what it can be used for.

    Example: terrazzo info slice.h5ad --model checkpoint
    Example: terrazzo info cells.h5ad --grid grid.png --bin-um 20
    Example: terrazzo info slice.h5ad --overlay overlay.png --image he.jpg --image-scale 0.5
    """
    import terrazzo as tz

    asked: dict[str, Any] = {"layout": layout, "bin_um": bin_um, "window": window}
    laid = {k: v for k, v in asked.items() if v is not None}
    if laid and grid is None:
        raise tz.errors.ConfigError(
            f"{', '.join(laid)} belong to the picture of a grid: add --grid FILE.png."
        )
    for flag, figure_file in (("--grid", grid), ("--overlay", overlay)):
        if figure_file is not None and len(slices) > 1:
            raise tz.errors.ConfigError(
                f"{flag} draws one slice to {figure_file}; there are {len(slices)}."
            )
    loaded = tz.load(model) if model is not None else None
    options = slice_options(layer, spatial_key, organism, technology, microns_per_unit)
    options |= {**image_option(image, image_scale), **(part or Chosen()).options()}
    if image is not None and len(slices) > 1:
        raise tz.errors.ConfigError(
            f"--image is the histology of one slice; there are {len(slices)}."
        )
    for path in slices:
        tissue = say_slice(path, spot_um, options)
        if loaded is not None:
            say_fact("coverage", loaded.vocabulary.coverage(tissue))
        if grid is not None:
            figure = tz.plot.grid(tissue, **laid)
            say_fact("grid", figure.get_suptitle())
            say_fact("figure", tz.plot.save(figure, grid))
        if overlay is not None:
            figure = tz.plot.overlay(tissue, spot_um=spot_um)
            say_fact("overlay", figure.get_suptitle())
            say_fact("figure", tz.plot.save(figure, overlay))


@app.command(group=FIRST)
def embed(
    slices: Annotated[
        list[str],
        Parameter(help="Slices: .h5ad, .zarr (AnnData, SpatialData), folders of vendors."),
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="Checkpoint folder, or organization/name on the hub.")],
    out: Annotated[Path, Parameter(help="Folder for the embedded slices.")],
    key: Annotated[
        str | None, Parameter(help="obsm key; default: the model's own, e.g. X_stofm.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None,
        Parameter(help="Default float32; bfloat16 may be faster."),
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, ...")] = "cpu",
    seed: Annotated[
        int | None,
        Parameter(
            help="Seed of clustering, drawn channels or genes; default 0.", validator=Number(gte=0)
        ),
    ] = None,
    clusters: Annotated[
        str | None, Parameter(group=CUT, help="obs column to make virtual cells from.")
    ] = None,
    split: Annotated[Literal["balanced", "grid"] | None, Parameter(group=CUT)] = None,
    split_size: Annotated[int | None, Parameter(group=CUT, help="Cells a sub-slice.")] = None,
    halo: Annotated[
        float | None, Parameter(group=CUT, help="Context around it, in spacings.")
    ] = None,
    layout: GridLayout = None,
    bin_um: BinUm = None,
    window: WindowSide = None,
    scale: Annotated[
        Literal["both", "spot", "niche"] | None, Parameter(group=PICTURE, help="Default both.")
    ] = None,
    modality: Annotated[
        Literal["both", "genes", "image"] | None,
        Parameter(group=PICTURE, help="What is looked at; default both."),
    ] = None,
    image: Image = None,
    image_scale: ImageScale = None,
    spot_um: SpotUm = None,
    cache: Annotated[
        Path | None, Parameter(group=PICTURE, help="Folder to keep frozen features in.")
    ] = None,
    orthologs: Annotated[
        Path | None,
        Parameter(group=SLICE, help="Two-column table from the slice's genes to the model's."),
    ] = None,
    layer: Layer = None,
    spatial_key: SpatialKey = "spatial",
    organism: Organism = None,
    technology: Technology = None,
    microns_per_unit: Microns = None,
    part: Chosen | None = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), help="Replace files that terrazzo did not write.")
    ] = False,
    dry_run: Annotated[bool, Parameter(negative=(), help="Print the plan and stop.")] = False,
) -> None:
    """Give every cell one vector, in obsm; slices that are finished are left alone.

    Example: terrazzo embed a.h5ad b.h5ad --model checkpoint --out embedded
    """
    import terrazzo as tz

    console = out_console()
    loaded = tz.load(model, device=device)
    options = slice_options(layer, spatial_key, organism, technology, microns_per_unit)
    options |= {"orthologs": str(orthologs) if orthologs else None, **(part or Chosen()).options()}
    if not loaded.trained:
        console.print(
            "[yellow]The weights of this checkpoint are random: they were never trained.[/yellow]"
        )
    cut = {
        "clusters": clusters,
        "split": split,
        "split_size": split_size,
        "halo": halo,
        "precision": precision,
    }
    grid = {"layout": layout, "bin_um": bin_um, "window": window, "seed": seed}
    seen = {
        "scale": scale,
        "modality": modality,
        "spot_um": spot_um,
        "cache": cache,
        **image_option(image, image_scale),
    }
    given = {k: v for k, v in {**cut, **grid, **seen}.items() if v is not None}
    if foreign := [k for k in given if k not in inspect.signature(loaded.embed).parameters]:
        raise tz.errors.ConfigError(
            f"{', '.join(foreign)} mean nothing to this model ({loaded.title})."
        )
    options |= given
    how: dict[str, Any] = {
        "key_added": key,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "keep_going": len(slices) > 1,
    }
    failed = []

    def say(line: str) -> None:
        console.print(line, markup=False)

    for done in tz.embed_files(loaded, slices, out, announce=say, **how, **options):
        say(str(done))
        failed += [done.source] if done.status == "failed" else []
    if failed:
        raise tz.errors.InputError(
            f"{len(failed)} of {len(slices)} slices could not be used; the others are done."
        )


@app.command(group=TRAINING)
def pretrain(
    config: Annotated[Path, Parameter(help="Recipe (YAML), as in configs/.")],
    /,
    *,
    resume: Annotated[bool, Parameter(negative=(), help="Continue the run in its folder.")] = False,
    corpus: Annotated[
        Path | None, Parameter(help="Corpus folder, in place of the recipe's.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder of the run, in place of the recipe's.")
    ] = None,
    devices: Annotated[int | None, Parameter(help="Processes on each node, one a GPU.")] = None,
    nodes: Annotated[int | None, Parameter(help="Nodes.")] = None,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"] | None, Parameter(help="Several processes: how.")
    ] = None,
    max_steps: Annotated[int | None, Parameter(help="Steps of the optimizer at most.")] = None,
) -> None:
    """Train on a corpus; a run that was stopped continues with --resume.

    Example: terrazzo pretrain configs/stofm-small-adapt.yaml --corpus corpus --out run
    """
    from terrazzo.training import recipe as recipes

    given = {"corpus": corpus and str(corpus), "out": out and str(out)}
    run: dict[str, Any] = {"devices": devices, "nodes": nodes, "strategy": strategy}
    recipe = recipes.changed(recipes.load(config, **given), run=run, optim={"max_steps": max_steps})
    from terrazzo.training.run import first_process, pretrain

    folder = pretrain(recipe, resume=resume)
    if first_process():
        out_console().print(
            f"Trained model: {folder}\nLogs: {folder.parent / 'logs'}", markup=False
        )


@app.command(group=FIRST)
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results.")] = Path("terrazzo-demo"),
    cells: Annotated[int, Parameter(help="Cells of each simulated slice.")] = 700,
    seed: Annotated[
        int, Parameter(help="Seed of tissue and weights.", validator=Number(gte=0))
    ] = 0,
) -> None:
    """Simulate a small corpus, train on it, find the domains of another slice: minutes.

    Example: terrazzo demo --out my-demo
    """
    from terrazzo import demo as run_demo

    console = out_console()
    folder = run_demo.run(out, n_cells=cells, seed=seed)
    console.print((folder / "demo.md").read_text(encoding="utf-8"), markup=False)
    console.print(f"Figures: {folder / 'demo.png'}, {folder / 'losses.png'}", markup=False)
    written = f"Slice with obsm['X_stofm'], ['X_stimage'] and ['X_stalign']: {folder / 'demo.h5ad'}"
    console.print(
        f"{written}; models: {folder / 'stofm'}, {folder / 'stimage'}, {folder / 'stalign'}",
        markup=False,
    )
    console.print(f"Report, open it in a browser: {folder / run_demo.REPORT}", markup=False)


@app.command(group=OTHERS)
def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="Default: the shell you are in.")
    ] = None,
    /,
    *,
    install: Annotated[
        bool, Parameter(negative=(), help="Write it to where the shell looks, for good.")
    ] = False,
) -> None:
    """Print the script that lets a shell complete verbs and options with the Tab key.

    Example: terrazzo completion bash --install
    """
    from cyclopts.completion import ShellDetectionError

    from terrazzo.errors import ConfigError, OutputError

    try:
        if not install:
            sys.stdout.write(app.generate_completion(shell=shell) + "\n")
            return
        script = app.install_completion(shell=shell)
    except ShellDetectionError as error:
        raise ConfigError(
            "which shell this is cannot be found out: name it, e.g. terrazzo completion bash."
        ) from error
    except OSError as error:
        where = f"{error.filename} cannot be written ({error.strerror})"
        raise OutputError(
            f"{where}: leave out --install, and put what is printed where your shell looks."
        ) from error
    out_console().print(
        f"Written to {script}; it works in the next shell that you open.", markup=False
    )


def _show_warning(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> None:
    """Print our own warnings as one line; others stay out of the user's way."""
    if issubclass(category, TerrazzoWarning):
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[yellow]warning:[/yellow] {escape(str(message))}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    arguments
        Without the program's name; None takes them from ``sys.argv``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with stoppable(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", TerrazzoWarning)
            app(words, exit_on_error=False, print_error=False, result_action="return_none")
    except TerrazzoError as error:
        if debug:
            traceback.print_exc()
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        return 2
    except CycloptsError as error:
        errors.print("[red]error:[/red]", escape(str(error)))
        known = app.parse_commands(words)[0]  # a misspelled verb has no help
        errors.print(f"Try: {' '.join(['terrazzo', *known])} --help")
        return 2
    except KeyboardInterrupt:
        errors.print(f"stopped: {kept(words)}")
        return EXIT_CODE
    except Exception as error:
        if debug:
            traceback.print_exc()
        errors.print(
            f"[red]unexpected error:[/red] {type(error).__name__}: {escape(str(error))}. {HINT}"
        )
        return 1
    return 0
