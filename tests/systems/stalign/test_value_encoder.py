"""AE-Gene: how a gene vector becomes tokens, what the statistics and missing genes do, and its shape."""

from __future__ import annotations

import pytest
import torch

from terrazzo.errors import ConfigError
from terrazzo.systems.stalign.value_encoder import ValueEncoder, ValueEncoderConfig

SMALL = {
    "n_genes": 11,
    "n_tokens": 4,
    "width": 8,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_size": 16,
    "output_dim": 6,
}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return ValueEncoder(ValueEncoderConfig(**SMALL)).eval()


@pytest.fixture
def values():
    return torch.rand(5, 11, generator=torch.Generator().manual_seed(1)) * 3


@torch.no_grad()
def test_genes_are_dealt_out_to_tokens(module, values):
    tokens = module.tokens(values)
    assert tokens.shape == (5, 4, 8)
    for spot in range(5):
        for token in range(4):
            slow = module.bias[token].clone()
            for place, gene in enumerate(range(token, 11, 4)):
                slow += values[spot, gene] * module.weight[token, place]
            torch.testing.assert_close(tokens[spot, token], slow)


@torch.no_grad()
def test_values_are_standardized_and_unknown_genes_count_as_their_mean(module, values):
    deviation = values.std(dim=0)
    deviation[2] = 0.0
    plain = module.tokens((values - values.mean(dim=0)) / deviation.clamp_min(1e-3))
    module.fit(values.mean(dim=0), deviation)
    torch.testing.assert_close(module.tokens(values), plain)
    known = torch.arange(11) != 6
    at_mean = values.clone()
    at_mean[:, 6] = values[:, 6].mean()
    torch.testing.assert_close(
        module(torch.where(known, values, torch.nan), known), module(at_mean)
    )
    torch.testing.assert_close(module(values, known.expand(5, -1)), module(values, known))


def test_every_gene_and_every_weight_counts(module, values):
    values.requires_grad_()
    out = module(values)
    assert out.shape == (5, 6)
    out.square().sum().backward()
    assert (values.grad.abs() > 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
    assert {"mean", "deviation"} <= set(module.state_dict())


@torch.no_grad()
def test_spots_of_a_batch_do_not_see_each_other(module, values):
    torch.testing.assert_close(module(values)[2:3], module(values[2:3]))


def test_the_defaults_are_the_papers():
    config = ValueEncoderConfig(n_genes=2000)
    assert (config.num_layers, config.num_heads, config.dropout) == (6, 8, 0.1)


def test_more_tokens_than_divide_the_genes():
    for n_genes in (4, 5, 7, 8):
        assert ValueEncoder(ValueEncoderConfig(**{**SMALL, "n_genes": n_genes}))(
            torch.ones(2, n_genes)
        ).shape == (2, 6)


@pytest.mark.parametrize(
    "bad", [{"n_genes": 3}, {"num_heads": 3}, {"dropout": 1.0}, {"num_layers": 0}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="AE-Gene"):
        ValueEncoderConfig(**{**SMALL, **bad})
