"""Values of sites against dense numpy: sums over cells, log-normalization, and the scale of a slice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from terrazzo.expression import PAPER_TOTAL, SliceScale, log_values, variance
from terrazzo.sparse import merge_rows

Array = np.ndarray


def csr(dense: Array) -> sparse.csr_matrix:
    return sparse.csr_matrix(dense.astype(np.float32))


def counts_of(seed: int, n: int = 40, genes: int = 12, mean: float = 1.5) -> Array:
    """Counts with sites that have none and genes that nobody has."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(mean * rng.gamma(0.7, size=genes), (n, genes)) * rng.integers(1, 5, (n, 1))
    counts[rng.random(n) < 0.1] = 0
    counts[:, rng.random(genes) < 0.1] = 0
    return counts


def dense_values(counts: Array, total: Array, scale: float) -> Array:
    shares = np.divide(counts, total[:, None], out=np.zeros(counts.shape), where=total[:, None] > 0)
    return np.log1p(shares * scale)


# log1p of scaled counts


def test_values_by_hand() -> None:
    found = log_values(csr(np.array([[1, 3], [0, 0], [5, 0]])), 8.0).toarray()
    np.testing.assert_allclose(found, np.log1p([[2, 6], [0, 0], [8, 0]]), rtol=1e-6)
    assert found.dtype == np.float32


def test_a_total_may_count_other_genes_too() -> None:
    found = log_values(csr(np.array([[1, 3], [2, 0]])), 100.0, np.array([10.0, 0.0])).toarray()
    np.testing.assert_allclose(found, np.log1p([[10, 30], [0, 0]]), rtol=1e-6)  # no total: no value


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 731.5, PAPER_TOTAL]))
@settings(max_examples=30, deadline=None)
def test_values_equal_dense_numpy(seed: int, scale: float) -> None:
    counts = counts_of(seed)
    total = counts.sum(axis=1) + np.random.default_rng(seed).integers(0, 30, len(counts)).astype(
        float
    )
    np.testing.assert_allclose(
        log_values(csr(counts), scale, total).toarray(),
        dense_values(counts, total, scale),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        log_values(csr(counts), scale).toarray(),
        dense_values(counts, counts.sum(axis=1).astype(float), scale),
        rtol=1e-6,
    )


def test_values_leave_the_counts_alone() -> None:
    counts = csr(counts_of(0))
    before = counts.toarray()
    log_values(counts, 1e4)
    np.testing.assert_array_equal(counts.toarray(), before)


# Sums over the cells of a site


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_sums_equal_a_loop(seed: int, n_sites: int) -> None:
    rng = np.random.default_rng(seed)
    counts = counts_of(seed, n=20)
    where = rng.integers(0, n_sites, 20)  # some sites stay without a cell
    expected = np.zeros((n_sites, counts.shape[1]))
    for cell, site in enumerate(where):
        expected[site] += counts[cell]
    np.testing.assert_array_equal(merge_rows(csr(counts), where, n_sites).toarray(), expected)


def test_one_cell_a_site_in_order_is_what_it_was() -> None:
    counts = csr(counts_of(1))
    assert merge_rows(counts, np.arange(40), 40) is counts
    backwards = merge_rows(counts, np.arange(40)[::-1], 40)
    np.testing.assert_array_equal(backwards.toarray(), counts.toarray()[::-1])


def test_sites_without_cells_have_rows() -> None:
    found = merge_rows(csr(np.zeros((0, 3))), np.zeros(0, np.int64), 4)
    assert found.shape == (4, 3)
    assert found.nnz == 0


# The scale of a slice


def dense_scale(counts: Array, total: Array, normalize: str) -> tuple[float, Array, Array]:
    scale = 1e4 if normalize == "paper" else float(np.median(total[total > 0]))
    values = dense_values(counts, total, scale)
    return scale, values.mean(axis=0), values.std(axis=0)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["paper", "median"]),
    st.lists(st.integers(0, 15), max_size=6),
)
@settings(max_examples=50, deadline=None)
def test_scale_equals_dense_numpy_however_it_is_cut(
    seed: int, normalize: Any, cuts: list[int]
) -> None:
    counts = counts_of(seed)
    total = counts.sum(axis=1) + np.random.default_rng(seed).integers(0, 9, 40).astype(float)
    total[:2], counts[:2] = 0, 0  # sites with a cell and no count are counted in
    if not total.any():
        return
    edges = [0, *np.minimum(np.cumsum(cuts), 40), 40]  # blocks of any size, none among them
    blocks = (csr(counts[a:b]) for a, b in itertools.pairwise(edges))
    found = SliceScale.fit(blocks, total, normalize)
    scale, mean, sd = dense_scale(counts, total, normalize)
    assert found.total == scale
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.sd, sd, rtol=1e-4, atol=2e-6)
    whole = SliceScale.fit([csr(counts)], total, normalize)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(found.sd, whole.sd, rtol=1e-7)


