"""Retrieval by cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import retrieval
from terrazzo.tasks.retrieval import recall

# of each query (a direction in the plane) and each answer: cosines
#            a0 (0)  a1 (90)  a2 (45)
# q0 (0)      1       0        .71     own a0: first
# q1 (80)    .17     .98       .82     own a1: first
# q2 (100)  -.17     .98       .57     own a2: second
QUERIES = np.array([[np.cos(np.deg2rad(d)), np.sin(np.deg2rad(d))] for d in (0, 80, 100)]) * [
    [3.0],
    [0.5],
    [7.0],
]
ANSWERS = np.array([[np.cos(np.deg2rad(d)), np.sin(np.deg2rad(d))] for d in (0, 90, 45)])


def slice_of(n: int) -> AnnData:
    return AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]))


def test_by_hand_in_both_directions() -> None:
    assert recall(QUERIES, ANSWERS, [1, 2, 3]) == {1: pytest.approx(2 / 3), 2: 1.0, 3: 1.0}
    # the reverse: a0 -> q0 first; a1 -> q1 and q2 are equally near: half; a2 -> 80 is nearer than 0 than 100: third
    assert recall(ANSWERS, QUERIES, [1, 2, 3]) == {
        1: pytest.approx(0.5),
        2: pytest.approx(2 / 3),
        3: 1.0,
    }
    result = retrieval(slice_of(3), image=QUERIES, genes=ANSWERS, ks=[1, 2])
    assert result.score("recall@1", "image to genes") == pytest.approx(2 / 3)
    assert result.score("recall@1", "genes to image") == pytest.approx(0.5)
    assert result.score("chance@2", "image to genes") == pytest.approx(2 / 3)
    np.testing.assert_array_equal(result.predictions["rank, image to genes"], [1, 1, 2])
    np.testing.assert_array_equal(result.predictions["rank, genes to image"], [1, 1.5, 3])
    assert result.score("median_rank", "genes to image") == 1.5


def test_the_same_vectors_are_always_found_and_empty_ones_as_often_as_at_random() -> None:
    same = np.random.default_rng(0).normal(size=(40, 5))
    assert recall(same, 2 * same, [1])[1] == 1.0
    for nothing in (np.zeros((40, 5)), np.ones((40, 5))):
        assert recall(nothing, same, [1, 10, 60]) == {
            1: pytest.approx(1 / 40),
            10: pytest.approx(1 / 4),
            60: 1.0,
        }
    apart = np.random.default_rng(1).normal(size=(40, 5))
    assert abs(recall(same, apart, [10])[10] - 0.25) < 0.2


def test_pieces_of_the_work_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    rng = np.random.default_rng(2)
    a = rng.normal(size=(30, 4))
    b = a + rng.normal(size=(30, 4))
    whole = recall(a, b, [1, 5])
    monkeypatch.setattr(importlib.import_module("terrazzo.tasks.retrieval"), "_CHUNK", 70)
    assert recall(a, b, [1, 5]) == whole


def test_keys_and_a_saved_result(tmp_path) -> None:
    adata = slice_of(3)
    adata.obsm["X_i"], adata.obsm["X_g"] = QUERIES, ANSWERS
    result = retrieval(adata, image="X_i", genes="X_g")
    assert result.config == {"image": "X_i", "genes": "X_g", "ks": [1, 5, 10, 50], "n_cells": 3}
    assert type(result).load(result.save(tmp_path / "r")).score(
        "recall@1", "image to genes"
    ) == pytest.approx(2 / 3)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"shapes \(3, 2\) and \(3, 1\)"):
        retrieval(slice_of(3), image=QUERIES, genes=ANSWERS[:, :1])
    with pytest.raises(InputError, match="obsm has no 'X_gone'"):
        retrieval(slice_of(3), image="X_gone", genes=ANSWERS)
    with pytest.raises(InputError, match="must be"):
        recall(QUERIES[:0], ANSWERS[:0])
    for ks in ([], [0], [5, -1]):
        with pytest.raises(ConfigError, match="at least 1"):
            recall(QUERIES, ANSWERS, ks)
