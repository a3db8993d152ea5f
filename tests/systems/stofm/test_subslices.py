"""How a slice is cut: nothing lost, nothing twice, the same whichever way the rows or the slide lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from terrazzo.systems.stofm.subslices import (
    SubSlice,
    SubSliceConfig,
    halo_cells,
    iterate,
    model_positions,
    split_balanced,
    split_cells,
    split_grid,
)

UM = SubSliceConfig(n_neighbors=6)
PUBLISHED = SubSliceConfig(geometry="published", partition="grid", mix="sum", n_neighbors=6)
Cut = Callable[[np.ndarray, int], list[np.ndarray]]
both_cuts = pytest.mark.parametrize("cut", [split_balanced, split_grid])


def scatter(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points of a kind that cutting may stumble over."""
    side = max(1, int(np.sqrt(n)))
    return {
        "random": rng.normal(size=(n, 2)) * [3, 1],
        "duplicates": rng.integers(0, 3, (n, 2)).astype(float),
        "line": np.outer(rng.uniform(size=n), [1.0, 0.0]) + 5,
        "slanted line": np.outer(rng.uniform(size=n), [1.0, 0.3]),
        "nearly a line": np.column_stack([rng.uniform(size=n), 1e-13 * rng.uniform(size=n)]),
        "point": np.full((n, 2), 7.5),
        "lattice": np.column_stack(np.divmod(np.arange(n), side)).astype(float),
        "far outlier": np.concatenate([rng.normal(size=(n - 1, 2)), [[1e6, -1e6]]]),
        "huge": rng.normal(size=(n, 2)) * 1e9 + 1e12,
    }[kind]


KINDS = [
    "random",
    "duplicates",
    "line",
    "slanted line",
    "nearly a line",
    "point",
    "lattice",
    "far outlier",
    "huge",
]


@both_cuts
@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_every_cell_is_in_exactly_one_part(
    cut: Cut, kind: str, n: int, size: int, seed: int
) -> None:
    parts = cut(scatter(kind, n, np.random.default_rng(seed)), size)
    assert min(len(p) for p in parts) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    if cut is split_grid:
        assert max(len(p) for p in parts) <= 2 * size
    else:
        assert max(len(p) for p in parts) <= size
        assert max(len(p) for p in parts) - min(len(p) for p in parts) <= 2


@pytest.mark.parametrize("kind", ["line", "slanted line", "nearly a line"])
def test_a_line_of_cells_is_not_shattered(kind: str) -> None:
    parts = split_grid(scatter(kind, 400, np.random.default_rng(0)), 100)
    assert 2 <= len(parts) <= 12


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.4])
def test_a_turned_line_is_not_shattered(angle: float) -> None:
    line = np.outer(np.linspace(-50, 50, 400), [np.cos(angle), np.sin(angle)])
    assert 2 <= len(split_grid(line, 100)) <= 12


