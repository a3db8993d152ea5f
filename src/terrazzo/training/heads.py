"""What is trained beside the model and thrown away after: heads that turn vectors into predictions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

THETA = 1.0  # inverse overdispersion of counts within a slice
CLIP = 10.0  # largest residual: one molecule of a gene that is almost never seen is no evidence


class MLP(nn.Sequential):
    """Two layers with GELU, as the paper's regression heads."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def answer_with(head: MLP, constant: Tensor) -> None:
    """Let a head answer with a constant, whatever it is given, until it learns."""
    last = cast("nn.Linear", head[-1])
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(constant)


class MaskedGeneHead(nn.Module):
    """BERT's language-model head: a transform, then the word embeddings themselves as decoder.

    Parameters
    ----------
    words
        The encoder's word embedding; shared, not copied.
    """

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        size = words.embedding_dim
        self.transform = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """Return logits over tokens, ``(n, vocabulary)``."""
        return F.linear(self.transform(states), words, self.bias)


def frequency_loss(seen: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of always answering with how often each token is seen: what masked genes must beat.

    Parameters
    ----------
    seen, wanted
        int64 tokens of a batch, and those to be predicted.
    """
    if not len(wanted):
        return torch.zeros((), device=seen.device)
    counts = torch.bincount(seen, minlength=int(wanted.max()) + 1) + 0.1
    return -(counts / counts.sum()).log()[wanted].mean()


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCSE's loss (section A.1): each row's positive is the same row of ``second``, all other rows are negatives.

    Parameters
    ----------
    first, second
        ``(batch, d)``.
    temperature
        tau.
    """
    similarity = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / temperature
    return F.cross_entropy(similarity, torch.arange(len(first), device=first.device))


def residual_loss(change: Tensor, counts: Tensor, base: Tensor) -> Tensor:
    """Squared error of predicted Pearson residuals of held-out counts: how a cell differs from its slice.

    The count ``x`` of a gene is expected to be ``mu``, its share of the slice's mean composition; its variance is
    ``mu + mu^2 / theta``, as of a negative binomial. The residual of ``mu (1 + change)`` is compared with that of
    ``x``. Unlike the multinomial likelihood, in which a few loud genes decide, no gene weighs more than ``theta``
    molecules do (measured on DLPFC, STARmap and MERFISH; docs/training.md).

    Parameters
    ----------
    change
        ``(batch, vocabulary)``: relative change of each gene against the slice; zeros answer with its mean.
    counts
        Held-out counts, ``(batch, vocabulary)``.
    base
        ``(batch, vocabulary)``: log mean composition of the cell's slice. It is minus infinity at genes that the slice
        did not measure, which are left out. What a whole slice has in common needs no place in a cell's vector then.

    Returns
    -------
    The mean over measured genes of cells with counts; about 1 for zeros.
    """
    total = counts.sum(-1, keepdim=True)
    expected = total * base.softmax(-1)
    kept = ~base.isneginf() & (total > 0)
    sd = torch.where(kept, expected + expected.square() / THETA, 1.0).sqrt()
    residual = ((counts - expected) / sd).clamp(-CLIP, CLIP)
    error = (residual - change * expected / sd).square().masked_fill(~kept, 0.0)
    return error.sum() / kept.sum().clamp_min(1)
