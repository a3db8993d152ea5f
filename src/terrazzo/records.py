"""Embeddings in an AnnData and their provenance: the one place that reads and writes both."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from anndata import AnnData

from terrazzo import keys
from terrazzo._version import __version__
from terrazzo.arrays import AnyFloats, Vectors
from terrazzo.errors import ConfigError, InputError, did_you_mean
from terrazzo.parsing import parse_json
from terrazzo.sparse import check_matrix

__all__ = [
    "ARRAY",
    "Purpose",
    "add_record",
    "block",
    "blocks",
    "now",
    "parsed",
    "records_of",
    "source_name",
    "stamp",
    "vectors",
    "write",
]

FOREIGN = "not from terrazzo"  # where uns["terrazzo"] of another program is kept
ARRAY = "array"  # how a record names what was passed as an array

Purpose = Literal["own", "niche", "all"]


def records_of(adata: AnnData) -> dict[str, dict[str, Any]]:
    """Return ``uns["terrazzo"]``: the provenance of what terrazzo wrote, by key; what is no record is left out."""
    stated = adata.uns.get(keys.UNS)
    if not isinstance(stated, Mapping):
        return {}
    return {str(key): dict(record) for key, record in stated.items() if isinstance(record, Mapping)}


def add_record(adata: AnnData, key: str, record: Mapping[str, Any]) -> None:
    """Write the provenance of ``key`` into ``uns["terrazzo"]``, beside that of others, with version and time."""
    before = adata.uns.get(keys.UNS, {})
    if not isinstance(before, Mapping):  # another program's, which is not replaced
        before = {FOREIGN: before}
    adata.uns[keys.UNS] = {**before, key: {**record, **stamp()}}


def write(adata: AnnData, key: str, embedding: AnyFloats, record: Mapping[str, Any]) -> None:
    """Write an embedding into ``obsm[key]`` and its provenance into ``uns["terrazzo"][key]``."""
    adata.obsm[key] = embedding
    add_record(adata, key, record)


def stamp() -> dict[str, str]:
    """Return the version of the library and the time, as every record holds them."""
    return {"terrazzo_version": __version__, "date": now()}


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def blocks(adata: AnnData, key: str) -> dict[str, tuple[int, int]]:
    """Return the column range of each named block of ``obsm[key]``; empty for one block, or another's embedding."""
    record = records_of(adata).get(key, {})
    stated = parsed(record, "details").get("blocks")
    if not isinstance(stated, dict):
        return {}
    ranges = {}
    for name, columns in stated.items():
        if _are_columns(columns):
            start, stop = columns
            ranges[name] = (start, stop)
    return ranges


def _are_columns(value: Any) -> bool:
    """Say whether a value states a range of columns."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(type(one) is int for one in value) and 0 <= value[0] < value[1]


def parsed(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a field of a record that holds JSON; {} where it does not: whoever wrote the file may have written it."""
    try:
        content = parse_json(str(record.get(name, "{}")), name, finite=False)
    except ConfigError:
        return {}
    return content if isinstance(content, dict) else {}


def block(adata: AnnData, key: str, name: str) -> Vectors:
    """Return one of the blocks that an embedding consists of, e.g. ``block(adata, "X_stofm", "niche")``.

    Parameters
    ----------
    adata
        Embedded.
    key
        ``obsm`` key.
    name
        ``"own"`` (the cell itself: types) or ``"niche"`` (its surroundings: regions), where the model wrote both.

    Returns
    -------
    float32 ``(n_cells, d)``, a view.

    Raises
    ------
    InputError
        No such embedding, or it has no such block.
    """
    if key not in adata.obsm or key not in records_of(adata):
        raise InputError(f"obsm[{key!r}] was not written by terrazzo's embed.")
    ranges = blocks(adata, key)
    if name not in ranges:
        available = f"it has {', '.join(ranges)}" if ranges else "it is one block"
        raise InputError(f"obsm[{key!r}] has no block {name!r}; {available}.")
    start, stop = ranges[name]
    embedding = np.asarray(adata.obsm[key])
    return embedding[:, start:stop]


def vectors(adata: AnnData, use_rep: str | AnyFloats, *, purpose: Purpose = "all") -> AnyFloats:
    """Return the embedding that a task is to use, checked.

    Parameters
    ----------
    adata
        Holds the embedding, or the cells that an array belongs to.
    use_rep
        An ``obsm`` key; ``"key:block"`` for one block of it, e.g. ``"X_stofm:own"``, and ``"key:all"`` for the whole
        whatever the purpose; or an array ``(n_cells, d)``.
    purpose
        What a bare key stands for where the model wrote named blocks: ``"own"`` for what belongs to the cell (types),
        ``"niche"`` for what belongs to its surroundings (regions), ``"all"`` for both (supervised tasks).

    Raises
    ------
    InputError
        No such key or block, another number of rows, no column, or values that are not finite.
    """
    if isinstance(use_rep, str):
        name = f"obsm[{use_rep!r}]"
        embedding = _by_key(adata, use_rep, purpose)
    else:
        name = "the array passed as use_rep"
        embedding = np.asarray(use_rep)
    _check(embedding, name, adata)
    if np.issubdtype(embedding.dtype, np.floating):
        return embedding
    return embedding.astype(np.float32)


def source_name(source: Any) -> str:
    """Return how a record names an embedding or labels: the key, or that it was an array."""
    return source if isinstance(source, str) else ARRAY


def _check(embedding: AnyFloats, name: str, adata: AnnData) -> None:
    """Refuse what is not a matrix of finite numbers with one row a cell."""
    n_cells = adata.n_obs
    shape = embedding.shape
    if len(shape) != 2 or shape[0] != n_cells or not shape[1]:
        raise InputError(f"{name} has shape {shape}; it must be ({n_cells}, d): one row a cell.")
    if not np.issubdtype(embedding.dtype, np.number):
        raise InputError(f"{name} does not hold numbers.")
    finite = np.isfinite(embedding).all(axis=1)
    if finite.all():
        return
    n_bad = n_cells - int(finite.sum())
    first = adata.obs_names[int(np.argmin(finite))]
    raise InputError(
        f"{name} holds values that are not finite, in {n_bad} of {n_cells} cells (first: {first})."
    )


def _by_key(adata: AnnData, use_rep: str, purpose: Purpose) -> AnyFloats:
    """Return the embedding, or the block of it, that a key stands for."""
    if use_rep in adata.obsm:
        if purpose != "all" and purpose in blocks(adata, use_rep):
            return block(adata, use_rep, purpose)
        return _whole(adata, use_rep)
    key, _, name = use_rep.rpartition(":")
    if key not in adata.obsm:
        known = ", ".join(adata.obsm) or "none"
        hint = did_you_mean(use_rep, adata.obsm, "Embed first.")
        raise InputError(f"obsm has no {use_rep!r}; there are: {known}.{hint}")
    if name == "all":
        return _whole(adata, key)
    return block(adata, key, name)


def _whole(adata: AnnData, key: str) -> AnyFloats:
    """Return all columns of an embedding, dense."""
    embedding = adata.obsm[key]
    if hasattr(embedding, "toarray"):
        check_matrix(embedding, f"obsm[{key!r}]")
        return embedding.toarray()
    return np.asarray(embedding)
