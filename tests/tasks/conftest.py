"""Simulated slices with a plain embedding, for the tasks that learn from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from terrazzo.tasks.heads import HEADS, MLPConfig


def put_embedding(slices: Sequence[AnnData], d: int = 16, neighbors: int = 0) -> list[AnnData]:
    """Write ``obsm["X_a"]``: joint principal components of log counts, and with neighbors their mean beside them."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    logs = []
    for one in slices:
        counts = one.X.toarray()
        total = np.maximum(counts.sum(1, keepdims=True), 1)
        logs.append(np.log1p(counts / total * np.median(total)))
    pca = PCA(d, random_state=0).fit(np.concatenate(logs))
    for one, values in zip(slices, logs, strict=True):
        x = pca.transform(values)
        if neighbors:
            places = np.asarray(one.obsm["spatial"])
            near = (
                NearestNeighbors(n_neighbors=neighbors)
                .fit(places)
                .kneighbors(places, return_distance=False)
            )
            x = np.hstack([x, x[near].mean(1)])
        one.obsm["X_a"] = x.astype(np.float32)
    return list(slices)


@pytest.fixture(scope="session")
def quick_mlp() -> MLPConfig:
    """Return a head like ``"mlp3"``, but narrower and trained with larger steps: as good on small slices, and quick."""
    return replace(HEADS["mlp3"], hidden=(64, 64), learning_rate=3e-3)


@pytest.fixture(scope="session")
def embedding() -> Callable[..., list[AnnData]]:
    """Return :func:`put_embedding`."""
    return put_embedding


@pytest.fixture(scope="session")
def embedded_corpus() -> Callable[..., list[AnnData]]:
    """Simulate slices of one atlas with ``obsm["X_a"]``; made once for equal arguments, copied for each call."""
    made: dict[Any, list[AnnData]] = {}

    def make(
        n_slices: int = 2, n_cells: int = 500, neighbors: int = 12, **options: Any
    ) -> list[AnnData]:
        from terrazzo import simulate

        key = (n_slices, n_cells, neighbors, *sorted(options.items()))
        if key not in made:
            slices = simulate.corpus(
                n_slices, n_cells, **{"n_genes": 80, "n_regions": 3, "n_types": 4, **options}
            )
            made[key] = put_embedding(slices, neighbors=neighbors)
        return [one.copy() for one in made[key]]

    return make
