"""The cell encoder's inference path against transformers' own forward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.models.sequences import PADDING, length_batches
from terrazzo.systems.stofm.cell_encoder import CellEncoder, CellEncoderConfig

CONFIG = CellEncoderConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    intermediate_size=40,
    max_length=40,
    output_dim=16,
)
CLS = 2


@pytest.fixture(scope="module", params=["cls", "mean"])
def encoder(request: pytest.FixtureRequest, loud: Any) -> CellEncoder:
    width = 16 if request.param == "cls" else 32
    return loud(CellEncoder(replace(CONFIG, pooling=request.param, output_dim=width))).eval()


def cells(
    seed: int = 0, n: int = 24, empty: bool = True
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 39, n)
    if empty:
        lengths[[3, n - 1]] = 0
    sequences = [rng.choice(np.arange(3, 50), k, replace=False).tolist() for k in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.concatenate(sequences).astype(np.int32), offsets, sequences


@torch.no_grad()
def own_forward(encoder: CellEncoder, sequences: list[list[int]]) -> np.ndarray:
    """One cell at a time through all of transformers' own forward."""
    lead = [CLS] if encoder.proj is not None else []
    out = []
    for sequence in sequences:
        ids = torch.tensor([lead + sequence])
        if ids.shape[1] == 0:
            out.append(np.zeros(encoder.config.output_dim))
        else:
            states = encoder.bert(
                ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            ).hidden_states
            if encoder.proj is not None:
                vector = torch.nn.functional.normalize(encoder.proj(states[-1][:, 0]), dim=-1)
            else:
                vector = states[-2].mean(1)
            out.append(vector[0].numpy())
    return np.stack(out)


def test_encode_equals_transformers_own_forward(encoder: CellEncoder) -> None:
    flat, offsets, sequences = cells()
    expected = own_forward(encoder, sequences)
    assert expected.std(axis=0).min() > 0.01  # cells differ
    np.testing.assert_allclose(
        encoder.encode(flat, offsets, cls_token=CLS), expected, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_padding_changes_nothing_in_the_modules_own_forward(encoder: CellEncoder) -> None:
    _, _, sequences = cells(1, 10, empty=False)
    lead = [CLS] if encoder.proj is not None else []
    ids = torch.zeros(10, 40, dtype=torch.long)
    mask = torch.zeros(10, 40, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens = torch.tensor(lead + sequence)
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    np.testing.assert_allclose(
        encoder(ids, mask).numpy(), own_forward(encoder, sequences), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("batch_tokens", [1, 50, 333, 100_000])
def test_batches_never_change_a_vector(encoder: CellEncoder, batch_tokens: int) -> None:
    flat, offsets, _ = cells(2)
    whole = encoder.encode(flat, offsets, cls_token=CLS)
    found = encoder.encode(flat, offsets, cls_token=CLS, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def test_the_company_a_cell_keeps_changes_nothing(encoder: CellEncoder) -> None:
    flat, offsets, sequences = cells(3)
    whole = encoder.encode(flat, offsets, cls_token=CLS)
    for cell in (0, 3, 17):
        alone = encoder.encode(
            np.array(sequences[cell], dtype=np.int32),
            np.array([0, len(sequences[cell])]),
            cls_token=CLS,
        )
        np.testing.assert_allclose(alone[0], whole[cell], rtol=0, atol=1e-5)


def test_empty_cells_have_finite_vectors(encoder: CellEncoder) -> None:
    none = encoder.encode(np.zeros(0, dtype=np.int32), np.zeros(4, dtype=np.int64), cls_token=CLS)
    assert none.shape == (3, encoder.config.output_dim)
    assert np.isfinite(none).all()
    assert (none[0] == none[1]).all()
    if encoder.proj is not None:
        np.testing.assert_allclose(np.linalg.norm(none, axis=1), 1, rtol=1e-5)
    else:
        assert not none.any()


def test_vectors_have_unit_length_with_cls(encoder: CellEncoder) -> None:
    flat, offsets, _ = cells(4)
    norms = np.linalg.norm(encoder.encode(flat, offsets, cls_token=CLS), axis=1)
    if encoder.proj is not None:
        np.testing.assert_allclose(norms, 1, rtol=1e-5)
    else:
        assert norms.max() > 1.5


def test_bfloat16_is_close_and_not_the_same(encoder: CellEncoder) -> None:
    flat, offsets, _ = cells(5, empty=False)
    exact = encoder.encode(flat, offsets, cls_token=CLS)
    rough = encoder.encode(flat, offsets, cls_token=CLS, precision="bfloat16")
    assert rough.dtype == np.float32
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.98
    assert np.abs(exact - rough).max() > 1e-5


def test_advance_counts_every_cell_with_tokens(encoder: CellEncoder) -> None:
    flat, offsets, sequences = cells(6)
    done: list[int] = []
    encoder.encode(flat, offsets, cls_token=CLS, batch_tokens=100, advance=done.append)
    with_tokens = len(sequences) if encoder.proj is not None else sum(map(bool, sequences))
    assert sum(done) == with_tokens
    assert len(done) > 3


def test_no_gradient_is_kept(encoder: CellEncoder) -> None:
    flat, offsets, _ = cells(7)
    encoder.encode(flat, offsets, cls_token=CLS)
    assert all(p.grad is None for p in encoder.parameters())


@given(
    st.lists(st.integers(0, 2048), min_size=1, max_size=200), st.sampled_from([1, 64, 4096, 32_768])
)
@settings(max_examples=60, deadline=None)
def test_length_batches_cover_each_cell_once_with_little_padding(
    lengths: list[int], batch_tokens: int
) -> None:
    size = np.array(lengths, dtype=np.int64)
    batches = list(length_batches(size, batch_tokens))
    seen = sorted(int(c) for b in batches for c in b)
    assert seen == np.flatnonzero(size).tolist()
    for batch in batches:
        padded = int(size[batch].max()) * len(batch)
        assert len(batch) == 1 or padded <= batch_tokens
        assert padded - size[batch].sum() <= PADDING * padded + 1e-9
    assert PADDING <= 0.03


def test_flops(encoder: CellEncoder) -> None:
    one, two = (encoder.flops(np.full(k, 30)) for k in (1, 2))
    assert two == pytest.approx(2 * one)
    assert 0 < encoder.flops(np.array([10])) < one


def test_encoding_amid_training_has_no_dropout(loud: Any) -> None:
    encoder = loud(CellEncoder(replace(CONFIG, dropout=0.5, attention_dropout=0.5))).eval()
    flat, offsets, _ = cells(7)
    expected = encoder.encode(flat, offsets, cls_token=CLS)
    found = encoder.train().encode(flat, offsets, cls_token=CLS)
    assert encoder.training
    np.testing.assert_array_equal(found, expected)
