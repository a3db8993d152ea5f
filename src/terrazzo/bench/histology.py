"""Expression from histology in a table: entries that see pictures and no count, and trivial answers beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from terrazzo import tasks
from terrazzo.bench.entries import (
    ALWAYS,
    Entry,
    Write,
    of_images,
    of_model,
    representations,
    takes_modality,
)
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.rows import Scored
from terrazzo.bench.samples import KEY, LoadedPart, Sample
from terrazzo.errors import InputError
from terrazzo.models.baselines import KINDS
from terrazzo.models.card import TRAINED_ON, name_hash
from terrazzo.parsing import parse_json
from terrazzo.systems.stalign.efficientnet import INSTALL, is_installed
from terrazzo.systems.stalign.image_baselines import BY_DEFAULT, NAMES, ImageBaseline
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stalign.network import FrozenFeatures
from terrazzo.tasks.experiments import ERRORS, LEVELS
from terrazzo.tasks.results import TaskResult

__all__ = ["GENE_MEAN", "LITE", "NAMED", "score", "select", "trained_on", "untrained"]

GENE_MEAN = "gene mean"
LITE = "EfficientNet-Lite0, by slice"
FROZEN = "Niche encoder of ST-Align, frozen"
UNTRAINED = "ST-Align, image only, before training"
NAMED = "named genes"
READS_COUNTS = "it reads the counts that are to be predicted"
NO_IMAGE = "sees no image"


def select(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of such a table.

    They are trivial answers, EfficientNet-Lite0 where it is installed, what sees pictures, and of ST-Align also its
    frozen encoder and its state before training.
    The baselines of every table have no row; one that is named beyond those has one, which says why it has no score.
    """
    out = [Entry(GENE_MEAN, fit=_fit_zeros, mark="trivial")]
    for name in NAMES:
        baseline = ImageBaseline(name)
        out.append(of_images(baseline.title, baseline))
    if is_installed():
        out.append(of_images(LITE, ImageBaseline(BY_DEFAULT)))
    else:
        out.append(Entry(LITE, missing=f"it is not installed: {INSTALL}"))
    always = {KINDS[name].title for name in ALWAYS}
    for entry in entries:
        if entry.title in always:
            continue
        if entry.missing or entry.stored or entry.reads == "image":
            out.append(entry)
        elif takes_modality(entry.model):
            continue  # its row of images alone is there
        else:
            reason = NO_IMAGE if entry.model else READS_COUNTS
            out.append(replace(entry, fit=None, missing=reason))
    aligned = [entry for entry in entries if isinstance(entry.model, STAlign)]
    return [*out, *_frozen(aligned), *_before_training(aligned)]


