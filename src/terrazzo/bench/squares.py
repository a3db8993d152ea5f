"""Hidden squares in a table: trivial answers always, models that can fill them in, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anndata import AnnData

from terrazzo import tasks
from terrazzo.bench.entries import ALWAYS, Entry, Write
from terrazzo.bench.protocols import Protocol
from terrazzo.bench.samples import LoadedPart
from terrazzo.errors import InputError
from terrazzo.models.baselines import KINDS
from terrazzo.tasks.reconstruction import BASELINES
from terrazzo.tasks.results import TaskResult

__all__ = ["Squares", "select"]

REASON = "vectors of cells that are shown say nothing of one that is hidden"


def select(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of such a table: trivial answers in place of the baselines that embed.

    A baseline that is named beyond those of every table gets its row, which says why it has no score.
    """
    out = [Entry(name, fit=_no_fit, mark="trivial") for name in BASELINES]
    embedding_baselines = {KINDS[name].title for name in ALWAYS}
    for entry in entries:
        if entry.title in embedding_baselines:
            continue
        if "obsm:" in entry.missing:
            entry = replace(entry, missing=f"not part of terrazzo, and {REASON}")
        out.append(entry)
    return out


def _no_fit(slices: Sequence[AnnData]) -> Write:
    raise NotImplementedError("a trivial answer to a hidden square embeds nothing")


class Squares:
    """Scores entries on the squares of a table; trivial answers are computed once for each part."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._trivial: dict[int, TaskResult] = {}

    def score(self, loaded: LoadedPart, entry: Entry) -> TaskResult:
        """Return the scores of one entry, which sees the slice without labels and without the square.

        Raises
        ------
        InputError
            It cannot fill in hidden tissue.
        """
        if entry.title in BASELINES:
            if id(loaded) not in self._trivial:
                self._trivial[id(loaded)] = self._run(loaded, {})
            return _of(self._trivial[id(loaded)], entry.title)
        fill_in = getattr(entry.model, "reconstruct", None)
        if fill_in is None:
            start = f"a {entry.model.title} cannot fill in hidden tissue: " if entry.model else ""
            raise InputError(f"{start}{REASON}")
        if self.protocol.bin_um:  # else as the model was trained
            fill_in = partial(fill_in, bin_um=self.protocol.bin_um)
        return _of(self._run(loaded, {entry.title: fill_in}), entry.title)

    def _run(self, loaded: LoadedPart, predictors: dict[str, Any]) -> TaskResult:
        protocol = self.protocol
        return tasks.reconstruct(
            loaded.test.bare,
            predictors,
            size=protocol.sizes,
            n_genes=protocol.genes,
            choose=protocol.choose,
            repeats=protocol.runs,
            bin_um=protocol.bin_um,
            progress=False,
        )


def _of(result: TaskResult, title: str) -> TaskResult:
    """Return the scores of one entry alone."""
    metrics = result.metrics
    return replace(result, metrics=metrics[metrics["system"] == title])
