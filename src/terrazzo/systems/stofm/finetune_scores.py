"""Scores of full fine-tuning, by the probes' own splits and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import Words
from terrazzo.errors import ConfigError
from terrazzo.progress import Progress
from terrazzo.slices.geometry import read_coords
from terrazzo.systems.stofm.finetune import FineTuneConfig, finetune
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.labels import Labels, shared_classes
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.tasks.splits import Split, blocked_splits, cross_split, random_splits

KINDS = ("random", "blocked")


def evaluate_finetuning(
    model: SToFM,
    data: targets.Data,
    *,
    label: str,
    test: AnnData | None = None,
    kinds: Sequence[str] = KINDS,
    runs: int = 3,
    seed: int = 0,
    config: FineTuneConfig | None = None,
    orthologs: Any = None,
    progress: bool | None = None,
) -> TaskResult:
    """Score full fine-tuning with the probes' own splits and metrics (SToFM, table A.1).

    Parameters
    ----------
    model, label, config, orthologs, progress
        As in :func:`finetune`.
    data
        One slice; with ``test``, one or several that are learned from.
    test
        Another slice, which is scored; over the classes that both sides have, as in :func:`terrazzo.tasks.probe`.
    kinds
        ``"random"`` (8:2, ``runs`` draws) and ``"blocked"`` (four folds scored together, ``runs`` passes).
    runs, seed
        How many, and the first.

    Returns
    -------
    Scores ``accuracy``, ``macro_f1``, ``ari``, ``nmi``; predictions of the last run of each kind. The slices are not
    changed.

    Raises
    ------
    InputError
        The slices or their labels cannot be used.
    ConfigError
        Unknown kinds; no run; several slices without ``test``.
    """
    if runs < 1 or not kinds or set(kinds) - set(KINDS):
        raise ConfigError(
            f"kinds are {list(kinds)} and runs {runs}; name {' or '.join(KINDS)}, and at least one run."
        )
    slices = targets.as_list(data)
    if test is None and len(slices) != 1:
        raise ConfigError(
            f"there are {len(slices)} slices; say with test= which other slice is to be scored."
        )
    job = _Job(model, slices, label, config or FineTuneConfig(), orthologs, Progress(progress))
    outcomes = (
        _across(job, test, runs, seed) if test is not None else _within(job, kinds, runs, seed)
    )
    rows, scored = [], test if test is not None else slices[0]
    frame, notes = pd.DataFrame(index=scored.obs_names), []
    for kind, number, true, predicted, here, said in outcomes:
        given = true[here], predicted[here]
        rows += tidy({**metrics.classification(*given), **metrics.clustering(*given)}, kind, number)
        frame["true"], frame[kind], notes = true, predicted, said
    settings = {
        "label": label,
        "runs": runs,
        "seed": seed,
        "kinds": list(kinds),
        "model": model.fingerprint(),
        "n_training_slices": len(slices),
        "fine_tuning": asdict(job.config),
    }
    return TaskResult("finetune", pd.DataFrame(rows), frame, settings, tuple(notes))


Outcome = tuple[
    str, int, Words, Words, NDArray[np.bool_], list[str]
]  # kind, number, true, predicted, scored, notes


@dataclass(frozen=True)
class _Job:
    """What all fits have in common."""

    model: SToFM
    slices: list[AnnData]
    label: str
    config: FineTuneConfig
    orthologs: Any
    bars: Progress

    def predict(self, scored: AnnData, split: Split, seed: int) -> Words:
        """Tune by a split, and answer for every cell of a slice."""
        given: dict[str, Any] = {
            "label": self.label,
            "config": self.config,
            "orthologs": self.orthologs,
        }
        tuned = finetune(
            self.model, self.slices, split=split, seed=seed, progress=self.bars.enabled, **given
        )
        return tuned.predict(scored.copy(), orthologs=self.orthologs, progress=self.bars.enabled)


def _within(job: _Job, kinds: Sequence[str], runs: int, seed: int) -> Iterator[Outcome]:
    target = targets.read_classes(job.slices, job.label)
    true = target.words
    jobs = list(_folds(job.slices[0], target.known, kinds, runs, seed))
    with job.bars.stage("fine-tunings", sum(len(folds) for _, _, folds in jobs), "fits") as advance:
        for kind, number, folds in jobs:
            predicted, scored = (
                np.full(len(true), None, dtype=object),
                np.zeros(len(true), dtype=bool),
            )
            for split in folds:
                found = job.predict(job.slices[0], split, seed + number)
                rows = np.concatenate(
                    [split.test, np.flatnonzero(~target.known)]
                )  # those without a label, too
                predicted[rows], scored[split.test] = found[rows], True
                advance(1)
            yield kind, number, true, predicted, scored, list(target.notes)


def _folds(
    adata: AnnData, known: NDArray[np.bool_], kinds: Sequence[str], runs: int, seed: int
) -> Iterator[tuple[str, int, list[Split]]]:
    """Yield kind, number, and the splits that are scored together."""
    for kind in kinds:
        if kind == "random":
            yield from (
                ("random", split.number, [split]) for split in random_splits(known, runs, seed=seed)
            )
        else:
            coords = read_coords(adata, keys.SPATIAL)
            yield from (
                ("blocked", n, blocked_splits(coords, known, seed=seed + n)) for n in range(runs)
            )


def _across(job: _Job, test: AnnData, runs: int, seed: int) -> Iterator[Outcome]:
    """Learn from some slices' labels alone; those of the scored slice only score."""
    target, truth = (
        targets.read_classes(job.slices, job.label),
        targets.read_classes(test, job.label),
    )
    sides = [Labels(one.values, one.names) for one in (target, truth)]
    shared, difference = shared_classes(sides[:1], sides[1])
    true, scored = sides[1].names, sides[1].recoded(shared) >= 0
    notes = [
        *(f"training: {note}" for note in target.notes),
        *(f"test: {note}" for note in truth.notes),
    ]
    notes += [f"not scored: {difference}"] if difference else []
    with job.bars.stage("fine-tunings", runs, "fits") as advance:
        for number in range(runs):
            split = cross_split(len(target.values), target.known, scored, seed=seed + number)
            yield "cross", number, true, job.predict(test, split, seed + number), scored, notes
            advance(1)
