"""The masked autoencoder: one block against plain loops, and who may look at what."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.systems.stimage.network import Block, MaskedViT, ViTConfig

CONFIG = ViTConfig(
    n_genes=30,
    width=16,
    num_layers=2,
    num_heads=4,
    ffn_size=24,
    decoder_layers=2,
    decoder_ffn_size=20,
    positions="distance",
)
KINDS = ["distance", "sincos"]

every_kind = pytest.mark.parametrize("kind", KINDS)


def make(loud: Any, **changes: Any) -> MaskedViT:
    model = loud(MaskedViT(replace(CONFIG, **changes)))
    with torch.no_grad():
        model.mask_token.copy_(torch.linspace(-1, 1, model.config.width))
        for block in [*model.encoder, *model.decoder]:
            if block.log_radius is not None:
                block.log_radius.copy_(torch.linspace(-0.5, 1.5, len(block.log_radius)))
    return model.eval()


@dataclass
class Batch:
    """Two windows: values, genes with some -1, places on a grid, present (a cell is there) and shown (not hidden)."""

    values: Tensor
    genes: Tensor
    places: Tensor
    present: Tensor
    shown: Tensor


def batch_of(side: int = 4, seed: int = 0, m: int = 7) -> Batch:
    g = torch.Generator().manual_seed(seed)
    n = side * side
    genes = torch.stack([torch.randperm(30, generator=g)[:m] for _ in range(2)])
    genes[1, -2:] = -1
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([column.flatten(), row.flatten()], dim=1).float().expand(2, -1, -1).clone()
    present = torch.rand(2, n, generator=g) < 0.8
    shown = present & (torch.rand(2, n, generator=g) < 0.7)
    present[:, 0], shown[:, 0] = True, True
    present[:, 1], shown[:, 1] = True, False
    present[:, 2], shown[:, 2] = False, False
    return Batch(torch.randn(2, n, m, generator=g), genes, places, present, shown)


def everything(model: MaskedViT, b: Batch) -> dict[str, Tensor]:
    """Return what the three stages give."""
    encoded = model.encode(model.tokens(b.values, b.genes, b.shown), b.places, b.shown)
    decoded = model.decode(encoded, b.places, b.shown)
    return {"encoded": encoded, "decoded": decoded, "predicted": model.predict(decoded, b.genes)}


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within a tolerance times the largest number, where that is above 1."""
    most = max(1.0, float(expected.detach().abs().max()))
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=tolerance * most
    )


# One block


def layer_norm(x: list[float], norm: nn.LayerNorm) -> Tensor:
    t = torch.tensor(x, dtype=torch.float64)
    t = (t - t.mean()) / torch.sqrt(((t - t.mean()) ** 2).mean() + norm.eps)
    return t * norm.weight.double() + norm.bias.double()


def plain_block(
    block: Block, x: Tensor, source: Tensor, places: tuple[Tensor, Tensor] | None, seen: Tensor
) -> Tensor:
    """Do one block in loops over queries, heads and sites: softmax over the sites that are seen, and no others."""
    n, width = x.shape
    head = width // block.heads
    sources = [layer_norm(s.tolist(), block.attention_norm) for s in source]
    out = torch.zeros(n, width, dtype=torch.float64)

    def linear(layer: nn.Linear, v: Tensor) -> Tensor:
        return layer.weight.double() @ v + layer.bias.double()

    for i in range(n):
        query = linear(block.query, layer_norm(x[i].tolist(), block.attention_norm))
        attended = torch.zeros(width, dtype=torch.float64)
        for h in range(block.heads):
            part = slice(h * head, (h + 1) * head)
            weights = {}
            for j in range(len(source)):
                if not seen[i, j]:
                    continue
                logit = float(query[part] @ linear(block.key, sources[j])[part]) / math.sqrt(head)
                if (
                    places is not None and h < block.heads - 1
                ):  # the last head does not care how far
                    logit -= math.dist(places[0][i].tolist(), places[1][j].tolist()) / math.exp(
                        block.log_radius[h]
                    )
                weights[j] = math.exp(logit)
            for j, weight in weights.items():
                value = linear(block.value, source[j].double())
                attended[part] += weight / sum(weights.values()) * value[part]
        y = x[i].double() + linear(block.out, attended)
        out[i] = y + linear(
            block.fc2, F.gelu(linear(block.fc1, layer_norm(y.tolist(), block.norm)))
        )
    return out.float()


