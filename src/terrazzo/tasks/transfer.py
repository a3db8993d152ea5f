"""Vectors of labeled slices and of targets, where genes or depth differ: common genes if they win, and copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from anndata import AnnData

from terrazzo import records
from terrazzo.arrays import AnyFloats, Ints, Vectors
from terrazzo.errors import ConfigError, InputError
from terrazzo.models.baselines import Baseline
from terrazzo.models.shift import (
    AUTO,
    CommonGenes,
    Panels,
    Shift,
    check_common_genes,
    compare,
    compare_anndata,
)
from terrazzo.slices import Slice
from terrazzo.slices.parts import put_back, split, takes_all
from terrazzo.tasks import metrics, targets
from terrazzo.tasks.experiments import fit_head, repeated, repeated_target
from terrazzo.tasks.splits import FOLDS, Split, blocked_splits, random_splits
from terrazzo.tasks.targets import Data, Target

__all__ = [
    "Embed",
    "Embedded",
    "Embedder",
    "Transfer",
    "at_hand",
    "at_most",
    "check_source",
    "embedded_alone",
    "embedder_of",
    "moved_to",
    "notes_of",
    "to_slices",
    "transfer",
    "transferred",
    "warn_of_shift",
    "write_targets",
]

MOST_CELLS = 20_000  # that each head of the choice learns from, and is scored on

ADVICE = (
    "Vectors of the two may not agree: pass the model in place of the vectors (model=, --model), and the probe is "
    "fitted at the target's genes and depth, too."
)


@dataclass(frozen=True, eq=False)
class Embedded:
    """The vectors of one slice, float32 ``(n_cells, d)``, and the record of what made them."""

    vectors: Vectors
    record: dict[str, Any] = field(default_factory=dict)


Embed = Callable[[Slice], Embedded]
Embedder = Callable[
    [Sequence[Slice]], Embed
]  # takes the slices that may be fitted on, without labels


@dataclass(frozen=True, eq=False)
class Transfer:
    """Vectors to learn from and to predict.

    Attributes
    ----------
    labeled
        ``(n_copies * cells, d)``: of all labeled slices, then again of each copy of them.
    targets
        Of each target.
    n_copies
        How often each labeled cell is there: 1, 2 or 4.
    record
        What was compared and chosen, JSON-able; empty where the vectors were there already.
    notes
        The same for a reader.
    origins
        What is known of the models behind the vectors.
    """

    labeled: AnyFloats
    targets: tuple[Embedded, ...] = ()
    n_copies: int = 1
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def columns(self, start: int, stop: int) -> Transfer:
        """Return some columns of all vectors: a block of the embedding."""
        some = []
        for one in self.targets:
            some.append(Embedded(one.vectors[:, start:stop], one.record))
        return replace(self, labeled=self.labeled[:, start:stop], targets=tuple(some))


@dataclass(frozen=True, eq=False)
class _Arm:
    """Vectors of the labeled slices and their copies, with all genes or with the shared ones alone."""

    common: bool
    embed: Embed
    copies: dict[str, Vectors]


def transfer(
    model: Any,
    shift: Shift,
    target: Target,
    *,
    common_genes: CommonGenes = AUTO,
    copies: bool = True,
    seed: int = 0,
) -> Transfer:
    """Embed labeled slices and targets so that a head that is fitted on the former holds on the latter.

    Where genes differ (see :class:`terrazzo.models.shift.Panels`) all slices are cut to the shared ones, if that wins:
    heads are fitted on parts of the labeled slices and scored on held-out ones (a slice of several, else spatial
    blocks) at the genes and the depth of the targets. The targets' own labels are not there to be read.

    Parameters
    ----------
    model
        A foundation model; a baseline, which is fitted on the labeled slices unless it is already; or an
        :data:`Embedder`.
    shift
        The slices, compared.
    target
        What is learned: of all labeled slices, their cells one after the other.
    common_genes
        Cut all slices to the shared genes; "auto": where that wins.
    copies
        Learn also from copies of the labeled slices, cut to the shared genes, thinned to the targets' depth, and both,
        as far as genes or depth differ.
    seed
        Of the heads that choose.

    Raises
    ------
    InputError
        Other genes, and fewer than 50 in common; a slice that cannot be embedded.
    ConfigError
        Not a model; an impossible ``common_genes``.
    """
    check_common_genes(common_genes)
    embedder = embedder_of(model)
    panels = shift.panels
    panels.refuse_too_few()
    choices = shift.arms(common_genes)
    must_choose = len(choices) > 1
    versions = {common: _versions(shift, common, copies, must_choose) for common in choices}
    n_embedded = sum(len(some) for some in versions.values())
    panels.warn(f"Each labeled slice is embedded {n_embedded} times for that.")
    arms = [_arm(embedder, shift, common, versions[common]) for common in choices]
    best = arms[0]
    scores: dict[str, float] = {}
    if must_choose:
        folds = _folds(shift.labeled, target, seed)
        scored = [_score(arm, target, folds, copies, seed) for arm in arms]
        best = arms[int(np.argmax(scored))]  # of two alike the first: common genes
        scores = {"common_genes": round(scored[0], 4), "all_genes": round(scored[1], 4)}
    learned = list(best.copies.values()) if copies else list(best.copies.values())[:1]
    names = list(best.copies)[: len(learned)]
    ends = shift.cut_targets if best.common else shift.targets
    record = {
        **panels.record(),
        "asked": common_genes,
        "common_genes": best.common,
        "held_out_scores": scores,
        "copies": names[1:],
        "n_embedded": n_embedded,
    }
    embedded = tuple(_restricted(best, tissue, panels.n_shared) for tissue in ends)
    return Transfer(
        labeled=np.concatenate(learned),
        targets=embedded,
        n_copies=len(learned),
        record=record,
        notes=notes_of(panels, record, _metric(target)),
        origins=tuple(sorted({targets.origin_of(one.record) for one in embedded} - {""})),
    )


def _versions(
    shift: Shift, common: bool, copies: bool, must_choose: bool
) -> dict[str, tuple[Slice, ...]]:
    """Return the versions of the labeled slices that are embedded: all, or the first and what is scored."""
    every = shift.copies(common)
    if copies:
        return every
    names = list(every)
    wanted = {names[0], names[-1]} if must_choose else {names[0]}
    return {name: slices for name, slices in every.items() if name in wanted}


def _arm(
    embedder: Embedder, shift: Shift, common: bool, versions: Mapping[str, tuple[Slice, ...]]
) -> _Arm:
    """Fit, and embed every version of the labeled slices."""
    embed = embedder(shift.cut_labeled if common else shift.labeled)
    copies = {}
    for name, slices in versions.items():
        copies[name] = np.concatenate([embed(tissue).vectors for tissue in slices])
    return _Arm(common, embed, copies)


def _restricted(arm: _Arm, tissue: Slice, n_shared: int) -> Embedded:
    """Embed a target; the record says where it was cut before."""
    embedded = arm.embed(tissue)
    if not arm.common:
        return embedded
    record = {**embedded.record, "restricted_to": f"{n_shared} genes in common"}
    return Embedded(embedded.vectors, record)


def notes_of(panels: Panels, record: Mapping[str, Any], metric: str) -> tuple[str, ...]:
    """Return what was compared and chosen, for a reader; of a :class:`Transfer`'s record."""
    if not panels.differs and not record["common_genes"]:
        return ()
    notes = []
    if panels.differs:
        notes.append(f"panels or depth differ: {panels.text}")
    scores = record["held_out_scores"]
    used = "the genes in common alone" if record["common_genes"] else "all genes of each slice"
    if scores:
        notes.append(
            f"embedded from {used}: {metric} on held-out labeled cells at the target's genes and depth is "
            f"{scores['common_genes']:.3f} with common genes, {scores['all_genes']:.3f} with all"
        )
    else:
        notes.append(f"embedded from {used}")
    if record["copies"]:
        listed = "; ".join(record["copies"])
        notes.append(f"learned also from copies of the labeled slices: {listed}")
    notes.append(f"each labeled slice was embedded {record['n_embedded']} times")
    return tuple(notes)


