"""What training hides, moves and splits: who is chosen, and that nothing betrays the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from terrazzo.genes import Vocabulary
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm import masking
from terrazzo.systems.stofm.loaders import CellBatch, SubSliceItem
from terrazzo.systems.stofm.masking import (
    CellMasking,
    MaskedCells,
    MaskedSubSlices,
    SubSliceMasking,
    token_columns,
)
from terrazzo.systems.stofm.recipe import AdaptObjective, PretrainObjective
from terrazzo.systems.stofm.subslices import SubSliceConfig, iterate
from terrazzo.systems.stofm.tokens import rank_tokens

N, VIRTUAL, WIDTH = 60, 3, 8
FIRST = 1 + VIRTUAL  # token of the first cell
PAPER = PretrainObjective(kind="paper", kept_share=0.05)
CUT = SubSliceConfig(n_neighbors=6)
GENES = np.array([f"ENSG{i:011d}" for i in range(9)])
VOCABULARY = Vocabulary(
    GENES,
    np.array([f"G{i}" for i in range(9)]),
    np.arange(3, 12),
    np.ones(9),
    {"<pad>": 0, "<mask>": 1, "<cls>": 2},
)


def sub_slice(
    seed: int = 0, cut: SubSliceConfig = CUT, member: int = 0, places: Any = None
) -> SubSliceItem:
    """Make a sub-slice of cells about one unit apart."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0, np.sqrt(N), (N, 2))
    places = drawn if places is None else places
    virtual = rng.uniform(0, np.sqrt(N), (VIRTUAL, 2))
    features = rng.normal(size=(N, WIDTH)).astype(np.float32)
    sub = next(iterate(places, virtual, [np.arange(N)], cut))
    tokens = Tokens(np.repeat(np.arange(3, 12, dtype=np.int32), N)[: 4 * N], 4 * np.arange(N + 1))
    means = rng.normal(size=(VIRTUAL, WIDTH)).astype(np.float32)
    return SubSliceItem(sub, features, means, f"s{member}", member, 1.0, None, tokens)


def pack(
    objective: PretrainObjective = PAPER, cut: SubSliceConfig = CUT, seed: int = 0, **options: Any
) -> MaskedSubSlices:
    return SubSliceMasking(objective, cut, 0).make([sub_slice(cut=cut, **options)], [seed, 0])


def assert_same_pairs(one: MaskedSubSlices, two: MaskedSubSlices) -> None:
    for a, b in zip(one.pairs, two.pairs, strict=True):
        assert torch.equal(a.row, b.row)
        assert torch.equal(a.col, b.col)
        assert torch.equal(a.distance, b.distance)
        assert (a.positions is None) == (b.positions is None)
        if a.positions is not None and b.positions is not None:
            assert torch.equal(a.positions, b.positions)


def test_a_cell_is_hidden_or_moved_or_neither() -> None:
    for seed in range(20):
        batch = pack(seed=seed)
        hidden, moved = set(batch.hidden.nonzero()[:, 0].tolist()), set(batch.moved[0].tolist())
        predicted, shown = set(batch.predicted.tolist()), set(batch.shown_cells.tolist())
        assert (len(hidden), len(predicted - hidden), len(moved)) == (
            6,
            3,
            6,
        )  # 10 %, 5 %, 10 % of 60
        assert hidden < predicted
        assert not moved & predicted
        assert shown == set(range(FIRST, FIRST + N)) - hidden
        assert all(
            batch.types[token] == 0 for token in predicted | moved
        )  # no graph token, no virtual cell


