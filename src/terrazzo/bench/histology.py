"""Expression from histology in a table: who sees pictures and no count, and trivial answers beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from terrazzo import tasks
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.samples import KEY, Sample, Scene
from terrazzo.bench.systems import ALWAYS, System, of_images, representations, trained
from terrazzo.errors import InputError
from terrazzo.models.baselines import KINDS
from terrazzo.models.card import TRAINED_ON, name_hash
from terrazzo.systems.stalign.image_baselines import NAMES, ImageBaseline
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stalign.network import FrozenFeatures
from terrazzo.tasks.experiments import ERRORS
from terrazzo.tasks.results import TaskResult

GENE_MEAN = "gene mean"


FROZEN = "Niche encoder of ST-Align, frozen"


TWIN = "ST-Align, image only, before training"


NAMED = "named genes"


BLIND = "it reads the counts that are to be predicted"


def who(found: Sequence[System]) -> list[System]:
    """Return who takes part: trivial answers, what sees pictures, and of ST-Align what its parts say before training.

    The baselines of every table have no row; one that is asked for beyond those has one, which says why.
    """
    always = {kind.title for name, kind in KINDS.items() if name in ALWAYS}
    out = [
        System(GENE_MEAN, fit=_nothing, mark="trivial"),
        *(of_images(b.title, b) for b in map(ImageBaseline, NAMES)),
    ]
    aligned = [system for system in found if isinstance(system.model, STAlign)]
    for system in (one for one in found if one.title not in always):
        if system in aligned and system.reads != "image":
            continue  # its row of images alone is there
        sees = system.missing or system.stored or system.reads == "image"
        out.append(
            system
            if sees
            else replace(system, fit=None, missing=BLIND if not system.model else "sees no image")
        )
    return [*out, *_frozen(aligned), *_twins(aligned)]


def _frozen(aligned: Sequence[System]) -> Iterator[System]:
    """Yield the frozen encoder of niches of each checkpoint, once where it is the same for all parts."""
    models: dict[str, tuple[STAlign, set[str]]] = {}
    for system in aligned:
        model: Any = system.model
        mark = f"{model.module.image_encoder.fingerprint()} {model.config.neighbors} {model.config.square}"
        models.setdefault(mark, (model, set()))[1].add(system.part)
    for model, parts in models.values():
        for name, more in (("encoder", ""), ("encoder-own", ", by slice")):
            baseline = ImageBaseline(name, encoder=model.module.image_encoder, config=model.config)
            for part in {""} if len(models) == 1 else parts:
                yield replace(of_images(FROZEN + more, baseline), part=part)


def _twins(aligned: Sequence[System]) -> Iterator[System]:
    images = [
        system
        for system in aligned
        if system.reads == "image" and system.model and system.model.trained
    ]
    for seed, system in enumerate(images):
        model: Any = system.model
        (twin,) = trained(TWIN, untrained(model, seed), ["image"])
        yield replace(twin, title=TWIN, part=system.part)


def untrained(model: STAlign, seed: int = 0) -> STAlign:
    """Return ST-Align as before training: frozen encoders, genes and fitted statistics are kept, all else is drawn."""
    twin = STAlign(model.config, model.vocabulary, seed=seed)
    with torch.no_grad():
        for ours, theirs in zip(twin.module.modules(), model.module.modules(), strict=True):
            if isinstance(ours, FrozenFeatures) and isinstance(theirs, FrozenFeatures):
                ours.mean.copy_(theirs.mean)
                ours.deviation.copy_(theirs.deviation)
        twin.module.image_encoder.load_state_dict(model.module.image_encoder.state_dict())
        twin.module.gene_encoder.load_state_dict(model.module.gene_encoder.state_dict())
        twin.module.genes.copy_(model.module.genes)
    return twin


def _nothing(slices: Any) -> Callable[[Any], None]:
    def write(adata: Any) -> None:
        adata.obsm[KEY] = np.zeros((adata.n_obs, 1), dtype=np.float32)

    return write


def score(
    protocol: Protocol, scene: Scene, system: System, embed: Callable[[Sample], None]
) -> Iterator[tuple[str, str, TaskResult]]:
    """Yield suffix, head and scores of one system, of the named genes and of the most variable ones.

    Raises
    ------
    InputError
        Its weights have seen the scored slice, or another one of the patient.
    """
    if seen := sorted(
        name for name in _of_patient(protocol, scene) if name_hash(name) in trained_on(system)
    ):
        raise InputError(
            f"its weights were trained on {', '.join(seen)}, of the patient who is scored"
        )
    for sample in (scene.test, *scene.train):
        embed(sample)
    named, gone = _named(protocol, scene)
    sets: dict[str, Any] = {NAMED: named} if named else {}
    sets |= {f"{protocol.genes} variable genes": protocol.genes} if protocol.genes else {}
    if not sets:
        raise InputError(
            f"none of the named genes is in every training slice: {', '.join(protocol.gene_names)}"
        )
    for suffix, use_rep in representations(scene.test.labeled).items():
        for head in protocol.heads:
            for name, genes in sets.items():
                found = tasks.image_to_gene(
                    [s.labeled for s in scene.train],
                    test=scene.test.labeled,
                    use_rep=use_rep,
                    genes=genes,
                    names=[scene.part.test],
                    runs=protocol.runs,
                    head=head,
                    progress=False,
                )
                found = _of_the_mean(found) if system.title == GENE_MEAN else found
                notes = (*gone, *found.notes) if name == NAMED else found.notes
                yield (
                    suffix,
                    head,
                    replace(found, metrics=found.metrics.assign(split=name), notes=notes),
                )


def _named(protocol: Protocol, scene: Scene) -> tuple[list[str], tuple[str, ...]]:
    """Return the named genes that every training slice has, and a note about the others."""
    held = [tasks.measured(sample.labeled, protocol.gene_names) for sample in scene.train]
    there = [gene for gene in protocol.gene_names if all(gene in one for one in held)]
    gone = [gene for gene in protocol.gene_names if gene not in there]
    return there, (
        f"left out, for not every training slice lists them: {', '.join(gone)}",
    ) if gone else ()


def trained_on(system: System) -> set[str]:
    """Return hashes of the names of the slices that a system's weights were trained on, as its checkpoint says it."""
    said: Mapping[str, Any] = system.model.provenance if system.model else {}
    out: set[str] = set()
    while said:
        out |= set(str(said.get(TRAINED_ON, "")).split())
        before = said.get("before", {})
        said = json.loads(before) if isinstance(before, str) else before
    return out


def _of_patient(protocol: Protocol, scene: Scene) -> set[str]:
    who = scene.part.patient
    return {scene.part.test} | {part.test for part in protocol.parts if who and part.patient == who}


def _of_the_mean(result: TaskResult) -> TaskResult:
    """Return the scores of the mean of the training cells in place of those of the read-out."""
    table = result.metrics
    errors = table[table["metric"].isin([f"{name}_mean" for name in ERRORS])]
    errors = errors.assign(metric=errors["metric"].str.removesuffix("_mean"))
    flat = table[(table["metric"] == "pearson") & table["value"].notna()].assign(
        value=0.0
    )  # as of any constant
    return replace(result, metrics=pd.concat([errors, flat], ignore_index=True))
