"""What a head learns, and from what: classes, values or proportions of one slice or several, and their embeddings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import records
from terrazzo.arrays import AnyFloats, Bools, Words
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.sparse import check_matrix
from terrazzo.tasks import labels
from terrazzo.tasks.heads import Kind

__all__ = [
    "Data",
    "Target",
    "as_list",
    "at",
    "each",
    "origin",
    "origin_of",
    "origins",
    "read_classes",
    "read_proportions",
    "read_target",
    "read_values",
    "stack",
    "table",
    "warn_origins",
]

SUM_TOLERANCE = 1e-3  # by how much the proportions of a cell may miss one
_ORIGIN = (
    "model",
    "checkpoint_sha256",
    "fitted_on",
    "restricted_to",
)  # of a record: what made the embedding

Data: TypeAlias = AnnData | Sequence[AnnData]


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be learned or scored.

    Attributes
    ----------
    kind
        ``"classes"``, ``"values"`` or ``"proportions"``.
    names
        Of the classes, or of the columns.
    values
        Classes: int64 ``(n,)``, -1 where not known. Else float32 ``(n, m)``, rows of NaN where not known.
    notes
        What a reader must know.
    """

    kind: Kind
    names: tuple[str, ...]
    values: NDArray[Any]
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> Bools:
        """Which cells are learned from and scored, bool ``(n,)``."""
        if self.kind == "classes":
            return self.values >= 0
        return np.isfinite(self.values).all(axis=1)

    @property
    def words(self) -> Words:
        """The class of every cell, None where it is not known; of classes alone."""
        names = np.array([*self.names, None], dtype=object)
        return names[self.values]


def as_list(data: Data) -> list[AnnData]:
    """Return one slice or several as a list.

    Raises
    ------
    InputError
        No slice, or something that is none.
    """
    slices = [data] if isinstance(data, AnnData) else list(data)
    if slices and all(isinstance(adata, AnnData) for adata in slices):
        return slices
    kinds = sorted({type(item).__name__ for item in slices})
    shown = ", ".join(kinds) or "an empty list"
    raise InputError(f"slices must be given as an AnnData or a list of them, not {shown}.")


def each(value: Any, data: Data, name: str) -> list[Any]:
    """Return the value of each slice: a key is that of all, a list has one for each.

    Raises
    ------
    InputError
        Another number than there are slices.
    """
    slices = as_list(data)
    if isinstance(value, str):
        return [value] * len(slices)
    if isinstance(data, AnnData):
        return [value]
    n_slices = len(slices)
    if not isinstance(value, list | tuple) or len(value) != n_slices:
        raise InputError(
            f"{name} must be a key, or a list with one for each of the {n_slices} slices."
        )
    return list(value)


@contextmanager
def at(number: int, of: int) -> Iterator[None]:
    """Name the slice in an error's message, where there are several."""
    try:
        yield
    except InputError as error:
        if of == 1:
            raise
        raise InputError(f"slice {number + 1} of {of}: {error}") from error


def stack(data: Data, use_rep: str | AnyFloats | Sequence[AnyFloats]) -> AnyFloats:
    """Return the embeddings of all slices below each other, ``(cells, d)``; warns where models differ.

    Raises
    ------
    InputError
        As :func:`terrazzo.records.vectors`; or the slices' embeddings have different widths.
    """
    slices = as_list(data)
    sources = each(use_rep, data, "use_rep")
    embeddings = []
    for i, (adata, source) in enumerate(zip(slices, sources, strict=True)):
        with at(i, len(slices)):
            embeddings.append(records.vectors(adata, source))
    widths = {embedding.shape[1] for embedding in embeddings}
    if len(widths) > 1:
        shown = ", ".join(map(str, sorted(widths)))
        raise InputError(
            f"the slices' embeddings have different widths ({shown}); embed all with one model."
        )
    warn_origins(origins(slices, use_rep))
    return np.concatenate(embeddings)


def origin(adata: AnnData, use_rep: Any) -> str:
    """Return what is known of the model behind an embedding, "" where nothing is."""
    if not isinstance(use_rep, str):
        return ""
    written = records.records_of(adata)
    without_block = use_rep.rpartition(":")[0]
    return origin_of(written.get(use_rep) or written.get(without_block) or {})


