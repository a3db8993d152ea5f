"""Experiments: heads fitted on some cells and scored on others, within one slice or from slices to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import AnyFloats, Bools, Vectors
from terrazzo.errors import ConfigError, InputError
from terrazzo.progress import Progress
from terrazzo.records import ARRAY
from terrazzo.slices.geometry import read_coords
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.heads import (
    Head,
    HeadConfig,
    Kind,
    KNNConfig,
    KNNHead,
    LinearConfig,
    LinearHead,
    head_config,
    head_record,
)
from terrazzo.tasks.labels import Labels, differences, shared_classes
from terrazzo.tasks.penalty import CONSTANT
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.tasks.splits import Split, Units, blocked_splits, cross_split, random_splits
from terrazzo.tasks.targets import Data, Target

if TYPE_CHECKING:
    from terrazzo.tasks.transfer import Transfer

__all__ = [
    "ERRORS",
    "KINDS",
    "LEVELS",
    "Outcome",
    "Plan",
    "across",
    "fit_head",
    "make_head",
    "penalty_note",
    "repeated",
    "repeated_target",
    "within",
]

KINDS = ("random", "blocked", "few-shot")
RANDOM_SHARE = 0.8  # of the labeled cells, for training
FEW_SHARE = 0.2  # ST as images, section 4
FEW_DRAWS = 10
LEVELS = ("mse_level", "mse_pattern")  # parts of the error of one slice
ERRORS = ("rmse", "mae", "mse")  # scores that the trivial answer has, too, as "<name>_mean"


@dataclass(frozen=True)
class Plan:
    """How an experiment is run; see :func:`terrazzo.tasks.probe`."""

    task: str
    head: str | HeadConfig
    splits: tuple[str, ...]
    runs: int
    seed: int
    progress: bool | None
    by_level: bool = False  # the level of a slice and the pattern within it are scored apart

    def __post_init__(self) -> None:
        """Check the values."""
        head_config(self.head)
        unknown = [kind for kind in self.splits if kind not in KINDS]
        if unknown or not self.splits:
            known = ", ".join(KINDS)
            raise ConfigError(f"splits are {list(self.splits)}; name at least one of {known}.")
        if self.runs < 1:
            raise ConfigError(f"runs is {self.runs}; it must be at least 1.")

    def seed_of(self, run: int, fold: int = 0) -> int:
        """Return the seed of one fit."""
        rng = np.random.default_rng([self.seed, run, fold, 105])
        return int(rng.integers(2**31))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The predictions for one number of one kind of split.

    Attributes
    ----------
    split, number
        As in :attr:`TaskResult.metrics`.
    scored
        bool ``(n,)``: test cells with a label.
    outputs
        float32 ``(n, k)``: probabilities, values or proportions; NaN where a cell was in training.
    trivial
        The same: the mean of the cells that were learned from.
    note
        What a reader must know of the fit.
    """

    split: str
    number: int
    scored: Bools
    outputs: Vectors
    trivial: Vectors
    note: str = ""

    @classmethod
    def empty(cls, split: str, number: int, n_cells: int, n_outputs: int) -> Outcome:
        """Return one in which nothing is predicted yet."""
        scored = np.zeros(n_cells, dtype=bool)
        outputs = np.full((n_cells, n_outputs), np.nan, dtype=np.float32)
        return cls(split, number, scored, outputs, outputs.copy())


@dataclass(frozen=True)
class _Job:
    """Kind and number of a score, and the splits whose test cells it is taken over."""

    kind: str
    number: int
    folds: list[Split]


@dataclass(frozen=True)
class _Sides:
    """What an experiment scores.

    Attributes
    ----------
    target, truth
        What was learned from; what the scored slice really is. The same within a slice.
    shared
        Names of the classes or columns that both have.
    adata
        The scored slice.
    by_level
        As of the plan.
    """

    target: Target
    truth: Target
    shared: tuple[str, ...]
    adata: AnnData
    by_level: bool = False


def make_head(head: str | HeadConfig, kind: Kind, n_outputs: int) -> Head:
    """Return a head that is not fitted yet, by name (``HEADS``) or by its settings.

    Raises
    ------
    ConfigError
        No such head.
    """
    config = head_config(head)
    if isinstance(config, KNNConfig):
        return KNNHead(config, kind, n_outputs)
    if isinstance(config, LinearConfig):
        return LinearHead(config, kind, n_outputs)
    from terrazzo.tasks.mlp import MLPHead  # imports torch, which takes a while

    return MLPHead(config, kind, n_outputs)