# ---- the choice, on labeled slices alone


def _folds(slices: Sequence[Slice], target: Target, seed: int) -> list[Split]:
    """Return folds of the labeled cells: whole slices, else spatial blocks, or random cells of a tiny slice."""
    known = target.known
    if len(slices) > 1:
        return _slice_folds(slices, target)
    try:
        return blocked_splits(slices[0].coords, known, seed=seed)
    except InputError:
        return random_splits(known, FOLDS, train_share=0.75, seed=seed)


def _slice_folds(slices: Sequence[Slice], target: Target) -> list[Split]:
    """Return folds of whole slices, at most four."""
    number = np.repeat(np.arange(len(slices)), [tissue.n_cells for tissue in slices])
    fold = number % FOLDS
    nothing = np.zeros(0, dtype=np.int64)
    splits = []
    for held_out in np.unique(fold):
        train = np.flatnonzero(target.known & (fold != held_out))
        test = np.flatnonzero(target.known & (fold == held_out))
        if len(train) and len(test):
            splits.append(Split("cross", int(held_out), train, nothing, test))
    if not splits:
        raise InputError("only one of the labeled slices has labels; nothing can be held out.")
    return splits


def _metric(target: Target) -> str:
    """Return the name of the score that decides."""
    return "macro-F1" if target.kind == "classes" else "Pearson correlation"


