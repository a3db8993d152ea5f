"""Heads: each loss against a sum written out by hand or by scipy."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import multinomial
from torch import nn

from terrazzo.training.heads import MLP, MaskedGeneHead, composition_loss, contrastive_loss


def test_masked_gene_head_decodes_with_the_words_themselves() -> None:
    words = nn.Embedding(11, 4)
    head = MaskedGeneHead(words)
    with torch.no_grad():
        head.bias.copy_(torch.arange(11.0))
    states = torch.randn(5, 4)
    logits = head(states, words.weight)
    by_hand = torch.stack([head.transform(states) @ words.weight[token] + token for token in range(11)], dim=1)
    torch.testing.assert_close(logits, by_hand)
    assert all(p.numel() < words.weight.numel() for p in head.parameters())  # shared, not copied
    logits.sum().backward()
    assert words.weight.grad is not None
    assert words.weight.grad.abs().sum() > 0


def test_contrastive_loss_by_hand() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    # cosines: rows of first against rows of second
    table = [[1.0, math.sqrt(0.5)], [0.0, math.sqrt(0.5)]]
    tau = 0.1
    expected = np.mean(
        [-row[i] / tau + math.log(sum(math.exp(value / tau) for value in row)) for i, row in enumerate(table)]
    )
    torch.testing.assert_close(contrastive_loss(first, second, tau), torch.tensor(expected, dtype=torch.float32))


def test_contrastive_loss_knows_pairs_from_strangers() -> None:
    rows = nn.functional.normalize(torch.randn(16, 8), dim=-1)
    assert contrastive_loss(rows, rows, 0.05) < 0.1 < contrastive_loss(rows, rows.roll(1, 0), 0.05)


def test_composition_loss_is_the_multinomial_likelihood() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(3, 6)).astype(np.float32))
    counts = np.array([[3, 0, 2, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 5, 0, 4, 0]])
    slices = rng.dirichlet(np.ones(6), 3)
    slices[0, 3] = slices[2, [0, 1]] = 0  # genes that the slice did not measure
    expected = []
    for row, seen, of_slice in zip(logits.numpy().astype(np.float64), counts, slices, strict=True):
        measured = of_slice > 0
        share = of_slice[measured] * np.exp(row[measured])
        share /= share.sum()
        drawn = seen[measured]
        # the number of orders in which the molecules may come is no matter of the model
        orders = math.lgamma(drawn.sum() + 1) - sum(math.lgamma(n + 1) for n in drawn)
        expected.append(-(multinomial.logpmf(drawn, drawn.sum(), share) - orders) / drawn.sum())
    loss = composition_loss(logits, torch.from_numpy(counts).float(), torch.from_numpy(slices).float().log())
    torch.testing.assert_close(loss, torch.tensor(np.mean(expected), dtype=torch.float32))


def test_a_gene_that_was_not_measured_changes_nothing() -> None:
    counts, base = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.7, 0.3, 0.0]]).log()
    loss = [composition_loss(torch.tensor([[0.3, -0.2, far]]), counts, base) for far in (-50.0, 50.0)]
    assert loss[0] == loss[1]
    logits = torch.zeros(1, 3, requires_grad=True)
    composition_loss(logits, counts, base).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    assert torch.isfinite(logits.grad).all()


def test_a_cell_with_nothing_left_is_not_counted() -> None:
    logits, base = torch.randn(2, 4, requires_grad=True), torch.full((2, 4), 0.25).log()
    counts = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    both, one = composition_loss(logits, counts, base), composition_loss(logits[:1], counts[:1], base[:1])
    assert both == one
    nothing = composition_loss(logits, torch.zeros(2, 4), base)
    assert nothing == 0
    nothing.backward()  # a batch without any still has a gradient, of zero: other processes wait for it
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_mlp_has_two_layers() -> None:
    head = MLP(3, 5, 2)
    assert [tuple(p.shape) for p in head.parameters()] == [(5, 3), (5,), (2, 5), (2,)]
