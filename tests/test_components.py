"""Principal directions from second moments."""

from __future__ import annotations

import numpy as np

from terrazzo.expression import principal_directions


def test_directions_are_those_of_a_singular_value_decomposition() -> None:
    values = np.random.default_rng(0).normal(size=(80, 6)) * [5, 4, 3, 2, 1, 0.5]
    values -= values.mean(axis=0)
    directions, variance = principal_directions(values.T @ values / 80, 3)
    _, singular, right = np.linalg.svd(values, full_matrices=False)
    np.testing.assert_allclose(variance, singular[:3] ** 2 / 80, rtol=1e-4)
    np.testing.assert_allclose(np.abs((directions * right[:3].T).sum(axis=0)), 1, atol=1e-4)
    assert ((directions**3).sum(axis=0) > 0).all()


def test_directions_of_nothing_are_left_out() -> None:
    values = np.random.default_rng(0).normal(size=(80, 2))
    wide = np.concatenate([values, values, np.zeros((80, 3))], axis=1)
    directions, variance = principal_directions(wide.T @ wide / 80, 5)
    assert directions.shape == (7, 2)
    assert (variance > 0.1).all()
    assert principal_directions(np.zeros((4, 4)), 2)[0].shape[1] == 0