def fit_head(
    x: AnyFloats,
    target: Target,
    split: Split,
    head: str | HeadConfig,
    seed: int,
    units: Units | None = None,
) -> Head:
    """Fit a head to the training and validation rows of a split; no other row is looked at.

    With ``units``, of each row, the penalty of a ridge that predicts values is chosen by held-out units.
    """
    train = split.train
    validation = split.validation
    unfitted = make_head(head, target.kind, len(target.names))
    if units is not None and isinstance(unfitted, LinearHead):
        rows = np.concatenate([train, validation])
        rows.sort()
        return unfitted.fit_by_units(x[rows], target.values[rows], units.numbers[rows])
    return unfitted.fit(
        x[train],
        target.values[train],
        x[validation],
        target.values[validation],
        seed,
    )


def repeated(split: Split, n_rows: int, n_copies: int) -> Split:
    """Return the split of rows that are there several times: all copies of a cell are on one side.

    Parameters
    ----------
    split
        Of the first ``n_rows`` rows, and of rows to be scored after these.
    n_rows
        Cells that are learned from.
    n_copies
        How often they are there, one copy of all after the other.
    """
    starts = np.arange(n_copies) * n_rows
    train = starts[:, None] + split.train
    validation = starts[:, None] + split.validation
    return replace(
        split,
        train=train.ravel(),
        validation=validation.ravel(),
        test=split.test + int(starts[-1]),
    )


def repeated_target(target: Target, n_copies: int) -> Target:
    """Return what is learned by cells that are there several times, one copy of all after the other."""
    return replace(target, values=np.concatenate([target.values] * n_copies))


def within(
    plan: Plan, data: Data, use_rep: str | AnyFloats, target: Target, settings: Mapping[str, Any]
) -> TaskResult:
    """Run an experiment within one slice.

    Raises
    ------
    ConfigError
        There are several slices.
    InputError
        The embedding or the coordinates cannot be used.
    """
    slices = targets.as_list(data)
    if len(slices) != 1:
        raise ConfigError(f"there are {len(slices)} slices; pass the slice to be scored as test=.")
    adata = slices[0]
    x = targets.stack(data, use_rep)
    sides = _Sides(target, target, target.names, adata)
    all_settings = dict(settings, n_features=x.shape[1])
    outcomes = _outcomes_within(plan, adata, x, target)
    return _result(plan, outcomes, sides, all_settings, target.notes)


def across(
    plan: Plan,
    data: Data,
    test: AnnData,
    use_rep: Any,
    target: Target,
    truth: Target,
    settings: Mapping[str, Any],
    units: Units | None = None,
    moved: Transfer | None = None,
) -> TaskResult:
    """Run an experiment from slices to another; ``target`` is that of the former, ``truth`` that of the latter.

    ``units``: of the training rows, for values; see :func:`fit_head`. ``moved``: the vectors of both, in place of those
    under ``use_rep``.

    Raises
    ------
    ConfigError
        Arrays were passed where a key is needed that all slices have.
    InputError
        The embeddings cannot be used, or nothing is on both sides.
    """
    training = targets.as_list(data)
    n_copies = 1
    if moved is not None:
        x = np.concatenate([moved.labeled, moved.targets[0].vectors])
        n_copies = moved.n_copies
    else:
        _check_keys(settings, use_rep)
        x = targets.stack([*training, test], use_rep)
    shared, difference = _shared_names(target, truth)
    scored = truth.known
    if truth.kind == "classes":
        scored = scored & np.isin(truth.words, shared)
    notes = [f"training: {note}" for note in target.notes]
    notes += [f"test: {note}" for note in truth.notes]
    if difference:
        notes.append(f"not scored: {difference}")
    if moved is not None:
        notes += moved.notes
    all_settings = dict(
        settings,
        n_features=x.shape[1],
        n_training_slices=len(training),
        n_training_cells=int(target.known.sum()),
    )
    if moved is not None:
        all_settings["transfer"] = moved.record
    outcomes = _outcomes_across(plan, x, n_copies, target, scored, units)
    sides = _Sides(target, truth, shared, test, plan.by_level)
    return _result(plan, outcomes, sides, all_settings, notes)


def _check_keys(settings: Mapping[str, Any], use_rep: str | AnyFloats) -> None:
    """Refuse arrays where several slices need one key."""
    arrays = (np.ndarray, pd.DataFrame, pd.Series, list, tuple)
    for name, value in {**settings, "use_rep": use_rep}.items():
        if isinstance(value, arrays):
            raise ConfigError(
                f"with test=, {name} must be a key that all slices have, not an array."
            )


