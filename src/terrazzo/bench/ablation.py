"""Ablations: every variant of a table is trained here, on the unlabeled training slices, with the same budget."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.bench.protocols import Protocol, Variant
from terrazzo.bench.samples import without_labels
from terrazzo.bench.systems import System, trained
from terrazzo.corpus.build import build
from terrazzo.errors import TerrazzoError
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stofm.model import SToFM
from terrazzo.training.recipe import Recipe, recipe_from_dict
from terrazzo.training.resuming import RECORD
from terrazzo.training.run import make_stage, pretrain

__all__ = ["merge", "reads_images", "recipes_of", "train"]

Recipes = dict[str, Recipe]  # of one variant, by stage, in the order of training


@contextlib.contextmanager
def train(
    protocol: Protocol,
    slices: Sequence[AnnData],
    work: str | Path | None,
    say: Callable[[str], None],
    progress: bool | None = None,
) -> Iterator[list[System]]:
    """Train every variant of a table.

    Parameters
    ----------
    protocol
        With ``variants`` and ``training``.
    slices
        To train on; labels are taken off before anything is built.
    work
        Folder for corpus and runs, kept, so that a run that was stopped continues; None: a temporary one.
    say
        Called with a line for every variant.
    progress
        Show a bar; None: in a terminal and in a notebook.

    Raises
    ------
    ConfigError
        Settings that no recipe has.
    """
    recipes = {variant.name: recipes_of(protocol, variant) for variant in protocol.variants}
    with contextlib.ExitStack() as stack:
        folder = work
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        runs = _Runs(Path(folder))
        runs.build_corpus(slices)
        systems: list[System] = []
        with Progress(progress).stage("train", len(protocol.variants), "variants") as advance:
            for variant in protocol.variants:
                start = time.perf_counter()
                try:
                    model = runs.train(variant, recipes[variant.name])
                    systems.append(_scored(protocol, variant, recipes[variant.name], model))
                    say(f"{variant.name}: trained in {time.perf_counter() - start:.0f} s")
                except TerrazzoError as error:  # its row says so; the others go on
                    systems.append(System(variant.name, missing=str(error)))
                advance(1)
        yield systems


def recipes_of(protocol: Protocol, variant: Variant) -> Recipes:
    """Return the recipes of a variant, by stage: the table's settings with the variant's changes.

    Raises
    ------
    ConfigError
        Settings that a stage does not have.
    """
    out: Recipes = {}
    for stage, settings in protocol.training.items():
        merged = merge({"stage": stage, "corpus": "", "out": ""}, settings)
        merged = merge(merged, variant.change.get(stage, {}))
        out[stage] = recipe_from_dict(merged, f"variant {variant.name!r}, {stage}")
    return out


def reads_images(recipes: Recipes) -> str:
    """Return what the trained model reads: ``"genes"``, or where its objective has a modality, that."""
    *_, last = recipes.values()
    return str(getattr(last.objective, "modality", "genes"))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``above`` in place of those of ``below``."""
    out = dict(below)
    for key, value in above.items():
        before = out.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            out[key] = merge(before, value)
        else:
            out[key] = value
    return out


def _scored(
    protocol: Protocol, variant: Variant, recipes: Recipes, model: FoundationModel
) -> System:
    """Return a trained variant as a system; one with images reads what it was trained on, or histology alone."""
    if variant.vector == "cell_encoder" and isinstance(model, SToFM):
        model = model.cell_model()
    reads: Any = reads_images(recipes)
    if protocol.task == "image_to_gene":
        if reads == "genes":
            return System(variant.name, missing="it sees no image")
        reads = "image"
    return replace(trained(variant.name, model, [reads])[0], title=variant.name)


class _Runs:
    """The runs of a table in one folder; a first stage that several variants have in common is trained once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = folder / "corpus"
        self._done: dict[
            str, Path
        ] = {}  # recipe of a run, without its folder, to the trained model
        folder.mkdir(parents=True, exist_ok=True)

    def build_corpus(self, slices: Sequence[AnnData]) -> None:
        """Build the corpus that all variants are trained on, without labels."""
        rows = []
        for number, adata in enumerate(slices):
            embeddings = list(adata.obsm.keys() - {keys.SPATIAL})
            bare = without_labels(adata, embeddings)
            kept = (keys.TECHNOLOGY, keys.ORGANISM, keys.SPATIAL)
            bare.uns = {name: value for name, value in bare.uns.items() if name in kept}
            path = self.folder / f"slice_{number}.h5ad"
            bare.write_h5ad(path)
            rows.append({"path": path.name, "split": "train"})
        table = self.folder / "slices.csv"
        pd.DataFrame(rows).to_csv(table, index=False)
        build(table, self.corpus, min_genes=1, scheduler="synchronous", progress=False)

    def train(self, variant: Variant, recipes: Recipes) -> FoundationModel:
        """Train the stages of a variant one after the other, each from the model of the one before."""
        trained_model: Path | None = None
        last = len(recipes) - 1
        if variant.vector == "cell_encoder":  # the first stage's; the others do not touch it
            last = 0
        for number, (stage, recipe) in enumerate(recipes.items()):
            if number > last:
                break
            if stage in variant.skip:
                continue
            trained_model = self._pretrained(stage, recipe, trained_model)
        if trained_model is None:  # as it was before any training
            first = next(iter(recipes.values()))
            model: FoundationModel = make_stage(replace(first, corpus=str(self.corpus))).model
            return model
        return load(trained_model)

    def _pretrained(self, stage: str, recipe: Recipe, before: Path | None) -> Path:
        """Train, or take over what an earlier call left in the folder; another recipe's run there is refused."""
        recipe = replace(recipe, corpus=str(self.corpus))
        if before is not None:
            recipe = replace(recipe, model=replace(recipe.model, checkpoint=str(before)))
        same = repr(recipe)
        if same not in self._done:
            out = self.folder / f"{stage}-{len(self._done)}"
            run = replace(recipe, out=str(out))
            self._done[same] = pretrain(run, resume=(out / RECORD).is_file(), progress=False)
        return self._done[same]
