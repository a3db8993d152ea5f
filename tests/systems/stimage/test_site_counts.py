"""Compiled passes over the counts of windows against plain numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import binom, chisquare

from terrazzo.expression import SliceScale, log_values, scaling, variance
from terrazzo.systems.stimage.counts import FEW, KNOWN, MANY, SiteCounts, row_sums, thinned
from terrazzo.systems.stimage.windows import channel_values

Array = np.ndarray
N_TOKENS = 15


def counts_of(
    seed: int, n: int = 12, genes: int = 20, dtype: Any = np.float32
) -> sparse.csr_matrix:
    """Counts with empty rows and columns, small ones, some beyond what is tabulated, and of float64 huge ones."""
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.8, (n, genes)) + rng.binomial(1, 0.05, (n, genes)) * rng.integers(
        KNOWN - 2, 400, (n, genes)
    )
    if dtype == np.float64:
        dense = dense + rng.binomial(1, 0.03, (n, genes)) * (2**24 + 1)
    dense[rng.random(n) < 0.15], dense[:, rng.random(genes) < 0.15] = 0, 0
    return sparse.csr_matrix(dense.astype(dtype))


def tokens_of(seed: int, genes: int = 20, shared: bool = False) -> Array:
    """Tokens in no order, some genes without one."""
    rng = np.random.default_rng(seed)
    token = np.append(rng.permutation(N_TOKENS), np.full(genes, -1))[:genes].astype(np.int32)
    token[rng.random(genes) < 0.2] = -1
    token = rng.permutation(token)
    if shared:
        token[rng.choice(genes, 6, replace=False)] = rng.integers(0, N_TOKENS, 6)
    return token


def plain(
    counts: sparse.csr_matrix, cells: Array, where: Array, n_sites: int, token: Array
) -> tuple[Array, Array]:
    """Sum in loops: counts by token and totals."""
    out, totals = np.zeros((n_sites, N_TOKENS)), np.zeros(n_sites)
    for cell, site in zip(cells, where, strict=True):
        row = counts[[cell]].toarray()[0].astype(np.float64)
        totals[site] += row.sum()
        for gene, count in enumerate(row):
            if token[gene] >= 0:
                out[site, token[gene]] += count
    return out, totals


def summed_of(
    seed: int, layout: str, dtype: Any = np.float32
) -> tuple[SiteCounts, Array, Array, Array]:
    """Return sites of a slice, and what they hold by plain sums: counts, totals, which have a cell."""
    rng, counts = np.random.default_rng(seed), counts_of(seed, dtype=dtype)
    token = tokens_of(seed, shared=layout == "shared tokens")
    if layout == "empty":
        cells = where = np.zeros(0, dtype=np.int64)
    elif layout == "several cells":
        cells, where = rng.permutation(12)[:10], rng.integers(0, 9, 10)
    else:
        cells, where = (
            rng.permutation(12)[:7],
            rng.permutation(9)[:7],
        )  # sites without a cell, in no order
    ours, totals = SiteCounts.summed(counts, cells, where, 9, token, N_TOKENS)
    wanted, wanted_totals = plain(counts, cells, where, 9, token)
    np.testing.assert_array_equal(totals, wanted_totals)
    return ours, wanted, wanted_totals, np.isin(np.arange(9), where)


LAYOUTS = ("one cell", "several cells", "shared tokens", "empty")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@every_layout
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_and_totals_are_sums(layout: str, dtype: Any) -> None:
    for seed in range(8):
        ours, wanted, totals, _ = summed_of(seed, layout, dtype)
        assert len(ours) == 9
        found = ours.by_token()
        assert (found.dtype, found.shape) == (dtype, wanted.shape)
        np.testing.assert_array_equal(found.toarray(), wanted)
        genes = np.random.default_rng(seed).permutation(N_TOKENS)[:6]
        np.testing.assert_array_equal(ours.take(genes).toarray(), wanted[:, genes])
        assert ours.take(genes[:0]).shape == (9, 0)
        columns = np.sort(found.indices + N_TOKENS * np.repeat(np.arange(9), np.diff(found.indptr)))
        assert (np.diff(columns) > 0).all()  # none twice
        np.testing.assert_array_equal(row_sums(found), wanted.sum(axis=1))
        assert layout == "empty" or totals.sum() > wanted.sum()


def test_nothing_is_copied_where_nothing_is_summed() -> None:
    ours, *_ = summed_of(0, "one cell")
    counts = counts_of(0)
    direct, _ = SiteCounts.summed(
        counts, np.array([3, 1]), np.array([0, 2]), 3, tokens_of(0), N_TOKENS
    )
    assert direct.matrix is counts
    assert direct.rows.tolist() == [3, -1, 1]
    assert ours.rows.min() == -1


def test_a_matrix_may_have_long_pointers_and_columns_in_any_order() -> None:
    counts, token = counts_of(3), tokens_of(3)
    wide = counts.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    for row in range(12):
        here = slice(wide.indptr[row], wide.indptr[row + 1])
        wide.indices[here], wide.data[here] = (
            wide.indices[here][::-1].copy(),
            wide.data[here][::-1].copy(),
        )
    wide.has_sorted_indices = False
    for where in (np.arange(12), np.arange(12) // 2):
        one, other = (
            SiteCounts.summed(c, np.arange(12), where, 12, token, N_TOKENS) for c in (counts, wide)
        )
        np.testing.assert_array_equal(one[0].by_token().toarray(), other[0].by_token().toarray())
        np.testing.assert_array_equal(one[1], other[1])


@every_layout
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_variance_is_that_of_dense_values(layout: str, dtype: Any) -> None:
    for seed in range(8):
        ours, wanted, totals, there = summed_of(seed, layout, dtype)
        found = ours.variance(scaling(731.0, totals), there)
        assert found.shape == (N_TOKENS,)
        if there.any():
            dense = np.log1p(wanted * scaling(731.0, totals)[:, None])[there]
            np.testing.assert_allclose(found, dense.var(axis=0), atol=1e-9)
            by_hand = variance(log_values(sparse.csr_matrix(wanted)[there], 731.0, totals[there]))
            np.testing.assert_allclose(found, by_hand, atol=1e-5)
        else:
            assert not found.any()


def scale_of(seed: int) -> SliceScale:
    rng = np.random.default_rng(seed)
    return SliceScale(
        512.5,
        rng.gamma(1, size=N_TOKENS),
        rng.gamma(2, size=N_TOKENS) * (rng.random(N_TOKENS) > 0.2),
    )


@every_layout
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_those_of_the_plain_way(layout: str, standardize: bool, dtype: Any) -> None:
    for seed in range(8):
        ours, wanted, totals, there = summed_of(seed, layout, dtype)
        scale, genes = scale_of(seed), np.random.default_rng(seed).permutation(N_TOKENS)[:7]
        found = channel_values(ours, totals, there, genes, scale, standardize)
        dense = log_values(sparse.csr_matrix(wanted), scale.total, totals).toarray()[:, genes]
        dense = scale.standardize(dense, genes) if standardize else dense
        dense[~there | (totals == 0)] = 0
        assert (found.dtype, found.shape) == (np.float32, (9, 7))
        np.testing.assert_allclose(found, dense, rtol=1e-5, atol=1e-5)


def test_values_are_written_where_asked_for() -> None:
    ours, _, totals, there = summed_of(5, "one cell")
    scale, genes, rng = scale_of(5), np.arange(7), np.random.default_rng(0)
    whole, where, some = (
        channel_values(ours, totals, there, genes, scale, True),
        rng.random((9, 7)) < 0.5,
        there.copy(),
    )
    some[np.flatnonzero(there)[0]] = False
    wide = np.full((9, 10), 7, dtype=np.float32)
    for out in (
        np.full((9, 7), 7, dtype=np.float32),
        wide[:, 1:8],
    ):  # also into a part of something wider
        assert channel_values(ours, totals, some, genes, scale, True, where, out) is out
        written = where & (some & (totals > 0))[:, None]
        np.testing.assert_array_equal(out, np.where(written, whole, 7))
    assert (wide[:, [0, 8, 9]] == 7).all()


def test_halves_and_nan_are_no_numbers_of_a_table() -> None:
    dense = np.array([[0.5, 1.5, KNOWN - 0.5, KNOWN, np.nan, 0, 1e9, 1e12]])
    counts = SiteCounts.of(sparse.csr_matrix(dense))
    found = counts.values(np.arange(8), np.array([2.0]), np.array([True]), np.zeros(8), np.ones(8))
    np.testing.assert_allclose(found, np.log1p(2 * dense), rtol=1e-6)


# Binomial splits


def kept_of(count: int, rate: float, n: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    matrix = sparse.csr_matrix(np.full((n, 1), count, dtype=dtype))
    return thinned(matrix, np.full(n, rate), np.random.default_rng(seed))


@pytest.mark.parametrize("count", [1, 2, FEW, FEW + 1, 3 * FEW + 5, MANY - 1, MANY, 700])
@pytest.mark.parametrize("rate", [0.03, 0.4, 0.9])
def test_kept_counts_are_binomial(count: int, rate: float) -> None:
    n = 20_000
    kept = kept_of(count, rate, n)
    assert kept.dtype == np.float32
    assert (kept == kept.round()).all()
    assert 0 <= kept.min() <= kept.max() <= count
    chance = binom.pmf(np.arange(count + 1), count, rate) * n
    seen = np.bincount(kept.astype(int), minlength=count + 1)
    usual = chance > 5
    parts = [
        np.append(x[usual], x[~usual].sum() + 1) for x in (seen, chance)
    ]  # one, so that no group is empty
    assert chisquare(*parts).pvalue > 1e-3


def test_draws_next_to_each_other_are_independent() -> None:
    kept = kept_of(1, 0.5, 40_000).reshape(-1, 2)
    assert chisquare(np.bincount((2 * kept[:, 0] + kept[:, 1]).astype(int))).pvalue > 1e-3
    one, other = (kept_of(1, 0.5, 20_000, seed) for seed in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_kept_counts_are_no_more_than_there_were(seed: int, dtype: Any) -> None:
    counts, rng = counts_of(seed, dtype=dtype), np.random.default_rng(seed)
    rate = rng.choice([0.0, 0.2, 0.7, 1.0], 12)
    kept = thinned(counts, rate, rng)
    each = np.repeat(rate, np.diff(counts.indptr))
    assert kept.dtype == dtype
    assert ((kept >= 0) & (kept <= counts.data)).all()
    np.testing.assert_array_equal(kept[each == 1], counts.data[each == 1])
    assert not kept[each == 0].any()


def test_splits_depend_on_the_seed_alone_in_any_thread() -> None:
    counts = counts_of(1, n=200)
    rate = np.full(200, 0.5)

    def draw(seed: int) -> bytes:
        return thinned(counts, rate, np.random.default_rng(seed)).tobytes()

    alone = [draw(seed) for seed in range(8)]
    assert len(set(alone)) == 8
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, [*range(8), *range(8)])) == alone + alone


def test_nothing_to_split() -> None:
    assert (
        thinned(
            sparse.csr_matrix((3, 4), dtype=np.float32), np.full(3, 0.5), np.random.default_rng(0)
        ).size
        == 0
    )
    assert (
        thinned(
            sparse.csr_matrix((0, 4), dtype=np.float32), np.zeros(0), np.random.default_rng(0)
        ).size
        == 0
    )
