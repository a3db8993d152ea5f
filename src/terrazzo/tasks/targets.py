"""What a probe learns: classes, values or proportions of one slice or several, read and checked; and its inputs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo import records as representation
from terrazzo.arrays import AnyFloats
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.tasks import labels
from terrazzo.tasks.readouts import Kind

SUM_TOLERANCE = 1e-3  # by how much the proportions of a cell may miss one


_ORIGIN = (
    "model",
    "checkpoint_sha256",
    "fitted_on",
)  # of uns["terrazzo"][key]: what made an embedding


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
    def known(self) -> NDArray[np.bool_]:
        """Which cells are learned from and scored, bool ``(n,)``."""
        return self.values >= 0 if self.kind == "classes" else np.isfinite(self.values).all(axis=1)

    @property
    def words(self) -> NDArray[np.object_]:
        """The class of every cell, None where it is not known; of classes alone."""
        return np.array([*self.names, None], dtype=object)[self.values]


def as_list(data: Data) -> list[AnnData]:
    """Return one slice or several as a list.

    Raises
    ------
    InputError
        No slice, or something that is none.
    """
    slices = [data] if isinstance(data, AnnData) else list(data)
    if not slices or not all(isinstance(one, AnnData) for one in slices):
        kinds = ", ".join(sorted({type(one).__name__ for one in slices})) or "an empty list"
        raise InputError(f"slices must be given as an AnnData or a list of them, not {kinds}.")
    return slices


def each(given: Any, data: Data, name: str) -> list[Any]:
    """Return what belongs to each slice: a key stands for all, a list has one for each.

    Raises
    ------
    InputError
        Another number than there are slices.
    """
    slices = as_list(data)
    if isinstance(given, str):
        return [given] * len(slices)
    if isinstance(data, AnnData):
        return [given]
    if not isinstance(given, list | tuple) or len(given) != len(slices):
        raise InputError(
            f"{name} must be a key, or a list with one for each of the {len(slices)} slices."
        )
    return list(given)


@contextmanager
def at(number: int, of: int) -> Iterator[None]:
    """Say in an error's message which of several slices it is about."""
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
    slices, found = as_list(data), []
    for i, (one, rep) in enumerate(zip(slices, each(use_rep, data, "use_rep"), strict=True)):
        with at(i, len(slices)):
            found.append(representation.vectors(one, rep))
    widths = sorted({x.shape[1] for x in found})
    if len(widths) > 1:
        raise InputError(
            f"the slices' embeddings have different widths ({', '.join(map(str, widths))}); embed all with one model."
        )
    warn_origins({made for one in slices if (made := origin(one, use_rep))})
    return np.concatenate(found)


def origin(adata: AnnData, use_rep: Any) -> str:
    """Return what is known of the model behind an embedding, "" where nothing is."""
    if not isinstance(use_rep, str):
        return ""
    records = dict(adata.uns.get(keys.UNS, {}))
    record = dict(records.get(use_rep) or records.get(use_rep.rpartition(":")[0]) or {})
    return json.dumps({k: str(record[k]) for k in _ORIGIN if k in record}) if record else ""


def warn_origins(found: set[str]) -> None:
    """Warn where embeddings that are used together come from different models: their axes mean different things."""
    if len(found) > 1:
        shown = "; ".join(sorted(found)[:3])
        warnings.warn(
            f"the embeddings come from different models or fits, so that their axes may not agree: {shown}",
            TerrazzoWarning,
            stacklevel=4,
        )


def read_target(
    data: Data, label: Any, values: Any, proportions: Any, least_share: float
) -> Target:
    """Read classes, values or proportions, whichever was given.

    Raises
    ------
    ConfigError
        Not exactly one of them was given.
    """
    if sum(one is not None for one in (label, values, proportions)) != 1:
        raise ConfigError(
            "give what is to be learned, and one thing only: label= (--label, classes), values= (--values, numbers) or "
            "proportions=."
        )
    if label is not None:
        return read_classes(data, label, least_share)
    return read_proportions(data, proportions) if values is None else read_values(data, values)


