"""Scores of full fine-tuning, by the splits and metrics of probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Bools, Words
from terrazzo.errors import ConfigError
from terrazzo.progress import Progress
from terrazzo.slices.geometry import read_coords
from terrazzo.slices.parts import takes_all
from terrazzo.systems.stofm.finetune import FineTuneConfig, FineTuned, finetune
from terrazzo.systems.stofm.model import SToFM
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.by_section import scored_by_section
from terrazzo.tasks.labels import Labels, shared_classes
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.tasks.splits import Split, blocked_splits, cross_split, random_splits

__all__ = ["KINDS", "evaluate_finetuning", "tune_and_score"]

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
    slice_key: str | None = None,
) -> TaskResult:
    """Score full fine-tuning with the splits and metrics of probes (SToFM, table A.1).

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
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart, each of which is a slice; "none": all its cells
        are one. Without ``test`` each section is scored by itself; scores and predictions have a column ``slice``.

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
    options: dict[str, Any] = {
        "label": label,
        "kinds": kinds,
        "runs": runs,
        "seed": seed,
        "config": config,
        "orthologs": orthologs,
        "progress": progress,
    }
    return _evaluate(model, data, test, slice_key, [], **options)


def tune_and_score(
    model: SToFM,
    data: targets.Data,
    *,
    label: str,
    test: AnnData,
    runs: int = 1,
    seed: int = 0,
    config: FineTuneConfig | None = None,
    orthologs: Any = None,
    progress: bool | None = None,
    slice_key: str | None = None,
) -> tuple[TaskResult, FineTuned]:
    """Tune a model on labeled slices and score it on another; as :func:`evaluate_finetuning` with ``test``.

    Returns
    -------
    The scores, and the tuned model of the first run, whose scores are the first of them: it need not be tuned again.

    Raises
    ------
    InputError, ConfigError
        As :func:`evaluate_finetuning`.
    """
    options: dict[str, Any] = {
        "label": label,
        "kinds": KINDS,
        "runs": runs,
        "seed": seed,
        "config": config,
        "orthologs": orthologs,
        "progress": progress,
    }
    tuned: list[FineTuned] = []
    result = _evaluate(model, data, test, slice_key, tuned, **options)
    return result, tuned[0]


def _evaluate(
    model: SToFM,
    data: targets.Data,
    test: AnnData | None,
    slice_key: str | None,
    tuned: list[FineTuned],
    *,
    label: str,
    kinds: Sequence[str],
    runs: int,
    seed: int,
    config: FineTuneConfig | None,
    orthologs: Any,
    progress: bool | None,
) -> TaskResult:
    """Return scores; the first tuned model is added to ``tuned``."""
    if runs < 1 or not kinds or set(kinds) - set(KINDS):
        raise ConfigError(
            f"kinds are {list(kinds)} and runs {runs}; name {' or '.join(KINDS)}, and at least one run."
        )
    if not takes_all(slice_key):
        options: dict[str, Any] = {
            "label": label,
            "kinds": kinds,
            "runs": runs,
            "seed": seed,
            "config": config,
            "orthologs": orthologs,
            "progress": progress,
        }
        return scored_by_section(
            lambda some, other: _evaluate(model, some, other, None, tuned, **options),
            data,
            test,
            str(slice_key),
        )
    slices = targets.as_list(data)
    if test is None and len(slices) != 1:
        raise ConfigError(f"there are {len(slices)} slices; pass the one that is scored as test=.")
    tuning = _Tuning(
        model,
        slices,
        label,
        config or FineTuneConfig(),
        orthologs,
        Progress(progress),
        slice_key,
        tuned,
    )
    if test is None:
        scored_slice = slices[0]
        outcomes = _within(tuning, kinds, runs, seed)
    else:
        scored_slice = test
        outcomes = _across(tuning, test, runs, seed)
    rows, predictions, notes = _scores_of(outcomes, scored_slice)
    settings = {
        "label": label,
        "runs": runs,
        "seed": seed,
        "kinds": list(kinds),
        "model": model.fingerprint(),
        "n_training_slices": len(slices),
        "fine_tuning": asdict(tuning.config),
    }
    return TaskResult("finetune", pd.DataFrame(rows), predictions, settings, tuple(notes))


def _scores_of(
    outcomes: Iterable[_Outcome], scored_slice: AnnData
) -> tuple[list[dict[str, Any]], pd.DataFrame, list[str]]:
    """Return the rows of scores, the predictions of the last run of each kind, and what a reader must know."""
    rows: list[dict[str, Any]] = []
    predictions = pd.DataFrame(index=scored_slice.obs_names)
    notes: list[str] = []
    for outcome in outcomes:
        rows.extend(tidy(outcome.scores(), outcome.kind, outcome.number))
        predictions["true"] = outcome.true
        predictions[outcome.kind] = outcome.predicted
        notes = outcome.notes
    return rows, predictions, notes


