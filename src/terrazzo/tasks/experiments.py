"""Experiments: read-outs fitted on some cells and scored on others, within one slice or from slices to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import AnyFloats, Vectors
from terrazzo.errors import ConfigError, InputError
from terrazzo.progress import Progress
from terrazzo.slices.geometry import read_coords
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.labels import Labels, shared_classes
from terrazzo.tasks.readouts import HeadConfig, Readout, head_config, head_record, make
from terrazzo.tasks.results import TaskResult, tidy
from terrazzo.tasks.splits import Split, blocked_splits, cross_split, random_splits
from terrazzo.tasks.targets import Data, Target

KINDS = ("random", "blocked", "few-shot")


FEW_SHARE, FEW_DRAWS = 0.2, 10  # ST as images, section 4


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

    def __post_init__(self) -> None:
        """Check the values."""
        head_config(self.head)
        unknown = [kind for kind in self.splits if kind not in KINDS]
        if unknown or not self.splits:
            raise ConfigError(
                f"splits are {list(self.splits)}; name at least one of {', '.join(KINDS)}."
            )
        if self.runs < 1:
            raise ConfigError(f"runs is {self.runs}; it must be at least 1.")

    def seed_of(self, run: int, fold: int = 0) -> int:
        """Return the seed of one fit."""
        return int(np.random.default_rng([self.seed, run, fold, 105]).integers(2**31))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answers of one number of one kind of split.

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
    """

    split: str
    number: int
    scored: NDArray[np.bool_]
    outputs: Vectors
    trivial: Vectors


def fit_readout(
    x: AnyFloats, target: Target, split: Split, head: str | HeadConfig, seed: int
) -> Readout:
    """Fit a read-out to the training and validation rows of a split; no other row is looked at."""
    train, validation = split.train, split.validation
    readout = make(head, target.kind, len(target.names))
    return readout.fit(
        x[train], target.values[train], x[validation], target.values[validation], seed
    )


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
        raise ConfigError(
            f"there are {len(slices)} slices; say with test= which other slice is to be scored."
        )
    x = targets.stack(data, use_rep)
    outcomes = _outcomes(plan, slices[0], x, target)
    return _result(
        plan,
        outcomes,
        target,
        target,
        target.names,
        slices[0],
        {**settings, "n_features": x.shape[1]},
    )


def across(
    plan: Plan,
    data: Data,
    test: AnnData,
    use_rep: str | AnyFloats,
    target: Target,
    truth: Target,
    settings: Mapping[str, Any],
) -> TaskResult:
    """Run an experiment from slices to another; ``target`` is that of the former, ``truth`` that of the latter.

    Raises
    ------
    ConfigError
        Arrays were given where a key is needed that all slices have.
    InputError
        The embeddings cannot be used, or nothing is on both sides.
    """
    for name, value in {**settings, "use_rep": use_rep}.items():
        if isinstance(value, np.ndarray | pd.DataFrame | pd.Series | list | tuple):
            raise ConfigError(
                f"with test=, {name} must be a key that all slices have, not an array."
            )
    learned = targets.as_list(data)
    x = targets.stack([*learned, test], use_rep)
    n = sum(one.n_obs for one in learned)
    shared, difference = _shared(target, truth)
    scored = truth.known if truth.kind != "classes" else truth.known & np.isin(truth.words, shared)
    notes = [
        *(f"training: {note}" for note in target.notes),
        *(f"test: {note}" for note in truth.notes),
    ]
    notes += [f"not scored: {difference}"] if difference else []
    more = {
        "n_features": x.shape[1],
        "n_training_slices": len(learned),
        "n_training_cells": int(target.known.sum()),
    }
    outcomes = _cross_outcomes(plan, x, n, target, scored)
    return _result(plan, outcomes, target, truth, shared, test, {**settings, **more}, notes)


def _outcomes(plan: Plan, adata: AnnData, x: AnyFloats, target: Target) -> Iterator[Outcome]:
    """Yield what is scored within a slice; cells without label are predicted by every fit, the last one stays."""
    jobs, unknown = list(_jobs(plan, adata, target)), np.flatnonzero(~target.known)
    with Progress(plan.progress).stage(
        plan.task, sum(len(folds) for _, _, folds in jobs), "fits"
    ) as advance:
        for kind, number, folds in jobs:
            found = Outcome(kind, number, *_blank(target.known, len(target.names)))
            for fold, split in enumerate(folds):
                rows = np.concatenate([split.test, unknown])
                readout = fit_readout(x, target, split, plan.head, plan.seed_of(number, fold))
                found.outputs[rows], found.trivial[rows] = (
                    readout.outputs(x[rows]),
                    _trivial(target, split),
                )
                found.scored[split.test] = True
                advance(1)
            yield found


def _cross_outcomes(
    plan: Plan, x: AnyFloats, n_train: int, target: Target, scored: NDArray[np.bool_]
) -> Iterator[Outcome]:
    with Progress(plan.progress).stage(plan.task, plan.runs, "fits") as advance:
        for run in range(plan.runs):
            split = cross_split(n_train, target.known, scored, seed=plan.seed_of(run))
            outputs = fit_readout(x, target, split, plan.head, plan.seed_of(run)).outputs(
                x[n_train:]
            )
            yield Outcome(
                "cross",
                run,
                scored,
                outputs,
                np.repeat(_trivial(target, split), len(outputs), axis=0),
            )
            advance(1)