def _outcomes_within(plan: Plan, adata: AnnData, x: AnyFloats, target: Target) -> Iterator[Outcome]:
    """Yield what is scored within a slice; every fit predicts the cells without label, the last one counts."""
    jobs = list(_jobs(plan, adata, target))
    n_fits = sum(len(job.folds) for job in jobs)
    unknown = np.flatnonzero(~target.known)
    n_cells = len(target.values)
    with Progress(plan.progress).stage(plan.task, n_fits, "fits") as advance:
        for job in jobs:
            outcome = Outcome.empty(job.kind, job.number, n_cells, len(target.names))
            for fold, split in enumerate(job.folds):
                rows = np.concatenate([split.test, unknown])
                seed = plan.seed_of(job.number, fold)
                head = fit_head(x, target, split, plan.head, seed)
                outcome.outputs[rows] = head.outputs(x[rows])
                outcome.trivial[rows] = _trivial(target, split)
                outcome.scored[split.test] = True
                advance(1)
            yield outcome


def _outcomes_across(
    plan: Plan,
    x: AnyFloats,
    n_copies: int,
    target: Target,
    scored: Bools,
    units: Units | None,
) -> Iterator[Outcome]:
    """Yield what is scored on another slice, once for each run; its vectors come after all that is learned from.

    A ridge by held-out units is the same in all runs.
    """
    n_train = len(target.values)
    many = repeated_target(target, n_copies)
    is_same = units is not None and isinstance(head_config(plan.head), LinearConfig)
    head = None
    note = ""
    with Progress(plan.progress).stage(plan.task, plan.runs, "fits") as advance:
        for run in range(plan.runs):
            seed = plan.seed_of(run)
            split = cross_split(n_train, target.known, scored, seed=seed)
            if head is None or not is_same:
                rows = repeated(split, n_train, n_copies)
                head = fit_head(x, many, rows, plan.head, seed, units)
                outputs = head.outputs(x[n_copies * n_train :])
                note = penalty_note(head, units)
            trivial = _trivial(target, split)
            trivial = np.repeat(trivial, len(outputs), axis=0)
            yield Outcome("cross", run, scored, outputs, trivial, note)
            advance(1)


def penalty_note(head: Head, units: Units | None) -> str:
    """Return in words the penalty that held-out units chose; "" where none did."""
    if units is None or not isinstance(head, LinearHead) or head.ridge is None:
        return ""
    ridge = head.ridge
    if ridge.penalty == CONSTANT:
        return (
            f"no ridge regression beats the gene mean on every held-out {units.kind}: "
            "the gene mean is predicted everywhere"
        )
    share = f"{100 * (1 - ridge.ratio):.1f} %"
    return (
        f"penalty {ridge.penalty:g} a column, by held-out {units.kind}: "
        f"at least {share} below the gene mean's squared error on each"
    )


def _jobs(plan: Plan, adata: AnnData, target: Target) -> Iterator[_Job]:
    """Yield what is fitted for each score within a slice."""
    known = target.known
    for kind in plan.splits:
        if kind == "blocked":
            coords = read_coords(adata, keys.SPATIAL)
            for run in range(plan.runs):
                folds = blocked_splits(coords, known, seed=plan.seed_of(run))
                yield _Job(kind, run, folds)
            continue
        if kind == "random":
            draws, share = plan.runs, RANDOM_SHARE
        else:
            draws, share = FEW_DRAWS, FEW_SHARE
        for split in random_splits(known, draws, train_share=share, seed=plan.seed, kind=kind):
            yield _Job(kind, split.number, [split])


def _trivial(target: Target, split: Split) -> Vectors:
    """Return the mean of all cells that were learned from, ``(1, k)``: what a head must beat."""
    rows = np.concatenate([split.train, split.validation])
    values = target.values[rows]
    if target.kind == "classes":
        values = np.eye(len(target.names), dtype=np.float32)[values]
    mean = values.mean(axis=0, dtype=np.float64, keepdims=True)
    return mean.astype(np.float32)


def _shared_names(target: Target, truth: Target) -> tuple[tuple[str, ...], str]:
    """Return the classes or columns that both sides have, and in words what only one has."""
    if target.kind == "classes":
        train_labels = Labels(target.values, target.names)
        test_labels = Labels(truth.values, truth.names)
        return shared_classes([train_labels], test_labels)
    common = tuple(name for name in target.names if name in truth.names)
    if not common:
        learned = ", ".join(target.names[:5])
        measured = ", ".join(truth.names[:5])
        raise InputError(
            "training and test slices have no column in common. "
            f"Training: {learned}. Test: {measured}."
        )
    return common, differences(target.names, truth.names)


def _scores(outcome: Outcome, sides: _Sides) -> list[dict[str, Any]]:
    """Return the rows of the scores of one number of one kind of split."""
    if sides.truth.kind == "classes":
        return _scores_of_classes(outcome, sides)
    return _scores_of_values(outcome, sides)


