"""Carry labels of annotated slices or dissociated cells over to other slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys, records
from terrazzo.answers.data import Data, open_all
from terrazzo.answers.space import fit_expression
from terrazzo.arrays import AnyFloats, Bools, Floats, Ints, Vectors
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.expression import gene_columns, variance
from terrazzo.models.projections import Expression
from terrazzo.models.states import nearest_in_rings, ring_means
from terrazzo.slices import Slice, open_slice, split_choices
from terrazzo.tasks import display
from terrazzo.tasks.heads import Head, LinearConfig, LinearHead
from terrazzo.tasks.labels import UNSCORED

__all__ = ["Annotation", "annotate"]

UNKNOWN = "unknown"

PROBABILITY = "_probability"  # suffix of the column of probabilities

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

CELL_OPTIONS = (
    "layer",
    "organism",
    "allow_normalized",
)  # of reading, that cells without places have


@dataclass(frozen=True)
class Annotation:
    """Labels that were carried over.

    Attributes
    ----------
    key
        Column of ``obs`` with the labels; ``key + "_probability"`` has their probability.
    slices
        The slices, with the columns.
    labels
        In the order of the head's columns.
    threshold
        Probability below which a cell is unknown.
    held_out
        ``accuracy`` and ``macro_f1`` on reference cells that were held out, over all of them; ``kept``: the share of
        them above the threshold, and ``accuracy_kept`` their accuracy.
    confused
        Held-out cells: columns ``true``, ``predicted``, ``n_cells``, ``share`` of the true label.
    shares
        Columns ``slice``, ``label``, ``n_cells``, ``share``.
    used
        What the labels were predicted from, for a person.
    notes
        What a reader must know.
    """

    key: str
    slices: list[AnnData]
    labels: list[str]
    threshold: float
    held_out: dict[str, float]
    confused: pd.DataFrame
    shares: pd.DataFrame
    used: str
    notes: tuple[str, ...] = ()

    def plot(self, **options: Any) -> Any:
        """Draw the labels of every slice on the tissue; options of :func:`terrazzo.plot.spatial`."""
        from terrazzo import plot

        data = self.slices[0] if len(self.slices) == 1 else self.slices
        return plot.spatial(data, **{"color": self.key, **options})

    def __repr__(self) -> str:
        """Return how well it went in one line."""
        scores = self.held_out
        return (
            f"Annotation(obs[{self.key!r}], {len(self.labels)} labels from {self.used}; held-out accuracy "
            f"{scores['accuracy']:.2f}, macro-F1 {scores['macro_f1']:.2f}; unknown below {self.threshold:.2f})"
        )

    def _repr_html_(self) -> str:
        """Return tables for notebooks."""
        rows = []
        for row in self.shares.itertuples(index=False):
            rows.append([row.slice, row.label, f"{row.n_cells:,}", f"{row.share:.1%}"])
        confused = []
        for row in self.confused.head(10).itertuples(index=False):
            confused.append([row.true, row.predicted, f"{row.n_cells:,}", f"{row.share:.0%}"])
        return display.card(
            repr(self),
            display.table(["slice", "label", "cells", "share"], rows),
            display.fold(
                "confused", display.table(["true", "predicted", "cells", "share"], confused)
            ),
            display.bullets(self.notes),
        )


def annotate(
    data: Any,
    reference: Any,
    label: str,
    *,
    key_added: str = "terrazzo_label",
    threshold: float | None = None,
    seed: int = 0,
    reference_options: dict[str, Any] | None = None,
    **slice_options: Any,
) -> Annotation:
    """Carry the labels of annotated slices, or of dissociated cells, over to slices.

    Components of the genes in common, each slice standardized by itself; where the reference has coordinates also their
    means over rings of neighbors, if they tell held-out cells better; a logistic regression.

    Parameters
    ----------
    data
        AnnData, SpatialData, path, or a list of these; raw counts. Written to.
    reference
        Likewise, annotated; coordinates are not needed.
    label
        Column of the reference's ``obs``.
    key_added
        Column of ``obs`` that is written.
    threshold
        Probability below which a cell is "unknown"; None: the lowest at which nine of ten held-out cells that get a
        label get the right one.
    seed
        Of the held-out cells.
    reference_options, **slice_options
        Of :meth:`terrazzo.Slice.from_anndata` and :class:`terrazzo.slices.Choices`, for the reference and for the data.

    Returns
    -------
    The annotation; slices get ``obs[key_added]`` and ``obs[key_added + "_probability"]``.

    Raises
    ------
    InputError
        Slices that cannot be used; no such column; fewer than two labels with ten cells; a column of the caller's own
        that would be overwritten; genes in common that do not tell the labels apart.
    ConfigError
        A threshold that is not between 0 and 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must be between 0 and 1.")
    opened = open_all(data, None, slice_options)
    opened.check_columns(key_added, PROBABILITY, ("annotate",))
    opened.check_counts()
    known = _read_reference(reference, label, reference_options or {})
    model, left_out = _learn(known, opened.slices, seed)
    if threshold is None:
        threshold = _threshold(model.scores)
    held_out = _held_out(model.scores, threshold)
    rows = []
    for piece in opened.pieces:
        probability = model.predict(piece.tissue)
        best = probability.argmax(axis=1)
        sure = probability[np.arange(len(best)), best]
        if not model.with_rings:
            sure[piece.tissue.empty] = 0.0
        is_known = (sure >= threshold) & (sure > 0)
        codes = np.where(is_known, best, len(model.labels))
        names = [*model.labels, UNKNOWN]
        piece.adata.obs[key_added] = pd.Categorical.from_codes(codes, categories=names)
        piece.adata.obs[key_added + PROBABILITY] = sure.astype(np.float32)
        record = {
            "task": "annotate",
            "label": label,
            "from": model.used,
            "threshold": float(threshold),
            **{f"held_out_{name}": value for name, value in held_out.items()},
        }
        records.add_record(piece.adata, key_added, record)
        sizes = np.bincount(codes, minlength=len(names))
        for name, size in zip(names, sizes, strict=True):
            share = size / max(len(codes), 1)
            rows.append({"slice": piece.name, "label": name, "n_cells": int(size), "share": share})
    opened.put_back()
    notes = [
        f"{model.n_genes:,} genes in common; held-out reference cells, not cells of the slices, were scored."
    ]
    notes += opened.empty(f"labels from {model.used}" if model.with_rings else "no label")
    if left_out:
        notes.append(
            f"left out, for they have fewer than {FEWEST_CELLS} cells: {', '.join(left_out)}."
        )
    return Annotation(
        key_added,
        opened.adatas,
        model.labels,
        float(threshold),
        held_out,
        _confused(model.scores, model.labels),
        pd.DataFrame(rows),
        model.used,
        tuple(notes),
    )


