"""Splits: nothing is in two sets, nothing unlabeled is in any, blocks lie apart, seeds decide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial import cKDTree

from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import splits
from terrazzo.tasks.splits import Split

N = 400
RNG = np.random.default_rng(0)
PLACES = RNG.uniform(size=(N, 2)) * [3, 1]
KNOWN = RNG.random(N) > 0.1

MAKERS: dict[str, Callable[..., list[Split]]] = {
    "random": lambda seed=0: splits.random_splits(KNOWN, 3, seed=seed),
    "few-shot": lambda seed=0: splits.random_splits(
        KNOWN, 10, train_share=0.2, seed=seed, kind="few-shot"
    ),
    "blocked": lambda seed=0: splits.blocked_splits(PLACES, KNOWN, seed=seed),
    "cross": lambda seed=0: [splits.cross_split(300, KNOWN[:300], KNOWN[300:], seed=seed)],
    "whole": lambda seed=0: [splits.all_rows(KNOWN, seed=seed)],
}
EVERY = pytest.mark.parametrize("kind", list(MAKERS))


@EVERY
def test_the_three_sets_share_nothing_and_hold_all_labeled_cells(kind: str) -> None:
    for number, split in enumerate(MAKERS[kind]()):
        assert (split.kind, split.number) == (kind, number)
        sets = (split.train, split.validation, split.test)
        together = np.concatenate(sets)
        assert len(np.unique(together)) == len(together)
        np.testing.assert_array_equal(np.sort(together), np.flatnonzero(KNOWN))
        for rows in sets:
            assert rows.dtype == np.int64
            assert (np.diff(rows) > 0).all()


@EVERY
def test_a_tenth_of_the_training_cells_stops_it(kind: str) -> None:
    for split in MAKERS[kind]():
        assert len(split.validation) == round(0.1 * (len(split.validation) + len(split.train)))


@EVERY
def test_seeds_decide(kind: str) -> None:
    make = MAKERS[kind]
    for one, same, other in zip(make(1), make(1), make(2), strict=True):
        np.testing.assert_array_equal(one.train, same.train)
        np.testing.assert_array_equal(one.validation, same.validation)
        np.testing.assert_array_equal(one.test, same.test)
        assert not np.array_equal(one.validation, other.validation)


def test_shares_and_draws() -> None:
    labeled = KNOWN.sum()
    for kind, share in (("random", 0.8), ("few-shot", 0.2)):
        folds = MAKERS[kind]()
        assert {len(s.test) for s in folds} == {labeled - round(share * labeled)}
        assert len({tuple(s.test) for s in folds}) == len(folds)


def test_every_labeled_cell_is_tested_once_over_the_blocks() -> None:
    folds = MAKERS["blocked"]()
    assert len(folds) == 4
    np.testing.assert_array_equal(
        np.sort(np.concatenate([s.test for s in folds])), np.flatnonzero(KNOWN)
    )


def test_blocks_are_of_equal_size_and_touch_at_corners_only() -> None:
    side = np.arange(40)
    places = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) + 0.5
    fold = splits.spatial_folds(places).reshape(40, 40)  # [y, x]
    blocks = fold.reshape(4, 10, 4, 10)
    assert (blocks == blocks[:, :1, :, :1]).all()
    layout = blocks[:, 0, :, 0]
    for line in (*layout, *layout.T):
        assert sorted(line) == [0, 1, 2, 3]


def test_blocked_test_cells_have_few_training_neighbors() -> None:
    """What a random split leaks: here nearly every test cell has a training cell among its nearest six."""
    near = cKDTree(PLACES).query(PLACES, k=7)[1][:, 1:]

    def leak(folds: list[Split]) -> float:
        shares = []
        for s in folds:
            learned = np.zeros(N, dtype=bool)
            learned[s.train] = True
            shares.append(learned[near[s.test]].mean())
        return float(np.mean(shares))

    assert leak(MAKERS["random"]()) > 0.6
    assert leak(MAKERS["blocked"]()) < 0.35


def test_cross_rows_are_those_of_the_stacked_slices() -> None:
    (split,) = MAKERS["cross"]()
    assert split.test.min() >= 300
    assert max(split.train.max(), split.validation.max()) < 300
    np.testing.assert_array_equal(split.test - 300, np.flatnonzero(KNOWN[300:]))


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InputError, match="only 4 cells have a label"):
        splits.random_splits(np.arange(100) < 4)
    with pytest.raises(InputError, match="only 0 cells have a label"):
        splits.cross_split(10, np.ones(10, dtype=bool), np.zeros(10, dtype=bool))
    for share in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            splits.random_splits(KNOWN, train_share=share)
    corner = splits.spatial_folds(PLACES) == 2
    with pytest.raises(InputError, match="one spatial block"):
        splits.blocked_splits(PLACES, corner)
    five = splits.random_splits(np.arange(9) < 5, 1)[0]  # the fewest
    assert (len(five.train), len(five.validation), len(five.test)) == (3, 1, 1)


def test_a_region_without_labels_has_no_fold() -> None:
    fold = splits.spatial_folds(PLACES)
    folds = splits.blocked_splits(PLACES, fold != 1)
    assert [s.number for s in folds] == [0, 2, 3]
