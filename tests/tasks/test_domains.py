"""Tissue domains from an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning

METHODS = pytest.mark.parametrize("method", ["gmm", "kmeans"])


def groups(n: int = 120, d: int = 6, k: int = 4, seed: int = 0) -> tuple[AnnData, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(k), np.array([50, 40, 20, 10]) * n // 120)
    adata = AnnData(np.zeros((n, 1), dtype=np.float32))
    adata.obsm["X_a"] = (rng.normal(size=(k, d))[truth] * 8 + rng.normal(size=(n, d))).astype(np.float32)
    return adata, truth


@METHODS
@pytest.mark.parametrize("d", [2, 6, 50])
def test_groups_are_found_and_named_by_size(method: Any, d: int) -> None:
    adata, truth = groups(d=d)
    out = tz.tasks.domains(adata, use_rep="X_a", n_domains=4, method=method)
    assert out is adata
    found = adata.obs["X_a_domain"]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert list(found.cat.categories) == ["0", "1", "2", "3"]
    assert adjusted_rand_score(truth, found) > 0.95
    sizes = found.value_counts().reindex(list("0123")).to_numpy()
    assert (np.diff(sizes) <= 0).all()


@METHODS
def test_same_seed_same_domains(method: Any) -> None:
    adata, _ = groups(seed=1)
    first, second = (
        tz.tasks.domains(adata.copy(), use_rep="X_a", n_domains=6, method=method, seed=5).obs["X_a_domain"]
        for _ in range(2)
    )
    assert (first == second).all()


def test_another_column() -> None:
    adata, _ = groups()
    tz.tasks.domains(adata, use_rep="X_a", n_domains=2, key_added="mine")
    assert set(adata.obs) == {"mine"}


@METHODS
def test_dead_and_tiny_dimensions_do_not_matter(method: Any) -> None:
    adata, truth = groups()
    adata.obsm["X_a"] = np.hstack([adata.obsm["X_a"] * 1e-6, np.full((120, 3), 7.0)])
    tz.tasks.domains(adata, use_rep="X_a", n_domains=4, method=method)
    assert adjusted_rand_score(truth, adata.obs["X_a_domain"]) > 0.95


@METHODS
def test_one_domain_and_one_cell(method: Any) -> None:
    adata, _ = groups()
    assert set(tz.tasks.domains(adata, use_rep="X_a", n_domains=1, method=method).obs["X_a_domain"]) == {"0"}
    one = adata[:1].copy()
    assert list(tz.tasks.domains(one, use_rep="X_a", n_domains=1, method=method).obs["X_a_domain"]) == ["0"]


@METHODS
def test_vectors_that_are_all_equal(method: Any) -> None:
    adata, _ = groups()
    adata.obsm["X_a"] = np.ones((120, 6), dtype=np.float32)
    with pytest.warns(TerrazzoWarning, match="too few distinct vectors for 3 domains"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3, method=method)
    assert adata.obs["X_a_domain"].notna().all()


def test_what_cannot_be_clustered_is_said() -> None:
    adata, _ = groups()
    with pytest.raises(InputError, match=r"no 'X_b'.*X_a"):
        tz.tasks.domains(adata, use_rep="X_b", n_domains=3)
    for k in (0, -1, 121):
        with pytest.raises(ConfigError, match="between 1 and the number of cells, 120"):
            tz.tasks.domains(adata, use_rep="X_a", n_domains=k)
    with pytest.raises(ConfigError, match="'gmm' or 'kmeans'"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3, method="magic")  # type: ignore[arg-type]
    adata.obsm["X_a"][5, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3)
    assert "X_a_domain" not in adata.obs
