"""Embeddings in two dimensions: UMAP where it is quick, else the first two principal components; which, is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo import records as representation
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.results import LEAST_CELLS, umap_layout

Method = Literal["auto", "umap", "pca"]
METHODS = ("auto", "umap", "pca")
UMAP_CELLS = 10_000  # up to which "auto" takes UMAP: half a minute
MOST = 3  # embeddings that are drawn where none is named
_READY = ("X_umap", "X_tsne")  # two columns that somebody made: drawn as they are


@dataclass(frozen=True)
class Drawn:
    """One embedding in two dimensions: its key, what the two are, their values (n, 2), y upwards."""

    key: str
    method: str
    places: NDArray[np.float64]


def draw(
    adata: AnnData, asked: Sequence[str] | None, method: Method, spatial_key: str, seed: int
) -> tuple[list[Drawn], list[str]]:
    """Return the embeddings of a slice in two dimensions, and notes on those that are not drawn.

    Parameters
    ----------
    adata
        The slice.
    asked
        ``obsm`` keys, or ``"key:block"``. None: those that terrazzo wrote, or else those named ``X_...``, the first
        three; and ``X_umap`` and ``X_tsne`` as they are.
    method
        ``"auto"``: UMAP up to 10,000 cells.
    spatial_key
        The coordinates, which are no embedding.
    seed
        Of UMAP.

    Raises
    ------
    ConfigError
        Another method.
    InputError
        An embedding that was asked for is not there, or not finite.
    """
    if method not in METHODS:
        raise ConfigError(f"projection is {method!r}; it must be one of {', '.join(METHODS)}.")
    notes: list[str] = []
    if asked is None:
        found = _worth_drawing(adata, spatial_key)
        names = [
            *found[:MOST],
            *(key for key in _READY if key in adata.obsm and key not in found[:MOST]),
        ]
        if found[MOST:]:
            notes.append(
                f"embeddings that are not drawn: {', '.join(found[MOST:])}; name those that you want to see"
            )
    else:
        names = list(dict.fromkeys(asked))
    drawn = []
    for name in names:
        try:
            drawn.append(_one(adata, name, method, seed))
        except InputError as error:
            if asked is not None:
                raise
            notes.append(f"{name} is not drawn: {error}")
    return drawn, notes


def _worth_drawing(adata: AnnData, spatial_key: str) -> list[str]:
    wide = [str(key) for key in adata.obsm if key != spatial_key and np.ndim(adata.obsm[key]) == 2]
    wide = [key for key in wide if adata.obsm[key].shape[1] > 2]
    ours = [key for key in wide if key in dict(adata.uns.get(keys.UNS, {}))]
    return ours or [key for key in wide if key.startswith("X_")]


def _one(adata: AnnData, name: str, method: Method, seed: int) -> Drawn:
    vectors = representation.vectors(adata, name)
    n, width = vectors.shape
    if width <= 2:
        both = np.zeros((n, 2))
        both[:, :width] = vectors
        return Drawn(name, "as it is" if width == 2 else "its only dimension", both)
    if n < LEAST_CELLS or method == "pca" or (method == "auto" and n > UMAP_CELLS):
        places, shares = _components(vectors)
        slow = (
            f"; UMAP of {n:,} cells would take long" if method == "auto" and n > UMAP_CELLS else ""
        )
        spread = " and ".join(f"{share:.0%}" for share in shares)
        return Drawn(
            name, f"first two principal components, {spread} of the variance{slow}", places
        )
    return Drawn(name, "UMAP, 15 neighbors", umap_layout(vectors, seed).astype(np.float64))


def _components(vectors: NDArray[np.floating]) -> tuple[NDArray[np.float64], list[float]]:
    """First two principal components (n, 2), signs such that the longest arm is positive, and their shares."""
    centered = vectors - vectors.mean(axis=0, dtype=np.float64)
    spread, axes = np.linalg.eigh(centered.T @ centered)
    places = centered @ axes[:, :-3:-1]
    places *= np.sign(places[np.abs(places).argmax(axis=0), range(2)] + 1e-300)
    total = max(float(spread.sum()), 1e-300)
    return np.asarray(places), [max(float(value), 0.0) / total for value in spread[:-3:-1]]
