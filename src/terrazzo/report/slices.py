"""A slice for the page: positions and names of its cells, labels, numbers, genes, histology, provenance."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.parsing import parse_json
from terrazzo.plot.figures import MAX_LEGEND, scale_of
from terrazzo.plot.palettes import label_colors, read_values
from terrazzo.plot.tissue import Place, legend_colors, place_of_slice
from terrazzo.records import records_of
from terrazzo.report import expression, found, layouts
from terrazzo.report.packing import Blocks, jpeg
from terrazzo.slices import Opened, Slice

__all__ = ["Settings", "Sheet", "sheet"]

CELLS = 300_000  # that are drawn, at most
MAX_LABELS = 40  # columns of obs with labels
MAX_NUMBERS = 40  # columns of obs with numbers
MAX_CATEGORIES = 250  # a column with more labels holds names
MISSING_CODE = 255  # of a cell without a label
UNITS = {"um": "µm", "pixel": "pixels", "array": "array steps"}


@dataclass(frozen=True)
class Settings:
    """Settings of a slice's part of the page; see :func:`terrazzo.report.write`."""

    genes: Sequence[str] = ()
    n_genes: int | None = None
    embeddings: Sequence[str] | None = None
    projection: layouts.Method = "auto"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    markers: Sequence[str] = ()  # genes that are held where a slice has them


@dataclass(frozen=True)
class Sheet:
    """One slice as the page has it.

    Attributes
    ----------
    name
        Its headline.
    facts
        About the slice, for people.
    data
        For the script: everything that is drawn, as names of blocks and their scales.
    image
        The histology as a data address, or None.
    place, values, colors
        What the still pictures are drawn from.
    genes
        The genes that the page holds, and how they were chosen.
    missing
        Genes that were asked for and that the slice lacks, and what was likely meant.
    coverage, records
        Of each embedding: gene coverage; provenance.
    notes
        What was left out, and why.
    found
        Regions, types and domains that are in the slice.
    """

    name: str
    facts: list[str]
    data: dict[str, Any]
    image: str | None
    place: Place
    values: dict[str, pd.Series]
    colors: dict[str, dict[str, str]]
    genes: expression.Chosen
    missing: dict[str, str]
    coverage: list[dict[str, Any]]
    records: list[dict[str, Any]]
    notes: list[str]
    found: list[found.Part]

    def recolor(self, colors: dict[str, dict[str, str]]) -> None:
        """Give the labels the colors that they have in all slices."""
        for column in self.data["columns"]:
            for label in column.get("labels", []):
                label["color"] = colors[column["name"]][label["name"]]
        for column, own in self.colors.items():
            self.colors[column] = {name: colors[column][name] for name in own}


def sheet(opened: Opened, name: str, settings: Settings, blocks: Blocks) -> Sheet:
    """Check a slice and make its part of the page.

    Raises
    ------
    InputError
        It cannot be read; an embedding that was asked for is not there.
    """
    options = opened.arguments(**{"name": name, **settings.options})
    notes = list(opened.notes)
    adata = _sampled(opened.adata, settings.seed, notes)
    tissue = _read(adata, options, notes)
    place = _place(tissue, notes)
    columns = _columns(adata, tissue, notes)
    n_genes = expression.default_number(tissue) if settings.n_genes is None else settings.n_genes
    wanted, missing = expression.find(tissue, settings.genes)
    markers, _ = expression.find(tissue, settings.markers)
    genes = expression.choose(tissue, n_genes, [*wanted, *markers], settings.seed)
    drawn, layout_notes = layouts.draw(
        adata,
        settings.embeddings,
        settings.projection,
        str(settings.options.get("spatial_key", keys.SPATIAL)),
        settings.seed,
    )
    records = _records(adata)
    data = {
        "name": name,
        "cells": tissue.n_cells,
        "unit": UNITS.get(tissue.unit, "units"),
        "isCounts": tissue.is_counts,
        "diameter": place.touching,
        "low": place.low.tolist(),
        "high": place.high.tolist(),
        "extent": _extent(place),
        "hasImage": place.pixels is not None,
        "x": blocks.places(tissue.coords[:, 0]),
        "y": blocks.places(tissue.coords[:, 1]),
        "names": blocks.texts(tissue.obs_names.tolist()),
        "totals": blocks.numbers(tissue.total_counts, "f4"),
        "columns": [_packed(adata, key, columns.shown[key], blocks) for key in columns.shown],
        "genes": expression.pack(tissue, genes.columns, blocks),
        "others": blocks.texts(_other_genes(tissue, genes.columns)),
        "layouts": [_layout(one, blocks) for one in drawn],
    }
    colors = {}
    for column, values in columns.shown.items():
        colors[column] = legend_colors(adata, column, values, None)
    return Sheet(
        name,
        [*_facts(tissue), *columns.facts],
        data,
        None if place.pixels is None else jpeg(place.pixels),
        place,
        columns.shown,
        colors,
        genes,
        {gene: expression.hint(tissue, gene) for gene in missing},
        _coverage(records),
        records,
        notes + layout_notes,
        found.parts(adata, tissue.coords, columns.shown),
    )


