"""Windows and channels: counted by hand and by brute force, and drawn as often as eqs 6 and 7 say."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import chisquare

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError
from terrazzo.expression import SliceScale
from terrazzo.slices.grids import Grid, observed
from terrazzo.systems.stimage.counts import SiteCounts
from terrazzo.systems.stimage.windows import (
    EPSILON,
    Window,
    WindowConfig,
    choose_channels,
    corners,
    describe,
    draw_corners,
    tile_corners,
    window_sites,
)

Array = np.ndarray


def grid_from(picture: Any) -> Grid:
    """Make a grid from a picture of it: True where there is a cell."""
    occupied = np.asarray(picture, dtype=bool)
    return Grid(occupied.shape, np.flatnonzero(occupied), "square")


def counted(occupied: Array, window: int) -> Array:
    """Count a window's occupied sites by looking at each window."""
    h, w = min(window, occupied.shape[0]), min(window, occupied.shape[1])
    rows, columns = occupied.shape[0] - h + 1, occupied.shape[1] - w + 1
    return np.array(
        [[occupied[r : r + h, c : c + w].sum() for c in range(columns)] for r in range(rows)]
    )


@st.composite
def pictures(draw: st.DrawFn) -> Array:
    """Grids of any shape, one row and one column among them, with at least one cell."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    occupied = rng.random((draw(st.integers(1, 14)), draw(st.integers(1, 14)))) < draw(
        st.sampled_from([0.03, 0.3, 1.0])
    )
    occupied.flat[rng.integers(occupied.size)] = True
    return occupied


# Windows (eq 6)


def test_observed_by_hand() -> None:
    occupied = [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(observed(grid_from(occupied), 2), [[3, 2], [1, 1]])
    np.testing.assert_array_equal(observed(grid_from(occupied), 3), [[3]])
    np.testing.assert_array_equal(observed(grid_from(occupied), 16), [[3]])


@given(pictures(), st.integers(1, 16))
@settings(max_examples=80, deadline=None)
def test_observed_equals_brute_force(occupied: Array, window: int) -> None:
    np.testing.assert_array_equal(observed(grid_from(occupied), window), counted(occupied, window))


def test_a_huge_grid_is_counted_in_little_more_than_itself() -> None:
    """One outlier, and the grid is as large as it may be: 4 bytes a site and no array more than one besides."""
    grid = Grid((2000, 2000), np.array([0, 1, 2000 * 2000 - 1]), "bin")
    assert grid.occupied.tolist() == [0, 1, 3_999_999]
    tracemalloc.start()
    counts = observed(grid, 16)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts[[0, 0, 0, -1], [0, 1, 2, -1]].tolist() == [2, 1, 0, 1]
    assert counts.sum() == 4
    assert most < 12.5 * 2000 * 2000


def test_cells_of_one_site_count_once() -> None:
    grid = Grid((2, 2), np.array([0, 0, 0, 3]), "bin")
    assert observed(grid, 2).tolist() == [[2]]


def test_the_floor_by_hand() -> None:
    occupied = np.zeros((2, 6), bool)
    occupied[:, :3] = True
    occupied[0, 4] = True
    grid = grid_from(occupied)
    assert observed(grid, 2).tolist() == [[4, 4, 2, 1, 1]]
    for share, columns in [
        (0.25, [0, 1, 2, 3, 4]),
        (0.3, [0, 1, 2]),
        (0.5, [0, 1, 2]),
        (0.75, [0, 1]),
        (1.0, [0, 1]),
    ]:
        assert corners(grid, WindowConfig(window=2, occupancy=share))[:, 1].tolist() == columns


@given(pictures(), st.integers(1, 16), st.floats(0.01, 1))
@settings(max_examples=80, deadline=None)
def test_windows_are_full_enough_or_the_fullest(occupied: Array, window: int, share: float) -> None:
    counts = counted(occupied, window)
    enough = counts >= max(share * window**2, 1)
    allowed = enough if enough.any() else counts == counts.max()
    found = corners(grid_from(occupied), WindowConfig(window=window, occupancy=share))
    assert found.tolist() == np.argwhere(allowed).tolist()
    assert len(found)


def test_a_single_cell_has_one_window() -> None:
    grid = grid_from([[1]])
    assert corners(grid, WindowConfig()).tolist() == [[0, 0]]
    assert tile_corners(grid, 16, 8).tolist() == [[0, 0]]
    assert window_sites(grid, np.array([0, 0]), 3).tolist() == [0, -1, -1, -1, -1, -1, -1, -1, -1]


@given(pictures(), st.integers(1, 16), st.data())
@settings(max_examples=80, deadline=None)
def test_tiles_hold_every_occupied_site(occupied: Array, window: int, data: st.DataObject) -> None:
    grid = grid_from(occupied)
    tiles = tile_corners(grid, window, data.draw(st.integers(1, window)))
    seen = [set(window_sites(grid, corner, window).tolist()) for corner in tiles]
    assert set(grid.occupied.tolist()) <= set().union(*seen)
    assert all(
        sites & set(grid.occupied.tolist()) for sites in seen
    )  # an empty window is not worth a pass
    assert len(np.unique(tiles, axis=0)) == len(tiles)
    rows, columns = counted(occupied, window).shape
    assert (tiles >= 0).all()
    assert (tiles < [rows, columns]).all()  # no tile stands over an edge that it could stay within


@pytest.mark.parametrize("stride", [0, -1, 5])
def test_strides_that_would_leave_sites_out(stride: int) -> None:
    with pytest.raises(ConfigError, match=f"stride is {stride}"):
        tile_corners(grid_from(np.ones((20, 20))), 4, stride)


def test_window_sites_by_hand() -> None:
    grid = grid_from(np.ones((3, 4)))
    assert window_sites(grid, np.array([1, 2]), 2).tolist() == [6, 7, 10, 11]
    assert window_sites(grid, np.array([0, 0]), 4).tolist() == [
        *range(12),
        -1,
        -1,
        -1,
        -1,
    ]  # a row too few


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (3, 9), (9, 3)])
def test_a_grid_smaller_than_a_window_is_padded(shape: tuple[int, int]) -> None:
    grid = grid_from(np.ones(shape))
    assert observed(grid, 5).shape == (max(shape[0] - 4, 1), max(shape[1] - 4, 1))
    for corner in tile_corners(grid, 5, 2):
        sites = window_sites(grid, corner, 5).reshape(5, 5)
        inside = sites[: min(5, shape[0]), : min(5, shape[1])]
        assert (inside >= 0).all()
        assert (sites >= 0).sum() == inside.size  # all else is -1
        row, column = np.divmod(inside, shape[1])
        np.testing.assert_array_equal(
            row - row[0, 0], np.arange(len(row))[:, None].repeat(row.shape[1], 1)
        )
        np.testing.assert_array_equal(
            column - column[0, 0], np.arange(row.shape[1])[None].repeat(len(row), 0)
        )
        assert (row[0, 0], column[0, 0]) == tuple(corner)


def test_corners_are_drawn_uniformly() -> None:
    """Eq 6, among the windows that are full enough."""
    occupied = np.ones((9, 11), bool)
    occupied[:3, :4] = False
    allowed = corners(grid_from(occupied), WindowConfig(window=4, occupancy=0.8))
    assert 20 < len(allowed) < 48
    drawn = draw_corners(allowed, 40_000, np.random.default_rng(3))
    count = Counter(map(tuple, drawn.tolist()))
    assert set(count) == set(map(tuple, allowed.tolist()))
    assert chisquare(list(count.values())).pvalue > 1e-3


def test_drawing_depends_on_the_seed_alone() -> None:
    allowed = np.argwhere(np.ones((6, 6)))
    first, again, other = (
        draw_corners(allowed, 50, np.random.default_rng(s)).tolist() for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_line_about_a_grid() -> None:
    grid = Grid((2, 3), np.array([0, 0, 0, 1, 3]), "bin")
    assert describe(grid, WindowConfig(window=2)) == (
        "bin, 2 rows x 3 columns, 3 of 6 sites occupied (50%), 1.67 cells each (most 3); 2 windows of 2 x 2"
    )
    assert describe(grid_from([[1]]), WindowConfig()) == (
        "square, 1 row x 1 column, 1 of 1 site occupied (100%), 1 cell each; 1 window of 16 x 16, the fullest with "
        "cells on 1 of 256 sites"
    )


# Channels (eq 7)

WEIGHT = np.array([0.0, 0.2, 0.5, 1.0, 3.0])


def subset_probabilities(weight: Array, m: int) -> dict[tuple[int, ...], float]:
    """Draw one gene after the other without replacement, every order of them: the probability of each set."""
    out: dict[tuple[int, ...], float] = Counter()
    for order in itertools.permutations(range(len(weight)), m):
        chance, left = 1.0, float(weight.sum())
        for gene in order:
            chance, left = chance * weight[gene] / left, left - weight[gene]
        out[tuple(sorted(order))] += chance
    return out


def drawn_sets(
    weight: Array, m: int, n: int, seed: int, **options: Any
) -> Counter[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return Counter(
        tuple(choose_channels(weight, m, "weighted", rng, **options).tolist()) for _ in range(n)
    )


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_channels_are_drawn_as_eq_7_says(m: int) -> None:
    n, epsilon = 8000, 0.05
    expected = subset_probabilities(WEIGHT + epsilon, m)
    assert sum(expected.values()) == pytest.approx(1)
    found = drawn_sets(WEIGHT, m, n, seed=m, epsilon=epsilon)
    sets = sorted(expected)
    counts = [found[s] for s in sets]
    assert sum(counts) == n  # nothing twice, nothing else
    assert chisquare(counts, [n * expected[s] for s in sets]).pvalue > 1e-3
    # and such a test sees a difference: without epsilon's share, and with all genes alike
    for wrong in (np.sqrt(WEIGHT + epsilon), np.ones(5)):
        other = subset_probabilities(wrong, m)
        assert chisquare(counts, [n * other[s] for s in sets]).pvalue < 1e-6


def test_channels_against_a_sequential_draw() -> None:
    """Many genes: how often each is in the set, beside numpy's own draw one after the other."""
    rng = np.random.default_rng(11)
    weight = rng.gamma(0.5, size=60)
    n, m = 3000, 20
    ours = np.bincount(
        np.concatenate([choose_channels(weight, m, "weighted", rng) for _ in range(n)]),
        minlength=60,
    )
    chance = (weight + EPSILON) / (weight + EPSILON).sum()
    theirs = np.bincount(
        np.concatenate([rng.choice(60, m, replace=False, p=chance) for _ in range(n)]), minlength=60
    )
    share = (ours + theirs) / (2 * n)
    spread = np.sqrt(np.maximum(share * (1 - share), 1 / n) * 2 / n)
    assert (np.abs(ours - theirs) / n / spread).max() < 4.5


