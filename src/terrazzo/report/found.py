"""What was found in one slice: regions, types or domains, their borders, and the known labels beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.plot.figures import MAX_LEGEND
from terrazzo.records import records_of

__all__ = ["AGREEMENT", "KINDS", "N_KNOWN", "Part", "is_found", "parts"]

AGREEMENT = "_agreement"  # suffix of the column of reproducibility
KINDS = {
    "regions": "region",
    "types": "type",
    "domains": "domain",
}  # task of a record to what it found
N_TOUCHING = 6  # nearest cells that are a cell's neighbors
N_KNOWN = 4  # columns of known labels that are compared
LEAST_LABELS = 3  # of a column that nobody would take for known labels by its name
# columns in which experts' labels usually are, by what is compared with them
KNOWN_REGIONS = (
    "region",
    "layer",
    "layer_guess",
    "ground_truth",
    "annotation",
    "domain",
    "tissue",
    "label",
    "labels",
)
KNOWN_TYPES = ("cell_type", "celltype", "cell_class", "type", "annotation", "label", "labels")
NOT_KNOWN = (  # columns that say where a cell comes from
    "batch",
    "donor",
    "fov",
    "in_tissue",
    "library_id",
    "orig.ident",
    "patient",
    "sample",
    "sample_id",
    "section",
    "section_id",
    "slice",
    "slice_id",
)


@dataclass(frozen=True)
class Part:
    """What was found in one slice.

    Attributes
    ----------
    key, kind
        Column of ``obs``; ``"region"``, ``"type"`` or ``"domain"``.
    names
        Of the regions that are in this slice.
    sizes
        Cells of each.
    sure
        Sum of the reproducibility of the cells of each; None where there is no such column.
    borders
        ``(k, k)``: how many neighbors of a region's cells are of each region.
    crossed
        For each column of known labels: cells by region and label.
    joint
        Names of all regions of the run that found them, where it found them in several slices at once.
    vectors
        What they were found in; "" where that is not recorded.
    caveat
        ``"baseline"`` or ``"untrained model"`` where that is what the vectors are of; else "".
    """

    key: str
    kind: str
    names: list[str]
    sizes: Ints
    sure: Floats | None
    borders: Ints
    crossed: dict[str, pd.DataFrame]
    joint: tuple[str, ...]
    vectors: str
    caveat: str = ""


def is_found(adata: AnnData, column: str) -> bool:
    """Return whether a column holds regions, types or domains that terrazzo found."""
    return bool(_kind(adata, column))


def _record(adata: AnnData, column: str) -> Mapping[str, Any]:
    records = adata.uns.get(keys.UNS, {})
    record = records.get(column, {}) if isinstance(records, Mapping) else {}
    return record if isinstance(record, Mapping) else {}


def _kind(adata: AnnData, column: str) -> str:
    """Return what a column of labels holds; "" where terrazzo did not find it."""
    task = str(_record(adata, column).get("task", ""))
    if task in KINDS:
        return KINDS[task]
    if column.startswith("terrazzo_type"):
        return "type"
    if column.startswith("terrazzo_region"):
        return "region"
    return "domain" if column.endswith(keys.DOMAIN_SUFFIX) else ""


# ---- one slice


def parts(adata: AnnData, coords: Floats, shown: Mapping[str, pd.Series]) -> list[Part]:
    """Return what was found in a slice, regions first.

    Parameters
    ----------
    adata
        The slice.
    coords
        Of its cells, ``(n, 2)``.
    shown
        Columns of ``obs`` that the page has, labels as categories.
    """
    labels = {}
    for column, values in shown.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            labels[column] = values
    found = {column: _kind(adata, column) for column in labels if is_found(adata, column)}
    out = []
    for column in sorted(found, key=lambda name: list(KINDS.values()).index(found[name])):
        kind = found[column]
        known = _known(adata, labels, kind)
        out.append(_part(adata, coords, column, kind, labels, known, shown))
    return out


def _known(adata: AnnData, labels: Mapping[str, pd.Series], kind: str) -> list[str]:
    """Return the columns of labels that regions are compared with, the likeliest first."""
    usual = KNOWN_TYPES if kind == "type" else KNOWN_REGIONS
    other = KNOWN_REGIONS if kind == "type" else KNOWN_TYPES
    order = [*usual, *other]
    columns = []
    for column, values in labels.items():
        name = column.lower()
        is_written = is_found(adata, column) or bool(_record(adata, column))
        n_labels = len(values.cat.categories)
        fewest = 2 if name in order else LEAST_LABELS
        if not is_written and name not in NOT_KNOWN and fewest <= n_labels <= MAX_LEGEND:
            columns.append(column)

    def place(column: str) -> int:
        name = column.lower()
        return order.index(name) if name in order else len(order)

    return sorted(columns, key=place)[:N_KNOWN]


def _part(
    adata: AnnData,
    coords: Floats,
    column: str,
    kind: str,
    labels: Mapping[str, pd.Series],
    known: Sequence[str],
    shown: Mapping[str, pd.Series],
) -> Part:
    values = labels[column]
    names = [str(name) for name in values.cat.categories]
    codes = values.cat.codes.to_numpy().astype(np.int64)
    is_labeled = codes >= 0
    sizes = np.bincount(codes[is_labeled], minlength=len(names))
    sure: Floats | None = None
    agreement = shown.get(column + AGREEMENT)
    if agreement is not None and not isinstance(agreement.dtype, pd.CategoricalDtype):
        numbers = np.nan_to_num(agreement.to_numpy(dtype=np.float64))
        sums = np.bincount(codes[is_labeled], numbers[is_labeled], minlength=len(names))
        sure = sums.astype(np.float64)
    crossed = {}
    for other in known:
        is_there = values.notna() & labels[other].notna()
        own = values[is_there].astype(str)
        crossed[other] = pd.crosstab(own, labels[other][is_there].astype(str))
    record = _record(adata, column)
    joint = tuple(str(name) for name in np.atleast_1d(record.get("names", ())))
    vectors = str(record.get("vectors", record.get("use_rep", "")))
    borders = _borders(coords, codes, len(names))
    caveat = _caveat(adata, vectors)
    return Part(column, kind, names, sizes, sure, borders, crossed, joint, vectors, caveat)


def _caveat(adata: AnnData, vectors: str) -> str:
    """Return whether vectors are a baseline's or an untrained model's, where that is recorded."""
    key = vectors.removeprefix("obsm['").removesuffix("']").partition(":")[0]
    record = _record(adata, key)
    for other in records_of(adata).values():
        if (
            not record and other.get("model", "") == vectors
        ):  # a model's name stands for its vectors
            record = other
    if str(record.get("model_type", "")).startswith("baseline"):
        return "baseline"
    return "" if bool(record.get("trained", True)) else "untrained model"


def _borders(coords: Floats, codes: Ints, k: int) -> Ints:
    """Return how many of the nearest cells of each region's cells are of each region, int64 ``(k, k)``."""
    counts = np.zeros((k, k), dtype=np.int64)
    n_nearest = min(N_TOUCHING + 1, len(codes))
    if n_nearest < 2:
        return counts
    _, nearest = cKDTree(coords).query(coords, k=n_nearest)
    own = np.repeat(codes, n_nearest - 1)
    others = codes[nearest[:, 1:]].ravel()
    is_labeled = (own >= 0) & (others >= 0)
    np.add.at(counts, (own[is_labeled], others[is_labeled]), 1)
    return counts
