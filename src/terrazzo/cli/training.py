"""Verbs for training: pretrain, adapt, recipes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from terrazzo.cli.options import OPTIONS, TRAINING, say

__all__ = ["register"]


def register(app: App) -> None:
    """Add the verbs to the command line."""
    app.command(pretrain, group=TRAINING)
    app.command(adapt, group=TRAINING)
    recipes = App(
        name="recipes",
        group=TRAINING,
        group_arguments=OPTIONS,
        group_parameters=OPTIONS,
        help="List the recipes to train with; show one, to change it.\n\n"
        "Example: terrazzo recipes show stofm-tiny-adapt > mine.yaml",
    )
    recipes.default(list_recipes)
    recipes.command(show)
    app.command(recipes)


def pretrain(
    recipe: Annotated[str, Parameter(help="Name (see `terrazzo recipes`), or a YAML file.")],
    /,
    *,
    resume: Annotated[bool, Parameter(negative=(), help="Continue the run in its folder.")] = False,
    corpus: Annotated[
        Path | None, Parameter(help="Corpus folder, in place of the recipe's.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Folder of the run, in place of the recipe's.")
    ] = None,
    checkpoint: Annotated[
        Path | None, Parameter(help="Model to start from, in place of the recipe's.")
    ] = None,
    devices: Annotated[int | None, Parameter(help="Processes on each node, one a GPU.")] = None,
    nodes: Annotated[int | None, Parameter(help="Nodes.")] = None,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp"] | None, Parameter(help="Of several processes.")
    ] = None,
    max_steps: Annotated[
        int | None, Parameter(help="Steps of the optimizer, in place of the recipe's epochs.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Of weights, order and noise.")] = None,
) -> None:
    """Train on a corpus; a run that was stopped continues with --resume.

    Example: terrazzo pretrain stofm-small-adapt --corpus corpus --out run
    """
    from terrazzo.training.recipe import load_recipe

    run: dict[str, Any] = {"devices": devices, "nodes": nodes, "strategy": strategy}
    loaded = load_recipe(
        recipe,
        corpus=corpus,
        out=out,
        seed=seed,
        model={"checkpoint": None if checkpoint is None else str(checkpoint)},
        run=run,
        optim={"max_steps": max_steps},
    )
    from terrazzo.progress import Progress
    from terrazzo.training import endings
    from terrazzo.training import run as runs  # after the recipe was checked: it takes seconds

    folder = runs.pretrain(loaded, resume=resume)
    if runs.first_process():
        ending = endings.of_run(folder.parent)
        if ending is not None and not Progress().enabled:  # else it is below the bar
            say(ending.line())
        say(f"Trained model: {folder}\nLogs: {folder.parent / 'logs'}")


def adapt(
    model: Annotated[str, Parameter(help="Checkpoint folder that terrazzo trained, or its name.")],
    slices: Annotated[list[Path], Parameter(help="Slices: files or vendors' folders.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="New folder for logs and the adapted model.")],
    steps: Annotated[int, Parameter(help="Steps of training.")] = 300,
    seed: Annotated[int, Parameter(help="Of order and noise.")] = 0,
) -> None:
    """Train a model further on slices without labels; kept only where a held-out part of them gains.

    Example: terrazzo adapt runs/mine/model slices/a.h5ad --out adapted
    """
    from terrazzo.training.adapting import adapt as adapt_model

    say(adapt_model(model, slices, out, steps=steps, seed=seed).line())


def list_recipes() -> None:
    """List the recipes by system.

    Example: terrazzo recipes
    """
    from terrazzo.systems import registry
    from terrazzo.training.recipe import recipe_about

    files = registry.recipe_files()
    width = max(len(name) for name in files)
    for name, file in files.items():
        about = recipe_about(file.read_text(encoding="utf-8"))
        say(f"{name:<{width}}  {about}")
    say("Train: terrazzo pretrain NAME --corpus CORPUS --out RUN")
    say("Change one: terrazzo recipes show NAME > mine.yaml")


def show(name: Annotated[str, Parameter(help="Name of the recipe, or a YAML file.")], /) -> None:
    """Print a recipe with its comments, to be changed.

    Example: terrazzo recipes show stofm-tiny-adapt > mine.yaml
    """
    from terrazzo.training.recipe import recipe_text

    sys.stdout.write(recipe_text(name))