@pytest.mark.parametrize("normalize", ["paper", "median"])
def test_standardized_values_have_mean_0_and_sd_1(normalize: Any) -> None:
    counts = counts_of(7, n=300)
    total = counts.sum(axis=1).astype(float)
    scale = SliceScale.fit([csr(counts)], total, normalize)
    genes = np.array([5, 0, 3, 11])
    raw = log_values(csr(counts), scale.total, total).toarray()[:, genes]
    found = scale.standardize(raw, genes)
    assert (found.dtype, found.shape) == (np.float32, (300, 4))
    varies = counts[:, genes].any(axis=0)
    assert varies.sum() >= 3
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), varies, atol=1e-5)
    np.testing.assert_allclose(scale.restore(found, genes), raw, atol=1e-5)


def test_a_gene_that_does_not_vary_is_not_blown_up() -> None:
    counts = np.array([[0, 10, 4], [0, 10, 8], [0, 10, 2]])
    total = np.array([30.0, 30.0, 30.0])
    scale = SliceScale.fit([csr(counts)], total, "paper")
    assert scale.sd[:2].tolist() == [0, 0]
    assert scale.sd[2] > 0.1
    genes = np.arange(3)
    found = scale.standardize(log_values(csr(counts), scale.total, total).toarray(), genes)
    assert not found[:, :2].any()
    far = scale.standardize(
        np.array([[50.0, 50.0, 50.0]], np.float32), genes
    )  # another slice's value, say
    assert far[0, :2].tolist() == [0, 0]
    np.testing.assert_allclose(scale.restore(found, genes)[:, 1], np.log1p(1e4 / 3), rtol=1e-6)


def test_genes_in_equal_shares_are_flat_although_sums_are_rounded() -> None:
    """The same shares of totals that differ: rounding in sums of squares must not be turned into variance."""
    depth = np.arange(1, 1000).astype(float)
    counts = depth[:, None] * np.arange(1, 41)
    values = log_values(csr(counts), 1e4).toarray().astype(float)
    rounded = (values**2).mean(axis=0) - values.mean(axis=0) ** 2
    assert (rounded > 0).any()  # or there is nothing to see here
    scale = SliceScale.fit([csr(counts)], counts.sum(axis=1), "paper")
    assert not scale.sd.any()


@pytest.mark.parametrize("normalize", ["paper", "median"])
def test_a_slice_without_counts_or_cells(normalize: Any) -> None:
    scale = SliceScale.fit([csr(np.zeros((3, 4)))], np.zeros(3), normalize)
    assert scale.total == PAPER_TOTAL
    assert not scale.mean.any()
    assert not scale.standardize(np.zeros((3, 4), np.float32), np.arange(4)).any()
    assert len(SliceScale.fit([], np.zeros(0), normalize).mean) == 0


def test_the_median_is_over_sites_with_counts() -> None:
    counts = np.diag([0, 0, 0, 2, 4, 60])
    assert SliceScale.fit([csr(counts)], counts.sum(axis=1).astype(float), "median").total == 4


def test_a_million_counts_keep_their_spread() -> None:
    """One pass over squares: a gene that hardly varies beside its mean keeps its sd."""
    rng = np.random.default_rng(0)
    counts = np.stack(
        [np.full(500, 5e5) + rng.normal(0, 3e3, 500).round(), np.full(500, 5e5)], axis=1
    )
    total = np.full(500, 1e6)
    scale = SliceScale.fit([csr(counts)], total, "paper")
    np.testing.assert_allclose(
        scale.sd, dense_scale(counts, total, "paper")[2], rtol=1e-3, atol=1e-9
    )
    assert scale.sd[0] > 0.005


# Variance of columns


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_variance_counts_the_zeros(seed: int, n: int) -> None:
    values = log_values(csr(counts_of(seed, n=n)), 1e3)
    np.testing.assert_allclose(
        variance(values), values.toarray().astype(float).var(axis=0), atol=1e-9
    )


def test_variance_of_no_row_and_of_one() -> None:
    assert variance(csr(np.zeros((0, 3)))).tolist() == [0, 0, 0]
    np.testing.assert_allclose(variance(csr(np.array([[3.0, 0, 1e3]]))), 0, atol=1e-12)