def _jobs(plan: Plan, adata: AnnData, target: Target) -> Iterator[tuple[str, int, list[Split]]]:
    """Yield kind and number of each score, and the splits whose test cells it is taken over."""
    for kind in plan.splits:
        if kind == "blocked":
            coords = read_coords(adata, keys.SPATIAL)
            for run in range(plan.runs):
                yield kind, run, blocked_splits(coords, target.known, seed=plan.seed_of(run))
        else:
            n, share = (plan.runs, 0.8) if kind == "random" else (FEW_DRAWS, FEW_SHARE)
            for split in random_splits(
                target.known, n, train_share=share, seed=plan.seed, kind=kind
            ):
                yield kind, split.number, [split]


def _blank(known: NDArray[np.bool_], k: int) -> tuple[NDArray[np.bool_], Vectors, Vectors]:
    empty = np.full((len(known), k), np.nan, dtype=np.float32)
    return np.zeros(len(known), dtype=bool), empty, empty.copy()


def _trivial(target: Target, split: Split) -> Vectors:
    """Return the mean of all cells that were learned from, ``(1, k)``: what a head must beat."""
    seen = target.values[np.concatenate([split.train, split.validation])]
    if target.kind == "classes":
        seen = np.eye(len(target.names), dtype=np.float32)[seen]
    return seen.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)


def _shared(target: Target, truth: Target) -> tuple[tuple[str, ...], str]:
    """Return the classes or columns that both sides have, and in words what only one has."""
    if target.kind == "classes":
        return shared_classes(
            [Labels(target.values, target.names)], Labels(truth.values, truth.names)
        )
    common = tuple(name for name in target.names if name in truth.names)
    if not common:
        raise InputError(
            f"training and test slices have no column in common. Training: {', '.join(target.names[:5])}. "
            f"Test: {', '.join(truth.names[:5])}."
        )
    sides = (("training", target.names), ("test", truth.names))
    only = [(side, [n for n in names if n not in common]) for side, names in sides]
    return common, "; ".join(
        f"{', '.join(names)} only in the {side} slices" for side, names in only if names
    )


def _scores(
    outcome: Outcome, target: Target, truth: Target, shared: Sequence[str]
) -> list[dict[str, Any]]:
    rows, place = outcome.scored, (outcome.split, outcome.number)
    if truth.kind == "classes":
        true = truth.words[rows]
        found = np.array(target.names, dtype=object)[outcome.outputs[rows].argmax(axis=1)]
        return tidy(
            {**metrics.classification(true, found), **metrics.clustering(true, found)}, *place
        )
    ours, theirs = ([one.names.index(name) for name in shared] for one in (target, truth))
    answers, true = outcome.outputs[rows][:, ours], truth.values[rows][:, theirs]
    trivial = outcome.trivial[rows][:, ours]
    mean = metrics.regression(true, trivial)
    out = tidy(
        {**metrics.regression(true, answers), **{f"{k}_mean": mean[k] for k in ERRORS}}, *place
    )
    columns = metrics.regression_by_column(true, answers, shared)
    plain = metrics.regression_by_column(true, trivial, shared)[list(ERRORS)].add_suffix("_mean")
    for name, row in columns.join(plain).iterrows():
        out += tidy({str(k): v for k, v in row.items()}, *place, str(name))
    return out


def _predictions(
    last: Mapping[str, Vectors],
    target: Target,
    truth: Target,
    shared: Sequence[str],
    index: pd.Index,
) -> pd.DataFrame:
    if truth.kind == "classes":
        columns: dict[str, Any] = {"true": truth.words}
        for kind, answers in last.items():
            codes = np.where(np.isnan(answers[:, 0]), -1, answers.argmax(axis=1))
            columns[kind] = np.array([*target.names, None], dtype=object)[codes]
        return pd.DataFrame(columns, index=index)
    tables = {
        "true": (truth, truth.values),
        **{kind: (target, answers) for kind, answers in last.items()},
    }
    columns = {}
    for kind, (source, values) in tables.items():
        columns |= {f"{kind}:{name}": values[:, source.names.index(name)] for name in shared}
    return pd.DataFrame(columns, index=index)


def _result(
    plan: Plan,
    outcomes: Iterable[Outcome],
    target: Target,
    truth: Target,
    shared: Sequence[str],
    scored: AnnData,
    settings: Mapping[str, Any],
    notes: Sequence[str] | None = None,
) -> TaskResult:
    rows, last = [], {}
    for one in outcomes:
        rows += _scores(one, target, truth, shared)
        last[one.split] = one.outputs
    given = {k: v if _is_plain(v) else "array" for k, v in settings.items()}
    config = {
        **given,
        "embedding": targets.origin(scored, settings["use_rep"]),
        "kind": target.kind,
        "head": head_record(plan.head),
        "head_name": plan.head if isinstance(plan.head, str) else "",
        "splits": list(last),
        "runs": plan.runs,
        "seed": plan.seed,
        "n_cells": scored.n_obs,
        "n_labeled": int(truth.known.sum()),
        "scored": list(shared),
    }
    predictions = _predictions(last, target, truth, shared, scored.obs_names)
    return TaskResult(
        plan.task,
        pd.DataFrame(rows),
        predictions,
        config,
        tuple(target.notes if notes is None else notes),
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return isinstance(value, str | int | float | None)
