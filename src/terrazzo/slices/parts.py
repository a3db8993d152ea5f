"""Split an AnnData into its sections, each an AnnData of its own, and put back what was written to them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from pandas.api.types import union_categoricals

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.parsing import parse_json
from terrazzo.slices.overlap import Labels, column_labels
from terrazzo.slices.sections import NO_KEY
from terrazzo.sparse import check_anndata

__all__ = [
    "SLICE_KEY",
    "Part",
    "about_part",
    "each_part",
    "put_back",
    "section_labels",
    "split",
    "take_part",
    "take_rows",
    "takes_all",
]

T = TypeVar("T")
PARTS = "parts"  # of a record in uns["terrazzo"]: what differs between sections, JSON
SLICE_KEY = "slice_key"  # of the same: the column that tells them apart
_SUMMED = ("n_cells", "n_empty")  # of a record


@dataclass(frozen=True, eq=False)
class Part:
    """One section of an AnnData.

    Attributes
    ----------
    value
        Of the column that tells sections apart, as text.
    rows
        int64 (n,): its rows, ascending.
    adata
        Those rows; what is written to it is not written to the whole before :func:`put_back`.
    obs
        Its ``obs`` before anything was written.
    """

    value: str
    rows: Ints
    adata: AnnData
    obs: pd.DataFrame


@dataclass(frozen=True, eq=False)
class _Written:
    """What was written to a part: new or changed columns of ``obs``, entries of ``obsm`` and ``uns``."""

    value: str
    rows: Ints
    obs: dict[str, pd.Series] = field(default_factory=dict)
    obsm: dict[str, Any] = field(default_factory=dict)
    uns: dict[str, Any] = field(default_factory=dict)


def takes_all(slice_key: str | None) -> bool:
    """Return whether all cells are one slice: nothing tells sections apart, or nothing is to."""
    return slice_key is None or slice_key == NO_KEY


def section_labels(obs: pd.DataFrame, slice_key: str) -> Labels:
    """Return which cells are of which section.

    Raises
    ------
    InputError
        No such column; cells without a value; a value for every cell.
    """
    if slice_key not in obs.columns:
        listed = ", ".join(map(str, obs.columns)) or "none"
        hint = did_you_mean(slice_key, obs.columns, f"Columns: {listed}.")
        raise InputError(f"slice_key is {slice_key!r}, and obs has no such column.{hint}")
    labels = column_labels(obs[slice_key])
    if labels is None:
        raise InputError(f"obs[{slice_key!r}] does not hold labels, so it tells no sections apart")
    missing = np.flatnonzero(labels.codes < 0)
    if len(missing):
        first = obs.index[missing[0]]
        raise InputError(
            f"obs[{slice_key!r}] is missing for {len(missing):,} of {len(obs):,} cells (first: {first}), so that their "
            "section is not known: fill it in, or leave these cells out"
        )
    if len(labels) > max(len(obs) // 2, 2):
        raise InputError(
            f"obs[{slice_key!r}] has {len(labels):,} values for {len(obs):,} cells: it tells no sections apart"
        )
    return labels


def split(adata: AnnData, slice_key: str) -> list[Part]:
    """Return the sections of an AnnData, in the order of their labels.

    Raises
    ------
    InputError
        As :func:`section_labels`.
    """
    return list(_parts(adata, slice_key))


def each_part(adata: AnnData, slice_key: str, work: Callable[[Part], T]) -> list[T]:
    """Call a function for each section, with one in memory at a time; then put back what it wrote, all or nothing.

    Raises
    ------
    InputError
        As :func:`section_labels`; or as the function, with the section in front.
    """
    results = []
    written = []
    for part in _parts(adata, slice_key):
        with about_part(slice_key, part.value):
            results.append(work(part))
        written.append(_written(adata, part))
    _put_back(adata, slice_key, written)
    return results


def put_back(adata: AnnData, slice_key: str, parts: Sequence[Part]) -> None:
    """Write what was written to the sections of an AnnData into it, rows in their places.

    ``uns["terrazzo"]`` gets one record a key, and in it under "parts" what differs between the sections.

    Raises
    ------
    InputError
        The sections got vectors of different widths; nothing is written then.
    """
    _put_back(adata, slice_key, [_written(adata, part) for part in parts])


@contextmanager
def about_part(slice_key: str, value: str) -> Iterator[None]:
    """Name the section in an error's message."""
    try:
        yield
    except (InputError, ConfigError) as error:
        raise type(error)(f"{slice_key} {value!r}: {error}") from error