def test_own_and_niche_moves_nothing() -> None:
    item = sub_slice()
    batch = SubSliceMasking(PretrainObjective(mask_share=0.5), CUT, 0).make([item], [0, 0])
    assert (int(batch.hidden.sum()), len(batch.moved[0])) == (N // 2, 0)
    assert torch.equal(batch.pairs[0].distance, torch.from_numpy(item.sub.distance))
    assert batch.true_distance[0].shape == (0, VIRTUAL + N)


def test_a_seed_decides_and_another_epoch_differs() -> None:
    one, same, other = pack(seed=1), pack(seed=1), pack(seed=2)
    assert torch.equal(one.hidden, same.hidden)
    assert torch.equal(one.noisy_distance[0], same.noisy_distance[0])
    assert not torch.equal(one.hidden, other.hidden)


def test_the_draw_is_the_same_whichever_process_holds_the_subslice() -> None:
    masked = SubSliceMasking(PAPER, CUT, 0)
    items = [sub_slice(seed, member=seed) for seed in range(3)]
    together = masked.make(items, [5, 1])
    for number, item in enumerate(items):
        alone = masked.make([item], [5, 1])
        start = number * item.sub.n_tokens
        assert torch.equal(together.hidden[start : start + item.sub.n_tokens], alone.hidden)
        assert torch.equal(together.moved[number], alone.moved[0])
        assert torch.equal(together.noisy_distance[number], alone.noisy_distance[0])
        assert torch.equal(together.pairs[number].distance, alone.pairs[0].distance)
    assert together.ids == ["s0", "s1", "s2"]


def test_distances_are_those_of_the_true_and_of_the_noisy_places() -> None:
    item = sub_slice()
    batch = SubSliceMasking(PAPER, CUT, 0).make([item], [0, 0])
    places, moved, columns = (
        item.sub.positions,
        batch.moved[0].numpy(),
        batch.moved_columns[0].numpy(),
    )
    true = np.linalg.norm(places[moved][:, None] - places[columns][None], axis=-1)
    scale = np.linalg.norm(places[FIRST:] - places[FIRST:].mean(axis=0), axis=1).mean()
    np.testing.assert_allclose(batch.true_distance[0], true / scale, rtol=1e-5)
    shift = np.abs(batch.noisy_distance[0].numpy() * scale - true)
    others = np.isin(columns, moved, invert=True)
    assert (shift[:, others].mean(axis=1) > 0.5).all()  # spacings; the noise has 5


@pytest.mark.parametrize("pair", ["knn", "full", "none"])
@pytest.mark.parametrize("geometry", ["um", "published"])
def test_pairs_know_the_noisy_places_only(
    monkeypatch: pytest.MonkeyPatch, pair: Any, geometry: Any
) -> None:
    cut = replace(CUT, pair=pair, geometry=geometry)
    item = sub_slice(cut=cut)
    chosen = SubSliceMasking(PAPER, cut, 0).make([item], [0, 0]).moved[0].numpy()
    elsewhere = item.sub.positions[FIRST:].copy()
    elsewhere[chosen - FIRST] += 3.0  # the same slice, but these cells truly are somewhere else
    noise = np.random.default_rng(9).uniform(0, 8, (len(chosen), 2))

    def fixed(positions: Any, which: Any, *rest: Any, **options: Any) -> Any:
        out = positions.copy()
        out[which] = noise
        return out

    monkeypatch.setattr(masking, "noisy_positions", fixed)
    one, two = pack(cut=cut), pack(cut=cut, places=elsewhere)
    assert torch.equal(one.moved[0], two.moved[0])
    assert not torch.equal(one.true_distance[0], two.true_distance[0])
    assert_same_pairs(one, two)


def test_rings_are_of_the_nearest_shown_cells() -> None:
    item, objective = sub_slice(), replace(PAPER, kept_share=0.2)
    batch = SubSliceMasking(objective, CUT, 0).make([item], [0, 0])
    places, shown = item.sub.positions[FIRST:], set(batch.shown_cells.numpy() - FIRST)
    for number, cell in enumerate(batch.predicted.numpy() - FIRST):
        distance = np.linalg.norm(places - places[cell], axis=1)
        order = [c for c in np.argsort(distance) if c in shown and c != cell]
        rings = [item.features[order[a:b]].mean(axis=0) for a, b in ((0, 6), (6, 18), (18, 36))]
        np.testing.assert_allclose(batch.rings[number], np.concatenate(rings), atol=1e-5)
        np.testing.assert_array_equal(batch.neighbor_mean[number], batch.rings[number, :WIDTH])


@pytest.mark.parametrize("kept_share", [0.0, 0.3])
def test_rings_use_neither_the_cell_itself_nor_hidden_ones(kept_share: float) -> None:
    objective = replace(PAPER, mask_share=0.3, kept_share=kept_share)
    item = sub_slice()
    before = SubSliceMasking(objective, CUT, 0).make([item], [0, 0])
    hidden = before.hidden[FIRST:].numpy()
    for number, token in enumerate(before.predicted.tolist()):
        changed = item.features.copy()
        changed[hidden | (np.arange(N) == token - FIRST)] += 100
        after = SubSliceMasking(objective, CUT, 0).make([replace(item, features=changed)], [0, 0])
        assert torch.equal(after.rings[number], before.rings[number])
    nearest = before.neighbor_mean.numpy()
    assert np.abs(nearest - item.features[before.predicted.numpy() - FIRST]).mean() > 0.1


def test_cells_to_encode_again_come_with_their_tokens() -> None:
    objective = replace(PAPER, reencode=5)
    items = [sub_slice(seed, member=seed) for seed in range(2)]
    batch = SubSliceMasking(objective, CUT, 1).make(items, [0, 0])
    assert batch.again_ids is not None
    assert batch.again_mask is not None
    assert batch.again_tokens is not None
    assert len(batch.again_tokens.unique()) == len(batch.again_ids) == 10
    for ids, token in zip(batch.again_ids.tolist(), batch.again_tokens.tolist(), strict=True):
        number, cell = divmod(token, items[0].sub.n_tokens)
        assert ids == [
            1,
            *items[number].tokens.flat[4 * (cell - FIRST) : 4 * (cell - FIRST) + 4].tolist(),
        ]
    assert (
        SubSliceMasking(objective, CUT, 1).make([replace(items[0], tokens=None)], [0, 0]).again_ids
        is None
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_cells(n: int) -> None:
    rng = np.random.default_rng(0)
    sub = next(iterate(rng.uniform(0, 2, (n, 2)), np.zeros((0, 2)), [np.arange(n)], CUT))
    item = SubSliceItem(
        sub,
        rng.normal(size=(n, WIDTH)).astype(np.float32),
        np.zeros((0, WIDTH), np.float32),
        "s",
        0,
        1,
    )
    batch = SubSliceMasking(PAPER, CUT, 0).make([item], [0, 0])
    assert torch.isfinite(batch.rings).all()
    assert all(torch.isfinite(d).all() for d in batch.true_distance + batch.noisy_distance)
    drawn = [SubSliceMasking(PAPER, CUT, 0).make([item], [seed, 0]) for seed in range(200)]
    for share in (
        np.mean([int(b.hidden.sum()) for b in drawn]) / n,
        np.mean([len(b.moved[0]) for b in drawn]) / n,
    ):
        assert 0.04 < share < 0.2  # 10 %, although one cell of so few is more


@pytest.fixture
def cells() -> CellBatch:
    """Make cells with counts; columns are tokens."""
    rng = np.random.default_rng(1)
    counts = np.zeros((20, VOCABULARY.n_tokens), np.float32)
    counts[:, VOCABULARY.token] = rng.poisson(3.0, (20, 9))
    matrix = sparse.csr_matrix(counts)
    tokens = rank_tokens(matrix, *token_columns(VOCABULARY), 64)
    return CellBatch(tokens, np.zeros(20, np.int64), np.arange(20), matrix)


def view(cells: CellBatch, seed: int = 0, **objective: Any) -> MaskedCells:
    made = CellMasking(VOCABULARY, AdaptObjective(**objective), 64)
    base = np.where(np.arange(VOCABULARY.n_tokens) >= 3, np.log(1 / 9), -np.inf).astype(np.float32)
    return made.make(cells, ["s0"], lambda member: base, np.random.default_rng(seed))


def genes(row: torch.Tensor, mask: torch.Tensor) -> set[int]:
    return set(row[mask == 1].tolist()[1:])


def test_masked_genes(cells: CellBatch) -> None:
    batch = view(cells, mask_share=0.4)
    chosen = batch.labels >= 0
    assert 0.25 < chosen.sum() / (batch.mask.sum() - len(batch)) < 0.55
    assert torch.equal(batch.labels[chosen], batch.ids_plain[chosen])
    assert torch.equal(batch.ids_masked[~chosen], batch.ids_plain[~chosen])
    assert not chosen[:, 0].any()  # never <cls>
    assert not (chosen & (batch.mask == 0)).any()
    mask_token = VOCABULARY.special["<mask>"]
    assert 0.5 < (batch.ids_masked[chosen] == mask_token).float().mean() < 1
    assert (batch.rest, batch.base) == (None, None)


def test_dropout_pairs_are_one_view(cells: CellBatch) -> None:
    batch = view(cells)
    assert torch.equal(batch.ids_second, batch.ids_plain)
    assert len(batch) == 20
    for number in range(20):  # as the cells are: nothing thinned
        assert genes(batch.ids_plain[number], batch.mask[number]) == set(
            cells.tokens.take(np.array([number])).flat
        )


def test_what_is_shown_and_what_is_predicted_make_up_the_cell(cells: CellBatch) -> None:
    batch = view(cells, own_weight=1.0)
    assert batch.rest is not None
    assert batch.base is not None
    assert cells.counts is not None
    rest, counts = batch.rest.numpy(), cells.counts.toarray()
    assert (rest >= 0).all()
    assert (rest <= counts).all()
    for number in range(len(batch)):  # a gene is shown where some of its molecules are not held out
        shown = genes(batch.ids_plain[number], batch.mask[number])
        assert shown == set(np.flatnonzero(counts[number] > rest[number]))
    share = 1 - rest.sum() / counts.sum()
    assert 0.5 < share < 0.8  # between thin_low 0.4 and thin_high 0.9
    assert batch.base.isfinite().sum() == 20 * 9
    assert torch.equal(batch.ids_second, batch.ids_plain)


def test_thinned_pairs_are_two_views(cells: CellBatch) -> None:
    batch = view(cells, view="thinned", thin_low=0.3, thin_high=0.4)
    assert batch.rest is None
    pairs = [
        (genes(batch.ids_plain[i], batch.mask[i]), genes(batch.ids_second[i], batch.mask_second[i]))
        for i in range(20)
    ]
    assert sum(one != two for one, two in pairs) > 10
    again = view(cells, view="thinned", thin_low=0.3, thin_high=0.4)
    assert torch.equal(again.ids_second, batch.ids_second)
    assert not torch.equal(view(cells, seed=1, view="thinned").ids_plain, batch.ids_plain)


@pytest.mark.parametrize("make", [pack, lambda: None])
def test_batches_move_as_one(make: Callable[..., Any], cells: CellBatch) -> None:
    batch = make() or view(cells, own_weight=1.0)
    moved = batch.to("meta")
    assert moved.ids == batch.ids
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    for pairs in getattr(moved, "pairs", []):
        assert pairs.distance.device.type == "meta"
