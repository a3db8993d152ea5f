"""Heads: each loss against a sum written out by hand or by scipy."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from terrazzo.systems.stofm.objectives import MLP, MaskedGeneHead, contrastive_loss, residual_loss


def test_masked_gene_head_decodes_with_the_words_themselves() -> None:
    words = nn.Embedding(11, 4)
    head = MaskedGeneHead(words)
    with torch.no_grad():
        head.bias.copy_(torch.arange(11.0))
    states = torch.randn(5, 4)
    logits = head(states, words.weight)
    by_hand = torch.stack(
        [head.transform(states) @ words.weight[token] + token for token in range(11)], dim=1
    )
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
        [
            -row[i] / tau + math.log(sum(math.exp(value / tau) for value in row))
            for i, row in enumerate(table)
        ]
    )
    torch.testing.assert_close(
        contrastive_loss(first, second, tau), torch.tensor(expected, dtype=torch.float32)
    )


def test_contrastive_loss_knows_pairs_from_strangers() -> None:
    rows = nn.functional.normalize(torch.randn(16, 8), dim=-1)
    assert contrastive_loss(rows, rows, 0.05) < 0.1 < contrastive_loss(rows, rows.roll(1, 0), 0.05)


def test_residual_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    change = rng.normal(size=(3, 6)) * 0.3
    counts = np.array([[3, 0, 2, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 5, 0, 400, 0]])
    slices = rng.dirichlet(np.ones(6), 3)
    slices[0, 3] = slices[2, [0, 1]] = 0  # genes that the slice did not measure
    errors = []
    for cell in range(3):
        share = slices[cell] / slices[cell].sum()
        for gene in np.flatnonzero(share):
            mean = counts[cell].sum() * share[gene]
            sd = math.sqrt(mean + mean**2)
            residual = min(max((counts[cell, gene] - mean) / sd, -10), 10)
            errors.append((residual - change[cell, gene] * mean / sd) ** 2)
    loss = residual_loss(
        *(torch.from_numpy(a).float() for a in (change, counts)),
        torch.from_numpy(slices).float().log(),
    )
    torch.testing.assert_close(loss, torch.tensor(np.mean(errors), dtype=torch.float32))


def test_the_true_change_costs_least() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.tensor([0.5, 0.3, 0.2]).log().expand(4000, 3)
    true = torch.tensor([0.2, -0.5, 0.25])
    counts = torch.poisson((base.exp() * (1 + true) * 40).expand(4000, 3), generator=generator)
    costs = [
        float(residual_loss(guess.expand(4000, 3), counts, base))
        for guess in (true, torch.zeros(3), -true)
    ]
    assert costs[0] < costs[1] < costs[2]


def test_a_gene_that_was_not_measured_changes_nothing() -> None:
    counts, base = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.7, 0.3, 0.0]]).log()
    loss = [residual_loss(torch.tensor([[0.3, -0.2, far]]), counts, base) for far in (-50.0, 50.0)]
    assert loss[0] == loss[1]
    change = torch.zeros(1, 3, requires_grad=True)
    residual_loss(change, counts, base).backward()
    assert change.grad is not None
    assert change.grad[0, 2] == 0
    assert torch.isfinite(change.grad).all()


def test_a_cell_with_nothing_left_is_not_counted() -> None:
    change, base = torch.randn(2, 4, requires_grad=True), torch.full((2, 4), 0.25).log()
    counts = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    both, one = residual_loss(change, counts, base), residual_loss(change[:1], counts[:1], base[:1])
    assert both == one
    nothing = residual_loss(change, torch.zeros(2, 4), base)
    assert nothing == 0
    nothing.backward()  # a batch without any still has a gradient, of zero: other processes wait for it
    assert change.grad is not None
    assert change.grad.abs().sum() == 0


def test_mlp_has_two_layers() -> None:
    head = MLP(3, 5, 2)
    assert [tuple(p.shape) for p in head.parameters()] == [(5, 3), (5,), (2, 5), (2,)]
