"""Masks, noise and thinning: sets apart, shares right, counts kept, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo import splitting as sampling
from terrazzo.errors import ConfigError, InputError

SEED = st.integers(0, 2**32 - 1)


@given(st.integers(0, 300), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1), SEED)
@settings(max_examples=100, deadline=None)
def test_a_cell_is_in_one_set_at_most(
    n: int, share: float, kept_share: float, moved: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    excluded = np.arange(0, n, 7)
    masked, kept = sampling.mask_cells(n, share, rng, kept_share=kept_share, exclude=excluded)
    taken = np.concatenate([masked, kept])
    perturbed = sampling.perturb_cells(n, moved, rng, exclude=taken)
    together = np.concatenate([taken, perturbed])
    assert len(np.unique(together)) == len(together)
    assert ((together >= 0) & (together < n)).all()
    assert not np.isin(taken, excluded).any()
    free = n - len(excluded)
    assert len(masked) == (min(free, max(1, round(share * n))) if share else 0)
    assert len(perturbed) == (min(n - len(taken), max(1, round(moved * n))) if moved else 0)
    for cells in (masked, kept, perturbed):
        assert (np.diff(cells) > 0).all()


def test_every_cell_is_chosen_equally_often() -> None:
    rng, hits = np.random.default_rng(0), np.zeros(40)
    for _ in range(2000):
        masked, kept = sampling.mask_cells(40, 0.1, rng, kept_share=0.05)
        hits[masked] += 1
        hits[kept] += 1
    assert np.abs(hits / 2000 - 0.15).max() < 0.035


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (0.5, 0.6), (0.1, -0.1), (1.1, 0.0)])
def test_impossible_shares(shares: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="together at most 1"):
        sampling.mask_cells(10, shares[0], np.random.default_rng(0), kept_share=shares[1])
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            sampling.perturb_cells(10, share, np.random.default_rng(0))


def test_noise_moves_only_the_chosen_cells_by_five_spacings() -> None:
    positions = np.random.default_rng(1).normal(size=(20_000, 2))
    before, which = positions.copy(), np.arange(0, 20_000, 2)
    noisy = sampling.noisy_positions(positions, which, 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(positions, before)
    np.testing.assert_array_equal(noisy[1::2], positions[1::2])
    assert (noisy - positions)[which].std(axis=0) == pytest.approx([2.5, 2.5], rel=0.03)


@given(st.integers(0, 12), st.integers(1, 9), st.floats(0, 1), SEED)
@settings(max_examples=60, deadline=None)
def test_thinned_parts_add_up(n: int, genes: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(1.5, (n, genes)).astype(np.float32))
    for chosen in (rate, rng.random(n)):
        part, rest = sampling.thin_counts(counts, chosen, rng)
        for piece in (part, rest):
            assert piece.dtype == counts.dtype
            assert (piece.data > 0).all()
            assert piece.has_sorted_indices
            assert (piece.data == np.round(piece.data)).all()
        np.testing.assert_array_equal((part + rest).toarray(), counts.toarray())


def test_thinning_keeps_the_rate_of_each_cell() -> None:
    counts = sp.csr_matrix(np.full((2, 5000), 4, dtype=np.float32))
    part, _ = sampling.thin_counts(counts, np.array([0.2, 0.7]), np.random.default_rng(0))
    assert pytest.approx([0.2, 0.7], abs=0.02) == part.sum(axis=1).A1 / 20_000
    assert [int(p.sum()) for p in sampling.thin_counts(counts, 0.0, np.random.default_rng(0))] == [
        0,
        40_000,
    ]


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
def test_only_counts_can_be_thinned(value: float) -> None:
    with pytest.raises(InputError, match="only counts can be thinned"):
        sampling.thin_counts(sp.csr_matrix(np.array([[value, 1.0]])), 0.5, np.random.default_rng(0))


def test_impossible_rates() -> None:
    counts = sp.csr_matrix(np.eye(2))
    for rate in (1.5, np.array([0.1, -0.1])):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            sampling.thin_counts(counts, rate, np.random.default_rng(0))


def test_tokens_are_masked_as_in_bert() -> None:
    genes = np.arange(3, 1003, dtype=np.int32)
    tokens = np.random.default_rng(1).choice(genes, 100_000)
    before = tokens.copy()
    ids, labels = sampling.mask_tokens(
        tokens, np.random.default_rng(0), mask_token=1, gene_tokens=genes
    )
    np.testing.assert_array_equal(tokens, before)
    chosen = labels != sampling.IGNORED
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(ids[~chosen], tokens[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.005)
    masked, same = ids[chosen] == 1, ids[chosen] == tokens[chosen]
    assert [masked.mean(), same.mean()] == pytest.approx([0.8, 0.1], abs=0.01)
    assert np.isin(ids[chosen][~masked], genes).all()
    assert ids.dtype == np.int32
    assert labels.dtype == np.int64


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_or_all_tokens(share: float) -> None:
    tokens = np.arange(3, 13, dtype=np.int32)
    _, labels = sampling.mask_tokens(
        tokens, np.random.default_rng(0), mask_token=1, gene_tokens=tokens, share=share
    )
    assert (labels != sampling.IGNORED).all() == bool(share)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        sampling.mask_tokens(
            tokens, np.random.default_rng(0), mask_token=1, gene_tokens=tokens, share=2.0
        )


def test_the_same_seed_gives_the_same() -> None:
    def draw(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        counts = sp.csr_matrix(np.full((3, 4), 5.0))
        positions = np.zeros((10, 2))
        return [
            *sampling.mask_cells(50, 0.2, rng),
            sampling.perturb_cells(50, 0.2, rng),
            sampling.noisy_positions(positions, np.arange(4), 1.0, rng),
            *(piece.toarray() for piece in sampling.thin_counts(counts, 0.5, rng)),
        ]

    for left, right in zip(draw(3), draw(3), strict=True):
        np.testing.assert_array_equal(left, right)