# ---- the reference


@dataclass(frozen=True)
class _Reference:
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


def _read_reference(reference: Any, label: str, options: dict[str, Any]) -> _Reference:
    """Open the reference; cells without coordinates get some, which are not used."""
    items = list(reference) if isinstance(reference, list | tuple) else [reference]
    if not items:
        raise InputError("there is no reference.")
    key = options.get("spatial_key", keys.SPATIAL)
    pieces = []
    has_places = True
    for item in items:
        cells = _without_places(item, key, options)
        if cells is None:
            opened: Data = open_all(item, None, options)
        else:
            has_places = False
            row_options = {name: options[name] for name in CELL_OPTIONS if name in options}
            opened = open_all(_in_a_row(cells), None, {**row_options, "unit": "um"})
        opened.check_counts()
        pieces += opened.pieces
    labels = []
    for piece in pieces:
        if label not in piece.adata.obs:
            columns = ", ".join(map(str, piece.adata.obs.columns)) or "none"
            hint = did_you_mean(label, piece.adata.obs.columns)
            raise InputError(
                f"the reference {piece.name} has no obs column {label!r}; it has: {columns}.{hint}"
            )
        labels.append(_words(piece.adata.obs[label]))
    return _Reference([piece.tissue for piece in pieces], labels, has_places)


def _without_places(item: Any, key: str, options: dict[str, Any]) -> AnnData | None:
    """Return dissociated cells, of a file too; None for anything that has coordinates."""
    if isinstance(item, str | Path) and Path(item).suffix == ".h5ad":
        choices, _ = split_choices(options)
        item = open_slice(item, choices).adata
    if isinstance(item, AnnData) and key not in item.obsm:
        return item
    return None


def _words(column: pd.Series) -> np.ndarray:
    """Return labels as text; None where one is missing, or means that there is none ("Unknown")."""
    words = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    is_label = ~words.str.lower().isin(UNSCORED)
    return words.astype(object).where(is_label, None).to_numpy()


