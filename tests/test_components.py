"""Principal directions from second moments."""

from __future__ import annotations

import numpy as np

from terrazzo.expression import least_squares_components, principal_directions


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


def test_a_missing_gene_is_missing_and_not_zero() -> None:
    rng = np.random.default_rng(0)
    loadings = np.linalg.qr(rng.normal(size=(200, 3)))[0]
    variances = np.array([90.0, 60.0, 30.0])
    components = rng.normal(size=(500, 3)) * np.sqrt(variances)
    values = components @ loadings.T + 0.3 * rng.normal(size=(500, 200))
    whole = least_squares_components(values, loadings, variances, 0.09)
    np.testing.assert_allclose(whole, components, atol=1.5)
    there = np.sort(rng.permutation(200)[:60])
    half = least_squares_components(values[:, there], loadings[there], variances, 0.09)
    zeros = np.zeros_like(values)
    zeros[:, there] = values[:, there]
    filled = least_squares_components(zeros, loadings, variances, 0.09)
    noise = np.abs(whole - components).mean()
    assert np.abs(half - components).mean() < 4 * noise
    assert np.abs(filled - components).mean() > 10 * noise


def test_the_estimate_is_the_conditional_mean() -> None:
    rng = np.random.default_rng(0)
    loadings = np.linalg.qr(rng.normal(size=(9, 2)))[0][:4]  # four of nine genes
    variances = np.array([3.0, 2.0])
    values = rng.normal(size=(5, 4))
    covariance = loadings @ np.diag(variances) @ loadings.T + 0.5 * np.eye(4)
    expected = values @ np.linalg.inv(covariance) @ loadings @ np.diag(variances)
    found = least_squares_components(values, loadings, variances, 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_components_that_do_not_vary_stay_zero() -> None:
    loadings = np.eye(4)[:, :3]
    found = least_squares_components(np.ones((2, 4)), loadings, np.array([1.0, 1.0, 0.0]), 1e-3)
    np.testing.assert_allclose(found, [[1, 1, 0]] * 2, rtol=2e-3)
    nothing = least_squares_components(np.ones((2, 4)), loadings, np.zeros(3), 1.0)
    np.testing.assert_array_equal(nothing, np.zeros((2, 3)))
