"""Check before any work that a slice that was read can be written, and convert what AnnData's files refuse."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem

from terrazzo.errors import InputError, OutputError

__all__ = ["check_space", "make_writable"]

_RESERVED = "_index"
_NO_NAME = "unnamed"
_MAPPINGS = ("obsm", "varm", "layers", "obsp", "varp")
_HEAD = 2  # rows that are written to see whether a value can be written
_MAX_SHOWN = 5  # names in a note
_MARGIN = 2**20  # bytes that a file has beside its arrays


def make_writable(adata: AnnData) -> list[str]:
    """Rename and convert what AnnData's files cannot have, and prove that the rest can be written.

    Names: of columns that are reserved, repeated, empty, not text or contain a slash. Values: columns of mixed types,
    dates. Entries of ``uns`` of other types are left out. Counts, coordinates and names of cells and genes never
    change.

    Parameters
    ----------
    adata
        As it was read; changed in place.

    Returns
    -------
    What was changed, a line each.

    Raises
    ------
    InputError
        Something cannot be written, e.g. cells whose names contain a NUL.
    """
    notes: list[str] = []
    frames = {"obs": adata.obs, "var": adata.var}
    if adata.raw is not None:
        frames["raw.var"] = adata.raw.var
    for where, frame in frames.items():
        notes += _mend_frame(frame, where)
    for name in _MAPPINGS:
        mapping = getattr(adata, name)
        notes += _mend_names(mapping, name)
        for key, value in mapping.items():
            if isinstance(value, pd.DataFrame):
                notes += _mend_frame(value, f"{name}[{key!r}]")
    notes += _mend_uns(adata.uns, "uns")
    _prove(adata, frames)
    return notes


def check_space(adata: AnnData, folder: Path, n_added: int = 0) -> None:
    """Check that a slice fits on the disk; AnnData's files have their arrays without compression.

    Parameters
    ----------
    adata
        It will be written whole.
    folder
        Where.
    n_added
        Bytes that will be added to it.

    Raises
    ------
    OutputError
        It does not fit.
    """
    while not folder.exists():
        folder = folder.parent
    values = [adata.X, *adata.layers.values(), *adata.obsm.values()]
    if adata.raw is not None:
        values.append(adata.raw.X)
    needed = n_added + _MARGIN + sum(_n_bytes(value) for value in values)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: the disk is full: about {needed / 1e9:,.2f} GB are needed, and {free / 1e9:,.2f} GB are free. "
            "Free some space, or choose another --out."
        )


def _n_bytes(value: Any) -> int:
    if sp.issparse(value):
        parts = [value.data, getattr(value, "indices", value.data), getattr(value, "indptr", None)]
        return sum(part.nbytes for part in parts if part is not None)
    return int(getattr(value, "nbytes", 0))


def _mend_frame(frame: pd.DataFrame, where: str) -> list[str]:
    """Rename and convert columns of a table in place."""
    notes = []
    old = list(frame.columns)
    new = _free_names(old)
    if new != old:
        frame.columns = pd.Index(new, dtype=object)
        renamed = [f"{before!r} to {after!r}" for before, after in zip(old, new, strict=True)]
        changed = [
            text for text, before, after in zip(renamed, old, new, strict=True) if before != after
        ]
        notes.append(f"columns of {where} renamed, to be written: {_some(changed)}")
    name = frame.index.name
    if name is not None and (name in frame.columns or not _is_good(name)):
        frame.index.name = None
        notes.append(f"the name of the index of {where}, {name!r}, is left out, to be written")
    converted = []
    for column in new:
        values = _plain_column(frame[column])
        if values is not None:
            frame[column] = values
            converted.append(repr(column))
    if converted:
        notes.append(
            f"columns of {where} converted to text or numbers, to be written: {_some(converted)}"
        )
    return notes


def _is_good(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", _RESERVED) and "/" not in name


def _free_names(names: Iterable[Any]) -> list[str]:
    """Return names that can be written, each once; those that can be written already stay."""
    names = list(names)
    taken = {name for name in names if _is_good(name)}
    out: list[str] = []
    used: set[str] = set()
    for name in names:
        is_first = _is_good(name) and name not in used
        new = name if is_first else _free_name(name, taken)
        used.add(new)
        taken.add(new)
        out.append(new)
    return out


def _free_name(name: Any, taken: set[str]) -> str:
    """Return a name like another, which can be written and is not taken."""
    parts = name if isinstance(name, tuple) else (name,)
    text = "_".join(str(part) for part in parts).replace("/", "_").strip(".")
    if text == _RESERVED:
        text = f"{_RESERVED}_"
    text = text or _NO_NAME
    number = 1
    new = text
    while new in taken:
        new = f"{text}_{number}"
        number += 1
    return new


def _plain_column(column: pd.Series) -> Any:
    """Return a column as numbers or text, where it is neither; None where it can be written as it is."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        labels = column.cat.categories
        kind = pd.api.types.infer_dtype(labels, skipna=True)
        if labels.dtype == object and kind not in ("string", "empty"):
            texts = pd.Index([str(label) for label in labels], dtype=object)
            return column.cat.rename_categories(texts) if texts.is_unique else column.astype(str)
        if isinstance(labels, pd.IntervalIndex | pd.DatetimeIndex | pd.PeriodIndex):
            return column.cat.rename_categories([str(label) for label in labels])
        return None
    if column.dtype == object:
        return _plain_objects(column)
    if pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype):
        return None
    return _texts(column)  # dates, periods, intervals