def _score(arm: _Arm, target: Target, folds: Sequence[Split], copies: bool, seed: int) -> float:
    """Score linear heads on held-out cells of the version that is the most like the targets."""
    vectors = list(arm.copies.values())
    degraded = vectors[-1]
    learned = vectors if copies else vectors[:1]
    n_rows = len(degraded)
    n_copies = len(learned)
    stacked = np.concatenate(learned)
    many = repeated_target(target, n_copies)
    rng = np.random.default_rng([seed, 107])
    true = []
    predicted = []
    for fold in folds:
        some = replace(
            fold,
            train=at_most(fold.train, MOST_CELLS // n_copies, rng),
            test=at_most(fold.test, MOST_CELLS, rng),
        )
        head = fit_head(stacked, many, repeated(some, n_rows, n_copies), "linear", seed)
        true.append(target.values[some.test])
        predicted.append(head.predict(degraded[some.test]))
    truth = np.concatenate(true)
    guess = np.concatenate(predicted)
    if target.kind == "classes":
        return metrics.classification(truth, guess)["macro_f1"]
    return metrics.regression(truth, guess)["pearson"]


def at_most(rows: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Return rows, of many some at random."""
    if len(rows) <= n:
        return rows
    return np.sort(rng.choice(rows, n, replace=False))


# ---- models and slices


def embedder_of(model: Any, **options: Any) -> Embedder:
    """Return how a model or a baseline embeds slices; an :data:`Embedder` is returned as it is.

    Parameters
    ----------
    model
        A foundation model, a baseline, or an embedder.
    **options
        Of a foundation model's ``embed``.

    Raises
    ------
    ConfigError
        Something else.
    """
    if isinstance(model, Baseline):
        return _of_baseline(model)
    if hasattr(model, "prepare") and hasattr(model, "options_class"):
        return _of_model(model, options)
    if callable(model):
        return model
    raise ConfigError(
        f"model is {type(model).__name__!r}; it must be a model (tz.load) or a baseline (tz.Baseline)."
    )


def _of_baseline(baseline: Baseline) -> Embedder:
    def fit(slices: Sequence[Slice]) -> Embed:
        fitted = baseline
        if not baseline.fitted_on:
            fitted = baseline.unfitted().fit(slices)

        def embed(tissue: Slice) -> Embedded:
            return Embedded(fitted.transform(tissue), fitted.record(tissue))

        return embed

    return fit


def _of_model(model: Any, options: Mapping[str, Any]) -> Embedder:
    checked = model.options_class.checked(options, model.title)

    def embed(tissue: Slice) -> Embedded:
        prepared = model.prepare(tissue, checked)
        embedding = prepared.embed()
        return Embedded(embedding.vectors, model.record(tissue, prepared, embedding))

    return lambda slices: embed


def to_slices(data: Data) -> list[Slice]:
    """Check AnnDatas and freeze each; errors name the slice.

    Raises
    ------
    InputError
        As :meth:`terrazzo.Slice.from_anndata`.
    """
    adatas = targets.as_list(data)
    slices = []
    for number, adata in enumerate(adatas):
        with targets.at(number, len(adatas)):
            slices.append(Slice.from_anndata(adata, slice_key="none"))
    return slices


def check_source(use_rep: Any, model: Any, common_genes: CommonGenes, copies: bool | None) -> None:
    """Refuse both or neither of vectors and model, and what cannot be done to vectors that are there already.

    Raises
    ------
    ConfigError
        Says which.
    """
    check_common_genes(common_genes)
    if (use_rep is None) == (model is None):
        raise ConfigError(
            "give either the vectors (use_rep=, --use-rep) or the model that makes them (model=, --model)."
        )
    if model is not None:
        return
    for name, wanted in (("common_genes", common_genes is True), ("copies", copies is True)):
        if wanted:
            raise ConfigError(
                f"{name} changes slices before they are embedded, and these vectors are there already; pass the model "
                "(model=, --model) in place of use_rep."
            )


def warn_of_shift(labeled: Data, target: AnnData, use_rep: Any) -> None:
    """Warn where slices that are embedded already differ in genes or depth enough to matter."""
    key = str(use_rep).partition(":")[0]
    record = records.records_of(target).get(key, {})
    of_baseline = str(record.get("model_type", "")).startswith("baseline:")
    panels = compare_anndata(targets.as_list(labeled), [target], of_baseline=of_baseline)
    if panels is not None:
        panels.warn(ADVICE)


def transferred(
    model: Any,
    labeled: Data,
    ends: Sequence[AnnData],
    target: Target,
    *,
    common_genes: CommonGenes,
    copies: bool | None,
    seed: int,
) -> Transfer:
    """Compare and embed AnnDatas, a slice each; see :func:`transfer`. A :class:`Transfer` is returned as it is."""
    if isinstance(model, Transfer):
        return model
    known = to_slices(labeled)
    others = to_slices(ends) if ends else known
    shift = compare(known, others, model)
    return transfer(
        model, shift, target, common_genes=common_genes, copies=copies is not False, seed=seed
    )


def moved_to(
    test: AnnData, use_rep: Any, model: Any, labeled: Data, target: Target, **options: Any
) -> Transfer | None:
    """Return vectors of both sides by a model; None, after a warning where they differ, if they are there already.

    Parameters are those of :func:`warn_of_shift` and :func:`transferred`, which ``options`` go to.
    """
    if model is None:
        warn_of_shift(labeled, test, use_rep)
        return None
    return transferred(model, labeled, [test], target, **options)


def at_hand(data: Data, use_rep: Any) -> Transfer:
    """Return vectors that the slices have already; errors as :func:`terrazzo.tasks.targets.stack`."""
    vectors = targets.stack(data, use_rep)
    origins = targets.origins(targets.as_list(data), use_rep)
    return Transfer(vectors, origins=tuple(sorted(origins)))


def embedded_alone(model: Any, data: Data) -> AnyFloats:
    """Embed slices as they are, one below the other."""
    slices = to_slices(data)
    embed = embedder_of(model)(slices)
    return np.concatenate([embed(tissue).vectors for tissue in slices])


def write_targets(moved: Transfer, predict: Data, key: str, slice_key: str | None) -> None:
    """Write the vectors of targets into ``obsm``; of AnnDatas with several sections the rows in their places."""
    remaining = iter(moved.targets)
    for adata in targets.as_list(predict):
        if takes_all(slice_key):
            one = next(remaining)
            records.write(adata, key, one.vectors, one.record)
            continue
        parts = split(adata, str(slice_key))
        for part in parts:
            one = next(remaining)
            records.write(part.adata, key, one.vectors, one.record)
        put_back(adata, str(slice_key), parts)
