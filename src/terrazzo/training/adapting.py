"""Adaptation of a trained model to slices without labels: a short training, kept only where held-out tissue gains."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terrazzo.arrays import Bools, Floats
from terrazzo.corpus.build import build
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.files import exists, work_folder
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.parsing import parse_json
from terrazzo.slices import Slice, read_anndata
from terrazzo.slices.parts import take_rows
from terrazzo.systems import registry
from terrazzo.training import endings
from terrazzo.training.recipe import Recipe, recipe_from_dict
from terrazzo.training.run import pretrain

__all__ = ["Adapted", "adapt"]

HELD_OUT = 0.25  # share of the cells of each slice, on one side of it

LEAST_CELLS = 20  # of either part of a slice

VALIDATIONS = 10  # of a run

RATE = 0.25  # of the learning rate that the model was trained with

WITH_ORTHOLOGS = ("human", "mouse")

CORPUS = "corpus"

RUN = "run"


@dataclass(frozen=True)
class Adapted:
    """What an adaptation gained.

    Attributes
    ----------
    folder
        The model: a checkpoint folder.
    step
        Steps of training that it has; 0 where none was better on the held-out tissue than the start.
    start_loss, loss
        Held-out loss of the start, and of the model.
    """

    folder: Path
    step: int
    start_loss: float
    loss: float

    @property
    def gained(self) -> bool:
        """Whether the training was kept."""
        return self.step > 0

    def line(self) -> str:
        """Return one line for people."""
        if not self.gained:
            return (
                f"nothing was gained: no step was better on the held-out tissue than the start (loss "
                f"{self.start_loss:.4g}), and {self.folder} holds the start."
            )
        share = 1 - self.loss / self.start_loss
        return (
            f"{self.folder}: held-out loss {self.start_loss:.4g} -> {self.loss:.4g} ({share:.1%} less) after "
            f"{self.step:,} steps."
        )


def adapt(
    model: str | Path,
    slices: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    steps: int = 300,
    seed: int = 0,
    progress: bool | None = None,
) -> Adapted:
    """Train a model further on slices without labels, and keep that only where a held-out part of them gains.

    A quarter of each slice, on one side of it, is held out. The objective is that of the model's own training, at a
    quarter of its learning rate; a completed model first gets a basis for each study of the slices. The best of
    ten validations is kept, the start among them.

    Parameters
    ----------
    model
        Folder of a checkpoint that terrazzo trained, or its name.
    slices
        Files or vendors' folders, raw counts.
    out
        A new folder: ``corpus/``, and the run in ``run/``, with logs and the adapted ``model/``.
    steps
        Of training.
    seed
        Of order and noise.
    progress
        Show bars; None: in a terminal and in a notebook.

    Returns
    -------
    :class:`Adapted`; its text says what was gained.

    Raises
    ------
    ConfigError
        Weights without a recipe (converted ones): there is no objective to continue.
    InputError
        A slice that cannot be used, or that is too small to hold a part out.
    OutputError
        The folder exists, or cannot be written.
    """
    paths = [slices] if isinstance(slices, str | Path) else list(slices)
    folder = Path(out)
    if exists(folder):
        raise OutputError(f"{folder} exists already; name a new folder.")
    loaded = load(model)
    recipe = _recipe(loaded, str(model))
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1.")
    changed = recipe.changed(
        corpus=str(folder / CORPUS),
        out=str(folder / RUN),
        seed=seed,
        model={"checkpoint": str(model), **registry.stage_class(recipe.stage).adapting},
        optim={"max_steps": steps, "lr": recipe.optim.lr * RATE},
        run={"keep": "best", "validate_every": max(1, steps // VALIDATIONS), "log_every": 10},
    )
    with work_folder(folder.parent) as work:
        table = _written_parts([Path(path) for path in paths], work)
        organism = loaded.vocabulary.organism
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*donors have slices in more than one split")
            build(
                table,
                folder / CORPUS,
                orthologs=organism if organism in WITH_ORTHOLOGS else None,
                progress=progress,
            )
    trained = pretrain(changed, progress=progress)
    ending = endings.of_run(folder / RUN)
    if ending is None or ending.kept_step is None or ending.kept_loss is None:
        raise ConfigError(f"{folder} says nothing of held-out tissue: was its run.json changed?")
    start_loss = ending.kept_loss if ending.start_loss is None else ending.start_loss
    return Adapted(trained, ending.kept_step, start_loss, ending.kept_loss)


def _recipe(model: FoundationModel, name: str) -> Recipe:
    """Return the recipe that a model was trained with last."""
    text = model.provenance.get("recipe")
    if not isinstance(text, str):
        raise ConfigError(
            f"{name} has no recipe in it, so that its training cannot be continued: train from it with `terrazzo "
            "pretrain RECIPE --checkpoint`."
        )
    return recipe_from_dict(parse_json(text, f"the recipe of {name}"), f"the recipe of {name}")


def _written_parts(paths: Sequence[Path], work: Path) -> Path:
    """Write both parts of each slice, and a table of them for a corpus; return the table."""
    rows: list[dict[str, Any]] = []
    for number, path in enumerate(paths):
        adata = read_anndata(path)
        tissue = Slice.from_anndata(adata, name=path.stem)
        is_held_out = _held_out(tissue.coords, tissue.name)
        for split, is_chosen in (("train", ~is_held_out), ("validation", is_held_out)):
            part = take_rows(adata, np.flatnonzero(is_chosen))
            place = work / f"{number}-{split}.h5ad"
            part.write_h5ad(place)
            row: dict[str, Any] = {"path": str(place), "id": f"{tissue.name}-{split}"}
            row["split"] = split
            for fact in ("technology", "organism"):
                value = getattr(tissue, fact)
                row[fact] = "" if value == "unknown" else value
            if tissue.unit == "um":
                row["microns_per_unit"] = tissue.coord_scale
            rows.append(row)
    table = work / "parts.csv"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return table


def _held_out(coords: Floats, name: str) -> Bools:
    """Return the quarter of the cells at one end of the longer side of a slice."""
    longer = int(np.argmax(np.ptp(coords, axis=0)))
    along = coords[:, longer]
    is_held_out = along > np.quantile(along, 1 - HELD_OUT)
    n_held_out = int(is_held_out.sum())
    if min(n_held_out, len(coords) - n_held_out) < LEAST_CELLS:
        raise InputError(
            f"{name} has {len(coords)} cells; to train on one part and to hold out another it takes at least "
            f"{LEAST_CELLS} in each."
        )
    return is_held_out