def _plain_objects(column: pd.Series) -> Any:
    """Return a column of objects as what its values are; None where all are text."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind == "string":
        return None
    if kind == "empty":
        return np.full(len(column), np.nan)
    if kind == "boolean":
        return pd.array(column.tolist(), dtype="boolean")
    if kind in ("integer", "floating", "mixed-integer-float"):
        with suppress(OverflowError):  # of whole numbers beyond float64
            numbers = pd.to_numeric(column, errors="coerce").to_numpy()
            if numbers.dtype != object:  # as it stays where no 64 bits hold all of them
                return numbers
    return _texts(column)


def _texts(column: pd.Series) -> pd.Categorical:
    texts: list[str | None] = []
    for value, is_missing in zip(column, column.isna(), strict=True):
        texts.append(None if is_missing else str(value))
    return pd.Categorical(texts)


def _mend_names(mapping: Any, where: str) -> list[str]:
    """Rename keys of ``obsm``, ``layers`` and the like in place."""
    old = list(mapping)
    new = _free_names(old)
    if new == old:
        return []
    renamed = []
    for before, after in zip(old, new, strict=True):
        if before != after:
            mapping[after] = mapping[before]
            del mapping[before]
            renamed.append(f"{before!r} to {after!r}")
    return [f"entries of {where} renamed, to be written: {_some(renamed)}"]


def _mend_uns(mapping: Any, where: str) -> list[str]:
    """Rename keys of ``uns``, at any depth, and take out what has no place in a file."""
    notes = _mend_names(mapping, where)
    for key in list(mapping):
        value = mapping[key]
        place = f"{where}[{key!r}]"
        if isinstance(value, Mapping):
            if isinstance(value, dict):
                notes += _mend_uns(value, place)
        elif isinstance(value, pd.DataFrame):
            notes += _mend_frame(value, place)
        elif _refusal({"value": _head(value)}) is not None:
            del mapping[key]
            kind = type(value).__name__
            notes.append(f"{place} is left out: a file cannot have a {kind} of this kind")
    return notes


def _prove(adata: AnnData, frames: Mapping[str, pd.DataFrame]) -> None:
    """Write to memory what may be refused: all names and texts, and a few rows of the rest.

    Raises
    ------
    InputError
        It cannot be written.
    """
    for where, frame in frames.items():
        _check(where, _text_parts(frame))
    for name in _MAPPINGS:
        for key, value in getattr(adata, name).items():
            _check(f"{name}[{key!r}]", {"value": _head(value)})
    for key, value in adata.uns.items():
        _check(f"uns[{key!r}]", {"value": _lean(value)})


def _text_parts(frame: pd.DataFrame) -> dict[str, Any]:
    """Return what of a table may be refused."""
    texts: list[pd.Index] = [frame.index]
    as_texts = []  # anndata makes categories of these
    for name in frame.columns:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            texts.append(column.cat.categories)
        elif column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            texts.append(pd.Index(column.dropna().unique()))
            as_texts.append(name)
    parts: dict[str, Any] = {"head": frame.iloc[:_HEAD].drop(columns=as_texts)}
    for number, index in enumerate(texts):
        if index.dtype == object or pd.api.types.is_string_dtype(index.dtype):
            parts[f"texts_{number}"] = index.to_numpy(dtype=object)
    return parts


def _head(value: Any) -> Any:
    """Return the first rows of a value that has rows."""
    if isinstance(value, pd.DataFrame):
        return value.iloc[:_HEAD]
    if sp.issparse(value):
        return sp.csr_matrix(value.shape, dtype=value.dtype)[:_HEAD]
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "biufc":
        return value[:_HEAD]
    return value


def _lean(value: Any) -> Any:
    """Return an entry of ``uns`` without its large arrays."""
    if isinstance(value, Mapping):
        return {key: _lean(inner) for key, inner in value.items()}
    return _head(value)


def _check(where: str, parts: Mapping[str, Any]) -> None:
    reason = _refusal(parts)
    if reason is not None:
        raise InputError(
            f"{where} can be read but not be written ({reason}): rename or remove it, save the file again, and then "
            "run this."
        )


def _refusal(parts: Mapping[str, Any]) -> str | None:
    """Return why AnnData's files cannot have some values; None where they can."""
    file = h5py.File("proof.h5", "w", driver="core", backing_store=False)
    with warnings.catch_warnings(), file:
        warnings.simplefilter("ignore")
        for name, value in parts.items():
            try:
                write_elem(file, name, value)
            except MemoryError:
                raise
            except Exception as error:  # anndata, h5py and pandas raise almost anything
                return str(error).partition("\n")[0] or type(error).__name__
    return None


def _some(texts: list[str]) -> str:
    shown = ", ".join(texts[:_MAX_SHOWN])
    n_more = len(texts) - _MAX_SHOWN
    return f"{shown} and {n_more} more" if n_more > 0 else shown
