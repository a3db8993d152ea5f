"""The fast SE(2) Transformer against the plain one: outputs, gradients, packing, large contexts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from terrazzo.systems.stofm import se2 as se2_module
from terrazzo.systems.stofm.pair_bias import GaussianBias, Pairs, SparseBias
from terrazzo.systems.stofm.se2 import PAD, SE2Config, SE2Transformer, reference_forward

CONFIG = SE2Config(
    input_dim=12, hidden_size=32, num_layers=3, num_heads=4, ffn_size=40, num_kernels=16
)
FAR = CONFIG.far_distance


@pytest.fixture
def model(loud: Any) -> SE2Transformer:
    return loud(SE2Transformer(CONFIG)).eval()


class Sub:
    """A random sub-slice: graph token, two virtual cells, cells with some near pairs listed."""

    def __init__(self, n: int, seed: int, *, full: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.n = n
        self.positions = rng.normal(size=(n, 2)) * 8
        self.x = torch.from_numpy(rng.normal(size=(n, CONFIG.input_dim)).astype(np.float32))
        self.x[0] = 0
        self.types = torch.tensor([1, 2, 2] + [0] * (n - 3))
        self.full = full

    def pairs(self, positions: np.ndarray | None = None) -> Pairs:
        where = self.positions if positions is None else positions
        gap = np.linalg.norm(where[:, None] - where[None], axis=-1)
        true = np.linalg.norm(
            self.positions[:, None] - self.positions[None], axis=-1
        )  # decides what is listed
        row, col = np.triu_indices(self.n, k=1)
        listed = (row > 0) & ((true[row, col] < 7) | (row < 3)) & (not self.full)
        row, col = row[listed], col[listed]
        dense = torch.from_numpy(where.astype(np.float32)) if self.full else None
        distance = torch.from_numpy(gap[row, col].astype(np.float32))
        return Pairs(self.n, torch.from_numpy(row), torch.from_numpy(col), distance, dense)


def plain(model: SE2Transformer, sub: Sub) -> tuple[Tensor, Tensor, list[Tensor]]:
    hidden, pair, states = reference_forward(
        model, sub.x[None], sub.types[None], sub.pairs().dense_distance(FAR)[None]
    )
    return hidden[0], pair[0], [s[0] for s in states]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=tolerance
    )


def grad_of(model: SE2Transformer, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {n: g for n, g in zip(names, grads, strict=True) if g is not None}


def check_gradients(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Equal within a tolerance times the parameter's largest gradient (or a tenth of the largest of all).

    A key's bias has no gradient at all: softmax does not see it.
    """
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, g in expected.items():
        scale = max(float(g.abs().max()), 0.1 * largest)
        assert float((found[name] - g).abs().max()) <= tolerance * scale, name


