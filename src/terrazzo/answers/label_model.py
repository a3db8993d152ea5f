"""Learn labels of a reference for slices with other genes and another depth, and score that on held-out cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from terrazzo.answers.space import fit_expression
from terrazzo.arrays import AnyFloats, Bools, Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import gene_columns, log_counts, variance
from terrazzo.models.projections import Expression
from terrazzo.models.shift import CommonGenes, Shift, compare
from terrazzo.models.states import nearest_in_rings, ring_means
from terrazzo.slices import Slice
from terrazzo.tasks import display
from terrazzo.tasks.heads import Head, LinearConfig, LinearHead
from terrazzo.tasks.transfer import at_most, notes_of

__all__ = [
    "FEWEST_CELLS",
    "LabelModel",
    "Reference",
    "Scores",
    "confused_labels",
    "held_out_scores",
    "learn",
    "threshold_of",
]

N_COMPONENTS = 50

N_AVERAGED = 20  # components whose means over rings are taken, too

HEAD = LinearConfig(max_iter=1000)

MAX_GENES = 2000

FEWEST_GENES = 10

FEWEST_CELLS = 10  # of a label that is learned

HELD_OUT = 0.25

WANTED_ACCURACY = 0.9  # of the held-out cells that get a label

LEAST_GAIN = 0.05  # in macro-F1 over chance, below which nothing is carried over

N_SHUFFLES = 20  # of predictions, for chance

MAX_CELLS = 50_000  # reference cells that are learned from

MAX_PROBABILITY = 0.95  # highest threshold


@dataclass(frozen=True)
class Reference:
    """Annotated slices or cells.

    Attributes
    ----------
    slices
        Checked; of dissociated cells the coordinates are only numbers in a row.
    labels
        Of each slice the label of every cell; None where there is none.
    has_places
        True where all have coordinates.
    """

    slices: list[Slice]
    labels: list[np.ndarray]
    has_places: bool


@dataclass(frozen=True)
class Scores:
    """Held-out cells: true label, and the probability of each."""

    true: Ints
    probability: AnyFloats


@dataclass(frozen=True)
class LabelModel:
    """A fitted head with what makes its input.

    Attributes
    ----------
    expression, with_rings
        Components, and whether their means over rings are taken, too.
    head, labels
        What predicts, and the names of its columns.
    scores
        Held-out reference cells, at the genes and the depth of the targets where these differ.
    used
        What the labels are predicted from, for a person.
    n_genes
        Genes that components are made of.
    targets
        The slices that labels go to, cut to the shared genes where that won.
    left_out
        Labels with too few cells.
    record, notes
        What was compared and chosen between reference and targets.
    """

    expression: Expression
    with_rings: bool
    head: Head
    labels: list[str]
    scores: Scores
    used: str
    n_genes: int
    targets: tuple[Slice, ...]
    left_out: list[str]
    record: dict[str, Any]
    notes: tuple[str, ...]

    def predict(self, tissue: Slice) -> Floats:
        """Return the probability of each label for every cell, ``(n_cells, labels)``."""
        probability = np.empty((tissue.n_cells, len(self.labels)))
        for part, vectors in _vectors(tissue, self.expression, self.with_rings):
            probability[part] = self.head.predict_proba(vectors)
        return probability


def _vectors(
    tissue: Slice, expression: Expression, with_rings: bool
) -> Iterator[tuple[slice, Vectors]]:
    """Yield the vectors of some cells at a time, float32, and which cells they are of."""
    components = expression(tissue)
    if not with_rings:
        yield slice(0, tissue.n_cells), components
        return
    first = np.ascontiguousarray(components[:, :N_AVERAGED])
    for part, index in nearest_in_rings(tissue.coords):
        yield part, np.hstack([components[part], ring_means(first, index)])


def _all_vectors(slices: Sequence[Slice], expression: Expression, with_rings: bool) -> Vectors:
    parts = []
    for tissue in slices:
        parts += [vectors for _, vectors in _vectors(tissue, expression, with_rings)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Coded:
    """Labels of all reference cells: names, their numbers, -1 where none is learned, and the names that are not."""

    labels: list[str]
    codes: Ints
    left_out: list[str]


def _coded(known: Reference) -> _Coded:
    """Give numbers to the labels that enough cells have."""
    every = np.concatenate(known.labels)
    is_labeled = np.array([value is not None for value in every])
    words = every[is_labeled].astype(str)
    names, sizes = np.unique(words, return_counts=True)
    labels = [str(name) for name in names[sizes >= FEWEST_CELLS]]
    left_out = [str(name) for name in names[sizes < FEWEST_CELLS]]
    if len(labels) < 2:
        raise InputError(
            f"the reference has {len(labels)} labels with at least {FEWEST_CELLS} cells; it takes two to learn from."
        )
    number = {name: place for place, name in enumerate(labels)}
    codes = np.full(len(every), -1, dtype=np.int64)
    codes[is_labeled] = [number.get(word, -1) for word in words]
    return _Coded(labels, codes, left_out)


@dataclass(frozen=True)
class _Space:
    """One way to make vectors: of which slices, and with neighbors or without.

    Attributes
    ----------
    common
        All slices are cut to the shared genes.
    with_rings
        Means over rings of neighbors are taken, too.
    expression
        Components, fitted on the reference.
    learned
        Versions of the reference that are learned from.
    degraded
        The version that is the most like the targets.
    """

    common: bool
    with_rings: bool
    expression: Expression
    learned: tuple[tuple[Slice, ...], ...]
    degraded: tuple[Slice, ...]

    def fit(self, coded: _Coded, is_learned: Bools, seed: int) -> Head:
        """Fit a head to some cells of all versions that are learned from."""
        n_most = MAX_CELLS // len(self.learned)
        rows = at_most(np.flatnonzero(is_learned), n_most, np.random.default_rng(seed))
        vectors = []
        for version in self.learned:
            every = _all_vectors(version, self.expression, self.with_rings)
            vectors.append(every[rows])
        codes = np.tile(coded.codes[rows], len(vectors))
        return _fit_head(np.concatenate(vectors), codes, len(coded.labels))

    def score(self, head: Head, coded: _Coded, is_scored: Bools) -> Scores:
        """Return what a head says of held-out cells."""
        rows = np.flatnonzero(is_scored)
        vectors = _all_vectors(self.degraded, self.expression, self.with_rings)
        return Scores(coded.codes[rows], head.predict_proba(vectors[rows]))


def _spaces(
    known: Reference, shift: Shift, common_genes: CommonGenes, copies: bool
) -> list[_Space]:
    """Return the ways to make vectors that are compared."""
    spaces = []
    for common in shift.arms(common_genes):
        versions = list(shift.copies(common).values())
        targets = shift.cut_targets if common else shift.targets
        genes = _genes_in_common(versions[0], targets)
        expression = fit_expression(versions[0], 1.0, genes=genes, n_components=N_COMPONENTS)
        learned = tuple(versions) if copies else (versions[0],)
        for with_rings in [False, True] if known.has_places else [False]:
            spaces.append(_Space(common, with_rings, expression, learned, versions[-1]))
    return spaces


def learn(
    known: Reference,
    targets: Sequence[Slice],
    seed: int,
    *,
    common_genes: CommonGenes,
    copies: bool,
) -> LabelModel:
    """Fit heads on vectors with and without neighbors, and keep the one that tells held-out cells better.

    Where genes or depth of the targets differ, held-out cells are cut and thinned likewise, the heads learn from copies
    of the reference, too, and vectors of the shared genes alone are compared with those of all.
    """
    shift = compare(known.slices, targets)
    shift.panels.refuse_too_few()
    coded = _coded(known)
    spaces = _spaces(known, shift, common_genes, copies)
    is_labeled = coded.codes >= 0
    held = _held_out_cells(known, coded.codes, seed)
    scored = []
    for space in spaces:
        head = space.fit(coded, is_labeled & ~held, seed)
        scored.append(space.score(head, coded, is_labeled & held))
    f1 = [_macro_f1(scores) for scores in scored]
    best = int(np.argmax(f1))
    space = spaces[best]
    n_genes = len(space.expression.genes)
    chance = _by_chance(scored[best], seed)
    if f1[best] < chance + LEAST_GAIN:
        raise InputError(
            f"the {n_genes:,} genes in common do not tell the labels apart: macro-F1 {f1[best]:.2f} on held-out cells "
            f"of the reference, up to {chance:.2f} by chance. Nothing was carried over."
        )
    shift.panels.warn("What was chosen for that is in the notes.")
    record = _record(shift, spaces, f1, space, common_genes, copies)
    return LabelModel(
        expression=space.expression,
        with_rings=space.with_rings,
        head=space.fit(coded, is_labeled, seed),
        labels=coded.labels,
        scores=scored[best],
        used="the cell and its surroundings" if space.with_rings else "the cell alone",
        n_genes=n_genes,
        targets=shift.cut_targets if space.common else shift.targets,
        left_out=coded.left_out,
        record=record,
        notes=notes_of(shift.panels, record, "macro-F1"),
    )


def _record(
    shift: Shift,
    spaces: Sequence[_Space],
    f1: Sequence[float],
    chosen: _Space,
    common_genes: CommonGenes,
    copies: bool,
) -> dict[str, Any]:
    """Return what was compared and chosen, JSON-able."""
    best: dict[str, float] = {}
    for space, score in zip(spaces, f1, strict=True):
        name = "common_genes" if space.common else "all_genes"
        best[name] = max(best.get(name, 0.0), round(score, 4))
    return {
        **shift.panels.record(),
        "asked": common_genes,
        "common_genes": chosen.common,
        "held_out_scores": best if len(best) > 1 else {},
        "copies": list(shift.copies(chosen.common))[1:] if copies else [],
        "n_embedded": sum(len(space.learned) for space in spaces),
    }


def _fit_head(vectors: Vectors, codes: Ints, n_labels: int) -> Head:
    """Fit the linear head of the probes."""
    head = LinearHead(HEAD, "classes", n_labels)
    return head.fit(vectors, codes, vectors[:0], codes[:0])


def _genes_in_common(reference: Sequence[Slice], targets: Sequence[Slice]) -> list[str]:
    """Return the genes that all have; of many, those that vary most in the reference."""
    tables = [gene_columns(tissue) for tissue in (*reference, *targets)]
    common = [gene for gene in tables[0] if all(gene in table for table in tables[1:])]
    if len(common) < FEWEST_GENES:
        raise InputError(
            f"reference and slices have {display.count(len(common), 'gene')} in common, and it takes at least "
            f"{FEWEST_GENES}: are both "
            "of one species, and named alike (ids or symbols)?"
        )
    if len(common) <= MAX_GENES:
        return common
    spread = np.zeros(len(common))
    for tissue in reference:
        spread += variance(log_counts(tissue, common))
    best = np.sort(np.argsort(-spread, kind="stable")[:MAX_GENES])
    return [common[place] for place in best]


def _held_out_cells(known: Reference, codes: Ints, seed: int) -> Bools:
    """Return which cells are held out: a slice of several, else squares of the tissue, else random cells."""
    n_cells = [tissue.n_cells for tissue in known.slices]
    rng = np.random.default_rng(seed)
    held = np.zeros(sum(n_cells), dtype=bool)
    if known.has_places and len(n_cells) > 1:
        held[: n_cells[0]] = True
        learned = set(codes[~held & (codes >= 0)])
        if set(codes[held & (codes >= 0)]) <= learned and len(learned) > 1:
            return held
        held[:] = False
    if known.has_places:
        start = 0
        for tissue, n in zip(known.slices, n_cells, strict=True):
            held[start : start + n] = _squares(tissue.coords, rng)
            start += n
        learned = set(codes[~held & (codes >= 0)])
        scored = set(codes[held & (codes >= 0)])
        if len(learned) == len(set(codes[codes >= 0])) and len(scored) > 1:
            return held
        held[:] = False
    for code in np.unique(codes[codes >= 0]):
        own = np.flatnonzero(codes == code)
        n_held = max(1, round(HELD_OUT * len(own)))
        held[rng.choice(own, n_held, replace=False)] = True
    return held


def _squares(coords: Floats, rng: np.random.Generator) -> Bools:
    """Return the cells in a quarter of 6 x 6 squares."""
    span = np.maximum(np.ptp(coords, axis=0), 1e-9)
    place = np.minimum((coords - coords.min(axis=0)) / span * 6, 5).astype(int)
    square = place[:, 0] * 6 + place[:, 1]
    chosen = rng.choice(36, 9, replace=False)
    return np.isin(square, chosen)


def _macro_f1(scores: Scores) -> float:
    from terrazzo.tasks.metrics import classification

    return classification(scores.true, scores.probability.argmax(axis=1))["macro_f1"]


def _by_chance(scores: Scores, seed: int) -> float:
    """Return the best macro-F1 of the predictions in random order, or of the commonest label for all cells."""
    from terrazzo.tasks.metrics import classification

    rng = np.random.default_rng(seed)
    best = scores.probability.argmax(axis=1)
    commonest = np.full(len(best), np.bincount(scores.true).argmax())
    values = [classification(scores.true, commonest)["macro_f1"]]
    for _ in range(N_SHUFFLES):
        shuffled = rng.permutation(best)
        values.append(classification(scores.true, shuffled)["macro_f1"])
    return max(values)


def threshold_of(scores: Scores) -> float:
    """Return the lowest probability above which nine of ten held-out cells are right."""
    best = scores.probability.argmax(axis=1)
    sure = scores.probability.max(axis=1)
    right = best == scores.true
    order = np.argsort(-sure, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(accuracy >= WANTED_ACCURACY)
    if len(enough) == 0:
        return MAX_PROBABILITY
    lowest = float(sure[order[enough[-1]]])
    return min(lowest, MAX_PROBABILITY)


def held_out_scores(scores: Scores, threshold: float) -> dict[str, float]:
    """Return accuracy and macro-F1 of held-out cells, and the share above a threshold with its accuracy."""
    from terrazzo.tasks.metrics import classification

    best = scores.probability.argmax(axis=1)
    kept = scores.probability.max(axis=1) >= threshold
    result = classification(scores.true, best)
    right = best == scores.true
    accuracy_kept = float(right[kept].mean()) if kept.any() else float("nan")
    return {**result, "kept": float(kept.mean()), "accuracy_kept": accuracy_kept}


def confused_labels(scores: Scores, labels: Sequence[str]) -> pd.DataFrame:
    """Return which labels of held-out cells are taken for which, the most frequent first."""
    best = scores.probability.argmax(axis=1)
    rows = []
    for true in np.unique(scores.true):
        own = best[scores.true == true]
        for predicted, n_cells in zip(*np.unique(own, return_counts=True), strict=True):
            if predicted != true:
                rows.append(
                    {
                        "true": labels[true],
                        "predicted": labels[predicted],
                        "n_cells": int(n_cells),
                        "share": n_cells / len(own),
                    }
                )
    table = pd.DataFrame(rows, columns=["true", "predicted", "n_cells", "share"])
    return table.sort_values("n_cells", ascending=False, kind="stable", ignore_index=True)
