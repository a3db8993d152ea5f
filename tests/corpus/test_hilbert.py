"""The Hilbert order: a walk that visits every place once, in steps to neighbors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.corpus.members import hilbert_index, hilbert_order


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_walk_visits_every_place_by_single_steps(bits: int) -> None:
    side = np.arange(2**bits, dtype=float)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    index = hilbert_index(grid, bits)
    assert sorted(index) == list(range(4**bits))
    steps = np.abs(np.diff(grid[np.argsort(index)], axis=0)).sum(axis=1)
    assert (steps == 1).all()


def test_neighbors_in_order_are_neighbors_in_space() -> None:
    xy = np.random.default_rng(0).random((4000, 2)) * 1000
    ordered = xy[hilbert_order(xy)]
    near = np.linalg.norm(ordered - np.roll(ordered, 50, axis=0), axis=1)
    far = np.linalg.norm(xy - np.roll(xy, 50, axis=0), axis=1)
    assert np.median(near) < 0.3 * np.median(far)


def test_ties_keep_their_order() -> None:
    assert hilbert_order(np.ones((5, 2))).tolist() == [0, 1, 2, 3, 4]
    assert hilbert_order(np.zeros((0, 2))).tolist() == []
    assert hilbert_order(np.array([[3.0, 4.0]])).tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_order_is_a_permutation_whatever_the_points(points: list[tuple[float, float]]) -> None:
    xy = np.array(points)
    assert sorted(hilbert_order(xy)) == list(range(len(xy)))
    assert hilbert_index(xy).min() >= 0
    assert hilbert_index(xy).max() < 4**20