@both_cuts
@given(st.integers(1, 200), st.integers(5, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_changes_nothing(cut: Cut, n: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = scatter("random", n, rng)
    order = rng.permutation(n)
    parts = {frozenset(p.tolist()) for p in cut(points, size)}
    shuffled = {frozenset(order[p].tolist()) for p in cut(points[order], size)}
    assert parts == shuffled


@given(st.integers(2, 300), st.integers(5, 80), st.floats(0, 6.28), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_balanced_parts_turn_with_the_slice(n: int, size: int, angle: float, seed: int) -> None:
    points = scatter("random", n, np.random.default_rng(seed))
    c, s = np.cos(angle), np.sin(angle)
    moved = points @ np.array([[c, s], [-s, c]]) + [300.0, -20.0]
    parts = [frozenset(p.tolist()) for p in split_balanced(points, size)]
    assert set(parts) == {frozenset(p.tolist()) for p in split_balanced(moved, size)}


def test_balanced_parts_are_contiguous() -> None:
    points = np.random.default_rng(0).uniform(size=(2000, 2)) * [4, 1]
    tree = cKDTree(points)
    whole = np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
    for part in split_balanced(points, 250):
        assert len(part) == 250
        inside = np.isin(tree.query(points[part], k=5)[1], part).mean()
        assert inside > 0.9  # neighbors are mostly of the same part
        assert np.linalg.norm(points[part] - points[part].mean(axis=0), axis=1).mean() < whole / 2


def test_grid_tiles_are_square() -> None:
    points = np.random.default_rng(0).uniform(size=(3000, 2)) * [60, 20]
    side = np.sqrt(np.prod(np.ptp(points, axis=0)) / (3000 // 400 + 1))
    for part in split_grid(points, 400):
        assert np.ptp(points[part], axis=0).max() <= side * (1 + 1e-9)


@given(st.integers(2, 150), st.floats(0, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_halo_cells_against_brute_force(n: int, width: float, seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(n, 2)) * 3
    core = np.arange(n // 2 + 1)
    gaps = np.linalg.norm(points[:, None] - points[None, core], axis=-1).min(axis=1)
    expected = [i for i in range(n) if i not in core and gaps[i] <= width]
    assert sorted(halo_cells(points, cKDTree(points), core, width).tolist()) == expected


def brute_pairs(sub: SubSlice, config: SubSliceConfig) -> dict[tuple[int, int], float]:
    """All listed pairs of a sub-slice by sorting dense distances."""
    tokens, first = sub.positions, 1 + sub.n_virtual
    true = np.linalg.norm(tokens[:, None] - tokens[None], axis=-1)
    listed: dict[tuple[int, int], float] = {}

    def add(i: int, j: int) -> None:
        listed[min(i, j), max(i, j)] = true[i, j]

    everything = range(len(tokens))
    search = everything if config.geometry == "published" else range(first, len(tokens))
    k = config.n_neighbors - 1 if config.geometry == "published" else config.n_neighbors
    for i in search:
        others = sorted((j for j in search if j != i), key=lambda j: true[i, j])
        reach = true[i, others[min(k, len(others)) - 1]] if others else -1.0
        nearest = (
            [j for j in others if true[i, j] <= reach * (1 + 1e-6)]
            if config.geometry == "um"
            else others[:k]
        )
        for j in nearest:
            if min(i, j) >= first:
                add(i, j)
    for v in range(1, first):
        for j in everything:
            if j not in (0, v):
                add(v, j)
    return listed


@pytest.mark.parametrize("config", [UM, PUBLISHED], ids=["um", "published"])
@given(st.integers(1, 60), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_listed_pairs_against_brute_force(
    config: SubSliceConfig, n: int, n_virtual: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sub = next(
        iterate(rng.normal(size=(n, 2)), rng.normal(size=(n_virtual, 2)), [np.arange(n)], config)
    )
    expected = brute_pairs(sub, config)
    found = dict(
        zip(
            zip(sub.row.tolist(), sub.col.tolist(), strict=True), sub.distance.tolist(), strict=True
        )
    )
    assert len(found) == len(sub.row)  # each pair once
    assert found.keys() == expected.keys()
    for pair, distance in found.items():
        assert distance == pytest.approx(expected[pair], abs=1e-6)
    assert np.all(sub.row < sub.col)
    assert sub.row.min(initial=1) >= 1


def test_ties_all_count_in_micrometers() -> None:
    lattice = np.array([[x, y] for x in range(12) for y in range(12)], dtype=float)
    sub = next(iterate(lattice, np.empty((0, 2)), [np.arange(144)], replace(UM, n_neighbors=3)))
    found = set(zip((sub.row - 1).tolist(), (sub.col - 1).tolist(), strict=True))
    true = np.linalg.norm(lattice[:, None] - lattice[None], axis=-1)
    inner = [i for i, (x, y) in enumerate(lattice) if 0 < x < 11 and 0 < y < 11]
    for i in inner:  # the third nearest of four equally near ones brings all four
        assert {
            j for j in range(144) if (min(i, j), max(i, j)) in found and true[i, j] == 1
        } == set(np.flatnonzero(true[i] == 1).tolist())


@pytest.mark.parametrize("n", [1, 2, 40, 120])
def test_coincident_cells_are_near_each_other(n: int) -> None:
    sub = next(iterate(np.zeros((n, 2)), np.empty((0, 2)), [np.arange(n)], UM))
    assert len(sub.row) == n * (n - 1) // 2  # all tie
    assert not sub.distance.any()


def test_two_cells_at_one_point_have_distance_zero() -> None:
    points = np.array([[0.0, 0], [0, 0], [1, 0], [2, 0], [3, 0]])
    sub = next(iterate(points, np.empty((0, 2)), [np.arange(5)], UM))
    found = dict(
        zip(
            zip(sub.row.tolist(), sub.col.tolist(), strict=True), sub.distance.tolist(), strict=True
        )
    )
    assert found[1, 2] == 0.0


def test_one_cell() -> None:
    for config in (UM, PUBLISHED, replace(UM, pair="full"), replace(UM, halo=2.0)):
        positions = model_positions(np.array([[3.0, 4.0]]), config)
        np.testing.assert_allclose(positions, 0)
        parts = split_cells(positions, config)
        assert [p.tolist() for p in parts] == [[0]]
        sub = next(iterate(positions, positions, parts, config))
        assert sub.token_types.tolist() == [1, 2, 0]
        assert sub.n_tokens == 3


def test_full_pairs_list_nothing_and_keep_positions() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    sub = next(iterate(points, points[:2], [np.arange(30)], replace(UM, pair="full")))
    assert sub.full
    assert len(sub.row) == len(sub.col) == len(sub.distance) == 0
    np.testing.assert_array_equal(sub.positions, np.concatenate([[[0, 0]], points[:2], points]))


def test_iterate_with_a_halo() -> None:
    points = np.random.default_rng(0).uniform(size=(400, 2)) * 40
    config = replace(UM, subslice_size=100, halo=2.0)
    width = 2 * np.median(cKDTree(points).query(points, k=2)[0][:, 1])
    parts = split_cells(points, config)
    seen = []
    for part, sub in zip(parts, iterate(points, points[:3], parts, config), strict=True):
        core, halo = sub.cells[: sub.n_core], sub.cells[sub.n_core :]
        np.testing.assert_array_equal(core, part)
        assert len(halo) > 0
        assert not set(halo.tolist()) & set(core.tolist())
        near = cKDTree(points[core]).query(points)[0]
        assert set(halo.tolist()) == {i for i in range(400) if near[i] <= width and i not in core}
        assert sub.n_tokens == 1 + 3 + len(core) + len(halo)
        seen.extend(core.tolist())
    assert sorted(seen) == list(range(400))


def test_published_positions_have_diagonal_100_and_micrometers_do_not_depend_on_the_slice() -> None:
    coords = np.random.default_rng(0).uniform(size=(50, 2)) * [700, 300] + 1000
    published = model_positions(coords, PUBLISHED)
    assert np.linalg.norm(np.ptp(published, axis=0)) == pytest.approx(100)
    np.testing.assert_allclose(published.max(axis=0), -published.min(axis=0))
    um = model_positions(coords, UM, 20.0)
    np.testing.assert_allclose(um[0] - um[1], (coords[0] - coords[1]) / 20)
    np.testing.assert_allclose(um.mean(axis=0), 0, atol=1e-9)
