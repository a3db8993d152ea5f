"""scGPT's encoder against the same sum written out slowly, and what must not change its vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terrazzo.errors import ConfigError
from terrazzo.systems.scgpt.network import ScGPTEncoder, ScGPTEncoderConfig

SMALL = ScGPTEncoderConfig(vocab_size=40, hidden_size=16, num_layers=3, num_heads=4, ffn_size=24)
CLS = 38


@pytest.fixture(scope="module")
def encoder(loud):
    model = loud(ScGPTEncoder(SMALL).eval())
    with torch.no_grad():
        model.genes.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def cells():
    """Flat genes, values and offsets of eight cells, one of them empty and two of one length."""
    rng = np.random.default_rng(0)
    lengths = [5, 9, 0, 9, 1, 17, 30, 12]
    flat = np.concatenate([rng.permutation(38)[:n] for n in lengths]).astype(np.int32)
    return (
        flat,
        rng.integers(1, 51, len(flat)).astype(np.float32),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def norm(x, layer):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * layer.weight + layer.bias


def plainly(model, genes, values):
    """One cell, ``<cls>`` included, one token and one head at a time."""
    rows = []
    for gene, value in zip(genes, values, strict=True):
        inner = torch.relu(
            model.values.linear1.weight[:, 0] * min(float(value), 512.0) + model.values.linear1.bias
        )
        inner = model.values.linear2.weight @ inner + model.values.linear2.bias
        rows.append(
            norm(model.genes.weight[gene], model.gene_norm) + norm(inner, model.values.norm)
        )
    for layer in model.layers:
        heads, width = layer.self_attn.num_heads, len(rows[0])
        w, b = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        parts = [
            [w[i * width : (i + 1) * width] @ x + b[i * width : (i + 1) * width] for x in rows]
            for i in range(3)
        ]
        done = []
        for i, x in enumerate(rows):
            mixed = []
            for head in range(heads):
                own = slice(head * width // heads, (head + 1) * width // heads)
                scores = (
                    torch.stack([parts[0][i][own] @ key[own] for key in parts[1]])
                    / (width / heads) ** 0.5
                )
                mixed.append(
                    sum(p * v[own] for p, v in zip(torch.softmax(scores, 0), parts[2], strict=True))
                )
            out = layer.self_attn.out_proj.weight @ torch.cat(mixed) + layer.self_attn.out_proj.bias
            x = norm(x + out, layer.norm1)
            inner = torch.relu(layer.linear1.weight @ x + layer.linear1.bias)
            done.append(norm(x + layer.linear2.weight @ inner + layer.linear2.bias, layer.norm2))
        rows = done
    return rows[0] / rows[0].norm()


def test_the_same_as_plain_sums(encoder, cells):
    flat, values, offsets = cells
    found = encoder.encode(flat, values, offsets, cls_token=CLS, batch_tokens=60)
    assert (found.shape, found.dtype) == ((8, 16), np.float32)
    with torch.no_grad():
        for cell in range(8):
            own = slice(offsets[cell], offsets[cell + 1])
            expected = plainly(encoder, [CLS, *flat[own].tolist()], [-2.0, *values[own].tolist()])
            np.testing.assert_allclose(found[cell], expected.numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert (
        np.abs(found[:, None] - found).max(axis=2)[~np.eye(8, dtype=bool)].min() > 0.01
    )  # cells differ


def test_the_same_as_torchs_own_layers(encoder):
    genes = torch.randint(0, 38, (3, 12), generator=torch.Generator().manual_seed(0))
    values = torch.randint(1, 51, (3, 12), generator=torch.Generator().manual_seed(1)).float()
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[0, 7:] = 0
    with torch.no_grad():
        x = encoder.gene_norm(encoder.genes(genes)) + encoder.values(values)
        for layer in encoder.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        expected = torch.nn.functional.normalize(x[:, 0], dim=-1)
        torch.testing.assert_close(encoder(genes, values, mask), expected, rtol=0, atol=2e-6)


def test_padding_and_batches_change_nothing(encoder, cells):
    flat, values, offsets = cells
    whole = encoder.encode(flat, values, offsets, cls_token=CLS)
    done = []
    alone = encoder.encode(
        flat, values, offsets, cls_token=CLS, batch_tokens=1, advance=done.append
    )
    np.testing.assert_allclose(whole, alone, rtol=0, atol=1e-6)
    assert sum(done) == 8
    genes, numbers = torch.full((1, 20), 7), torch.full((1, 20), 99.0)
    genes[0, :6], numbers[0, :6] = torch.tensor([CLS, *flat[:5]]), torch.tensor([-2.0, *values[:5]])
    with torch.no_grad():
        padded = encoder(genes, numbers, (torch.arange(20) < 6).long()[None])
    np.testing.assert_allclose(padded[0].numpy(), whole[0], rtol=0, atol=1e-6)


def test_values_matter_up_to_the_largest(encoder):
    genes = torch.tensor([[CLS, 3, 4]])
    with torch.no_grad():
        first, more = (encoder(genes, torch.tensor([[-2.0, value, 5.0]])) for value in (0.5, 50.0))
        below, most, beyond = encoder.values(torch.tensor([2.0, 512.0, 4000.0]))
    assert (first - more).abs().max() > 0.01
    assert torch.equal(most, beyond)
    assert (below - most).abs().max() > 0.01


def test_bfloat16_is_near(encoder, cells):
    flat, values, offsets = cells
    exact = encoder.encode(flat, values, offsets, cls_token=CLS)
    near = encoder.encode(flat, values, offsets, cls_token=CLS, precision="bfloat16")
    assert (exact * near).sum(axis=1).min() > 0.99
    assert not np.array_equal(exact, near)


def test_amid_training_it_encodes_without_dropout(encoder, cells):
    flat, values, offsets = cells
    exact = encoder.encode(flat, values, offsets, cls_token=CLS)
    encoder.train()
    try:
        np.testing.assert_allclose(
            encoder.encode(flat, values, offsets, cls_token=CLS), exact, rtol=0, atol=1e-6
        )
        assert encoder.training
    finally:
        encoder.eval()


def test_gradients_reach_every_weight(encoder):
    model = ScGPTEncoder(SMALL)
    model(torch.arange(40)[None], torch.arange(40.0)[None])[0, 0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_operations_are_counted(encoder):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    genes, values = torch.zeros(2, 30, dtype=torch.int64), torch.ones(2, 30)
    counter = FlopCounterMode(display=False)
    with (
        counter,
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # of fused attention nothing would be counted
        encoder(genes, values)
    assert encoder.flops(np.array([30, 30])) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="multiple"):
        ScGPTEncoderConfig(hidden_size=10, num_heads=4)
    with pytest.raises(ConfigError, match="at least 1"):
        ScGPTEncoderConfig(num_layers=0)
    with pytest.raises(ConfigError, match="dropout"):
        ScGPTEncoderConfig(dropout=1.0)