def _scores_of_classes(outcome: Outcome, sides: _Sides) -> list[dict[str, Any]]:
    """Score the likeliest classes."""
    rows = outcome.scored
    names = np.array(sides.target.names, dtype=object)
    codes = outcome.outputs[rows].argmax(axis=1)
    predicted = names[codes]
    true = sides.truth.words[rows]
    scores = metrics.classification(true, predicted)
    scores.update(metrics.clustering(true, predicted))
    return tidy(scores, outcome.split, outcome.number)


def _scores_of_values(outcome: Outcome, sides: _Sides) -> list[dict[str, Any]]:
    """Score values or proportions, all together and column by column, beside the trivial answer."""
    rows = outcome.scored
    learned = [sides.target.names.index(name) for name in sides.shared]
    measured = [sides.truth.names.index(name) for name in sides.shared]
    predicted = outcome.outputs[rows][:, learned]
    trivial = outcome.trivial[rows][:, learned]
    true = sides.truth.values[rows][:, measured]
    scores = metrics.regression(true, predicted)
    scores_of_mean = metrics.regression(true, trivial)
    for name in ERRORS:
        scores[f"{name}_mean"] = scores_of_mean[name]
    if sides.by_level:
        parts_of_mean = metrics.level_and_pattern(true, trivial)
        scores.update(metrics.level_and_pattern(true, predicted))
        for name in LEVELS:
            scores[f"{name}_mean"] = parts_of_mean[name]
    tidy_rows = tidy(scores, outcome.split, outcome.number)
    by_column = metrics.regression_by_column(true, predicted, sides.shared)
    mean_by_column = metrics.regression_by_column(true, trivial, sides.shared)
    errors_of_mean = mean_by_column[list(ERRORS)].add_suffix("_mean")
    for part, row in by_column.join(errors_of_mean).iterrows():
        part_scores = {str(name): value for name, value in row.items()}
        tidy_rows += tidy(part_scores, outcome.split, outcome.number, str(part))
    return tidy_rows


def _predictions(last: Mapping[str, Vectors], sides: _Sides) -> pd.DataFrame:
    """Return the truth and the last outputs of each kind of split, a row a cell."""
    index = sides.adata.obs_names
    if sides.truth.kind == "classes":
        return pd.DataFrame(_class_columns(last, sides), index=index)
    return pd.DataFrame(_value_columns(last, sides), index=index)


def _class_columns(last: Mapping[str, Vectors], sides: _Sides) -> dict[str, Any]:
    """Return true and predicted classes; None where a cell was in training."""
    names = np.array([*sides.target.names, None], dtype=object)
    columns = {"true": sides.truth.words}
    for kind, outputs in last.items():
        in_training = np.isnan(outputs[:, 0])
        codes = np.where(in_training, -1, outputs.argmax(axis=1))
        columns[kind] = names[codes]
    return columns


def _value_columns(last: Mapping[str, Vectors], sides: _Sides) -> dict[str, Any]:
    """Return true and predicted values of the shared columns."""
    columns = {}
    for name in sides.shared:
        number = sides.truth.names.index(name)
        columns[f"true:{name}"] = sides.truth.values[:, number]
    for kind, outputs in last.items():
        for name in sides.shared:
            number = sides.target.names.index(name)
            columns[f"{kind}:{name}"] = outputs[:, number]
    return columns


def _result(
    plan: Plan,
    outcomes: Iterable[Outcome],
    sides: _Sides,
    settings: Mapping[str, Any],
    notes: Sequence[str],
) -> TaskResult:
    """Score all outcomes and join them with what is needed to repeat the experiment."""
    rows = []
    last = {}
    all_notes = list(notes)
    for outcome in outcomes:
        rows += _scores(outcome, sides)
        last[outcome.split] = outcome.outputs
        if outcome.note and outcome.note not in all_notes:
            all_notes.append(outcome.note)
    config: dict[str, Any] = {}
    for name, value in settings.items():
        config[name] = value if _is_plain(value) else ARRAY
    config.update(
        embedding=targets.origin(sides.adata, settings["use_rep"]),
        kind=sides.target.kind,
        head=head_record(plan.head),
        head_name=plan.head if isinstance(plan.head, str) else "",
        splits=list(last),
        runs=plan.runs,
        seed=plan.seed,
        n_cells=sides.adata.n_obs,
        n_labeled=int(sides.truth.known.sum()),
        scored=list(sides.shared),
    )
    return TaskResult(
        task=plan.task,
        metrics=pd.DataFrame(rows),
        predictions=_predictions(last, sides),
        config=config,
        notes=tuple(all_notes),
    )


def _is_plain(value: Any) -> bool:
    """Return whether a setting can be recorded as it is."""
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | float | dict | None)