def _parts(adata: AnnData, slice_key: str) -> Iterator[Part]:
    labels = section_labels(adata.obs, slice_key)
    for number in range(len(labels)):
        yield take_part(adata, labels, number)


def take_part(adata: AnnData, labels: Labels, number: int) -> Part:
    """Return one section of an AnnData, with the library of ``uns["spatial"]`` and the records that are its own."""
    value = labels.values[number]
    rows = labels.rows[number]
    part = take_rows(adata, rows)
    library = _own_library(adata, value, labels.values)
    part.uns.pop(keys.SPATIAL, None)
    if library:
        part.uns[keys.SPATIAL] = library
    records = adata.uns.get(keys.UNS)
    if isinstance(records, Mapping):
        part.uns[keys.UNS] = {key: _own_record(records[key], value) for key in records}
    return Part(value, rows, part, part.obs.copy())


def take_rows(adata: AnnData, rows: Ints) -> AnnData:
    """Return rows of an AnnData in memory; ``uns`` and what belongs to genes is shared, ``obsp`` is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are not unique: Slice says so
        if adata.isbacked:
            return adata[rows].to_memory()
        check_anndata(adata, "the AnnData")  # before compiled code takes rows of its matrices
        obs = adata.obs.iloc[rows].copy()
        for name in obs.columns[obs.dtypes == "category"]:
            obs[name] = obs[name].cat.remove_unused_categories()
        raw = None
        if adata.raw is not None:
            raw = {"X": adata.raw.X[rows], "var": adata.raw.var}
        counts = None
        if adata.X is not None:
            counts = adata.X[rows]
        part = AnnData(X=counts, obs=obs, var=adata.var.copy(), raw=raw)
        part.uns.update(adata.uns)
        for key, values in adata.obsm.items():
            part.obsm[key] = _take(values, rows)
        for key, values in adata.varm.items():
            part.varm[key] = values
        for name, values in adata.layers.items():
            part.layers[name] = values[rows]
        return part


def _take(values: Any, rows: Ints) -> Any:
    return values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]


def _own_library(adata: AnnData, value: str, values: Sequence[str]) -> Any:
    """Return ``uns["spatial"]`` for a section: its own library, where libraries are named like sections."""
    spatial = adata.uns.get(keys.SPATIAL)
    if not isinstance(spatial, Mapping):
        return spatial
    named = {str(name): name for name in spatial}
    if value in named:
        return {value: spatial[named[value]]}
    if any(other in named for other in values):
        return {}
    return dict(spatial)


def _own_record(record: Any, value: str) -> Any:
    """Return a record for a section: where it was written for all, with what is its own in the place of the first's."""
    if not isinstance(record, Mapping) or PARTS not in record:
        return record
    own = {name: entry for name, entry in record.items() if name not in (PARTS, SLICE_KEY)}
    try:
        entries = parse_json(str(record[PARTS]), "a record", finite=False)
        own.update(entries.get(value, {}))
    except (ConfigError, ValueError, AttributeError, TypeError):  # a foreign record
        return record
    return own


def _written(adata: AnnData, part: Part) -> _Written:
    """Return what was written to a part of an AnnData."""
    written = _Written(part.value, part.rows)
    for key, values in part.adata.obsm.items():
        if key not in adata.obsm or not _equal(values, _take(adata.obsm[key], part.rows)):
            written.obsm[key] = values
    for name in part.adata.obs.columns:
        column = part.adata.obs[name]
        if name not in part.obs.columns or not column.equals(part.obs[name]):
            written.obs[name] = column
    for key, value in part.adata.uns.items():
        if key != keys.SPATIAL and value is not adata.uns.get(key):
            written.uns[key] = value
    return written


def _equal(new: Any, old: Any) -> bool:
    if type(new) is not type(old) or new.shape != old.shape:
        return False
    if isinstance(new, pd.DataFrame):
        return new.equals(old)
    if sp.issparse(new):
        return (new != old).nnz == 0
    return bool(new.dtype == old.dtype and np.array_equal(new, old))