def origin_of(record: Mapping[str, Any]) -> str:
    """Return what a record says of the model behind an embedding, "" where nothing."""
    if not record:
        return ""
    known = {}
    for key in _ORIGIN:
        if key in record:
            known[key] = str(record[key])
    return json.dumps(known)


def origins(slices: Sequence[AnnData], use_rep: Any) -> set[str]:
    """Return what is known of the models behind the embeddings of several slices."""
    known = {origin(adata, use_rep) for adata in slices}
    return known - {""}


def warn_origins(known: set[str]) -> None:
    """Warn where embeddings that are used together come from different models: their axes mean different things."""
    if len(known) < 2:
        return
    shown = "; ".join(sorted(known)[:3])
    warnings.warn(
        "the embeddings come from different models or fits, so that their axes may not agree: "
        f"{shown}",
        TerrazzoWarning,
        stacklevel=4,
    )


def read_target(
    data: Data, label: Any, values: Any, proportions: Any, least_share: float
) -> Target:
    """Read classes, values or proportions, whichever is not None.

    Raises
    ------
    ConfigError
        Not exactly one of them is not None.
    """
    named = [source for source in (label, values, proportions) if source is not None]
    if len(named) != 1:
        raise ConfigError(
            "give what is to be learned, and one thing only: label= (--label, classes), "
            "values= (--values, numbers) or proportions=."
        )
    if label is not None:
        return read_classes(data, label, least_share)
    if values is not None:
        return read_values(data, values)
    return read_proportions(data, proportions)


def read_classes(data: Data, label: Any, least_share: float = labels.LEAST_SHARE) -> Target:
    """Read the labels of all slices as one: a class is rare if it is rare among all their cells.

    Raises
    ------
    InputError
        As :func:`terrazzo.tasks.labels.read`.
    """
    slices = as_list(data)
    sources = each(label, data, "label")
    columns = []
    for i, (adata, source) in enumerate(zip(slices, sources, strict=True)):
        with at(i, len(slices)):
            column = labels.column(adata, source)
        columns.append(column.astype(object).reset_index(drop=True))
    joined = pd.concat(columns, ignore_index=True)
    name = f"obs[{label!r}]" if isinstance(label, str) else "the labels"
    parsed = labels.parse(joined, least_share=least_share, name=name)
    notes = []
    if parsed.missing:
        notes.append(f"{parsed.missing} cells have no label: predicted, not scored")
    if parsed.rare:
        notes.append(f"too rare to be learned or scored: {parsed.rare_in_words}")
    return Target("classes", parsed.classes, parsed.codes, tuple(notes))


def read_values(data: Data, values: Any, name: str = "values") -> Target:
    """Read numbers of all slices; rows with a NaN are not known.

    Parameters
    ----------
    data
        Slices.
    values
        Key of ``obsm``, a DataFrame or an array ``(n, m)``; or a list with one of these a slice. Columns are named by
        the DataFrame, by ``uns["<key>_names"]``, else by their number.
    name
        Of the argument, for messages.

    Raises
    ------
    InputError
        No such key, another number of rows, no numbers, infinite values, or slices with different columns.
    """
    tables = _tables(data, values, name)
    columns = list(tables[0].columns)
    parts = []
    for i, numbers in enumerate(tables):
        differing = set(numbers.columns) ^ set(columns)
        with at(i, len(tables)):
            if differing:
                shown = sorted(differing)[:5]
                raise InputError(f"{name} has other columns than the first ({shown}).")
        in_order = numbers[columns]
        parts.append(in_order.to_numpy(dtype=np.float32))
    target = Target("values", tuple(columns), np.concatenate(parts))
    if not target.known.any():
        raise InputError(f"{name} is NaN in every cell.")
    return replace(target, notes=_note_of_unknown(target))


