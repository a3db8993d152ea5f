"""Binned cells: the published digits where nothing is left to chance, and chance that is honest and repeatable."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from terrazzo.errors import ConfigError
from terrazzo.systems.scgpt.tokens import bin_cells


def csr(rows):
    out = sp.csr_matrix(np.asarray(rows, dtype=np.float32))
    out.sort_indices()
    return out


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rows = rng.poisson(rng.gamma(0.5, 4.0, 80), (30, 80))
    rows[4] = 0
    return rows


def cell(binned, i):
    own = slice(binned.tokens.offsets[i], binned.tokens.offsets[i + 1])
    return dict(zip(binned.tokens.flat[own].tolist(), binned.values[own].tolist(), strict=True))


def bounds(row, n_bins):
    """Smallest and largest bin of each value, as the published digitizing has them."""
    edges = np.quantile(row, np.linspace(0, 1, n_bins - 1))
    left, right = np.digitize(row, edges), np.digitize(row, edges, right=True)
    return np.minimum(left, right + 1), left


def test_distinct_values_get_their_quantile():
    rng = np.random.default_rng(1)
    row = rng.permutation(np.arange(1, 301)) * 3.0
    found = cell(bin_cells(csr([row]), np.arange(300, dtype=np.int32)), 0)
    edges = np.quantile(row, np.linspace(0, 1, 50))
    expected = [sum(edge <= value for edge in edges) for value in row]
    assert [found[i] for i in range(300)] == expected
    assert (min(expected), max(expected)) == (1, 50)
    few = cell(bin_cells(csr([row[:100]]), np.arange(100, dtype=np.int32), n_bins=5), 0)
    assert set(few.values()) == {1, 2, 3, 4}


def test_equal_values_are_dealt_out_among_their_bins():
    row = np.array([1.0] * 400 + [2.0] * 300 + [7.0] * 300)
    low, high = bounds(row, 51)
    found = cell(bin_cells(csr([row]), np.arange(1000, dtype=np.int32)), 0)
    values = np.array([found[i] for i in range(1000)])
    assert ((values >= low) & (values <= high)).all()
    for value in (1, 2, 7):
        own = row == value
        span = np.arange(low[own][0], high[own][0] + 1)
        assert len(span) > 10
        share = np.bincount(values[own].astype(int), minlength=51)[span] / own.sum()
        assert (share > 0.2 / len(span)).all()  # each of its bins, about equally
        assert (share < 2.5 / len(span)).all()


def test_one_gene_and_equal_genes():
    found = bin_cells(csr([[0, 3, 0], [2, 2, 2]]), np.arange(3, dtype=np.int32))
    assert list(cell(found, 0)) == [1]
    assert all(1 <= value <= 50 for i in (0, 1) for value in cell(found, i).values())


def test_only_the_order_within_a_cell_counts(counts):
    token = np.arange(80, dtype=np.int32)
    distinct = csr(np.argsort(np.random.default_rng(2).random((5, 80)), axis=1) + 1)
    first, tripled = bin_cells(distinct, token), bin_cells(distinct * 3, token)
    np.testing.assert_array_equal(first.values, tripled.values)


def test_rows_columns_and_other_cells_change_nothing(counts):
    token = np.random.default_rng(3).permutation(200)[:80].astype(np.int32)
    token[[2, 9]] = -1
    first = bin_cells(csr(counts), token, max_length=20)
    rows, columns = (
        np.random.default_rng(4).permutation(30),
        np.random.default_rng(5).permutation(80),
    )
    moved = bin_cells(csr(counts[rows][:, columns]), token[columns], max_length=20)
    for new, old in enumerate(rows):
        assert cell(moved, new) == cell(first, old)
    alone = bin_cells(csr(counts[7:8]), token, max_length=20)
    assert cell(alone, 0) == cell(first, 7)


def test_a_seed_decides(counts):
    token = np.arange(80, dtype=np.int32)
    first, again, other = (bin_cells(csr(counts), token, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.tokens.flat, other.tokens.flat)
    assert (first.values != other.values).mean() > 0.2
    low, high = bounds(counts[0][counts[0] > 0].astype(np.float32), 51)
    own = np.array([cell(other, 0)[i] for i in np.flatnonzero(counts[0])])
    assert ((own >= low) & (own <= high)).all()


def test_of_too_many_genes_a_random_part_is_kept(counts):
    token = np.arange(80, dtype=np.int32)
    whole, part = bin_cells(csr(counts), token), bin_cells(csr(counts), token, max_length=11)
    n = (counts > 0).sum(axis=1)
    np.testing.assert_array_equal(part.tokens.lengths, np.minimum(n, 10))
    np.testing.assert_array_equal(part.sampled, n > 10)
    assert not whole.sampled.any()
    for i in range(30):
        assert (
            cell(part, i).items() <= cell(whole, i).items()
        )  # bins are of all genes, not of those kept
    times = np.bincount(part.tokens.flat, minlength=80) / np.maximum((counts > 0).sum(axis=0), 1)
    common = (counts > 0).sum(axis=0) > 15
    assert times[common].max() < 0.9  # no gene is always kept, none never
    assert times[common].min() > 0
    edge = bin_cells(csr(counts), token, max_length=int(n[0]) + 1)
    assert cell(edge, 0) == cell(whole, 0)


def test_columns_of_one_token_are_summed_and_foreign_ones_left_out():
    rows = [[1, 4, 2, 9, 0]]
    found = bin_cells(csr(rows), np.array([5, -1, 3, 5, 8], dtype=np.int32))
    summed = bin_cells(csr([[2, 10]]), np.array([3, 5], dtype=np.int32))
    assert cell(found, 0) == cell(summed, 0)
    assert list(cell(found, 0)) == [3, 5]


def test_cells_without_genes_and_some_cells(counts):
    token = np.arange(80, dtype=np.int32)
    whole = bin_cells(csr(counts), token, max_length=20)
    assert whole.tokens.lengths[4] == 0
    rows = np.array([7, 4, 0, 7])
    part = whole.take(rows)
    assert len(part) == 4
    assert [cell(part, i) for i in range(4)] == [cell(whole, i) for i in rows]
    np.testing.assert_array_equal(part.sampled, whole.sampled[rows])
    none = bin_cells(csr(counts[:0]), token)
    assert (len(none), none.values.shape, none.values.dtype) == (0, (0,), np.float32)
    unknown = bin_cells(csr(counts), np.full(80, -1, dtype=np.int32))
    assert (len(unknown), len(unknown.values)) == (30, 0)


def test_impossible_settings_are_refused(counts):
    for options in ({"n_bins": 1}, {"max_length": 1}):
        with pytest.raises(ConfigError, match="at least 2"):
            bin_cells(csr(counts), np.arange(80, dtype=np.int32), **options)
