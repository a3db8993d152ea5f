"""Fusion: the equations written out slowly, symmetry, a missing side, the ablation."""

from __future__ import annotations

import math

import pytest
import torch

from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.network import Fusion, FusionConfig

SMALL = {"image_dim": 6, "gene_dim": 9, "n_tokens": 4, "width": 8, "output_dim": 10}


def built(loud, **options):
    return loud(Fusion(FusionConfig(**{**SMALL, **options}))).eval()


def slowly(module, image, genes):
    """Equations 7 to 9 for one place at a time, with lists."""
    size, out = module.config, []
    for f, g in zip(image, genes, strict=True):
        x = (module.expand_image.weight @ f + module.expand_image.bias).view(
            size.n_tokens, size.width
        )
        y = (module.expand_genes.weight @ g + module.expand_genes.bias).view(
            size.n_tokens, size.width
        )
        halves = []
        for asking, asked, head in ((x, y, module.out_image), (y, x, module.out_genes)):
            found = []
            for token in asking:
                q = module.query.weight @ token
                scores = [
                    float(q @ (module.key.weight @ other)) / math.sqrt(size.width)
                    for other in asked
                ]
                weights = [math.exp(s - max(scores)) for s in scores]
                found.append(
                    sum(
                        w / sum(weights) * (module.value.weight @ other)
                        for w, other in zip(weights, asked, strict=True)
                    )
                )
            pooled = sum(found) / len(found) if size.pooling == "mean" else torch.cat(found)
            halves.append(head.weight @ pooled + head.bias)
        out.append(torch.cat(halves))
    return torch.stack(out)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(5, 6, generator=g), torch.randn(5, 9, generator=g)


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
@torch.no_grad()
def test_it_is_the_equations(loud, batch, pooling):
    module = built(loud, pooling=pooling)
    out = module(*batch)
    assert out.shape == (5, 10)
    torch.testing.assert_close(out, slowly(module, *batch), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_weights_of_attention_are_shared_and_the_sides_symmetric(loud):
    module = built(loud, gene_dim=6)
    assert (
        sum(
            p.numel()
            for n, p in module.named_parameters()
            if n.split(".")[0] in ("query", "key", "value")
        )
        == 3 * 64
    )
    f, g = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    swapped = built(loud, gene_dim=6)
    for a, b in (("expand_image", "expand_genes"), ("out_image", "out_genes")):
        getattr(swapped, a).load_state_dict(getattr(module, b).state_dict())
        getattr(swapped, b).load_state_dict(getattr(module, a).state_dict())
    here, there = module(f, g), swapped(g, f)
    torch.testing.assert_close(here, torch.cat([there[:, 5:], there[:, :5]], dim=1))


@torch.no_grad()
def test_what_the_genes_are_changes_what_is_read_from_the_image(loud, batch):
    """With one token a softmax is 1 and there is no interplay; with several there is."""
    image, genes = batch
    other = genes.flip(0)
    several, one = built(loud), built(loud, n_tokens=1)
    assert (several(image, genes)[:, 5:] - several(image, other)[:, 5:]).abs().max() > 1e-3
    torch.testing.assert_close(one(image, genes)[:, 5:], one(image, other)[:, 5:])


@torch.no_grad()
def test_concatenation_is_two_linear_maps(loud, batch):
    module = built(loud, mode="concatenation")
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {
        "out_image",
        "out_genes",
    }
    torch.testing.assert_close(
        module(*batch), torch.cat([module.out_image(batch[0]), module.out_genes(batch[1])], dim=1)
    )


def test_gradients_reach_everything(batch):
    module = Fusion(FusionConfig(**SMALL, dropout=0.1))
    module(*batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_the_defaults_are_the_papers():
    config = FusionConfig(image_dim=2048, gene_dim=512)
    assert (config.n_tokens, config.width, config.mode) == (8, 512, "attention")


@pytest.mark.parametrize(
    "bad",
    [
        {"n_tokens": 0},
        {"output_dim": 7},
        {"mode": "sum"},
        {"pooling": "max"},
        {"dropout": 1.0},
        {"image_dim": 0},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="fusion"):
        FusionConfig(**{**SMALL, **bad})