@dataclass(frozen=True)
class _Outcome:
    """Predictions of one run.

    Attributes
    ----------
    kind, number
        Of the split.
    true, predicted
        Class of every cell of the scored slice; None where it has none.
    scored
        Which cells are scored.
    notes
        What a reader must know.
    """

    kind: str
    number: int
    true: Words
    predicted: Words
    scored: Bools
    notes: list[str]

    def scores(self) -> dict[str, float]:
        """Return how well the scored cells were predicted, as classes and as clusters."""
        true = self.true[self.scored]
        predicted = self.predicted[self.scored]
        scores = metrics.classification(true, predicted)
        scores.update(metrics.clustering(true, predicted))
        return scores


@dataclass(frozen=True)
class _Tuning:
    """What all fits have in common; ``tuned`` has the first tuned model, once there is one."""

    model: SToFM
    slices: list[AnnData]
    label: str
    config: FineTuneConfig
    orthologs: Any
    bars: Progress
    slice_key: str | None
    tuned: list[FineTuned]

    def predict(self, scored_slice: AnnData, split: Split, seed: int) -> Words:
        """Tune by a split, and predict every cell of a slice."""
        shows = self.bars.enabled
        tuned = finetune(
            self.model,
            self.slices,
            label=self.label,
            config=self.config,
            split=split,
            seed=seed,
            progress=shows,
            orthologs=self.orthologs,
            slice_key=self.slice_key,
        )
        if not self.tuned:
            self.tuned.append(tuned)
        return tuned.predict(
            scored_slice.copy(),
            orthologs=self.orthologs,
            progress=shows,
            slice_key=self.slice_key,
        )


@dataclass(frozen=True)
class _Run:
    """Splits of one slice that are scored together."""

    kind: str
    number: int
    splits: list[Split]


def _within(tuning: _Tuning, kinds: Sequence[str], runs: int, seed: int) -> Iterator[_Outcome]:
    """Learn from a part of a slice, and score the rest."""
    adata = tuning.slices[0]
    target = targets.read_classes(tuning.slices, tuning.label)
    true = target.words
    unlabeled = np.flatnonzero(~target.known)
    planned = list(_runs(adata, target.known, kinds, runs, seed))
    n_fits = sum(len(run.splits) for run in planned)
    with tuning.bars.stage("fine-tunings", n_fits, "fits") as advance:
        for run in planned:
            predicted = np.full(len(true), None, dtype=object)
            scored = np.zeros(len(true), dtype=bool)
            for split in run.splits:
                classes = tuning.predict(adata, split, seed + run.number)
                predicted[split.test] = classes[split.test]
                predicted[unlabeled] = classes[unlabeled]
                scored[split.test] = True
                advance(1)
            yield _Outcome(run.kind, run.number, true, predicted, scored, list(target.notes))


def _runs(
    adata: AnnData, known: Bools, kinds: Sequence[str], runs: int, seed: int
) -> Iterator[_Run]:
    for kind in kinds:
        if kind == "random":
            for split in random_splits(known, runs, seed=seed):
                yield _Run(kind, split.number, [split])
            continue
        coords = read_coords(adata, keys.SPATIAL)
        for number in range(runs):
            yield _Run(kind, number, blocked_splits(coords, known, seed=seed + number))


def _across(tuning: _Tuning, test: AnnData, runs: int, seed: int) -> Iterator[_Outcome]:
    """Learn from some slices' labels alone; those of the scored slice only score."""
    target = targets.read_classes(tuning.slices, tuning.label)
    truth = targets.read_classes(test, tuning.label)
    train_labels = Labels(target.values, target.names)
    test_labels = Labels(truth.values, truth.names)
    shared, difference = shared_classes([train_labels], test_labels)
    scored = test_labels.recoded(shared) >= 0
    notes = [f"training: {note}" for note in target.notes]
    notes.extend(f"test: {note}" for note in truth.notes)
    if difference:
        notes.append(f"not scored: {difference}")
    n_cells = len(target.values)
    with tuning.bars.stage("fine-tunings", runs, "fits") as advance:
        for number in range(runs):
            split = cross_split(n_cells, target.known, scored, seed=seed + number)
            predicted = tuning.predict(test, split, seed + number)
            yield _Outcome("cross", number, test_labels.names, predicted, scored, notes)
            advance(1)
