"""Ablations: every variant of a table is trained, on the unlabeled training slices, with the same budget."""

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
from terrazzo.bench.entries import Entry, of_model
from terrazzo.bench.protocols import Protocol, Variant
from terrazzo.bench.samples import without_labels
from terrazzo.corpus.build import build
from terrazzo.errors import OutputError, TerrazzoError
from terrazzo.files import sweep, whole_file, write_text
from terrazzo.marks import Mark, find_mark, guard, mark_file
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stofm.model import SToFM
from terrazzo.training.recipe import Recipe, recipe_from_dict
from terrazzo.training.resuming import RECORD
from terrazzo.training.run import make_stage, pretrain

__all__ = ["merge", "modality_of", "recipes_of", "train"]

UNS_OF_READING = (keys.TECHNOLOGY, keys.ORGANISM, keys.SPATIAL)
Recipes = dict[str, Recipe]  # of one variant, by stage, in the order of training


@contextlib.contextmanager
def train(
    protocol: Protocol,
    slices: Sequence[AnnData],
    work: str | Path | None,
    say: Callable[[str], None],
    progress: bool | None = None,
) -> Iterator[list[Entry]]:
    """Train every variant of a table.

    Parameters
    ----------
    protocol
        With ``variants`` and ``training``.
    slices
        To train on; labels are taken off before anything is built.
    work
        Folder for corpus and runs, so that a run that was stopped continues; None: a temporary one.
    say
        Called with a line for every variant.
    progress
        Show a bar; None: in a terminal and in a notebook.

    Raises
    ------
    ConfigError
        Settings that no recipe has.
    """
    recipes = {}
    for variant in protocol.variants:
        recipes[variant.name] = recipes_of(protocol, variant)
    with contextlib.ExitStack() as stack:
        folder = work
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        runs = _Runs(Path(folder))
        runs.build_corpus(slices)
        entries: list[Entry] = []
        with Progress(progress).stage("train", len(protocol.variants), "variants") as advance:
            for variant in protocol.variants:
                of_variant = recipes[variant.name]
                start = time.perf_counter()
                try:
                    model = runs.train(variant, of_variant)
                    entries.append(_entry_of(protocol, variant, of_variant, model))
                    seconds = time.perf_counter() - start
                    say(f"{variant.name}: trained in {seconds:.0f} s")
                except TerrazzoError as error:  # its row says so; the others go on
                    entries.append(Entry(variant.name, missing=str(error)))
                advance(1)
        yield entries


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


def modality_of(recipes: Recipes) -> str:
    """Return what the trained model reads: ``"genes"``, or where its objective has a modality, that."""
    last = list(recipes.values())[-1]
    return str(getattr(last.objective, "modality", "genes"))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``changes`` in place of those of ``base``."""
    out = dict(base)
    for key, value in changes.items():
        before = out.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            out[key] = merge(before, value)
        else:
            out[key] = value
    return out


def _entry_of(
    protocol: Protocol, variant: Variant, recipes: Recipes, model: FoundationModel
) -> Entry:
    """Return a trained variant as an entry; one with images reads what it was trained on, or histology alone."""
    if variant.vector == "cell_encoder" and isinstance(model, SToFM):
        model = model.cell_model()
    modality: Any = modality_of(recipes)
    if protocol.task == "image_to_gene":
        if modality == "genes":
            return Entry(variant.name, missing="it sees no image")
        modality = "image"
    entry = of_model(variant.name, model, [modality])[0]
    return replace(entry, title=variant.name)


class _Runs:
    """The runs of a table in one folder; a first stage that several variants have in common is trained once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = folder / "corpus"
        self._done: dict[str, Path] = {}  # recipe without its folder to trained model
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)

    def build_corpus(self, slices: Sequence[AnnData]) -> None:
        """Build the corpus that all variants are trained on, without labels.

        Raises
        ------
        OutputError
            There are files of these names that terrazzo did not write.
        """
        mark = Mark("bench", "0" * 16, "0" * 16, "training slices of a table")
        table = self.folder / "slices.csv"
        is_ours = find_mark(self.folder / "slice_0.h5ad") is not None
        if table.exists() and not is_ours:
            raise OutputError(f"{table} was not written by terrazzo: choose another --work.")
        rows = []
        for number, adata in enumerate(slices):
            embeddings = list(adata.obsm.keys() - {keys.SPATIAL})
            bare = without_labels(adata, embeddings)
            bare.uns = {name: value for name, value in bare.uns.items() if name in UNS_OF_READING}
            path = self.folder / f"slice_{number}.h5ad"
            guard(path, mark)
            with whole_file(path) as draft:
                bare.write_h5ad(draft)
                mark_file(draft, mark)
            rows.append({"path": path.name, "split": "train"})
        write_text(table, pd.DataFrame(rows).to_csv(index=False))
        build(table, self.corpus, min_genes=1, scheduler="synchronous", progress=False)

    def train(self, variant: Variant, recipes: Recipes) -> FoundationModel:
        """Train the stages of a variant one after the other, each from the model of the one before."""
        stages = list(recipes)
        if variant.vector == "cell_encoder":  # the first stage's; the others do not touch it
            stages = stages[:1]
        trained: Path | None = None
        for stage in stages:
            if stage not in variant.skip:
                trained = self._pretrained(stage, recipes[stage], trained)
        if trained is not None:
            return load(trained)
        first = replace(recipes[stages[0]], corpus=str(self.corpus))
        untrained: FoundationModel = make_stage(first).model
        return untrained

    def _pretrained(self, stage: str, recipe: Recipe, before: Path | None) -> Path:
        """Train, or take over what an earlier call left in the folder; another recipe's run there is refused."""
        recipe = replace(recipe, corpus=str(self.corpus))
        if before is not None:
            recipe = replace(recipe, model=replace(recipe.model, checkpoint=str(before)))
        identity = repr(recipe)
        if identity not in self._done:
            out = self.folder / f"{stage}-{len(self._done)}"
            resume = (out / RECORD).is_file()
            self._done[identity] = pretrain(
                replace(recipe, out=str(out)), resume=resume, progress=False
            )
        return self._done[identity]
