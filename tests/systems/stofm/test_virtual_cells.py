"""Clusters and virtual cells."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from terrazzo.systems.stofm.virtual_cells import (
    cluster_features,
    first_components,
    leiden_labels,
    virtual_cells,
)


def blobs(seed: int = 0, n: int = 60, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(n * k) % k
    return rng.normal(size=(n * k, 2)) + 12 * np.column_stack([truth % 2, truth // 2]), truth


def turn(positions: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return positions @ np.array([[c, s], [-s, c]])


def test_virtual_cells_are_means() -> None:
    rng = np.random.default_rng(0)
    features, positions = rng.normal(size=(50, 5)).astype(np.float32), rng.normal(size=(50, 2))
    labels = np.concatenate([np.arange(6), rng.integers(0, 6, 44)])
    made = virtual_cells(features, positions, labels)
    for c in range(6):
        np.testing.assert_allclose(
            made.features[c], features[labels == c].mean(axis=0), rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(
            made.positions[c], positions[labels == c].mean(axis=0), rtol=0, atol=1e-12
        )
    assert made.features.dtype == np.float32


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_first_components_are_those_of_pca(seed: int, n: int, d: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    found = first_components(features)
    assert found.shape == (n, 2)
    k = min(2, n, d)
    if n > 1:
        theirs = PCA(k, svd_solver="full").fit_transform(features.astype(np.float64))
        np.testing.assert_allclose(np.abs(found[:, :k]), np.abs(theirs), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[:, k:], 0, atol=1e-5)


def test_concat_is_rotation_invariant_and_sum_is_not() -> None:
    rng = np.random.default_rng(1)
    features, positions = rng.normal(size=(80, 4)).astype(np.float32), rng.normal(size=(80, 2))

    def gaps(mix: str, angle: float) -> np.ndarray:
        points = cluster_features(features, turn(positions, angle), 0.8, mix)
        return np.linalg.norm(points[:, None] - points[None], axis=-1)

    np.testing.assert_allclose(gaps("concat", 1.1), gaps("concat", 0.0), rtol=0, atol=1e-12)
    assert np.abs(gaps("sum", 1.1) - gaps("sum", 0.0)).max() > 0.01


def test_alpha_weighs_expression() -> None:
    rng = np.random.default_rng(2)
    features, positions = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 2))
    points = cluster_features(features, positions, 0.8, "concat")
    np.testing.assert_allclose(np.linalg.norm(points[:, :2], axis=1).max(), 0.8)
    np.testing.assert_allclose(np.linalg.norm(points[:, 2:], axis=1).max(), 0.2)
    only_place = cluster_features(features, positions, 0.0, "sum")
    np.testing.assert_allclose(only_place, positions / np.linalg.norm(positions, axis=1).max())


def test_all_cells_at_one_point_or_of_one_kind() -> None:
    same = np.ones((20, 3), dtype=np.float32)
    points = cluster_features(same, np.zeros((20, 2)), 0.8, "concat")
    np.testing.assert_allclose(points, 0, atol=1e-12)
    labels = leiden_labels(points, 10, 1.0, 200, 0)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))


def test_leiden_finds_separate_groups() -> None:
    points, truth = blobs()
    labels = leiden_labels(points, 10, 0.05, 200, 0)
    for c in range(labels.max() + 1):
        assert len(set(truth[labels == c].tolist())) == 1
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))


def test_same_seed_same_labels() -> None:
    points, _ = blobs(3)
    np.testing.assert_array_equal(
        leiden_labels(points, 10, 1.0, 200, 7), leiden_labels(points, 10, 1.0, 200, 7)
    )


def test_the_resolution_is_halved_until_few_enough() -> None:
    points = np.random.default_rng(0).uniform(size=(400, 2))
    many = leiden_labels(points, 10, 4.0, 200, 0).max() + 1
    few = leiden_labels(points, 10, 4.0, 8, 0).max() + 1
    assert many > 8
    assert 1 < few <= 8


def test_a_limit_that_cannot_be_met_ends() -> None:
    centers = np.repeat([[0.0, 0], [100, 0], [200, 0], [300, 0]], 5, axis=0)
    points = centers + np.random.default_rng(0).normal(size=(20, 2))
    labels = leiden_labels(points, 3, 1.0, 1, 0)
    assert labels.max() >= 3  # four groups without an edge between them stay four


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_cells(n: int) -> None:
    labels = leiden_labels(np.random.default_rng(n).normal(size=(n, 4)), 10, 1.0, 200, 0)
    assert labels.shape == (n,)
    assert sorted(set(labels.tolist())) == list(range(labels.max() + 1))


def test_igraphs_global_generator_is_given_back() -> None:
    import igraph

    igraph.set_random_number_generator(random)
    points, _ = blobs(4)
    random.seed(11)
    expected = igraph.Graph.Erdos_Renyi(n=30, p=0.3).get_edgelist()
    random.seed(11)
    state = random.getstate()
    leiden_labels(points, 10, 1.0, 200, 5)
    assert random.getstate() == state  # Python's own generator is not touched
    assert (
        igraph.Graph.Erdos_Renyi(n=30, p=0.3).get_edgelist() == expected
    )  # and igraph uses it again
