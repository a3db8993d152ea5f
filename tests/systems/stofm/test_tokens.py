"""Ranked tokens against a dense reference written here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.tokens import rank_tokens


def dense_tokens(
    counts: np.ndarray, token: np.ndarray, median: np.ndarray, max_length: int
) -> list[list[int]]:
    """Rank genes cell by cell on a dense matrix; columns of one token are summed into the first."""
    counts, token = counts.astype(np.float64), token.copy()
    totals = counts.sum(axis=1)
    for t in np.unique(token[token >= 0]):
        first, *rest = np.flatnonzero(token == t)
        counts[:, first] += counts[:, rest].sum(axis=1)
        token[rest] = -1
    out = []
    for row, total in zip(counts, totals, strict=True):
        kept = [c for c in range(len(row)) if token[c] >= 0 and row[c] > 0]
        score = {
            c: float(np.float32(row[c]) / np.float32(total) * np.float32(10_000)) / median[c]
            for c in kept
        }
        ranked = sorted(kept, key=lambda c: -score[c])  # a stable sort: ties stay in column order
        out.append([int(token[c]) for c in ranked[: max_length - 1]])
    return out


def rank(
    counts: np.ndarray, token: np.ndarray, median: np.ndarray, max_length: int = 2048
) -> Tokens:
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    return rank_tokens(matrix, token.astype(np.int32), median.astype(np.float64), max_length)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    n, genes = draw(st.integers(1, 12)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.poisson(draw(st.sampled_from([0.0, 0.3, 2.0, 50.0])), (n, genes))
    token = rng.integers(
        -1, draw(st.sampled_from([3, 30, 300])), genes
    )  # unmatched columns, and columns that share a token
    median = rng.choice([0.5, 1.0, 1.5, 2.0], genes)  # few values, so that ties are common
    values = dict(zip(token, median, strict=True))
    return counts, token, np.array([values[t] for t in token]), draw(st.integers(2, 50))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_reference(case: tuple[np.ndarray, np.ndarray, np.ndarray, int]) -> None:
    counts, token, median, max_length = case
    found = rank(counts, token, median, max_length)
    expected = dense_tokens(counts, token, median, max_length)
    assert [found[i].tolist() for i in range(len(found))] == expected
    assert found.lengths.tolist() == [len(e) for e in expected]


def test_ties_keep_column_order() -> None:
    found = rank(np.array([[2, 4, 2, 1]]), np.array([9, 8, 7, 6]), np.array([1.0, 2.0, 1.0, 1.0]))
    assert found[0].tolist() == [9, 8, 7, 6]


def test_many_ties_keep_column_order() -> None:
    found = rank(np.ones((1, 60)), np.arange(60)[::-1], np.ones(60))
    assert found[0].tolist() == list(range(60))[::-1]


def test_the_median_decides_the_rank() -> None:
    found = rank(np.array([[5, 4]]), np.array([3, 4]), np.array([10.0, 1.0]))
    assert found[0].tolist() == [4, 3]


def test_columns_that_share_a_token_are_summed() -> None:
    counts = np.array([[2, 5, 4], [3, 0, 0], [0, 1, 2]])
    found = rank(counts, np.array([7, 8, 7]), np.ones(3))
    assert [found[i].tolist() for i in range(3)] == [[7, 8], [7], [7, 8]]


def test_the_total_counts_genes_outside_the_vocabulary_and_changes_no_rank() -> None:
    counts = np.array([[3, 2, 1000]])
    found = rank(counts, np.array([1, 2, -1]), np.ones(3))
    assert found[0].tolist() == [1, 2]


def test_empty_cells_have_no_tokens() -> None:
    found = rank(np.array([[0, 0], [0, 3], [0, 0]]), np.array([1, 2]), np.ones(2))
    assert found.lengths.tolist() == [0, 1, 0]
    assert rank(np.zeros((2, 3)), np.array([1, 2, 3]), np.ones(3)).lengths.tolist() == [0, 0]


@pytest.mark.parametrize("max_length", [2, 3, 6])
def test_max_length_leaves_room_for_cls(max_length: int) -> None:
    found = rank(np.array([[1, 5, 3, 4, 2]]), np.arange(5), np.ones(5), max_length)
    assert found[0].tolist() == [1, 3, 2, 4, 0][: max_length - 1]


def test_take_gives_these_cells_in_this_order() -> None:
    found = rank(np.random.default_rng(0).poisson(0.5, (9, 6)), np.arange(6), np.ones(6))
    order = np.array([4, 0, 0, 8])
    taken = found.take(order)
    assert [taken[i].tolist() for i in range(4)] == [found[int(c)].tolist() for c in order]
    assert len(found.take(np.array([], dtype=np.int64))) == 0


def test_digests_tell_sequences_apart_and_nothing_else() -> None:
    flat = np.array([1, 2, 2, 1, 1, 2, 256, 1], dtype=np.int32)
    digests = Tokens(flat, np.array([0, 2, 4, 6, 6, 7, 8, 8])).digests()
    assert digests[0] == digests[2]
    assert digests[3] == digests[6]
    assert len(set(digests.tolist())) == 5  # [1 2], [2 1], [], [256], [1]
    moved = Tokens(flat[2:4], np.array([0, 2])).digests()
    assert moved[0] == digests[1]
