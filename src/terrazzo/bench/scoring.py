"""Scores of one entry on one part: its vectors are made from slices without labels, and the table's task is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from terrazzo import tasks
from terrazzo.bench import histology
from terrazzo.bench.entries import Entry, Write, representations
from terrazzo.bench.protocols import NO_HEAD, Protocol
from terrazzo.bench.rows import Scored
from terrazzo.bench.samples import KEY, LoadedPart, Sample, record_of, set_record
from terrazzo.bench.squares import Squares
from terrazzo.errors import InputError
from terrazzo.models.shift import AUTO, CommonGenes
from terrazzo.records import blocks
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.targets import read_classes, read_proportions
from terrazzo.tasks.transfer import Transfer, transfer

__all__ = ["FINE_TUNING", "Scorer"]

FINE_TUNING = "fine-tuning"  # stands in the place of a head


@dataclass(frozen=True)
class _Vectors:
    """The vectors of a slice, and what the model recorded of them."""

    vectors: Any
    record: dict[str, Any]


class Scorer:
    """Embeds and scores; remembers the vectors of entries that are not fitted.

    Parameters
    ----------
    protocol
        The table.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._squares = Squares(protocol)
        self._fixed: dict[tuple[int, int], _Vectors] = {}

    def score(self, loaded: LoadedPart, entry: Entry) -> list[Scored]:
        """Run the table's task with one entry on one part.

        Raises
        ------
        TerrazzoError
            The entry cannot take part; the message says why.
        """
        if self.protocol.task == "reconstruction":
            return [Scored("", NO_HEAD, self._squares.score(loaded, entry))]
        if self.protocol.task == "imputation":
            return list(_imputation(self.protocol, loaded, entry))
        if entry.fit is None:
            return []
        write = entry.fit(loaded.all_unlabeled if entry.joint else loaded.unlabeled)
        if self.protocol.task == "image_to_gene":

            def embed(sample: Sample) -> None:
                self._embed(entry, write, sample)

            return list(histology.score(self.protocol, loaded, entry, embed))
        moved = self._transfer(loaded, entry)
        needs_training = loaded.cross and moved is None
        for sample in loaded.samples if needs_training else [loaded.test]:
            self._embed(entry, write, sample)
        out = []
        for suffix, use_rep in representations(loaded.test.labeled).items():
            for head in self.protocol.heads:
                for result in self._run_task(loaded, use_rep, head, moved):
                    out.append(Scored(suffix, head, result))
        if self.protocol.task == "finetune" and isinstance(entry.model, SToFM):
            for result in _finetune(self.protocol, loaded, entry.model):
                out.append(Scored(", all parameters tuned", FINE_TUNING, result))
        return out

    def _transfer(self, loaded: LoadedPart, entry: Entry) -> Transfer | None:
        """Return vectors of training and scored slices, made together, where genes or depth differ; else None."""
        protocol = self.protocol
        if not loaded.cross or entry.embedder is None or protocol.task == "domains":
            return None
        shift = loaded.shift(entry.model)
        if not shift.panels.differs and protocol.common_genes != "yes":
            return None
        labeled = [sample.labeled for sample in loaded.train]
        if protocol.task == "deconvolution":
            target = read_proportions(labeled, protocol.label)
        else:
            target = read_classes(labeled, protocol.label)
        choices: dict[str, CommonGenes] = {"auto": AUTO, "yes": True, "no": False}
        return transfer(
            entry.embedder,
            shift,
            target,
            common_genes=choices[protocol.common_genes],
            copies=protocol.copies,
        )

    def _embed(self, entry: Entry, write: Write, sample: Sample) -> None:
        """Write ``obsm[KEY]``, from a slice without labels."""
        key = (id(entry), id(sample))
        if key in self._fixed:
            known = self._fixed[key]
        else:
            adata = sample.blind if self.protocol.task == "image_to_gene" else sample.bare
            set_record(adata, {})
            write(adata)
            known = _Vectors(np.array(adata.obsm[KEY]), record_of(adata))
            if entry.fixed:
                self._fixed[key] = known
        sample.take(known.vectors, known.record)

    def _run_task(
        self, loaded: LoadedPart, use_rep: str, head: Any, moved: Transfer | None
    ) -> Iterator[TaskResult]:
        protocol = self.protocol
        if protocol.task == "domains":
            yield tasks.evaluate_domains(
                loaded.test.labeled,
                use_rep=use_rep,
                label=protocol.label,
                method=head,
                seeds=protocol.runs,
                refine=protocol.refine,
            )
            return
        task: Callable[..., TaskResult] = tasks.probe
        options = {"use_rep": use_rep, "head": head, "runs": protocol.runs}
        if protocol.task == "deconvolution":
            task = tasks.deconvolve
            options["proportions"] = protocol.label
        else:
            options["label"] = protocol.label
        if loaded.within:
            yield task(loaded.test.labeled, splits=protocol.all_splits, **options)
        if loaded.cross:
            train = [sample.labeled for sample in loaded.train]
            if moved is not None:
                options["use_rep"] = None
                options["model"] = _block_of(moved, loaded.test, use_rep)
            yield task(train, test=loaded.test.labeled, **options)


def _block_of(moved: Transfer, test: Sample, use_rep: str) -> Transfer:
    """Return the columns of the block that a table's key names."""
    block = use_rep.rpartition(":")[2]
    ranges = blocks(test.labeled, KEY)
    return moved.columns(*ranges[block]) if block in ranges else moved


def _imputation(protocol: Protocol, loaded: LoadedPart, entry: Entry) -> Iterator[Scored]:
    """Hide genes before anything is fitted, tokenized or normalized; then embed what is left."""
    if entry.stored:
        raise InputError("its vectors were made before genes were hidden, and have seen them")
    if entry.fit is None:
        return
    test, *train = loaded.hidden(protocol.genes)
    write = entry.fit(loaded.all_unlabeled if entry.joint else loaded.unlabeled)
    write(test.visible)
    if loaded.cross:
        for one in train:
            write(one.visible)
    for suffix, use_rep in representations(test.visible).items():
        for head in protocol.heads:
            options: dict[str, Any] = {"use_rep": use_rep, "head": head, "runs": protocol.runs}
            if loaded.within:
                result = tasks.impute(test, splits=protocol.all_splits, **options)
                yield Scored(suffix, head, result)
            if loaded.cross:
                result = tasks.impute(train, test=test, **options)
                yield Scored(suffix, head, result)


def _finetune(protocol: Protocol, loaded: LoadedPart, model: SToFM) -> Iterator[TaskResult]:
    from terrazzo.systems.stofm.finetune_scores import KINDS, evaluate_finetuning

    options: dict[str, Any] = {"label": protocol.label, "runs": protocol.runs}
    if loaded.within:
        kinds = [kind for kind in protocol.all_splits if kind in KINDS]
        yield evaluate_finetuning(model, loaded.test.labeled, kinds=kinds, **options)
    if loaded.cross:
        train = [sample.labeled for sample in loaded.train]
        yield evaluate_finetuning(model, train, test=loaded.test.labeled, **options)