def _sampled(adata: AnnData, seed: int, notes: list[str]) -> AnnData:
    """Return the slice, or some of its cells where there are too many."""
    n = adata.n_obs
    if n <= CELLS:
        return adata
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(n, CELLS, replace=False))
    notes.append(f"{CELLS:,} of {n:,} cells, drawn at random, are shown")
    return adata[rows].copy()


def _read(adata: AnnData, options: dict[str, Any], notes: list[str]) -> Slice:
    """Check the slice; warnings become notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TerrazzoWarning)
        tissue = Slice.from_anndata(adata, allow_normalized=True, **options)
    for warning in caught:
        if issubclass(warning.category, TerrazzoWarning):
            notes.append(str(warning.message))
    if tissue.sections and tissue.sections not in notes:
        notes.append(tissue.sections)
    return tissue


def _place(tissue: Slice, notes: list[str]) -> Place:
    try:
        return place_of_slice(tissue, "auto")
    except InputError as error:
        notes.append(f"the histology is not shown: {error}")
        return place_of_slice(tissue, False)


def _extent(place: Place) -> list[float]:
    """Return left, top, right, bottom of the histology."""
    left, right, bottom, top = place.extent
    return [left, top, right, bottom]


@dataclass(frozen=True)
class _Columns:
    """Columns of ``obs`` and of the counts that are drawn, labels first; columns of one value as facts."""

    shown: dict[str, pd.Series]
    facts: list[str]


def _columns(adata: AnnData, tissue: Slice, notes: list[str]) -> _Columns:
    labels: dict[str, pd.Series] = {}
    numbers: dict[str, pd.Series] = {}
    facts: list[str] = []
    for column in map(str, adata.obs):
        values = read_values(adata, column)
        n_values = values.nunique(dropna=True)
        is_label = isinstance(values.dtype, pd.CategoricalDtype)
        if n_values == 0:
            notes.append(f"obs[{column!r}] is empty")
        elif n_values == 1 and not values.isna().any():
            if is_label and column != keys.EMPTY:
                facts.append(f"{column}: {values.iloc[0]}")
        elif not is_label:
            numbers[column] = values
        elif n_values > MAX_CATEGORIES:
            notes.append(
                f"obs[{column!r}] has {n_values:,} labels, more than anybody can tell apart"
            )
        else:
            labels[column] = values
    shown: dict[str, pd.Series] = {}
    label_order = _found_first(adata, _legible_first(labels))
    number_order = _agreement_first(list(numbers), label_order)
    for column in label_order[:MAX_LABELS]:
        shown[column] = labels[column]
    for column in number_order[:MAX_NUMBERS]:
        shown[column] = numbers[column]
    _note_left_out(label_order[MAX_LABELS:], notes)
    _note_left_out(number_order[MAX_NUMBERS:], notes)
    of_cells = {
        "counts (all genes)": tissue.total_counts,
        "genes detected": np.diff(tissue.counts.indptr),
    }
    for column, numbers_of_cells in of_cells.items():
        shown[column] = pd.Series(numbers_of_cells, dtype=float, index=adata.obs_names)
    return _Columns(shown, facts)


def _note_left_out(columns: list[str], notes: list[str]) -> None:
    if columns:
        notes.append(f"columns of obs that are not shown: {', '.join(columns)}")


def _legible_first(labels: dict[str, pd.Series]) -> list[str]:
    """Put columns with a legend that can be read before flags and long lists; else in the order of the table."""

    def is_hard_to_read(column: str) -> bool:
        return not 3 <= labels[column].nunique() <= MAX_LEGEND

    return sorted(labels, key=is_hard_to_read)


def _found_first(adata: AnnData, columns: list[str]) -> list[str]:
    """Put what terrazzo found before all else."""
    return sorted(columns, key=lambda column: not found.is_found(adata, column))


def _agreement_first(numbers: list[str], labels: list[str]) -> list[str]:
    """Put the reproducibility of labels before other numbers."""
    of_labels = {label + found.AGREEMENT for label in labels}
    return sorted(numbers, key=lambda column: column not in of_labels)


def _packed(adata: AnnData, column: str, values: pd.Series, blocks: Blocks) -> dict[str, Any]:
    if not isinstance(values.dtype, pd.CategoricalDtype):
        scale = scale_of(values.dropna().to_numpy(dtype=np.float64))
        numbers = blocks.numbers(values.to_numpy(dtype=np.float32), "f4")
        ends = {"low": scale.vmin, "high": scale.vmax}
        return {"name": column, "group": "Numbers", **ends, **numbers}
    group = "Found" if found.is_found(adata, column) else "Labels"
    colors = label_colors(adata, column, values, None)
    categories = values.cat.categories
    codes = values.cat.codes.to_numpy()
    known = codes[codes >= 0]
    counts = np.bincount(known, minlength=len(categories))
    labels = []
    for name, count in zip(categories, counts.tolist(), strict=True):
        labels.append({"name": str(name), "color": colors[name], "cells": count})
    stored = np.where(codes < 0, MISSING_CODE, codes)
    numbers = blocks.numbers(stored, "u1")
    return {"name": column, "group": group, "labels": labels, **numbers}


def _layout(one: layouts.Drawn, blocks: Blocks) -> dict[str, Any]:
    x = one.places[:, 0]
    y = -one.places[:, 1]  # the page's y grows downwards
    return {
        "key": one.key,
        "method": one.method,
        "x": blocks.places(x),
        "y": blocks.places(y),
    }


def _other_genes(tissue: Slice, columns: Sequence[int]) -> list[str]:
    """Return the names of the genes that the page does not hold."""
    packed = set(columns)
    names = expression.names_of(tissue)
    return [name for column, name in enumerate(names) if column not in packed]


def _facts(tissue: Slice) -> list[str]:
    about = tissue.describe()
    unit = UNITS.get(tissue.unit, "units of unknown size")
    n_empty = about["n_empty_cells"]
    empty = f", {n_empty:,} of them without counts" if n_empty else ""
    cells = f"{tissue.n_cells:,} cells{empty}"
    kind = "counts" if tissue.is_counts else "normalized values"
    width, height = about["extent"]
    extent = f"{width:,.0f} x {height:,.0f} {unit}"
    counts = about["median_total_counts"]
    genes = about["median_genes_detected"]
    return [
        f"{cells}; {tissue.n_genes:,} genes; {kind} from {tissue.source}",
        f"technology: {tissue.technology}; organism: {tissue.organism}",
        f"{extent}, {tissue.spacing:,.3g} between neighbors",
        f"median {counts:,.0f} counts and {genes:,.0f} genes a cell",
    ]


def _records(adata: AnnData) -> list[dict[str, Any]]:
    """Return the records of ``uns["terrazzo"]``, one dict a key, plain Python, texts of JSON parsed."""
    out = []
    for key, record in records_of(adata).items():
        plain: dict[str, Any] = {"key": str(key)}
        for name, value in record.items():
            plain[str(name)] = _plain(value)
        out.append(plain)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, str):
        return value
    if not value.startswith(("{", "[")):
        return value
    try:
        return parse_json(value, "a record", InputError, finite=False)
    except InputError:
        return value


def _coverage(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the gene coverage of each model that records one; another program's record may lack parts of it."""
    out = []
    for record in records:
        coverage = record.get("coverage")
        if isinstance(coverage, dict) and _is_whole(coverage):
            out.append({**coverage, "key": record["key"]})
    return out


def _is_whole(coverage: dict[str, Any]) -> bool:
    """Say whether a gene coverage holds what the page shows."""
    for name in ("n_matched", "n_genes", "share_counts", "min_cell_share"):
        value = coverage.get(name)
        if not isinstance(value, int | float) or not np.isfinite(value):
            return False
    return isinstance(coverage.get("unmatched_examples"), list)
