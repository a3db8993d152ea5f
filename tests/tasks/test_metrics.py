"""Scores: each against scikit-learn, scipy, a slow sum, or a case worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
)

from terrazzo.errors import InputError
from terrazzo.tasks import metrics


def drawn(n: int = 200, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(k, size=n)
    return true, np.where(rng.random(n) < 0.6, true, rng.integers(k, size=n))


@pytest.mark.parametrize("form", [int, str, object, "category"])
def test_classification_is_scikit_learns(form: Any) -> None:
    true, guess = drawn()
    names = np.array(["L1", "L2", "L3", "WM"])
    t, p = (
        (true, guess)
        if form is int
        else (pd.Series(names[true]).astype(form), pd.Series(names[guess]).astype(form))
    )
    scores = metrics.classification(t, p)
    assert scores == pytest.approx(
        {
            "accuracy": accuracy_score(true, guess),
            "macro_f1": f1_score(true, guess, average="macro"),
        }
    )
    assert all(type(value) is float for value in scores.values())


def test_macro_f1_is_over_the_classes_that_occur_in_the_truth() -> None:
    # a: precision 1, recall 1/2, F1 2/3; b: precision 1/2, recall 1, F1 2/3; c is never true
    assert metrics.classification(list("aab"), list("abb")) == pytest.approx(
        {"accuracy": 2 / 3, "macro_f1": 2 / 3}
    )
    # a: recall 1/2, F1 2/3; b: F1 1; c, predicted once, is no third class
    with_c = metrics.classification(list("aab"), list("acb"))
    assert with_c["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.classification(list("aab"), list("acb"), classes=list("abcd")) == with_c
    # a class that is never predicted scores 0
    assert metrics.classification(list("aab"), list("aaa"))["macro_f1"] == pytest.approx(
        (0.8 + 0) / 2
    )


def test_clustering_is_scikit_learns_and_names_do_not_matter() -> None:
    true, scores = drawn(seed=1)
    expected = {
        "ari": adjusted_rand_score(true, scores),
        "nmi": normalized_mutual_info_score(true, scores),
    }
    assert metrics.clustering(true, scores) == pytest.approx(expected)
    assert metrics.clustering(np.array(list("abcd"))[true], (scores + 1) % 4) == pytest.approx(
        expected
    )
    assert metrics.clustering(true, true) == pytest.approx({"ari": 1, "nmi": 1})
    assert metrics.clustering(true, np.zeros(200, dtype=int)) == pytest.approx({"ari": 0, "nmi": 0})


def test_regression_is_scipys() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(60, 5)) * [1, 10, 100, 1e-9, 3] + 7
    guess = true + rng.normal(size=(60, 5)) * [1, 5, 100, 1e-9, 0]
    scores = metrics.regression(true, guess)
    columns = [pearsonr(true[:, j], guess[:, j])[0] for j in range(5)]
    error = guess - true
    assert scores == pytest.approx(
        {
            "pearson": np.mean(columns),
            "pearson_overall": pearsonr(true.ravel(), guess.ravel())[0],
            "rmse": np.sqrt(np.mean(error**2)),
            "mae": np.mean(np.abs(error)),
            "mse": np.mean(error**2),
            "constant_columns": 0,
        }
    )
    table = metrics.regression_by_column(sparse.csr_matrix(true), guess, list("abcde"))
    assert list(table.index) == list("abcde")
    assert table.index.name == "part"
    np.testing.assert_allclose(table["pearson"], columns, rtol=1e-9)
    np.testing.assert_allclose(table["mse"], np.mean(error**2, axis=0))
    np.testing.assert_allclose(table["rmse"], np.sqrt(table["mse"]))
    np.testing.assert_allclose(table["mae"], np.mean(np.abs(error), axis=0))
    one = metrics.regression(true[:, 1], guess[:, 1])
    assert one["pearson"] == pytest.approx(columns[1])
    assert one["pearson_overall"] == pytest.approx(columns[1])


def test_a_constant_truth_is_left_out_and_a_constant_prediction_counts_as_nothing() -> None:
    x = np.arange(5.0)
    true = np.column_stack([x, x, np.full(5, 0.1)])
    guess = np.column_stack([2 * x + 1, np.full(5, 0.3), x])
    scores = metrics.regression(true, guess)
    assert scores["pearson"] == pytest.approx((1 + 0) / 2)
    assert scores["constant_columns"] == 1
    table = metrics.regression_by_column(true, guess, ["right", "silent", "flat"])["pearson"]
    assert table[["right", "silent"]].tolist() == pytest.approx([1, 0])
    assert np.isnan(table["flat"])
    flat = metrics.regression(np.ones((4, 2)), np.eye(4)[:, :2])
    assert np.isnan(flat["pearson"])
    assert np.isnan(flat["pearson_overall"])
    assert flat["constant_columns"] == 2
    tiny = metrics.regression(x * 1e-200, x * 1e-180)
    assert tiny["pearson"] == pytest.approx(1)


def test_chaos_by_hand() -> None:
    # a row of six cells, one apart: its sd (n - 1) is sqrt(3.5); the other axis has none
    coords = np.column_stack([np.arange(6.0), np.full(6, 3.0)])
    unit = 1 / np.sqrt(3.5)
    assert metrics.chaos(coords, list("aaabbb")) == pytest.approx(unit)
    assert metrics.chaos(coords, list("ababab")) == pytest.approx(2 * unit)
    assert metrics.chaos(coords, list("aaaaab")) == pytest.approx(
        unit * 5 / 6
    )  # the lone b has no edge, and counts
    assert metrics.chaos(coords, list("abcdef")) == 0
    assert metrics.chaos(coords * [1000, 7] + 5, list("ababab")) == pytest.approx(2 * unit)
    assert metrics.chaos(coords[:1], ["a"]) == 0
    assert metrics.chaos(np.ones((4, 2)), list("aabb")) == 0


def slow_chaos(coords: np.ndarray, labels: np.ndarray) -> float:
    scaled = (coords - coords.mean(axis=0)) / coords.std(axis=0, ddof=1)
    distance = np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)
    distance[(labels[:, None] != labels[None]) | np.eye(len(labels), dtype=bool)] = np.inf
    edges = distance.min(axis=1)
    return float(edges[np.isfinite(edges)].sum() / len(labels))


def slow_pas(coords: np.ndarray, labels: np.ndarray) -> float:
    distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :10]
    return float(np.mean((labels[near] != labels[:, None]).sum(axis=1) >= 6))


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_coherence_against_a_slow_sum(noise: float) -> None:
    rng = np.random.default_rng(0)
    coords = rng.random((300, 2)) * [5, 1]
    labels = np.where(
        rng.random(300) < noise, rng.integers(4, size=300), (coords[:, 0] * 0.8).astype(int)
    )
    labels[0] = 9  # a domain of one cell
    assert metrics.chaos(coords, labels) == pytest.approx(slow_chaos(coords, labels))
    assert metrics.pas(coords, labels) == pytest.approx(slow_pas(coords, labels))


def test_pas_by_hand() -> None:
    line = np.column_stack([np.arange(22.0) ** 1.001, np.zeros(22)])
    assert metrics.pas(line, ["a"] * 22) == 0
    assert metrics.pas(line, [*"a" * 10, "b", *"a" * 11]) == pytest.approx(
        1 / 22
    )  # only the b itself
    assert (
        metrics.pas(line, list("a" * 11 + "b" * 11)) == 0
    )  # at a straight border 5 of 10 differ: not 6
    assert metrics.pas(line[:3], list("aab")) == pytest.approx(
        1 / 3
    )  # fewer than eleven cells: of all others
    assert metrics.pas(line[:1], ["a"]) == 0


def test_neighbors_of_cells_at_one_place() -> None:
    near = metrics.nearest(np.zeros((6, 2)), 3)
    assert near.shape == (6, 3)
    assert all(i not in row and len(set(row)) == 3 for i, row in enumerate(near))
    assert metrics.nearest(np.arange(4.0)[:, None], 1).ravel().tolist()[::3] == [1, 2]
    assert metrics.nearest(np.zeros((2, 2)), 0).shape == (2, 0)


XY = np.random.default_rng(0).random((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.classification([0, 1], [0, 1, 1]), "true has 2 labels and predicted 3"),
        (lambda: metrics.classification([], []), "true is empty"),
        (
            lambda: metrics.classification(["a", None], ["a", "b"]),
            "true has no label for 1 of 2 cells .first: row 1",
        ),
        (lambda: metrics.classification([0, -1], [0, 1]), "true has no label for 1 of 2"),
        (
            lambda: metrics.classification(["a", "b"], ["a", np.nan]),
            "predicted has no label for 1 of 2",
        ),
        (
            lambda: metrics.classification(["0", "1"], [0, 1]),
            "true holds words and predicted numbers",
        ),
        (
            lambda: metrics.classification(["a", "b"], ["a", "a"], ["a", "c"]),
            "true holds b, which classes does not name",
        ),
        (lambda: metrics.classification([[0], [1]], [0, 1]), r"true has shape \(2, 1\)"),
        (lambda: metrics.clustering([0, 1], [0]), "true has 2 labels and clusters 1"),
        (lambda: metrics.clustering([0, 1], [0, np.nan]), "clusters has no label for 1 of 2"),
        (
            lambda: metrics.regression([1, 2], [1, 2, 3]),
            r"true has shape \(2, 1\) and predicted \(3, 1\)",
        ),
        (
            lambda: metrics.regression(np.ones((2, 2)), np.ones(2)),
            r"shape \(2, 2\) and predicted \(2, 1\)",
        ),
        (
            lambda: metrics.regression([1, np.nan], [1, 2]),
            "true holds 1 values that are not finite .first: row 1",
        ),
        (lambda: metrics.regression([1, 2], [1, np.inf]), "predicted holds 1 values"),
        (lambda: metrics.regression(["a"], ["b"]), "true does not hold numbers"),
        (lambda: metrics.regression([], []), r"true has shape \(0,\)"),
        (
            lambda: metrics.regression_by_column(np.ones((2, 2)), np.ones((2, 2)), ["a"]),
            "1 names for 2 columns",
        ),
        (lambda: metrics.chaos(XY, [0, 1]), "3 positions and 2 labels"),
        (
            lambda: metrics.chaos(XY * np.nan, [0, 1, 1]),
            "coords holds 6 values that are not finite",
        ),
        (lambda: metrics.pas(XY, ["a", None, "b"]), "labels has no label for 1 of 3"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
