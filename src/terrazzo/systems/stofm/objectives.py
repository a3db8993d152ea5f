"""What is trained beside the model and thrown away after: heads that turn vectors into predictions."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.masking import RINGS, AdaptBatch, ScenePack
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.statistics import References, with_constant
from terrazzo.systems.stofm.warm_start import show_neighbors
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Objective

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


class DomainAdaptation(Objective):
    """Masked gene modeling + contrastive loss (section A.1), and beyond the paper the thinned-count own head.

    Parameters
    ----------
    model
        Its cell encoder is trained.
    config
        The recipe; ``adapt`` holds the weights of the parts.
    """

    def __init__(self, model: SToFM, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.encoder: CellEncoder = model.module.cell_encoder
        model.module.se2.requires_grad_(False)  # this stage does not touch it
        sizes = self.encoder.config
        self.gene_head = MaskedGeneHead(self.encoder.bert.embeddings.word_embeddings)
        width = sizes.output_dim if self.encoder.proj is not None else sizes.hidden_size
        self.own_head = (
            MLP(width, max(256, width), sizes.vocab_size) if config.adapt.own_weight else None
        )
        self.own_scale = nn.Parameter(
            torch.tensor([float(width) ** 0.5])
        )  # unit vectors need room; FSDP, a dimension

    def losses(self, batch: AdaptBatch) -> dict[str, Tensor]:
        """Masked genes on the masked view; contrast between two passes or two thinnings; own head on the rest."""
        weights = self.config.adapt
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.ids_masked.device)
        if weights.masked_weight:
            states = self.encoder.bert(
                batch.ids_masked, attention_mask=batch.mask
            ).last_hidden_state
            chosen = batch.labels >= 0
            logits = self.gene_head(
                states[chosen], self.encoder.bert.embeddings.word_embeddings.weight
            )
            parts["masked_genes"] = (
                F.cross_entropy(logits, batch.labels[chosen]) if chosen.any() else logits.sum() * 0
            )
            total = total + weights.masked_weight * parts["masked_genes"]
            if not self.training:
                seen = batch.ids_plain[batch.mask.bool()]
                parts["masked_genes_frequency"] = frequency_loss(seen, batch.labels[chosen])
        vectors = self.encoder(batch.ids_plain, batch.mask)
        if weights.contrastive_weight:
            other = self.encoder(batch.ids_second, batch.mask_second)
            parts["contrastive"] = contrastive_loss(vectors, other, weights.temperature)
            total = total + weights.contrastive_weight * parts["contrastive"]
            if not self.training:
                parts["contrastive_chance"] = vectors.new_tensor(len(vectors)).log()
        if self.own_head is not None and batch.rest is not None and batch.base is not None:
            parts["own"] = residual_loss(
                self.own_head(vectors * self.own_scale), batch.rest, batch.base
            )
            total = total + weights.own_weight * parts["own"]
            if not self.training:
                parts["own_slice_mean"] = residual_loss(
                    torch.zeros_like(batch.rest), batch.rest, batch.base
                )
        return {"loss": total, **parts}


class MultiScale(Objective):
    """Masked cell modeling + pairwise distance recovery on sub-slices (section 3.3).

    Parameters
    ----------
    model
        SToFM; its SE(2) Transformer is trained, and its cell encoder too once ``frozen_epochs`` are over.
    config
        The recipe; ``pretrain`` holds the objective.
    """

    ridge: Tensor

    def __init__(self, model: SToFM, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.se2 = model.module.se2
        self.encoder: CellEncoder = model.module.cell_encoder
        goal, sizes = config.pretrain, model.config.se2
        self.encoder.requires_grad_(goal.reencode > 0 and config.optim.epochs > goal.frozen_epochs)
        self.cell_head = MLP(sizes.hidden_size, sizes.hidden_size, sizes.input_dim)
        self.register_buffer(
            "ridge", torch.zeros(len(RINGS) * sizes.input_dim + 1, sizes.input_dim)
        )
        heads = sizes.num_heads
        self.recovers_distances = (
            goal.objective == "paper" and goal.gamma < 1 and goal.perturb_share > 0
        )
        self.distance_head = MLP(heads, 4 * heads, 1) if self.recovers_distances else None

    @property
    def reencodes(self) -> bool:
        """Whether this epoch sends some cells through the cell encoder again, with gradient."""
        goal = self.config.pretrain
        return goal.reencode > 0 and self.current_epoch >= goal.frozen_epochs

    def later(self) -> list[nn.Parameter]:
        """Return the cell encoder's parameters."""
        return list(self.encoder.parameters())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep a frozen encoder as it is: FSDP gives it gradients of zero, by which weight decay would change it."""
        super().on_before_optimizer_step(optimizer)
        for group in optimizer.param_groups[1:] if not self.reencodes else ():
            group["weight_decay"] = 0.0

    def losses(self, batch: ScenePack) -> dict[str, Tensor]:
        """Compute MCM on hidden cells and PDR on moved cells; each also beside what a trivial answer would cost."""
        goal = self.config.pretrain
        features = batch.features
        if self.reencodes and batch.again_ids is not None and batch.again_tokens is not None:
            again = self.encoder(batch.again_ids, batch.again_mask)
            features = features.index_copy(0, batch.again_tokens, again)
        shown = features.masked_fill(
            batch.hidden[:, None], 0.0
        )  # no unit vector: the model can tell
        wanted = batch.moved if self.recovers_distances else None
        output = self.se2(shown, batch.types, batch.pairs, pair_rows=wanted)
        target = batch.features[batch.predicted]
        predicted = self.cell_head(output.hidden[batch.predicted])
        masked = vector_loss(predicted, target, goal.loss)
        parts = {"masked_cells": masked}
        if not self.training:
            parts |= self._references(batch, target)
        if self.distance_head is None:
            return {
                "loss": 2 * goal.gamma * masked if goal.objective == "paper" else masked,
                **parts,
            }
        guessed = [self.distance_head(rows).squeeze(-1) for rows in output.pair]
        pairs = [g[:, c] for g, c in zip(guessed, batch.moved_columns, strict=True)]
        error = torch.cat(
            [(p - t).square().flatten() for p, t in zip(pairs, batch.true_distance, strict=True)]
        )
        parts["distances"] = error.mean() if len(error) else masked * 0
        if not self.training and len(error):
            noisy = zip(batch.noisy_distance, batch.true_distance, strict=True)
            parts["distances_noisy"] = torch.cat(
                [(n - t).square().flatten() for n, t in noisy]
            ).mean()
            parts["distances_variance"] = torch.cat(
                [t.flatten() for t in batch.true_distance]
            ).var()
        loss = 2 * (goal.gamma * masked + (1 - goal.gamma) * parts["distances"])  # 0.5 is 1:1
        return {"loss": loss, **parts}

    def start(self, references: References) -> None:
        """Let the heads start from constant answers, and keep the regression; called once, before the first step.

        From random heads a short run spends its steps on finding the mean. An informed start also lets an untrained
        SE(2) Transformer begin with means over neighbors.
        """
        if self.config.model.init == "informed" and self.model.provenance.get("se2") == "untrained":
            show_neighbors(self.se2, references.mean, references.covariance)
        self.ridge.copy_(references.ridge)
        answer_with(self.cell_head, references.mean_cell)
        if self.distance_head is not None:
            answer_with(self.distance_head, torch.tensor([references.mean_distance]))

    def _references(self, batch: ScenePack, target: Tensor) -> dict[str, Tensor]:
        """Return the cost of trivial answers: zero, the shown cells' mean, the neighbors' mean, a ridge on rings."""
        goal = self.config.pretrain
        shown = batch.features[batch.shown_cells]
        # where one-cell sub-slices are all hidden no cell is shown: zeros, as for the neighbors' mean
        mean = (
            shown.mean(0, keepdim=True) if len(shown) else shown.new_zeros(1, shown.shape[1])
        ).expand_as(target)
        zero = torch.zeros_like(target) if goal.loss == "mse" else mean
        ridge = with_constant(batch.rings) @ self.ridge
        return {
            "masked_cells_zero": vector_loss(zero, target, goal.loss),
            "masked_cells_mean": vector_loss(mean, target, goal.loss),
            "masked_cells_ridge": vector_loss(ridge, target, goal.loss),
            "masked_cells_neighbors": vector_loss(batch.neighbor_mean, target, goal.loss),
        }


def vector_loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over cells of the squared distance (paper), or of one minus the cosine (published code)."""
    if not len(target):
        return predicted.sum() * 0
    if kind == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()
    return (predicted - target).square().sum(-1).mean()