def _frozen(aligned: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the frozen encoder of niches of each checkpoint, once where it is the same for all parts."""
    models: dict[str, Any] = {}
    parts: dict[str, set[str]] = {}
    for entry in aligned:
        model: Any = entry.model
        encoder = model.module.image_encoder.fingerprint()
        mark = f"{encoder} {model.config.neighbors} {model.config.square}"
        models.setdefault(mark, model)
        parts.setdefault(mark, set()).add(entry.part)
    for mark, model in models.items():
        served = [""] if len(models) == 1 else sorted(parts[mark])
        for name, suffix in (("encoder", ""), ("encoder-own", ", by slice")):
            baseline = ImageBaseline(name, encoder=model.module.image_encoder, config=model.config)
            for part in served:
                yield replace(of_images(FROZEN + suffix, baseline), part=part)


def _before_training(aligned: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the untrained state of each trained checkpoint."""
    seed = 0
    for entry in aligned:
        model: Any = entry.model
        if entry.reads != "image" or not model.trained:
            continue
        (before,) = of_model(UNTRAINED, untrained(model, seed), ["image"])
        seed += 1
        yield replace(before, title=UNTRAINED, part=entry.part)


def untrained(model: STAlign, seed: int = 0) -> STAlign:
    """Return ST-Align as before training: frozen encoders, genes and fitted statistics stay, all else is drawn."""
    fresh = STAlign(model.config, model.vocabulary, seed=seed)
    with torch.no_grad():
        modules = zip(fresh.module.modules(), model.module.modules(), strict=True)
        for new, old in modules:
            if isinstance(new, FrozenFeatures) and isinstance(old, FrozenFeatures):
                new.mean.copy_(old.mean)
                new.deviation.copy_(old.deviation)
        fresh.module.image_encoder.load_state_dict(model.module.image_encoder.state_dict())
        fresh.module.gene_encoder.load_state_dict(model.module.gene_encoder.state_dict())
        fresh.module.genes.copy_(model.module.genes)
    return fresh


def _fit_zeros(slices: Sequence[AnnData]) -> Write:
    def write(adata: AnnData) -> None:
        adata.obsm[KEY] = np.zeros((adata.n_obs, 1), dtype=np.float32)

    return write


@dataclass(frozen=True)
class _Genes:
    """Genes that are predicted and scored together: the name of their columns, what the task takes, and notes."""

    name: str
    genes: Any
    notes: tuple[str, ...] = ()


def score(
    protocol: Protocol, loaded: LoadedPart, entry: Entry, embed: Callable[[Sample], None]
) -> Iterator[Scored]:
    """Yield the scores of one entry, of the named genes and of the most variable ones.

    Raises
    ------
    InputError
        Its weights have seen the scored slice, or another one of the patient.
    """
    of_patient = _of_patient(protocol, loaded)
    hashes = trained_on(entry)
    seen = sorted(name for name in of_patient if name_hash(name) in hashes)
    if seen:
        raise InputError(
            f"its weights were trained on {', '.join(seen)}, of the patient who is scored"
        )
    for sample in loaded.samples:
        embed(sample)
    gene_sets = _gene_sets(protocol, loaded)
    for suffix, use_rep in representations(loaded.test.labeled).items():
        for head in protocol.heads:
            for genes in gene_sets:
                result = tasks.image_to_gene(
                    [sample.labeled for sample in loaded.train],
                    test=loaded.test.labeled,
                    use_rep=use_rep,
                    genes=genes.genes,
                    names=[loaded.part.test],
                    runs=protocol.runs,
                    head=head,
                    progress=False,
                )
                if entry.title == GENE_MEAN:
                    result = _of_the_mean(result)
                metrics = result.metrics.assign(split=genes.name)
                notes = (*genes.notes, *result.notes)
                yield Scored(suffix, head, replace(result, metrics=metrics, notes=notes))


def _gene_sets(protocol: Protocol, loaded: LoadedPart) -> list[_Genes]:
    """Return the named genes that every training slice has, with a note about the others, and the variable ones."""
    measured = [tasks.measured(sample.labeled, protocol.gene_names) for sample in loaded.train]
    named: list[str] = []
    left_out: list[str] = []
    for gene in protocol.gene_names:
        in_all = all(gene in genes for genes in measured)
        (named if in_all else left_out).append(gene)
    out = []
    if named:
        notes: tuple[str, ...] = ()
        if left_out:
            text = ", ".join(left_out)
            notes = (f"left out, for not every training slice lists them: {text}",)
        out.append(_Genes(NAMED, named, notes))
    if protocol.genes:
        out.append(_Genes(f"{protocol.genes} variable genes", protocol.genes))
    if not out:
        raise InputError(
            f"none of the named genes is in every training slice: {', '.join(protocol.gene_names)}"
        )
    return out


def trained_on(entry: Entry) -> set[str]:
    """Return hashes of the names of the slices that an entry's weights were trained on, as its checkpoint records."""
    provenance: dict[str, Any] = dict(entry.model.provenance) if entry.model else {}
    out: set[str] = set()
    while provenance:
        hashes = str(provenance.get(TRAINED_ON, ""))
        out.update(hashes.split())
        before = provenance.get("before", {})
        if isinstance(before, str):
            before = parse_json(before, "the provenance", finite=False)
        provenance = before if isinstance(before, dict) else {}
    return out


def _of_patient(protocol: Protocol, loaded: LoadedPart) -> set[str]:
    """Return the names of the scored slices of the part's patient."""
    patient = loaded.part.patient
    out = {loaded.part.test}
    if patient:
        out.update(part.test for part in protocol.parts if part.patient == patient)
    return out


def _of_the_mean(result: TaskResult) -> TaskResult:
    """Return the scores of the mean of the training cells in place of those of the head."""
    table = result.metrics
    of_the_mean = table["metric"].isin([f"{name}_mean" for name in (*ERRORS, *LEVELS)])
    errors = table[of_the_mean]
    errors = errors.assign(metric=errors["metric"].str.removesuffix("_mean"))
    is_pearson = table["metric"] == "pearson"
    pearson = table[is_pearson & table["value"].notna()]
    constant = pearson.assign(value=0.0)  # a constant correlates with nothing
    return replace(result, metrics=pd.concat([errors, constant], ignore_index=True))