def _put_back(adata: AnnData, slice_key: str, written: Sequence[_Written]) -> None:
    """Check and join everything first, then write it."""
    rows = np.concatenate([one.rows for one in written])
    n_rows = len(rows)
    order = np.empty(n_rows, dtype=np.int64)
    order[rows] = np.arange(n_rows)
    obsm = {}
    for key in _names(one.obsm for one in written):
        blocks = []
        for one in written:
            is_new = key in one.obsm or key not in adata.obsm
            blocks.append(one.obsm.get(key) if is_new else _take(adata.obsm[key], one.rows))
        obsm[key] = _take(_stacked(blocks, key, written), order)
    obs = {}
    for name in _names(one.obs for one in written):
        columns = [_column(one, name, adata.obs) for one in written]
        obs[name] = _joined(columns).iloc[order].set_axis(adata.obs_names)
    for key, values in obsm.items():
        adata.obsm[key] = values
    for name, column in obs.items():
        adata.obs[name] = column
    for key in _names(one.uns for one in written):
        if key == keys.UNS:
            adata.uns[key] = _joined_records(adata, slice_key, written)
        else:
            adata.uns[key] = next(one.uns[key] for one in written if key in one.uns)


def _names(tables: Any) -> list[str]:
    """Return the names in any of some tables, each once."""
    names: dict[str, None] = {}
    for table in tables:
        names.update(dict.fromkeys(table))
    return list(names)


def _column(one: _Written, name: str, obs: pd.DataFrame) -> pd.Series:
    """Return the column that a part wrote, else the whole's; missing values where it has none."""
    if name in one.obs:
        return one.obs[name]
    if name in obs.columns:
        return obs[name].iloc[one.rows]
    return pd.Series(np.nan, index=one.rows)


def _stacked(blocks: list[Any], key: str, written: Sequence[_Written]) -> Any:
    """Return the rows of all parts below each other."""
    widths = {}
    for one, block in zip(written, blocks, strict=True):
        widths[one.value] = 0 if block is None else block.shape[1]
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{value}: {width}" for value, width in list(widths.items())[:5])
        raise InputError(
            f"the sections have obsm[{key!r}] of different widths ({listed}), so that it cannot be one: "
            "fit on all sections first, or embed them one by one"
        )
    if isinstance(blocks[0], pd.DataFrame):
        return pd.concat(blocks)
    if sp.issparse(blocks[0]):
        return sp.vstack(blocks, format="csr")
    return np.concatenate(blocks)


def _joined(columns: list[pd.Series]) -> pd.Series:
    """Return the columns of all parts below each other; categories in the order in which they first come."""
    kinds = {column.dtype for column in columns}
    if all(isinstance(kind, pd.CategoricalDtype) for kind in kinds):
        categories = [column.array for column in columns]
        differ_in_order = len(kinds) > 1 and any(kind.ordered for kind in kinds)
        return pd.Series(union_categoricals(categories, ignore_order=differ_in_order))
    return pd.concat(columns, ignore_index=True)


def _joined_records(
    adata: AnnData, slice_key: str, written: Sequence[_Written]
) -> dict[str, dict[str, Any]]:
    """Return ``uns["terrazzo"]`` with a record for each key that the parts wrote."""
    old = adata.uns.get(keys.UNS)
    records = dict(old) if isinstance(old, Mapping) else {}
    changed = [one.uns.get(keys.UNS, {}) for one in written]
    for key in _names(changed):
        by_part = {}
        for one, table in zip(written, changed, strict=True):
            if key in table:
                by_part[one.value] = (len(one.rows), table[key])
        if any(not isinstance(record, Mapping) for _, record in by_part.values()):
            records[key] = next(iter(by_part.values()))[1]  # not from terrazzo
            continue
        old_record = records.get(key)
        is_new = False
        for value, (_, record) in by_part.items():
            if old_record is None or record != _own_record(old_record, value):
                is_new = True
        if is_new:
            records[key] = _joined_record(slice_key, by_part)
    return records


def _joined_record(
    slice_key: str, by_part: Mapping[str, tuple[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the first part's record, numbers of cells summed, and beside it what differs between the parts."""
    entries = [record for _, record in by_part.values()]
    joined = dict(entries[0])
    differing = []
    for name in _names(entries):
        texts = {str(record.get(name)) for record in entries}
        if len(texts) > 1 and name != "date":
            differing.append(name)
    for name in _SUMMED:
        if name in joined:
            joined[name] = sum(int(record.get(name, 0)) for record in entries)
    parts = {}
    for value, (n_cells, record) in by_part.items():
        own: dict[str, Any] = {"n_cells": n_cells}
        for name in differing:
            if name in record:
                own[name] = _plain(record[name])
        parts[value] = own
    joined[SLICE_KEY] = slice_key
    joined[PARTS] = json.dumps(parts)
    return joined


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else value
