"""Carry labels of annotated slices or dissociated cells over to other slices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys, records
from terrazzo.answers.data import Data, open_all
from terrazzo.answers.label_model import (
    FEWEST_CELLS,
    Reference,
    confused_labels,
    held_out_scores,
    learn,
    threshold_of,
)
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.models.shift import AUTO, CommonGenes, check_common_genes
from terrazzo.slices import open_slice, split_choices
from terrazzo.tasks import display
from terrazzo.tasks.labels import UNSCORED

__all__ = ["Annotation", "annotate"]

UNKNOWN = "unknown"

PROBABILITY = "_probability"  # suffix of the column of probabilities

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
    common_genes: CommonGenes = AUTO,
    copies: bool | None = None,
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
    common_genes
        Cut reference and slices to the genes that all have, so that totals, too, are over these. "auto": where genes
        differ (less than 80 % of the counts of either side on shared genes, which a warning says with the numbers), and
        where it wins on held-out reference cells at the genes and the depth of the slices.
    copies
        Learn also from copies of the reference, cut to the genes of the slices, thinned to their depth (where it is
        less than half), and both. None: yes, where they differ.
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
    check_common_genes(common_genes)
    opened = open_all(data, None, slice_options)
    opened.check_columns(key_added, PROBABILITY, ("annotate",))
    opened.check_counts()
    known = _read_reference(reference, label, reference_options or {})
    model = learn(known, opened.slices, seed, common_genes=common_genes, copies=copies is not False)
    if threshold is None:
        threshold = threshold_of(model.scores)
    held_out = held_out_scores(model.scores, threshold)
    rows = []
    for piece, tissue in zip(opened.pieces, model.targets, strict=True):
        probability = model.predict(tissue)
        best = probability.argmax(axis=1)
        sure = probability[np.arange(len(best)), best]
        if not model.with_rings:
            sure[tissue.empty] = 0.0
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
            "transfer": json.dumps(model.record),
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
    notes += [f"{note}." for note in model.notes]
    if model.left_out:
        notes.append(
            f"left out, for they have fewer than {FEWEST_CELLS} cells: {', '.join(model.left_out)}."
        )
    return Annotation(
        key_added,
        opened.adatas,
        model.labels,
        float(threshold),
        held_out,
        confused_labels(model.scores, model.labels),
        pd.DataFrame(rows),
        model.used,
        tuple(notes),
    )


# ---- the reference


def _read_reference(reference: Any, label: str, options: dict[str, Any]) -> Reference:
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
    return Reference([piece.tissue for piece in pieces], labels, has_places)


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