def test_a_gene_that_does_not_vary_can_be_drawn_but_hardly_is() -> None:
    weight = np.array([0.0, 1.0, 1.0])
    assert all(0 not in s for s in drawn_sets(weight, 2, 300, seed=0))
    assert any(0 in s for s in drawn_sets(weight, 2, 300, seed=0, epsilon=0.5))
    flat = drawn_sets(
        np.zeros(3), 1, 3000, seed=1
    )  # a window of one site: no gene varies, all are alike
    assert chisquare([flat[(i,)] for i in range(3)]).pvalue > 1e-3


@pytest.mark.parametrize("how", ["weighted", "spatial", "hvg", "random", "all"])
@pytest.mark.parametrize("m", [5, 6, 512])
def test_fewer_genes_than_channels(how: Any, m: int) -> None:
    assert choose_channels(WEIGHT, m, how, np.random.default_rng(0)).tolist() == [0, 1, 2, 3, 4]
    assert choose_channels(np.zeros(0), m, how, np.random.default_rng(0)).tolist() == []


def test_the_other_rules() -> None:
    rng = np.random.default_rng(0)
    weight = np.array([3.0, 0.0, 5.0, 1.0, 5.0])
    for how in ("hvg", "spatial"):
        assert choose_channels(weight, 2, how, rng).tolist() == [2, 4]
        assert choose_channels(weight, 3, how, rng).tolist() == [0, 2, 4]
        assert choose_channels(np.zeros(5), 2, how, rng).tolist() == [
            0,
            1,
        ]  # the same ones every time
    assert choose_channels(weight, 2, "all", rng).tolist() == [0, 1, 2, 3, 4]
    found = Counter(tuple(choose_channels(weight, 2, "random", rng).tolist()) for _ in range(5000))
    assert set(found) == set(itertools.combinations(range(5), 2))
    assert chisquare(list(found.values())).pvalue > 1e-3