def loss_of(hidden: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(5)
    return (hidden * torch.randn(hidden.shape, generator=g)).sum()


@pytest.mark.parametrize("full", [False, True])
@torch.no_grad()
def test_forward_equals_the_plain_one(model: SE2Transformer, full: bool) -> None:
    sub = Sub(60, 0, full=full)
    out = model(sub.x, sub.types, [sub.pairs()], hidden_states=True)
    hidden, _, states = plain(model, sub)
    close(out.hidden, hidden)
    assert len(out.hidden_states) == CONFIG.num_layers + 1
    for ours, theirs in zip(out.hidden_states, states, strict=True):
        close(ours, theirs)


@torch.no_grad()
def test_the_bias_matters_here(model: SE2Transformer) -> None:
    """The weights are loud enough for an error in the bias to show."""
    sub = Sub(60, 0)
    empty = torch.zeros(0, dtype=torch.long)
    without = model(sub.x, sub.types, [Pairs(sub.n, empty, empty, torch.zeros(0))]).hidden
    assert float((without - plain(model, sub)[0]).abs().max()) > 0.05


@pytest.mark.parametrize("full", [False, True])
def test_every_gradient_equals_the_plain_one(model: SE2Transformer, full: bool) -> None:
    sub = Sub(50, 1, full=full)
    ours = model(sub.x, sub.types, [sub.pairs()]).hidden
    theirs = plain(model, sub)[0]
    close(ours, theirs)
    found, expected = grad_of(model, loss_of(ours)), grad_of(model, loss_of(theirs))
    assert set(expected) == {name for name, _ in model.named_parameters()}
    check_gradients(found, expected)


def test_gradients_reach_features_and_distances(model: SE2Transformer) -> None:
    sub = Sub(40, 2)
    x, pairs = sub.x.clone().requires_grad_(), sub.pairs()
    distance = pairs.distance.clone().requires_grad_()
    ours = model(x, sub.types, [replace(pairs, distance=distance)]).hidden
    gx, gd = torch.autograd.grad(loss_of(ours), [x, distance])
    dense = pairs.dense_distance(FAR).requires_grad_()
    theirs = reference_forward(model, x[None], sub.types[None], dense[None])[0][0]
    ex, ed = torch.autograd.grad(loss_of(theirs), [x, dense])
    close(gx / ex.abs().max(), ex / ex.abs().max())
    both = ed[pairs.row, pairs.col] + ed[pairs.col, pairs.row]
    close(gd / both.abs().max(), both / both.abs().max())


@torch.no_grad()
def test_packed_equals_one_at_a_time_and_padded(model: SE2Transformer) -> None:
    subs = [Sub(40, 3), Sub(7, 4), Sub(55, 5)]
    packed = model(
        torch.cat([s.x for s in subs]),
        torch.cat([s.types for s in subs]),
        [s.pairs() for s in subs],
    ).hidden.split([s.n for s in subs])
    longest = max(s.n for s in subs)
    x = torch.zeros(len(subs), longest, CONFIG.input_dim)
    types = torch.full((len(subs), longest), PAD)
    distance = torch.full((len(subs), longest, longest), FAR)
    for i, s in enumerate(subs):
        x[i, : s.n], types[i, : s.n], distance[i, : s.n, : s.n] = (
            s.x,
            s.types,
            s.pairs().dense_distance(FAR),
        )
    padded = reference_forward(model, x, types, distance)[0]
    for i, (s, found) in enumerate(zip(subs, packed, strict=True)):
        close(found, model(s.x, s.types, [s.pairs()]).hidden)
        close(found, padded[i, : s.n])


def force_large_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dense bias fits, and a block holds a few query rows only."""
    monkeypatch.setattr(se2_module, "DENSE_BIAS_BYTES", 4 * 60 * 4 * 7)
    monkeypatch.setattr(se2_module, "SCORE_BYTES", 4 * 60 * 3)


@pytest.mark.parametrize("full", [False, True])
@torch.no_grad()
def test_large_context_without_gradients(
    model: SE2Transformer, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    force_large_context(monkeypatch)
    sub = Sub(60, 6, full=full)
    close(model(sub.x, sub.types, [sub.pairs()]).hidden, plain(model, sub)[0])


@pytest.mark.parametrize("full", [False, True])
def test_large_context_with_gradients(
    model: SE2Transformer, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    force_large_context(monkeypatch)
    sub = Sub(60, 7, full=full)
    close(model(sub.x, sub.types, [sub.pairs()]).hidden, plain(model, sub)[0])
    # gradients in double: in float32 the scale of distances sums terms that cancel, to 2.7e-5 on some processors
    model, x, pairs = model.double(), sub.x.double(), sub.pairs()
    wide = replace(
        pairs,
        distance=pairs.distance.double(),
        positions=None if pairs.positions is None else pairs.positions.double(),
    )
    ours = model(x, sub.types, [wide]).hidden
    theirs = reference_forward(model, x[None], sub.types[None], wide.dense_distance(FAR)[None])[0][
        0
    ]
    check_gradients(grad_of(model, loss_of(ours)), grad_of(model, loss_of(theirs)))


@torch.inference_mode()
def test_inference_mode_gives_the_same(model: SE2Transformer) -> None:
    sub = Sub(45, 8)
    close(model(sub.x, sub.types, [sub.pairs()]).hidden, plain(model, sub)[0])


@pytest.mark.parametrize("full", [False, True])
def test_pair_rows(model: SE2Transformer, full: bool) -> None:
    subs = [Sub(30, 9, full=full), Sub(20, 10, full=full)]
    wanted = [torch.tensor([0, 1, 5, 29]), torch.tensor([19, 2])]
    out = model(
        torch.cat([s.x for s in subs]),
        torch.cat([s.types for s in subs]),
        [s.pairs() for s in subs],
        pair_rows=wanted,
    )
    for sub, rows, found in zip(subs, wanted, out.pair, strict=True):
        assert found.shape == (len(rows), sub.n, CONFIG.num_heads)
        close(found, plain(model, sub)[1][rows], 5e-5)
    found, expected = (
        grad_of(model, loss_of(out.pair[0])),
        grad_of(model, loss_of(plain(model, subs[0])[1][wanted[0]])),
    )
    used = {k: v for k, v in expected.items() if bool(v.any())}
    assert used
    check_gradients({k: found[k] for k in used}, used)


@torch.no_grad()
def test_the_order_of_tokens_changes_nothing(model: SE2Transformer) -> None:
    sub = Sub(40, 11)
    before = model(sub.x, sub.types, [sub.pairs()]).hidden
    order = torch.cat(
        [torch.tensor([0]), 1 + torch.randperm(39, generator=torch.Generator().manual_seed(0))]
    )
    place = torch.argsort(order)
    pairs = sub.pairs()
    row, col = place[pairs.row], place[pairs.col]
    moved = Pairs(sub.n, torch.minimum(row, col), torch.maximum(row, col), pairs.distance)
    close(model(sub.x[order], sub.types[order], [moved]).hidden, before[order])


@pytest.mark.parametrize("full", [False, True])
@torch.no_grad()
def test_rotation_reflection_and_translation_change_nothing(
    model: SE2Transformer, full: bool
) -> None:
    sub = Sub(40, 12, full=full)
    before = model(sub.x, sub.types, [sub.pairs()]).hidden
    c, s = np.cos(2.1), np.sin(2.1)
    turned = sub.positions @ np.array([[c, s], [-s, c]]) + [30.0, -4.0]
    close(model(sub.x, sub.types, [sub.pairs(turned)]).hidden, before, 2e-5)
    close(model(sub.x, sub.types, [sub.pairs(turned * [-1, 1])]).hidden, before, 2e-5)
    stretched = model(sub.x, sub.types, [sub.pairs(sub.positions * 1.5)]).hidden
    assert float((stretched - before).abs().max()) > 0.01


@pytest.mark.parametrize("large", [False, True])
def test_training_mode_drops_out_and_gives_gradients(
    loud: Any, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        force_large_context(monkeypatch)
    model = loud(
        SE2Transformer(replace(CONFIG, dropout=0.2, attention_dropout=0.2, activation_dropout=0.2))
    ).train()
    sub = Sub(60, 13)
    torch.manual_seed(0)
    first = model(sub.x, sub.types, [sub.pairs()]).hidden
    torch.manual_seed(1)
    second = model(sub.x, sub.types, [sub.pairs()]).hidden
    assert float((first - second).detach().abs().max()) > 0.05
    grads = grad_of(model, loss_of(first))
    assert set(grads) == {name for name, _ in model.named_parameters()}
    assert all(bool(torch.isfinite(g).all()) for g in grads.values())


@torch.no_grad()
def test_one_cell_and_a_graph_token_alone(model: SE2Transformer) -> None:
    empty = torch.zeros(0, dtype=torch.long)
    for n in (1, 2):
        x, types = torch.randn(n, CONFIG.input_dim), torch.tensor([1, 0][:n])
        pairs = Pairs(n, empty, empty, torch.zeros(0))
        expected = reference_forward(model, x[None], types[None], pairs.dense_distance(FAR)[None])[
            0
        ][0]
        close(model(x, types, [pairs]).hidden, expected)


@torch.no_grad()
def test_bias_is_zero_at_distance_zero_and_rows_agree(loud: Any) -> None:
    gaussian = loud(GaussianBias(16, 4))
    distance = torch.tensor([[0.0, 1.0], [50.0, 0.0]])
    bias = gaussian(distance)
    assert not bias[distance == 0].any()
    assert bool((bias[distance > 0] != 0).all())
    assert gaussian(torch.zeros(0)).shape == (0, 4)
    pairs = Sub(25, 14).pairs()
    sparse = SparseBias(gaussian, pairs, FAR)
    dense = gaussian(pairs.dense_distance(FAR)).permute(2, 0, 1) - sparse.far_bias[:, None, None]
    for start, stop in ((0, 25), (0, 1), (3, 9), (24, 25)):
        close(sparse.rows(start, stop), dense[:, start:stop])


def test_flops_grow_with_tokens(model: SE2Transformer) -> None:
    assert 0 < model.flops(100) < model.flops(200) / 2
