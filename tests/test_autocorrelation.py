"""Spatial autocorrelation: correlation with the mean of the six nearest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from terrazzo import expression as autocorrelation
from terrazzo.expression import spatial_autocorrelation


@pytest.mark.parametrize("block", [2, 2000])
def test_it_is_the_correlation_with_the_mean_of_the_nearest(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(autocorrelation, "GENES_AT_ONCE", block)
    rng = np.random.default_rng(0)
    coords, values = rng.uniform(0, 1, (40, 2)), rng.poisson(1.0, (40, 5)).astype(np.float32)
    values[:, 3] = coords[:, 0]  # smooth
    values[:, 4] = 1  # the same everywhere
    found = spatial_autocorrelation(sparse.csr_matrix(values), coords)
    distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    near = np.argsort(distance, axis=1)[:, 1:7]
    wanted = [np.corrcoef(values[:, g], values[near, g].mean(axis=1))[0, 1] for g in range(4)]
    np.testing.assert_allclose(found[:4], wanted, atol=1e-6)
    assert found[3] > 0.9
    assert found[4] == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_places(n: int) -> None:
    found = spatial_autocorrelation(sparse.csr_matrix(np.eye(n, 4, dtype=np.float32)), np.eye(n, 2))
    assert found.shape == (4,)
    assert np.isfinite(found).all()