def test_channels_depend_on_the_seed_alone() -> None:
    weight = np.random.default_rng(0).gamma(1, size=100)
    for how in ("weighted", "random"):
        one, again, other = (
            choose_channels(weight, 10, how, np.random.default_rng(s)).tolist() for s in (4, 4, 5)
        )
        assert one == again
        assert one != other
        assert one == sorted(set(one))


# A window with its values


def window_of(counts: Array, present: Array) -> Window:
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    return Window(
        SiteCounts.of(matrix),
        counts.sum(axis=1).astype(float),
        present,
        np.zeros((len(counts), 2), np.float32),
    )


def test_variance_is_that_of_observed_sites_only() -> None:
    counts = np.array([[9, 1, 0, 4], [0, 0, 0, 0], [9, 0, 1, 4], [0, 0, 0, 0]])
    window = window_of(counts, np.array([True, False, True, False]))
    scale = SliceScale(14.0, np.zeros(4), np.ones(4))
    config = WindowConfig(channels=2, choose="hvg")
    found = window.channels(config, np.arange(4), np.zeros(4), scale, np.random.default_rng(0))
    assert found.tolist() == [1, 2]  # with the empty sites as zeros, genes 0 and 3 would vary most


def test_a_window_with_a_single_observed_site() -> None:
    counts = np.zeros((4, 6))
    counts[2] = [5, 0, 1, 0, 9, 2]
    window = window_of(counts, np.array([False, False, True, False]))
    scale = SliceScale(17.0, np.zeros(6), np.ones(6))
    for how in ("weighted", "hvg", "random", "spatial"):
        genes = window.channels(
            WindowConfig(channels=3, choose=how),
            np.array([0, 2, 3, 4, 5]),
            np.arange(6.0),
            scale,
            np.random.default_rng(0),
        )
        assert len(set(genes.tolist())) == 3
        assert 1 not in genes  # the slice did not measure it
        values = window.values(genes, scale, standardize=False)
        np.testing.assert_allclose(values[2], np.log1p(counts[2, genes]), rtol=1e-6)
        assert not values[[0, 1, 3]].any()


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"channels": 0},
        {"occupancy": 0.0},
        {"occupancy": 1.1},
        {"layout": "round"},
        {"bin_um": -1.0},
        {"bin_um": float("nan")},
        {"bin_um": float("inf")},
    ],
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        from_dict(WindowConfig, wrong, "windows")
