"""Tissue domains: embeddings clustered without labels, and written to ``obs``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys, records
from terrazzo.arrays import AnyFloats, Floats, Ints
from terrazzo.errors import ConfigError, TerrazzoWarning
from terrazzo.slices.geometry import read_coords
from terrazzo.slices.parts import put_back, split, takes_all
from terrazzo.tasks import targets
from terrazzo.tasks.by_section import check_keys, slices_of
from terrazzo.tasks.clustering import (
    Method,
    by_size,
    check_method,
    cluster_runs,
    consensus,
    refine_labels,
)

__all__ = ["Method", "check_settings", "domains", "shortfall"]


@overload  # the list first: to a type checker without anndata's types an AnnData is anything
def domains(
    adata: Sequence[AnnData],
    *,
    use_rep: str | Sequence[AnyFloats],
    n_domains: int,
    method: Method = ...,
    seed: int = ...,
    n_seeds: int = ...,
    refine: int = ...,
    spatial_key: str = ...,
    key_added: str | None = ...,
    progress: bool | None = ...,
    slice_key: str | None = ...,
) -> list[AnnData]: ...
@overload
def domains(
    adata: AnnData,
    *,
    use_rep: str | AnyFloats,
    n_domains: int,
    method: Method = ...,
    seed: int = ...,
    n_seeds: int = ...,
    refine: int = ...,
    spatial_key: str = ...,
    key_added: str | None = ...,
    progress: bool | None = ...,
    slice_key: str | None = ...,
) -> AnnData: ...
def domains(
    adata: AnnData | Sequence[AnnData],
    *,
    use_rep: str | AnyFloats | Sequence[AnyFloats],
    n_domains: int,
    method: Method = "gmm",
    seed: int = 0,
    n_seeds: int = 1,
    refine: int = 0,
    spatial_key: str = keys.SPATIAL,
    key_added: str | None = None,
    progress: bool | None = None,
    slice_key: str | None = None,
) -> AnnData | list[AnnData]:
    """Cluster an embedding into tissue domains and write them to ``obs["<use_rep>_domain"]``, the largest first.

    What was done is recorded in ``uns["terrazzo"][<that column>]``.

    Parameters
    ----------
    adata
        One slice that holds the embedding, or several. Each of several is clustered by itself: domain ``"0"`` of one
        is not domain ``"0"`` of another.
    use_rep
        Key in ``obsm`` (of an embedding with two blocks, the niche block), ``"key:block"`` (written to
        ``obs["key_block_domain"]``), or an array ``(n, d)``; of several slices a list of arrays.
    n_domains
        Number of domains K.
    method
        ``"gmm"``: Gaussian mixture with tied covariance on the first 20 principal components; ``"kmeans"`` on the same;
        ``"leiden"``: communities of the 15-nearest-neighbor graph, with the resolution searched until there are K. It
        cuts embeddings that were averaged over wide surroundings into patches: neighbors in them are neighbors in
        space.
    seed, n_seeds
        First seed; with several, the embedding is clustered with each of ``seed .. seed + n_seeds - 1`` and
        :func:`terrazzo.tasks.clustering.consensus` combines the runs.
    refine
        Neighbors of :func:`terrazzo.tasks.clustering.refine_labels`, applied last; 0: off. It smooths: report it as
        such.
    spatial_key
        ``obsm`` key of the coordinates; read only to refine.
    key_added
        Another ``obs`` column; needed where ``use_rep`` is an array.
    progress
        Show a bar; None: on a terminal.
    slice_key
        Column of ``obs`` that tells the sections of an AnnData apart; each is clustered by itself, as several slices
        are. "none": all its cells are one slice, whatever tells them apart.

    Returns
    -------
    The slice, changed; or the list of slices. Where one of them cannot be used, none is changed.

    Raises
    ------
    InputError
        No such embedding, values that are not finite; to refine, no coordinates.
    ConfigError
        ``n_domains``, ``n_seeds`` or ``refine`` do not fit the number of cells; an unknown method; no ``key_added``
        for an array, or one that is an ``obsm`` key.
    """
    settings = _Settings(n_domains, method, seed, n_seeds, refine, spatial_key)
    if takes_all(slice_key):
        slices = slices_of(adata, slice_key, spatial_key)
        _find_all(slices, targets.each(use_rep, adata, "use_rep"), settings, key_added, progress)
        return adata if isinstance(adata, AnnData) else slices
    check_keys(str(slice_key), use_rep=use_rep)
    wholes = targets.as_list(adata)
    parts = [split(one, str(slice_key)) for one in wholes]
    sections = [part.adata for of_one in parts for part in of_one]
    sources = targets.each(use_rep, sections, "use_rep")
    _find_all(sections, sources, settings, key_added, progress)
    for one, of_one in zip(wholes, parts, strict=True):
        put_back(one, str(slice_key), of_one)
    return adata if isinstance(adata, AnnData) else wholes


@dataclass(frozen=True)
class _Settings:
    """How domains are found; see :func:`domains`."""

    n_domains: int
    method: Method
    seed: int
    n_seeds: int
    refine: int
    spatial_key: str


def _find_all(
    slices: Sequence[AnnData],
    sources: Sequence[str | AnyFloats],
    settings: _Settings,
    key_added: str | None,
    progress: bool | None,
) -> None:
    """Cluster each slice by itself, then write the domains of all."""
    columns = []
    labels = []
    for i, (one, source) in enumerate(zip(slices, sources, strict=True)):
        with targets.at(i, len(slices)):
            values = records.vectors(one, source, purpose="niche")
            columns.append(_column(one, source, key_added))
            labels.append(_find(one, values, settings, progress))
    for one, source, column, codes in zip(slices, sources, columns, labels, strict=True):
        _write(one, source, column, codes, settings)


def _find(adata: AnnData, values: AnyFloats, settings: _Settings, progress: bool | None) -> Ints:
    """Return the domains of one slice, the largest first; warns where there are not as many as requested."""
    k = settings.n_domains
    n_neighbors = settings.refine
    check_settings(adata.n_obs, k, settings.method, settings.n_seeds, n_neighbors)
    coords = read_coords(adata, settings.spatial_key) if n_neighbors else None
    seeds = range(settings.seed, settings.seed + settings.n_seeds)
    vectors = values.astype(np.float64)
    runs = cluster_runs(vectors, k, settings.method, seeds, progress)
    labels = consensus(runs)
    message = shortfall(labels, k, values, settings.method)
    if message:
        warnings.warn(message, TerrazzoWarning, stacklevel=3)
    if coords is not None:
        labels = _refined(labels, coords, n_neighbors)
    return by_size(labels)


def _refined(labels: Ints, coords: Floats, n_neighbors: int) -> Ints:
    """Refine labels, and warn where a domain vanishes."""
    before = len(np.unique(labels))
    refined = refine_labels(labels, coords, n_neighbors)
    lost = before - len(np.unique(refined))
    if lost:
        message = f"refining over {n_neighbors} neighbors dissolved {lost} of {before} domains; use fewer."
        warnings.warn(message, TerrazzoWarning, stacklevel=4)
    return refined


def _write(
    adata: AnnData, use_rep: str | AnyFloats, column: str, labels: Ints, settings: _Settings
) -> None:
    """Write domains and how they were found."""
    n_names = max(settings.n_domains, int(labels.max()) + 1)
    names = [str(i) for i in range(n_names)]
    adata.obs[column] = pd.Categorical.from_codes(labels, categories=names)
    record = {
        "task": "domains",
        "use_rep": records.source_name(use_rep),
        "method": settings.method,
        "n_domains": int(settings.n_domains),
        "n_found": len(np.unique(labels)),
        "seed": int(settings.seed),
        "n_seeds": int(settings.n_seeds),
        "refine": int(settings.refine),
    }
    records.add_record(adata, column, record)


def _column(adata: AnnData, use_rep: str | AnyFloats, key_added: str | None) -> str:
    """Return the column of ``obs`` that is written."""
    if key_added is None:
        if not isinstance(use_rep, str):
            raise ConfigError(
                "an array has no name: pass key_added=, the obs column for its domains."
            )
        return keys.domain_key(use_rep.replace(":", "_"))
    if key_added in adata.obsm:
        raise ConfigError(
            f"key_added is {key_added!r}, which is an embedding too; "
            "their records in uns would share one name."
        )
    return key_added


def check_settings(n: int, n_domains: int, method: str, n_seeds: int, refine: int) -> None:
    """Refuse settings that do not fit ``n`` cells.

    Raises
    ------
    ConfigError
        Says which, and what would fit.
    """
    if not 1 <= n_domains <= n:
        raise ConfigError(
            f"n_domains is {n_domains}; it must be between 1 and the number of cells, {n}."
        )
    check_method(method)
    if n_seeds < 1:
        raise ConfigError(f"the number of seeds is {n_seeds}; it must be at least 1.")
    if not 0 <= refine < n:
        raise ConfigError(
            f"refine is {refine}; "
            f"it must be between 0 (off) and the number of other cells, {n - 1}."
        )


def shortfall(labels: Ints, n_domains: int, values: AnyFloats, method: str) -> str:
    """Return in words that there are not ``n_domains`` domains, and why; "" where there are."""
    n_found = len(np.unique(labels))
    if n_found == n_domains:
        return ""
    n_distinct = len(np.unique(values, axis=0))
    if n_distinct < n_domains:
        return (
            f"the embedding has too few distinct vectors for {n_domains} domains: "
            f"{n_found} were found."
        )
    if method == "leiden":
        return (
            f"Leiden has no resolution with {n_domains} domains: {n_found} were found, the closest."
        )
    return (
        f"{n_domains} domains were requested and {n_found} were found: "
        "seeds disagree, or a cluster stayed empty."
    )