@torch.no_grad()
@pytest.mark.parametrize("distances", [True, False])
@pytest.mark.parametrize("every_query_for_itself", [True, False])
def test_a_block_equals_plain_loops(
    loud: Any, distances: bool, every_query_for_itself: bool
) -> None:
    model = make(loud, positions="distance" if distances else "sincos")
    g = torch.Generator().manual_seed(1)
    x, source = torch.randn(1, 5, 16, generator=g), torch.randn(1, 7, 16, generator=g)
    here, there = 3 * torch.rand(1, 5, 2, generator=g), 3 * torch.rand(1, 7, 2, generator=g)
    seen = torch.rand(1, 5 if every_query_for_itself else 1, 7, generator=g) < 0.6
    seen[..., 0] = True
    for block in (model.encoder[0], model.decoder[1]):
        found = block(x, source, torch.cdist(here, there) if distances else None, seen)[0]
        near = (here[0], there[0]) if distances else None
        close(found, plain_block(block, x[0], source[0], near, seen[0].expand(5, -1)))
    assert found.sub(x[0]).abs().max() > 0.1  # loud: an error would be seen


@torch.no_grad()
@every_kind
def test_the_encoder_is_its_blocks_over_the_shown_sites(loud: Any, kind: str) -> None:
    """The whole encoder in loops, one window at a time, without the sites that are not shown."""
    model, b = make(loud, positions=kind), batch_of(3)
    b.shown[:, :4] = False  # the window's first row and corner: sines count from there all the same
    tokens = model.tokens(b.values, b.genes)
    found = model.encode(tokens, b.places, b.shown)
    for w in range(2):
        kept = b.shown[w]
        x, places = tokens[w][kept], b.places[w][kept]
        if kind == "sincos":
            x = x + torch.stack([sines(xy.tolist()) for xy in places])
        for block in model.encoder:
            near = (places, places) if kind == "distance" else None
            x = plain_block(block, x, x, near, torch.ones(len(x), len(x), dtype=torch.bool))
        close(found[w][kept], x, 2e-5)
        assert not found[w][~kept].any()


@torch.no_grad()
def test_tokens_by_hand(loud: Any) -> None:
    model = make(loud)
    values, genes = torch.tensor([[[2.0, -1.0, 9.0]]]), torch.tensor([[4, 7, -1]])
    e = model.genes.weight
    expected = (2 * e[4] - e[7]) * 16 / (e[4].square().sum() + e[7].square().sum())
    close(model.tokens(values, genes)[0, 0], expected)


@torch.no_grad()
def test_predictions_are_embedding_times_state(loud: Any) -> None:
    model = make(loud)
    states, genes = torch.randn(1, 3, 16), torch.tensor([[5, -1]])
    found = model.predict(states, genes)
    close(found[..., 0], model.readout(states) @ model.genes.weight[5])
    assert not found[..., 1].any()


def sines(xy: list[float]) -> Tensor:
    """Return the sines of a place, x and y from the window's corner: sine and cosine of four rates each."""
    rates = [10_000 ** (-i / 4) for i in range(4)]
    return torch.tensor([f(v * rate) for v in xy for f in (math.sin, math.cos) for rate in rates])


@torch.no_grad()
def test_positions_by_hand(loud: Any) -> None:
    model = make(loud, positions="sincos")
    window = torch.tensor([[[7.0, 3.0], [9.0, 4.5]]])
    close(model.positions(window, window)[0], torch.stack([sines([0, 0]), sines([2, 1.5])]))
    close(model.positions(window[:, 1:], window)[0, 0], sines([2, 1.5]))


# Who may look at what


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_values_of_hidden_and_empty_sites_are_never_read(
    loud: Any, kind: str, context: bool, poison: float
) -> None:
    model, b = make(loud, positions=kind, context=context), batch_of()
    clean = everything(model, b)
    assert (~b.shown & b.present).any()
    assert (~b.present).any()
    b.values[~b.shown] = poison
    b.values[1, :, -2:] = poison  # channels without a gene
    for name, found in everything(model, b).items():
        assert torch.equal(found, clean[name]), name
        assert found.isfinite().all()
    tokens = model.tokens(b.values, b.genes)  # without being told who is shown
    assert torch.equal(model.encode(tokens, b.places, b.shown), clean["encoded"])


