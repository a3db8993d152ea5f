"""What a site sees, by scheme, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from terrazzo.systems.stimage.network import (
    MaskedViT,
    ViTConfig,
    domain_means,
    nearest,
    neighbor_average,
    scheme_states,
)

B, S, M, W = 3, 12, 5, 16


def drawn(seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    values, places = torch.randn(B, S, M, generator=g), 4 * torch.rand(B, S, 2, generator=g)
    shown, genes = torch.rand(B, S, generator=g) < 0.6, torch.stack([torch.arange(M)] * B)
    shown[:, 0] = True
    shown[2] = False
    shown[2, :2] = True  # fewer than are asked for
    return values, places, shown, genes


def test_neighbors_are_the_nearest_that_are_there() -> None:
    _, places, shown, _ = drawn()
    states = torch.randn(B, S, W, generator=torch.Generator().manual_seed(1))
    found = nearest(places, shown, 4)
    average = neighbor_average(states, places, shown, 4)
    for b in range(B):
        for s in range(S):
            others = [o for o in range(S) if o != s and shown[b, o]]
            near = sorted(others, key=lambda o: float((places[b, o] - places[b, s]).norm()))[:4]
            assert set(found[b, s].nonzero()[:, 0].tolist()) == set(near)
            seen = near + ([s] if shown[b, s] else [])
            torch.testing.assert_close(average[b, s], states[b, seen].mean(dim=0))


def test_domains_are_averaged() -> None:
    states = torch.randn(B, S, W, generator=torch.Generator().manual_seed(2))
    domain = torch.randint(-1, 3, (B, S), generator=torch.Generator().manual_seed(3))
    domain[2] = -1
    found = domain_means(states, domain)
    for b in range(B):
        for s in range(S):
            alike = domain[b] == domain[b, s]
            wanted = states[b, alike].mean(dim=0) if domain[b, s] >= 0 else torch.zeros(W)
            torch.testing.assert_close(found[b, s], wanted)


def model(loud: Any, **options: Any) -> MaskedViT:
    sizes = {
        "width": W,
        "num_layers": 1,
        "num_heads": 2,
        "ffn_size": 8,
        "decoder_layers": 1,
        "decoder_ffn_size": 8,
    }
    return loud(MaskedViT(ViTConfig(M, **sizes, positions="distance", **options)).eval())


@torch.no_grad()
def test_multi_spot_is_the_mean_of_spots(loud: Any) -> None:
    vit, (values, places, shown, genes) = model(loud, context=False), drawn()
    alone = scheme_states(vit, values, genes, places, shown)
    both = scheme_states(vit, values, genes, places, shown, neighbors=3)
    torch.testing.assert_close(both, neighbor_average(alone, places, shown, 3))


@torch.no_grad()
def test_slice_joins_a_site_with_its_domain(loud: Any) -> None:
    vit, (values, places, shown, genes) = model(loud, context=False, fuse=True), drawn()
    domain = torch.arange(S).expand(B, -1) % 3
    joined = scheme_states(vit, values, genes, places, shown, domain=domain)
    vit.fusion, fusion = None, vit.fusion
    alone = scheme_states(vit, values, genes, places, shown)
    means = domain_means(alone, domain.masked_fill(~shown, -1))
    torch.testing.assert_close(joined, fusion(torch.cat([alone, means], dim=-1)))


@pytest.mark.parametrize("scheme", ["patch", "spot", "multi-spot", "slice"])
def test_sites_that_are_not_shown_are_not_read(loud: Any, scheme: str) -> None:
    vit = model(loud, context=scheme == "patch", fuse=scheme == "slice")
    values, places, shown, genes = drawn()
    options: dict[str, Any] = {"neighbors": 3} if scheme == "multi-spot" else {}
    if scheme == "slice":
        options = {"domain": torch.arange(S).expand(B, -1) % 2}
    clean = scheme_states(vit, values, genes, places, shown, **options)
    dirty = scheme_states(
        vit, values.masked_fill(~shown[..., None], torch.nan), genes, places, shown, **options
    )
    assert torch.isfinite(dirty).all()
    torch.testing.assert_close(dirty, clean)
    vit.predict(dirty, genes).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vit.parameters() if p.grad is not None)