def read_classes(data: Data, label: Any, least_share: float = labels.LEAST_SHARE) -> Target:
    """Read the labels of all slices as one: a class is rare if it is rare among all their cells.

    Raises
    ------
    InputError
        As :func:`terrazzo.tasks.labels.read`.
    """
    slices, columns = as_list(data), []
    for i, (one, given) in enumerate(zip(slices, each(label, data, "label"), strict=True)):
        with at(i, len(slices)):
            columns.append(labels.column(one, given).astype(object).reset_index(drop=True))
    name = f"obs[{label!r}]" if isinstance(label, str) else "the labels"
    found = labels.parse(pd.concat(columns, ignore_index=True), least_share=least_share, name=name)
    notes = []
    if found.missing:
        notes.append(f"{found.missing} cells have no label: predicted, not scored")
    if found.rare:
        rare = ", ".join(f"{k} ({v})" for k, v in found.rare.items())
        notes.append(f"too rare to be learned or scored: {rare}")
    return Target("classes", found.classes, found.codes, tuple(notes))


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
    slices, tables = as_list(data), []
    for i, (one, given) in enumerate(zip(slices, each(values, data, name), strict=True)):
        with at(i, len(slices)):
            tables.append(table(one, given, name))
    first = list(tables[0].columns)
    for i, other in enumerate(tables):
        if set(other.columns) != set(first):
            odd = sorted(set(other.columns) ^ set(first))
            raise InputError(
                f"slice {i + 1} of {len(slices)}: {name} has other columns than the first ({odd[:5]})."
            )
    joined = np.concatenate([one[first].to_numpy(dtype=np.float32) for one in tables])
    out = Target("values", tuple(first), joined)
    if not out.known.any():
        raise InputError(f"{name} is NaN in every cell.")
    return Target("values", out.names, joined, _unknown(out))


def read_proportions(data: Data, proportions: Any) -> Target:
    """Read proportions of all slices; a type that a slice does not list is not in it.

    Raises
    ------
    InputError
        As :func:`read_values`, or a row is negative or does not sum to one within 0.001.
    """
    slices, tables = as_list(data), []
    for i, (one, given) in enumerate(
        zip(slices, each(proportions, data, "proportions"), strict=True)
    ):
        with at(i, len(slices)):
            tables.append(_checked_proportions(table(one, given, "proportions")))
    names = list(dict.fromkeys(name for one in tables for name in one.columns))
    filled = []
    for one in tables:
        whole = one.reindex(columns=names, fill_value=0.0)
        filled.append(whole.to_numpy(dtype=np.float32))
    target = Target("proportions", tuple(names), np.concatenate(filled))
    if not target.known.any():
        raise InputError("proportions are NaN in every cell.")
    notes = list(_unknown(target))
    if partial := [n for n in names if any(n not in one.columns for one in tables)]:
        notes.append(
            f"not listed by every training slice, and taken as absent there: {', '.join(partial)}"
        )
    return Target("proportions", target.names, target.values, tuple(notes))


def table(adata: AnnData, given: Any, name: str) -> pd.DataFrame:
    """Return numbers with one row a cell, float64, columns named; see :func:`read_values`."""
    where, columns = f"{name}", None
    if isinstance(given, str):
        if given not in adata.obsm:
            raise InputError(
                f"obsm has no {given!r}; there are: {', '.join(adata.obsm) or 'none'}."
            )
        where, columns, given = (
            f"obsm[{given!r}]",
            adata.uns.get(f"{given}_names"),
            adata.obsm[given],
        )
    if hasattr(given, "columns"):
        columns = given.columns
    given = given.toarray() if hasattr(given, "toarray") else given
    try:
        found = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} does not hold numbers ({error}).") from error
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or len(found) != adata.n_obs or not found.shape[1]:
        raise InputError(
            f"{where} has shape {found.shape}; it must be ({adata.n_obs}, m): one row a cell."
        )
    if np.isinf(found).any():
        raise InputError(
            f"{where} holds infinite values, in {int(np.isinf(found).any(axis=1).sum())} cells."
        )
    names = [str(c) for c in (range(found.shape[1]) if columns is None else columns)]
    if len(names) != found.shape[1] or len(set(names)) != len(names):
        raise InputError(
            f"{where} has {found.shape[1]} columns and {len(set(names))} different names for them."
        )
    return pd.DataFrame(found, columns=names)


def _checked_proportions(shares: pd.DataFrame) -> pd.DataFrame:
    known = shares.notna().all(axis=1).to_numpy()
    values = shares.to_numpy()
    total = values.sum(axis=1)
    wrong = known & ((np.abs(total - 1) > SUM_TOLERANCE) | (values < -SUM_TOLERANCE).any(axis=1))
    if wrong.any():
        off = np.where(wrong, np.maximum(np.abs(total - 1), -values.min(axis=1)), -1.0)
        row = int(np.argmax(off))
        raise InputError(
            f"proportions must be non-negative and sum to one within {SUM_TOLERANCE}; {int(wrong.sum())} of "
            f"{len(shares)} rows do not (worst: row {row}, sum {total[row]:.4g}, least {values[row].min():.4g}). "
            "Divide each row by its sum, or predict them as values= with tasks.probe."
        )
    cut = shares.clip(lower=0.0)
    return cut.div(
        cut.sum(axis=1, skipna=False), axis=0
    )  # a row with a NaN is not known, and NaN throughout


def _unknown(target: Target) -> tuple[str, ...]:
    n = int((~target.known).sum())
    return (f"{n} cells have no values: predicted, not scored",) if n else ()
