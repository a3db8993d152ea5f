"""Embeddings in two dimensions: UMAP where it is quick, else the first two principal components; which, is noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from anndata import AnnData

from terrazzo import records
from terrazzo.arrays import AnyFloats, Floats
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.results import LEAST_CELLS, umap_layout

__all__ = ["METHODS", "Drawn", "Method", "draw"]

Method = Literal["auto", "umap", "pca"]
METHODS = ("auto", "umap", "pca")
UMAP_CELLS = 10_000  # up to which "auto" takes UMAP: half a minute
MAX_UNNAMED = 3  # embeddings that are drawn where none is named
READY = ("X_umap", "X_tsne")  # in two dimensions already: drawn as they are


@dataclass(frozen=True)
class Drawn:
    """One embedding in two dimensions: its key, what the two are, their values (n, 2), y upwards."""

    key: str
    method: str
    places: Floats


def draw(
    adata: AnnData, names: Sequence[str] | None, method: Method, spatial_key: str, seed: int
) -> tuple[list[Drawn], list[str]]:
    """Return the embeddings of a slice in two dimensions, and notes on those that are not drawn.

    Parameters
    ----------
    adata
        The slice.
    names
        ``obsm`` keys, or ``"key:block"``. None: those that terrazzo wrote, or else those named ``X_...``, the first
        three; and ``X_umap`` and ``X_tsne`` as they are.
    method
        ``"auto"``: UMAP up to 10,000 cells.
    spatial_key
        The coordinates, which are not an embedding.
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
    if names is None:
        chosen, left_out = _unnamed(adata, spatial_key)
        if left_out:
            text = ", ".join(left_out)
            notes.append(f"embeddings that are not drawn: {text}; name those that you want to see")
    else:
        chosen = list(dict.fromkeys(names))
    drawn = []
    for name in chosen:
        try:
            drawn.append(_draw_one(adata, name, method, seed))
        except InputError as error:
            if names is not None:
                raise
            notes.append(f"{name} is not drawn: {error}")
    return drawn, notes


def _unnamed(adata: AnnData, spatial_key: str) -> tuple[list[str], list[str]]:
    """Return the keys that are drawn where none is named, and those that are left out."""
    wide = []
    for key in adata.obsm:
        values = adata.obsm[key]
        if key == spatial_key or np.ndim(values) != 2:
            continue
        if values.shape[1] > 2:
            wide.append(str(key))
    recorded = records.records_of(adata)
    candidates = [key for key in wide if key in recorded]
    if not candidates:
        candidates = [key for key in wide if key.startswith("X_")]
    used = set()  # in which something was found
    for record in recorded.values():
        if isinstance(record, dict):
            used.add(str(record.get("use_rep", "")).partition(":")[0])
    candidates.sort(key=lambda key: key not in used)
    chosen = candidates[:MAX_UNNAMED]
    for key in READY:
        if key in adata.obsm and key not in chosen:
            chosen.append(key)
    return chosen, candidates[MAX_UNNAMED:]


def _draw_one(adata: AnnData, name: str, method: Method, seed: int) -> Drawn:
    vectors = records.vectors(adata, name)
    n, width = vectors.shape
    if width <= 2:
        places = np.zeros((n, 2))
        places[:, :width] = vectors
        text = "as it is" if width == 2 else "its only dimension"
        return Drawn(name, text, places)
    too_many = method == "auto" and n > UMAP_CELLS
    if method != "pca" and not too_many and n >= LEAST_CELLS:
        layout = umap_layout(vectors, seed)
        return Drawn(name, "UMAP, 15 neighbors", layout.astype(np.float64))
    places, shares = _components(vectors)
    percent = " and ".join(f"{share:.0%}" for share in shares)
    text = f"first two principal components, {percent} of the variance"
    if too_many:
        text += f"; UMAP of {n:,} cells would take long"
    return Drawn(name, text, places)


def _components(vectors: AnyFloats) -> tuple[Floats, list[float]]:
    """Return the first two principal components (n, 2), their longest arms positive, and their shares of variance."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    centered = vectors - mean
    variances, axes = np.linalg.eigh(centered.T @ centered)
    places = centered @ axes[:, :-3:-1]
    longest = np.abs(places).argmax(axis=0)
    signs = np.sign(places[longest, range(2)] + 1e-300)
    places *= signs
    total = max(float(variances.sum()), 1e-300)
    first_two = variances[:-3:-1].tolist()
    shares = [max(value, 0.0) / total for value in first_two]
    return np.asarray(places), shares