def _in_a_row(adata: AnnData) -> AnnData:
    """Return dissociated cells with coordinates in a row, so that they can be read like a slice."""
    places = np.column_stack([np.arange(adata.n_obs) * 100.0, np.zeros(adata.n_obs)])
    return AnnData(
        X=adata.X,
        obs=adata.obs,
        var=adata.var,
        uns={},
        obsm={keys.SPATIAL: places},
        layers=dict(adata.layers),
        raw=None if adata.raw is None else {"X": adata.raw.X, "var": adata.raw.var},
    )


# ---- learning


@dataclass(frozen=True)
class _Scores:
    """Held-out cells: true label, and the probability of each."""

    true: Ints
    probability: AnyFloats


@dataclass(frozen=True)
class _Model:
    """A fitted head with what makes its input."""

    expression: Expression
    with_rings: bool
    head: Head
    labels: list[str]
    scores: _Scores
    used: str
    n_genes: int

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


def _learn(known: _Reference, targets: Sequence[Slice], seed: int) -> tuple[_Model, list[str]]:
    """Fit heads on vectors with and without neighbors, and keep the one that tells held-out cells better."""
    genes = _genes_in_common(known.slices, targets)
    expression = fit_expression(known.slices, 1.0, genes=genes, n_components=N_COMPONENTS)
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
    held = _held_out_cells(known, codes, seed)
    candidates = []
    for with_rings in [False, True] if known.has_places else [False]:
        vectors = _all_vectors(known.slices, expression, with_rings)
        learned = _some_of_each(np.flatnonzero((codes >= 0) & ~held), seed)
        scored = np.flatnonzero((codes >= 0) & held)
        head = _fit_head(vectors[learned], codes[learned], len(labels))
        scores = _Scores(codes[scored], head.predict_proba(vectors[scored]))
        candidates.append((_macro_f1(scores), with_rings, scores, vectors))
    f1, with_rings, scores, vectors = max(candidates, key=lambda one: one[0])
    chance = _by_chance(scores, seed)
    if f1 < chance + LEAST_GAIN:
        raise InputError(
            f"the {len(genes):,} genes in common do not tell the labels apart: macro-F1 {f1:.2f} on held-out cells of "
            f"the reference, up to {chance:.2f} by chance. Nothing was carried over."
        )
    everything = _some_of_each(np.flatnonzero(codes >= 0), seed)
    head = _fit_head(vectors[everything], codes[everything], len(labels))
    used = "the cell and its surroundings" if with_rings else "the cell alone"
    return _Model(expression, with_rings, head, labels, scores, used, len(genes)), left_out


def _fit_head(vectors: Vectors, codes: Ints, n_labels: int) -> Head:
    """Fit the linear head of the probes."""
    head = LinearHead(HEAD, "classes", n_labels)
    return head.fit(vectors, codes, vectors[:0], codes[:0])


def _some_of_each(rows: Ints, seed: int) -> Ints:
    if len(rows) <= MAX_CELLS:
        return rows
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(rows, MAX_CELLS, replace=False))


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
    from terrazzo.expression import log_counts

    spread = np.zeros(len(common))
    for tissue in reference:
        spread += variance(log_counts(tissue, common))
    best = np.sort(np.argsort(-spread, kind="stable")[:MAX_GENES])
    return [common[place] for place in best]


def _held_out_cells(known: _Reference, codes: Ints, seed: int) -> Bools:
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


def _macro_f1(scores: _Scores) -> float:
    from terrazzo.tasks.metrics import classification

    return classification(scores.true, scores.probability.argmax(axis=1))["macro_f1"]


def _by_chance(scores: _Scores, seed: int) -> float:
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


def _threshold(scores: _Scores) -> float:
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


def _held_out(scores: _Scores, threshold: float) -> dict[str, float]:
    from terrazzo.tasks.metrics import classification

    best = scores.probability.argmax(axis=1)
    kept = scores.probability.max(axis=1) >= threshold
    result = classification(scores.true, best)
    right = best == scores.true
    accuracy_kept = float(right[kept].mean()) if kept.any() else float("nan")
    return {**result, "kept": float(kept.mean()), "accuracy_kept": accuracy_kept}


def _confused(scores: _Scores, labels: Sequence[str]) -> pd.DataFrame:
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