def read_proportions(data: Data, proportions: Any) -> Target:
    """Read proportions of all slices; a type that a slice does not list is not in it.

    Raises
    ------
    InputError
        As :func:`read_values`, or a row is negative or does not sum to one within 0.001.
    """
    tables = _tables(data, proportions, "proportions")
    for i, shares in enumerate(tables):
        with at(i, len(tables)):
            tables[i] = _checked_proportions(shares)
    names: list[str] = []
    for shares in tables:
        names += [name for name in shares.columns if name not in names]
    parts = []
    for shares in tables:
        complete = shares.reindex(columns=names, fill_value=0.0)
        parts.append(complete.to_numpy(dtype=np.float32))
    target = Target("proportions", tuple(names), np.concatenate(parts))
    if not target.known.any():
        raise InputError("proportions are NaN in every cell.")
    notes = list(_note_of_unknown(target))
    listed_by_all = set(names).intersection(*(shares.columns for shares in tables))
    partial = [name for name in names if name not in listed_by_all]
    if partial:
        shown = ", ".join(partial)
        notes.append(f"not listed by every training slice, and taken as absent there: {shown}")
    return replace(target, notes=tuple(notes))


def _tables(data: Data, source: Any, name: str) -> list[pd.DataFrame]:
    """Return the numbers of each slice; an error names the slice."""
    slices = as_list(data)
    sources = each(source, data, name)
    tables = []
    for i, (adata, one_source) in enumerate(zip(slices, sources, strict=True)):
        with at(i, len(slices)):
            tables.append(table(adata, one_source, name))
    return tables


def table(adata: AnnData, source: Any, name: str) -> pd.DataFrame:
    """Return numbers with one row a cell, float64, columns named; see :func:`read_values`."""
    where = name
    columns = None
    if isinstance(source, str):
        if source not in adata.obsm:
            known = ", ".join(adata.obsm) or "none"
            raise InputError(f"obsm has no {source!r}; there are: {known}.")
        where = f"obsm[{source!r}]"
        columns = adata.uns.get(f"{source}_names")
        source = adata.obsm[source]
    if hasattr(source, "columns"):
        columns = source.columns
    numbers = _numbers(source, where)
    n_cells = adata.n_obs
    shape = numbers.shape
    if len(shape) != 2 or shape[0] != n_cells or not shape[1]:
        raise InputError(f"{where} has shape {shape}; it must be ({n_cells}, m): one row a cell.")
    is_infinite = np.isinf(numbers).any(axis=1)
    n_infinite = int(is_infinite.sum())
    if n_infinite:
        raise InputError(f"{where} holds infinite values, in {n_infinite} cells.")
    n_columns = shape[1]
    if columns is None:
        columns = range(n_columns)
    names = [str(column) for column in columns]
    n_different = len(set(names))
    if len(names) != n_columns or n_different != len(names):
        raise InputError(
            f"{where} has {n_columns} columns and {n_different} different names for them."
        )
    return pd.DataFrame(numbers, columns=names)


def _numbers(source: Any, where: str) -> NDArray[np.float64]:
    """Return numbers dense, float64; one dimension becomes a column."""
    check_matrix(source, where)
    dense = source.toarray() if hasattr(source, "toarray") else source
    try:
        numbers = np.asarray(dense, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not hold numbers ({error}).") from error
    return numbers[:, None] if numbers.ndim == 1 else numbers


def _checked_proportions(shares: pd.DataFrame) -> pd.DataFrame:
    """Refuse rows that are negative or do not sum to one; return the others cut at zero and divided by their sum."""
    values = shares.to_numpy()
    total = values.sum(axis=1)
    least = values.min(axis=1)
    known = ~np.isnan(total)
    off_one = np.abs(total - 1)
    error = np.maximum(off_one, -least)
    wrong = known & (error > SUM_TOLERANCE)
    n_wrong = int(wrong.sum())
    if n_wrong:
        error_of_wrong = np.where(wrong, error, -1.0)
        worst = int(np.argmax(error_of_wrong))
        raise InputError(
            f"proportions must be non-negative and sum to one within {SUM_TOLERANCE}; "
            f"{n_wrong} of {len(shares)} rows do not (worst: row {worst}, "
            f"sum {total[worst]:.4g}, least {least[worst]:.4g}). "
            "Divide each row by its sum, or predict them as values= with tasks.probe."
        )
    cut = shares.clip(lower=0.0)
    # a row with a NaN is not known, and becomes NaN throughout
    return cut.div(cut.sum(axis=1, skipna=False), axis=0)


def _note_of_unknown(target: Target) -> tuple[str, ...]:
    """Return a note about the cells without values, where there are any."""
    n_unknown = int((~target.known).sum())
    if not n_unknown:
        return ()
    return (f"{n_unknown} cells have no values: predicted, not scored",)
