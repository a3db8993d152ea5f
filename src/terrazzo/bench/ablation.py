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
from terrazzo.bench.protocols import Protocol, Training, Variant
from terrazzo.bench.samples import without_labels
from terrazzo.bench.systems import System, trained
from terrazzo.config import from_dict
from terrazzo.corpus.build import build
from terrazzo.corpus.store import Corpus
from terrazzo.errors import ConfigError, TerrazzoError
from terrazzo.models.base import FoundationModel
from terrazzo.models.loading import load
from terrazzo.progress import Progress
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.stages import initial_model
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.resuming import RECORD
from terrazzo.training.run import pretrain

STOFM, STIMAGE, STALIGN = (
    ("adapt", "pretrain"),
    ("patches",),
    ("align",),
)  # stages that each is trained in


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
        Show a bar; None: on a terminal.

    Raises
    ------
    ConfigError
        Settings that no recipe has.
    """
    if protocol.training is None:
        raise ConfigError(f"{protocol.name} has variants and does not say how they are trained.")
    plan = protocol.training
    recipes = {v.name: {s: recipe(plan, v, s) for s in stages(plan, v)} for v in protocol.variants}
    with contextlib.ExitStack() as stack:
        folder = (
            Path(work)
            if work is not None
            else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        folder.mkdir(parents=True, exist_ok=True)
        _corpus(slices, folder)
        systems: list[System] = []
        adapted: dict[str, str] = {}
        with Progress(progress).stage("train", len(protocol.variants), "variants") as advance:
            for number, variant in enumerate(protocol.variants):
                start = time.perf_counter()
                try:
                    model = _train_one(variant, recipes[variant.name], folder, number, adapted)
                    systems.append(_scored(protocol, variant, recipes[variant.name], model))
                    say(f"{variant.name}: trained in {time.perf_counter() - start:.0f} s")
                except TerrazzoError as error:  # its row says so; the others go on
                    systems.append(System(variant.name, missing=str(error)))
                advance(1)
        yield systems


def _scored(
    protocol: Protocol, variant: Variant, recipes: dict[str, PretrainConfig], model: FoundationModel
) -> System:
    """Return a trained variant as a system; one of ST-Align reads what it was trained on, or histology alone."""
    if variant.vector == "cell_encoder" and isinstance(model, SToFM):
        model = model.cell_model()
    reads = recipes["align"].align.modality if "align" in recipes else "genes"
    if protocol.task == "image_to_gene":
        if reads == "genes":
            return System(variant.name, missing="it sees no image")
        reads = "image"
    return replace(trained(variant.name, model, [reads])[0], title=variant.name)


def stages(training: Training, variant: Variant) -> tuple[str, ...]:
    """Return the stages that a variant is trained in."""
    if training.align or variant.align:
        return STALIGN
    return STIMAGE if training.patches or variant.patches else STOFM


def recipe(training: Training, variant: Variant, stage: str) -> PretrainConfig:
    """Return the recipe of one stage of a variant: what all share, then the stage's, then the variant's changes."""
    layers = (training.recipe, getattr(training, stage), variant.recipe, getattr(variant, stage))
    merged: dict[str, Any] = {"stage": stage, "corpus": "", "out": ""}
    for layer in layers:
        merged = merge(merged, layer)
    return from_dict(PretrainConfig, merged, f"variant {variant.name!r}, {stage}")


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those of ``above`` in place of those of ``below``."""
    out = dict(below)
    for key, value in above.items():
        here = out.get(key)
        out[key] = (
            merge(here, value)
            if isinstance(value, Mapping) and isinstance(here, Mapping)
            else value
        )
    return out


def _train_one(
    variant: Variant,
    recipes: dict[str, PretrainConfig],
    folder: Path,
    number: int,
    adapted: dict[str, str],
) -> FoundationModel:
    """Train one variant; a domain adaptation that another variant has done already is taken over."""
    checkpoint = ""
    if len(recipes) == 1:
        ((stage, only),) = recipes.items()
        run = replace(only, corpus=str(folder / "corpus"), out=str(folder / f"{stage}-{number}"))
        return load(_pretrained(run))
    if variant.skip_adapt and variant.vector == "cell_encoder":  # as it was before any training
        return initial_model(recipes["adapt"], Corpus.open(folder / "corpus"))
    if not variant.skip_adapt:
        first = replace(recipes["adapt"], corpus=str(folder / "corpus"))
        same = repr(first)
        if same not in adapted:
            run = replace(first, out=str(folder / f"adapt-{number}"))
            adapted[same] = str(_pretrained(run))
        checkpoint = adapted[same]
        if variant.vector == "cell_encoder":
            return load(checkpoint)
    second = recipes["pretrain"]
    source = replace(second.model, checkpoint=checkpoint) if checkpoint else second.model
    run = replace(
        second, corpus=str(folder / "corpus"), out=str(folder / f"pretrain-{number}"), model=source
    )
    return load(_pretrained(run))


def _pretrained(config: PretrainConfig) -> Path:
    """Train, or take over what an earlier call left in the folder; another recipe's run there is refused."""
    return pretrain(config, resume=(Path(config.out) / RECORD).is_file(), progress=False)


def _corpus(slices: Sequence[AnnData], folder: Path) -> None:
    rows = []
    for number, adata in enumerate(slices):
        bare = without_labels(adata, list(adata.obsm.keys() - {keys.SPATIAL}))
        bare.uns = {
            k: v for k, v in bare.uns.items() if k in (keys.TECHNOLOGY, keys.ORGANISM, keys.SPATIAL)
        }
        path = folder / f"slice_{number}.h5ad"
        bare.write_h5ad(path)
        rows.append({"path": path.name, "split": "train"})
    pd.DataFrame(rows).to_csv(folder / "slices.csv", index=False)
    build(
        folder / "slices.csv",
        folder / "corpus",
        min_genes=1,
        scheduler="synchronous",
        progress=False,
    )