@every_kind
def test_poison_reaches_no_gradient(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    clean = torch.autograd.grad(
        everything(model, b)["predicted"].square().mean(), list(model.parameters())
    )
    b.values[~b.shown] = float("nan")
    b.values[1, :, -2:] = float("nan")
    found = torch.autograd.grad(
        everything(model, b)["predicted"].square().mean(), list(model.parameters())
    )
    for one, other in zip(clean, found, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
@every_kind
def test_what_is_shown_reaches_the_hidden(loud: Any, kind: str) -> None:
    """The tests above would pass for a model that reads nothing at all."""
    model, b = make(loud, positions=kind), batch_of()
    clean = everything(model, b)["predicted"]
    b.values[:, 0] += 1
    change = (everything(model, b)["predicted"] - clean).abs().amax(dim=(2,))
    assert change[b.present].min() > 1e-4


@torch.no_grad()
@every_kind
def test_states_of_hidden_sites_are_not_read_by_the_decoder(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    states = torch.randn(2, 16, 16)
    clean = model.decode(states, b.places, b.shown)
    states[~b.shown] = float("nan")
    assert torch.equal(model.decode(states, b.places, b.shown), clean)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("context", [True, False])
def test_order_of_sites_means_nothing(loud: Any, kind: str, context: bool) -> None:
    model, b = make(loud, positions=kind, context=context), batch_of()
    clean = everything(model, b)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    moved = Batch(
        b.values[:, order], b.genes, b.places[:, order], b.present[:, order], b.shown[:, order]
    )
    for name, found in everything(model, moved).items():
        close(found, clean[name][:, order])


@torch.no_grad()
@every_kind
def test_order_of_channels_and_windows_means_nothing(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    clean = everything(model, b)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    moved = Batch(
        *(
            t.flip(0)
            for t in (b.values[..., order], b.genes[:, order], b.places, b.present, b.shown)
        )
    )
    found = everything(model, moved)
    close(found["decoded"].flip(0), clean["decoded"])
    close(found["predicted"].flip(0), clean["predicted"][..., order])


@torch.no_grad()
@every_kind
def test_padding_with_empty_sites_changes_nothing(loud: Any, kind: str) -> None:
    """Empty sites inside the window's frame; by distance, wherever they are."""
    model, b = make(loud, positions=kind), batch_of()
    clean = everything(model, b)
    none = torch.zeros(2, 9, dtype=torch.bool)
    places = (
        torch.tensor([1.5, 2.0]).expand(2, 9, 2)
        if kind == "sincos"
        else torch.full((2, 9, 2), -40.0)
    )
    more = Batch(
        torch.cat([b.values, torch.full((2, 9, 7), float("nan"))], dim=1),
        b.genes,
        torch.cat([b.places, places], dim=1),
        torch.cat([b.present, none], dim=1),
        torch.cat([b.shown, none], dim=1),
    )
    for name, found in everything(model, more).items():
        close(found[:, :16], clean[name])


@torch.no_grad()
@every_kind
def test_a_window_in_a_batch_is_as_it_is_alone(loud: Any, kind: str) -> None:
    """The encoder pads to the most shown sites of a batch."""
    model, b = make(loud, positions=kind), batch_of()
    b.shown[1, 5:] = False
    together = everything(model, b)
    for w in range(2):
        alone = Batch(
            *(getattr(b, n)[w : w + 1] for n in ("values", "genes", "places", "present", "shown"))
        )
        for name, found in everything(model, alone).items():
            close(found[0], together[name][w])


@torch.no_grad()
def test_where_a_window_begins_means_nothing(loud: Any) -> None:
    """Far from the origin, too: distances are exact."""
    for kind, shift in (("sincos", 300.0), ("distance", 300.0), ("distance", 4000.0)):
        model, b = make(loud, positions=kind), batch_of(7)
        clean = everything(model, b)["decoded"]
        b.places = b.places + torch.tensor([shift, -shift])
        close(everything(model, b)["decoded"], clean, 1e-4)


@torch.no_grad()
def test_by_distance_turning_and_mirroring_mean_nothing(loud: Any) -> None:
    model, b = make(loud), batch_of()
    clean = everything(model, b)["predicted"]
    b.places = b.places @ torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    close(everything(model, b)["predicted"], clean)


@torch.no_grad()
@every_kind
def test_without_context_a_site_is_alone(loud: Any, kind: str) -> None:
    """Spot-based schemes (eq 2): nothing of a site depends on another site."""
    model, b = make(loud, positions=kind, context=False), batch_of()
    clean = everything(model, b)
    for site in (0, 1, 2, 15):
        other = batch_of(seed=9)
        mixed = Batch(
            other.values.clone(), b.genes, b.places, other.present.clone(), other.shown.clone()
        )
        for name in ("values", "present", "shown"):
            getattr(mixed, name)[:, site] = getattr(b, name)[:, site]
        found = everything(model, mixed)
        for name in found:
            close(found[name][:, site], clean[name][:, site])
            if name == "predicted":  # the others did change
                assert (found[name] - clean[name]).abs().max() > 0.01


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("side", [1, 2, 5, 9, 24])
def test_any_size_of_window(loud: Any, kind: str, side: int) -> None:
    model = make(loud, positions=kind)
    g = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([column.flatten(), row.flatten()], dim=1).float()[None]
    shown = torch.rand(1, side**2, generator=g) < 0.7
    shown[:, 0] = True
    b = Batch(
        torch.randn(1, side**2, 3, generator=g), torch.tensor([[1, 2, 3]]), places, shown, shown
    )
    found = everything(model, b)
    assert found["predicted"].shape == (1, side**2, 3)
    assert all(t.isfinite().all() for t in found.values())


@torch.no_grad()
@every_kind
def test_windows_with_one_site_or_none_shown(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    b.shown[0], b.shown[1] = False, False
    b.shown[1, 4] = True
    b.values[~b.shown] = float("nan")
    found = everything(model, b)
    assert all(t.isfinite().all() for t in found.values())
    assert not found["encoded"][0].any()
    assert found["encoded"][1, 4].any()


# Genes


@torch.no_grad()
def test_channels_without_a_gene_mean_nothing(loud: Any) -> None:
    model, b = make(loud), batch_of()
    clean = model.tokens(b.values, b.genes)
    more = torch.full((2, 5), -1)
    values = torch.cat([b.values, torch.full((2, 16, 5), float("nan"))], dim=2)
    close(model.tokens(values, torch.cat([b.genes, more], dim=1)), clean)
    bare = model.tokens(values[..., 7:], more)
    assert not bare.any()


@torch.no_grad()
def test_more_channels_of_the_same_state_give_about_the_same_token(loud: Any) -> None:
    """The sum is an estimate of the state: ten times as many genes do not make it ten times as long."""
    model = MaskedViT(replace(CONFIG, n_genes=4000, width=32))
    g = torch.Generator().manual_seed(0)
    state = torch.randn(32, generator=g)
    for m in (300, 3000):
        genes = torch.randperm(4000, generator=g)[None, :m]
        values = (model.genes.weight[genes[0]] @ state)[None, None]
        close(model.tokens(values, genes)[0, 0], state, 1.2 if m == 300 else 0.5)


@every_kind
def test_gradient_reaches_genes_from_both_ends(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    encoded = model.encode(model.tokens(b.values, b.genes, b.shown), b.places, b.shown)
    asked = torch.tensor([[20, 21], [22, 23]])  # other genes than those that enter
    asked[torch.isin(asked, b.genes)] = -1
    predicted = model.predict(model.decode(encoded, b.places, b.shown), asked)
    gradient = torch.autograd.grad(predicted.square().sum(), model.genes.weight)[0]
    touched = set(gradient.abs().sum(dim=1).nonzero().flatten().tolist())
    entered = {i for i in b.genes.flatten().tolist() if i >= 0}
    left = {i for i in asked.flatten().tolist() if i >= 0}
    assert entered
    assert left
    assert touched == entered | left


@every_kind
def test_every_parameter_learns(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    loss = (everything(model, b)["predicted"][~b.shown & b.present] - 1).square().mean()
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if not name.endswith("key.bias"):  # softmax does not see it
            assert p.grad.abs().max() > 0, name


@torch.no_grad()
@every_kind
def test_bfloat16_is_close(loud: Any, kind: str) -> None:
    model, b = make(loud, positions=kind), batch_of()
    exact = everything(model, b)["encoded"][b.shown]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = everything(model, b)["encoded"][b.shown].float()
    assert F.cosine_similarity(exact, rounded, dim=1).min() > 0.99


def test_impossible_sizes() -> None:
    for wrong in ({"width": 18}, {"num_heads": 3}):
        with pytest.raises(ValueError, match="multiple of num_heads"):
            replace(CONFIG, **wrong)
