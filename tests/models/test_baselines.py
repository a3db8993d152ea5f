"""PCA and PCA + neighbour mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.models.baselines import expression_pca, neighbour_mean


def test_pca_against_plain_code(simulated: Any) -> None:
    adata = simulated(250)
    counts = adata.X.toarray().astype(np.float64)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    logged = np.log1p(counts / total * np.median(total))
    logged = logged[:, logged.std(axis=0) > 0]
    scaled = (logged - logged.mean(axis=0)) / logged.std(axis=0)
    expected = PCA(10, random_state=0, svd_solver="full").fit_transform(scaled)
    found = expression_pca(tz.Slice.from_anndata(adata), 10, seed=0)
    assert found.dtype == np.float32
    for k in range(5):
        assert abs(np.corrcoef(found[:, k], expected[:, k])[0, 1]) > 0.999


def test_neighbour_mean_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    values, coords = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 2))
    order = np.argsort(np.linalg.norm(coords[:, None] - coords[None], axis=-1), axis=1)
    np.testing.assert_allclose(neighbour_mean(values, coords, 6), values[order[:, :7]].mean(axis=1), atol=1e-6)
    assert neighbour_mean(values, coords, 0) is values
    np.testing.assert_allclose(neighbour_mean(values, coords, 500)[0], values.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("layout", ["cells", "visium"])
def test_neighbours_help_regions(simulated: Any, layout: str) -> None:
    adata = simulated(1200, 300, layout=layout, seed=1)
    scores = {}
    for hops in (0, 3):
        tz.PCANeighbours(hops=hops).embed(adata, key_added="x")
        assert adata.obsm["x"].shape == (1200, 20)
        tz.tasks.domains(adata, use_rep="x", n_domains=5)
        scores[hops] = adjusted_rand_score(adata.obs["region"], adata.obs["x_domain"])
    assert scores[3] > max(0.5, scores[0])


def test_same_seed_same_vectors_and_the_usual_key(simulated: Any) -> None:
    first, second = (tz.PCANeighbours(n_components=7, hops=1).embed(simulated()).obsm["X_pca_nb"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (200, 7)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_cells(simulated: Any, n: int) -> None:
    found = tz.PCANeighbours().embed(simulated()[:n].copy()).obsm["X_pca_nb"]
    assert found.shape == (n, 20)
    assert np.isfinite(found).all()


def test_slices_without_variation(simulated: Any) -> None:
    adata = simulated()
    adata.X = sparse.csr_matrix(np.ones(adata.shape, dtype=np.float32))
    np.testing.assert_allclose(tz.PCANeighbours().embed(adata).obsm["X_pca_nb"], 0)
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    np.testing.assert_allclose(tz.PCANeighbours().embed(adata).obsm["X_pca_nb"], 0)


def test_impossible_hops() -> None:
    with pytest.raises(ValueError, match="0, 1, 2, 3"):
        tz.PCANeighbours(hops=9)
