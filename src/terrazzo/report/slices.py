"""A slice for the page: where its cells lie, what they are called, labels, numbers, genes, histology, provenance."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.plot.figures import MAX_LEGEND, scale_of
from terrazzo.plot.palettes import label_colors, read_values
from terrazzo.plot.tissue import Place, legend_colors, place_of_slice
from terrazzo.report import expression, layouts
from terrazzo.report.packing import Blocks, jpeg
from terrazzo.slices import Opened, Slice

CELLS = 300_000  # that are drawn, at most
_LABELS, _NUMBERS = 40, 40  # columns of obs that are kept
_CATEGORIES = 250  # more labels than this are names
_UNITS = {"um": "µm", "pixel": "pixels", "array": "array steps"}


@dataclass(frozen=True)
class Settings:
    """What a slice's part of the page is made with; see :func:`terrazzo.report.write`."""

    genes: Sequence[str] = ()
    n_genes: int = 100
    embeddings: Sequence[str] | None = None
    projection: layouts.Method = "auto"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """One slice as the page has it.

    Attributes
    ----------
    name
        Its headline.
    facts
        What it is, in words.
    data
        For the script: everything that is drawn, as names of blocks and their scales.
    image
        The histology as a data address, or None.
    place, values, colors
        What the still pictures are drawn from.
    genes
        Names of the genes that are kept, and how they were chosen.
    missing
        Genes asked for that the slice lacks, and what was likely meant.
    coverage, records
        Of each embedding: how its model's genes met the slice; where it comes from.
    notes
        What was left out, and why.
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


def sheet(opened: Opened, name: str, settings: Settings, blocks: Blocks) -> Sheet:
    """Check a slice and make its part of the page.

    Raises
    ------
    InputError
        It cannot be read; an embedding that was asked for is not there.
    """
    told = opened.arguments(**{"name": name, **settings.options})
    adata, notes = _some(opened.adata, settings.seed)
    notes = [*opened.notes, *notes]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TerrazzoWarning)
        tissue = Slice.from_anndata(adata, allow_normalized=True, **told)
    notes += [str(w.message) for w in said if issubclass(w.category, TerrazzoWarning)]
    place = _place(tissue, notes)
    columns, values, facts = _columns(adata, tissue, notes)
    asked, lost = expression.find(tissue, settings.genes)
    chosen = expression.choose(tissue, settings.n_genes, asked, settings.seed)
    spatial_key = str(settings.options.get("spatial_key", keys.SPATIAL))
    drawn, more = layouts.draw(
        adata, settings.embeddings, settings.projection, spatial_key, settings.seed
    )
    records = _records(adata)
    data = {
        "name": name,
        "cells": tissue.n_cells,
        "unit": _UNITS.get(tissue.unit, "units"),
        "isCounts": tissue.is_counts,
        "diameter": place.touching,
        "low": place.low.tolist(),
        "high": place.high.tolist(),
        "extent": _extent(place),
        "x": blocks.places(tissue.coords[:, 0]),
        "y": blocks.places(tissue.coords[:, 1]),
        "names": blocks.texts(tissue.obs_names.tolist()),
        "totals": blocks.numbers(tissue.total_counts, "f4"),
        "columns": [_packed(adata, column, values[column], blocks) for column in columns],
        "genes": expression.pack(tissue, chosen.columns, blocks),
        "others": blocks.texts(_others(tissue, chosen.columns)),
        "layouts": [_layout(one, blocks) for one in drawn],
    }
    colors = {column: legend_colors(adata, column, values[column], None) for column in columns}
    return Sheet(
        name,
        [*_facts(tissue), *facts],
        data,
        None if place.pixels is None else jpeg(place.pixels),
        place,
        {column: values[column] for column in columns},
        colors,
        chosen,
        {name: expression.hint(tissue, name) for name in lost},
        _coverage(records),
        records,
        [*notes, *more],
    )


def _some(adata: AnnData, seed: int) -> tuple[AnnData, list[str]]:
    if adata.n_obs <= CELLS:
        return adata, []
    kept = np.sort(np.random.default_rng(seed).choice(adata.n_obs, CELLS, replace=False))
    return adata[kept].copy(), [f"{CELLS:,} of {adata.n_obs:,} cells, drawn at random, are shown"]


def _place(tissue: Slice, notes: list[str]) -> Place:
    try:
        return place_of_slice(tissue, "auto")
    except InputError as error:
        notes.append(f"the histology is not shown: {error}")
        return place_of_slice(tissue, False)


def _extent(place: Place) -> list[float]:
    """Left, top, right, bottom of the histology."""
    left, right, bottom, top = place.extent
    return [left, top, right, bottom]


def _columns(
    adata: AnnData, tissue: Slice, notes: list[str]
) -> tuple[list[str], dict[str, pd.Series], list[str]]:
    """Return what is drawn of ``obs``, labels first, and of the counts; its values; columns of one value as facts."""
    labels: list[str] = []
    numbers: list[str] = []
    facts: list[str] = []
    values: dict[str, pd.Series] = {}
    for column in map(str, adata.obs):
        found = read_values(adata, column)
        kinds = found.nunique(dropna=True)
        is_label = isinstance(found.dtype, pd.CategoricalDtype)
        if kinds == 0:
            notes.append(f"obs[{column!r}] is empty")
        elif kinds == 1 and not found.isna().any():
            facts += [f"{column}: {found.iloc[0]}"] if is_label and column != keys.EMPTY else []
        elif is_label and kinds > _CATEGORIES:
            notes.append(f"obs[{column!r}] has {kinds:,} labels, more than anybody can tell apart")
        else:
            (labels if is_label else numbers).append(column)
            values[column] = found
    for kept, most in ((labels, _LABELS), (numbers, _NUMBERS)):
        if kept[most:]:
            notes.append(f"columns of obs that are not shown: {', '.join(kept[most:])}")
    measured = {
        "counts (all genes)": tissue.total_counts,
        "genes detected": np.diff(tissue.counts.indptr),
    }
    values |= {
        name: pd.Series(v, dtype=float, index=adata.obs_names) for name, v in measured.items()
    }
    return [*_best_first(labels, values)[:_LABELS], *numbers[:_NUMBERS], *measured], values, facts


def _best_first(labels: list[str], values: dict[str, pd.Series]) -> list[str]:
    """Put what has a legend that can be read before flags and long lists; else in the order of the table."""
    return sorted(labels, key=lambda column: not 3 <= values[column].nunique() <= MAX_LEGEND)


def _packed(adata: AnnData, column: str, values: pd.Series, blocks: Blocks) -> dict[str, Any]:
    if not isinstance(values.dtype, pd.CategoricalDtype):
        scale = scale_of(values.dropna().to_numpy(dtype=np.float64))
        kept = blocks.numbers(values.to_numpy(dtype=np.float32), "f4")
        return {"name": column, "group": "Numbers", "low": scale.vmin, "high": scale.vmax, **kept}
    codes, colors = values.cat.codes.to_numpy(), label_colors(adata, column, values, None)
    record = dict(dict(adata.uns.get(keys.UNS, {})).get(column, {}))
    found = record.get("task") == "domains" or column.endswith(keys.DOMAIN_SUFFIX)
    counts = np.bincount(codes[codes >= 0], minlength=len(values.cat.categories)).tolist()
    labels = [
        {"name": str(name), "color": colors[name], "cells": count}
        for name, count in zip(values.cat.categories, counts, strict=True)
    ]
    kept = blocks.numbers(np.where(codes < 0, 255, codes), "u1")
    return {"name": column, "group": "Domains" if found else "Labels", "labels": labels, **kept}


def _layout(one: layouts.Drawn, blocks: Blocks) -> dict[str, Any]:
    x, y = one.places.T
    return {
        "key": one.key,
        "method": one.method,
        "x": blocks.places(x),
        "y": blocks.places(-y),
    }  # y upwards


def _others(tissue: Slice, kept: Sequence[int]) -> list[str]:
    held = set(kept)
    return [name for column, name in enumerate(expression.names_of(tissue)) if column not in held]


def _facts(tissue: Slice) -> list[str]:
    said = tissue.describe()
    unit = _UNITS.get(tissue.unit, "units of unknown size")
    empty = f", {said['n_empty_cells']:,} of them without counts" if said["n_empty_cells"] else ""
    kind = "counts" if tissue.is_counts else "normalized values"
    return [
        f"{tissue.n_cells:,} cells{empty}; {tissue.n_genes:,} genes; {kind} from {tissue.source}",
        f"technology: {tissue.technology}; organism: {tissue.organism}",
        f"{said['extent'][0]:,.0f} x {said['extent'][1]:,.0f} {unit}, {tissue.spacing:,.3g} between neighbors",
        f"median {said['median_total_counts']:,.0f} counts and {said['median_genes_detected']:,.0f} genes a cell",
    ]


def _records(adata: AnnData) -> list[dict[str, Any]]:
    """Return what ``uns["terrazzo"]`` says, one dict a key, plain Python, texts of JSON read."""
    out = []
    for key, record in dict(adata.uns.get(keys.UNS, {})).items():
        if isinstance(record, dict):
            out.append(
                {"key": str(key), **{str(name): _plain(value) for name, value in record.items()}}
            )
    return out


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _coverage(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a model that says how its genes met the slice."""
    return [
        {"key": r["key"], **r["coverage"]} for r in records if isinstance(r.get("coverage"), dict)
    ]
