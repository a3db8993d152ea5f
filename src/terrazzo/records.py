"""Embeddings and their provenance in an AnnData: read and written here and nowhere else."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import AnyFloats
from terrazzo.errors import InputError, did_you_mean

Purpose = Literal["own", "niche", "all"]


def blocks(adata: AnnData, key: str) -> dict[str, tuple[int, int]]:
    """Return the column range of each named block of ``obsm[key]``; empty where it is one block, or not ours."""
    record = dict(adata.uns.get(keys.UNS, {})).get(key)
    if record is None or "details" not in record:
        return {}
    return {
        name: (int(a), int(b))
        for name, (a, b) in json.loads(str(record["details"])).get("blocks", {}).items()
    }


def block(adata: AnnData, key: str, name: str) -> NDArray[np.float32]:
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
    if key not in adata.obsm or key not in dict(adata.uns.get(keys.UNS, {})):
        raise InputError(f"obsm[{key!r}] was not written by terrazzo's embed.")
    found = blocks(adata, key)
    if name not in found:
        have = f"it has {', '.join(found)}" if found else "it is one block"
        raise InputError(f"obsm[{key!r}] has no block {name!r}; {have}.")
    start, stop = found[name]
    return np.asarray(adata.obsm[key])[:, start:stop]


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
        found, name = _named(adata, use_rep, purpose), f"obsm[{use_rep!r}]"
    else:
        found, name = np.asarray(use_rep), "the array given as use_rep"
    if found.ndim != 2 or len(found) != adata.n_obs or not found.shape[1]:
        raise InputError(
            f"{name} has shape {found.shape}; it must be ({adata.n_obs}, d): one row a cell."
        )
    if not np.issubdtype(found.dtype, np.number):
        raise InputError(f"{name} does not hold numbers.")
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise InputError(
            f"{name} holds values that are not finite, in {int(bad.sum())} of {adata.n_obs} cells "
            f"(first: {adata.obs_names[int(np.argmax(bad))]})."
        )
    return found if np.issubdtype(found.dtype, np.floating) else found.astype(np.float32)


def _named(adata: AnnData, use_rep: str, purpose: Purpose) -> AnyFloats:
    if use_rep in adata.obsm:
        if purpose != "all" and purpose in blocks(adata, use_rep):
            return block(adata, use_rep, purpose)
        return _whole(adata, use_rep)
    key, _, name = use_rep.rpartition(":")
    if key in adata.obsm:
        return _whole(adata, key) if name == "all" else block(adata, key, name)
    hint = did_you_mean(use_rep, adata.obsm, "Embed first.")
    raise InputError(
        f"obsm has no {use_rep!r}; there are: {', '.join(adata.obsm) or 'none'}.{hint}"
    )


def _whole(adata: AnnData, key: str) -> AnyFloats:
    values = adata.obsm[key]
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def write(adata: AnnData, key: str, vectors: AnyFloats, record: dict[str, Any]) -> None:
    """Write an embedding into ``obsm[key]`` and its provenance into ``uns["terrazzo"][key]``."""
    adata.obsm[key] = vectors
    others = dict(adata.uns.get(keys.UNS, {}))
    others[key] = record
    adata.uns[keys.UNS] = others
