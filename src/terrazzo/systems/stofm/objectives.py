"""SToFM's objectives, domain adaptation and masked cells with recovered distances, and their heads and losses."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.systems.stofm.cell_encoder import CellEncoder
from terrazzo.systems.stofm.masking import RINGS, MaskedCells, MaskedSubSlices
from terrazzo.systems.stofm.model import SToFM
from terrazzo.systems.stofm.recipe import AdaptRecipe, PretrainRecipe
from terrazzo.systems.stofm.statistics import References, with_constant
from terrazzo.systems.stofm.warm_start import show_neighbors
from terrazzo.training.stage import Objective

__all__ = [
    "MLP",
    "DomainAdaptation",
    "MaskedGeneHead",
    "MultiScale",
    "answer_with",
    "contrastive_loss",
    "frequency_loss",
    "residual_loss",
    "vector_loss",
]

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
    recipe
        ``recipe.objective`` has the weights of the parts.
    """

    recipe: AdaptRecipe

    def __init__(self, model: SToFM, recipe: AdaptRecipe) -> None:
        super().__init__(model, recipe)
        self.encoder: CellEncoder = model.module.cell_encoder
        model.module.se2.requires_grad_(False)  # this stage does not touch it
        sizes = self.encoder.config
        self.gene_head = MaskedGeneHead(self.encoder.bert.embeddings.word_embeddings)
        width = sizes.output_dim if self.encoder.proj is not None else sizes.hidden_size
        self.own_head = None
        if recipe.objective.own_weight:
            self.own_head = MLP(width, max(256, width), sizes.vocab_size)
        # unit vectors need room; of one dimension for FSDP
        self.own_scale = nn.Parameter(torch.tensor([float(width) ** 0.5]))

    def losses(self, batch: MaskedCells) -> dict[str, Tensor]:
        """Masked genes on the masked view; contrast between two passes or two thinnings; own head on the rest."""
        objective = self.recipe.objective
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.ids_masked.device)
        if objective.masked_weight:
            parts.update(self._masked_genes(batch))
            total = total + objective.masked_weight * parts["masked_genes"]
        vectors = self.encoder(batch.ids_plain, batch.mask)
        if objective.contrastive_weight:
            other = self.encoder(batch.ids_second, batch.mask_second)
            parts["contrastive"] = contrastive_loss(vectors, other, objective.temperature)
            total = total + objective.contrastive_weight * parts["contrastive"]
            if not self.training:
                parts["contrastive_chance"] = vectors.new_tensor(len(vectors)).log()
        if self.own_head is not None and batch.rest is not None and batch.base is not None:
            change = self.own_head(vectors * self.own_scale)
            parts["own"] = residual_loss(change, batch.rest, batch.base)
            total = total + objective.own_weight * parts["own"]
            if not self.training:
                no_change = torch.zeros_like(batch.rest)
                parts["own_slice_mean"] = residual_loss(no_change, batch.rest, batch.base)
        return {"loss": total, **parts}

    def _masked_genes(self, batch: MaskedCells) -> dict[str, Tensor]:
        """Compute masked gene modeling, in validation beside the answer by frequency."""
        bert = self.encoder.bert
        states = bert(batch.ids_masked, attention_mask=batch.mask).last_hidden_state
        chosen = batch.labels >= 0
        wanted = batch.labels[chosen]
        logits = self.gene_head(states[chosen], bert.embeddings.word_embeddings.weight)
        loss = F.cross_entropy(logits, wanted) if chosen.any() else logits.sum() * 0
        parts = {"masked_genes": loss}
        if not self.training:
            seen = batch.ids_plain[batch.mask.bool()]
            parts["masked_genes_frequency"] = frequency_loss(seen, wanted)
        return parts


class MultiScale(Objective):
    """Masked cell modeling + pairwise distance recovery on sub-slices (section 3.3).

    Parameters
    ----------
    model
        SToFM; its SE(2) Transformer is trained, and its cell encoder too once ``frozen_epochs`` are over.
    recipe
        ``recipe.objective`` says what is minimized.
    """

    recipe: PretrainRecipe
    ridge: Tensor

    def __init__(self, model: SToFM, recipe: PretrainRecipe) -> None:
        super().__init__(model, recipe)
        self.se2 = model.module.se2
        self.encoder: CellEncoder = model.module.cell_encoder
        objective = recipe.objective
        sizes = model.config.se2
        trains_encoder = objective.reencode > 0 and recipe.optim.epochs > objective.frozen_epochs
        self.encoder.requires_grad_(trains_encoder)
        self.cell_head = MLP(sizes.hidden_size, sizes.hidden_size, sizes.input_dim)
        n_predictors = len(RINGS) * sizes.input_dim + 1
        self.register_buffer("ridge", torch.zeros(n_predictors, sizes.input_dim))
        self.recovers_distances = (
            objective.kind == "paper" and objective.gamma < 1 and objective.perturb_share > 0
        )
        self.distance_head = None
        if self.recovers_distances:
            self.distance_head = MLP(sizes.num_heads, 4 * sizes.num_heads, 1)

    @property
    def reencodes(self) -> bool:
        """Whether this epoch sends some cells through the cell encoder again, with gradient."""
        objective = self.recipe.objective
        return objective.reencode > 0 and self.current_epoch >= objective.frozen_epochs

    def later(self) -> list[nn.Parameter]:
        """Return the cell encoder's parameters."""
        return list(self.encoder.parameters())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep a frozen encoder as it is: FSDP gives it gradients of zero, by which weight decay would change it."""
        super().on_before_optimizer_step(optimizer)
        if self.reencodes:
            return
        for group in optimizer.param_groups[1:]:
            group["weight_decay"] = 0.0

    def losses(self, batch: MaskedSubSlices) -> dict[str, Tensor]:
        """Compute MCM on hidden cells and PDR on moved cells; each also beside what a trivial answer would cost."""
        objective = self.recipe.objective
        features = batch.features
        if self.reencodes and batch.again_ids is not None and batch.again_tokens is not None:
            again = self.encoder(batch.again_ids, batch.again_mask)
            features = features.index_copy(0, batch.again_tokens, again)
        shown = features.masked_fill(
            batch.hidden[:, None], 0.0
        )  # not a unit vector: the model can tell
        pair_rows = batch.moved if self.recovers_distances else None
        output = self.se2(shown, batch.types, batch.pairs, pair_rows=pair_rows)
        target = batch.features[batch.predicted]
        predicted = self.cell_head(output.hidden[batch.predicted])
        masked = vector_loss(predicted, target, objective.loss)
        parts = {"masked_cells": masked}
        if not self.training:
            parts.update(self._trivial_answers(batch, target))
        if objective.kind != "paper":
            return {"loss": masked, **parts}
        if self.distance_head is None:
            return {"loss": 2 * objective.gamma * masked, **parts}
        guesses = [self.distance_head(rows).squeeze(-1) for rows in output.pair]
        parts.update(self._distances(batch, guesses, masked * 0))
        loss = objective.gamma * masked + (1 - objective.gamma) * parts["distances"]
        return {"loss": 2 * loss, **parts}  # gamma 0.5 is 1:1

    def _distances(
        self, batch: MaskedSubSlices, guesses: list[Tensor], nothing: Tensor
    ) -> dict[str, Tensor]:
        """Compute distance recovery; in validation beside the noisy distances, and the variance of the true ones."""
        errors = []
        for guess, columns, true in zip(
            guesses, batch.moved_columns, batch.true_distance, strict=True
        ):
            errors.append((guess[:, columns] - true).square().flatten())
        error = torch.cat(errors)
        if not len(error):
            return {"distances": nothing}
        parts = {"distances": error.mean()}
        if not self.training:
            noisy = []
            for before, true in zip(batch.noisy_distance, batch.true_distance, strict=True):
                noisy.append((before - true).square().flatten())
            parts["distances_noisy"] = torch.cat(noisy).mean()
            true_distances = [true.flatten() for true in batch.true_distance]
            parts["distances_variance"] = torch.cat(true_distances).var()
        return parts

    def start(self, references: References) -> None:
        """Let the heads start from constant answers, and keep the regression; called once, before the first step.

        From random heads a short run spends its steps on finding the mean. An informed start also lets an untrained
        SE(2) Transformer begin with means over neighbors.
        """
        informed = self.recipe.model.init == "informed"
        if informed and self.model.provenance.get("se2") == "untrained":
            show_neighbors(self.se2, references.mean, references.covariance)
        self.ridge.copy_(references.ridge)
        answer_with(self.cell_head, references.mean_cell)
        if self.distance_head is not None:
            answer_with(self.distance_head, torch.tensor([references.mean_distance]))

    def _trivial_answers(self, batch: MaskedSubSlices, target: Tensor) -> dict[str, Tensor]:
        """Return the cost of trivial answers: zero, the shown cells' mean, the neighbors' mean, a ridge on rings."""
        kind = self.recipe.objective.loss
        shown = batch.features[batch.shown_cells]
        if len(shown):
            mean = shown.mean(0, keepdim=True).expand_as(target)
        else:  # where one-cell sub-slices are all hidden: zeros, as for the neighbors' mean
            mean = torch.zeros_like(target)
        zero = torch.zeros_like(target) if kind == "mse" else mean
        ridge = with_constant(batch.rings) @ self.ridge
        return {
            "masked_cells_zero": vector_loss(zero, target, kind),
            "masked_cells_mean": vector_loss(mean, target, kind),
            "masked_cells_ridge": vector_loss(ridge, target, kind),
            "masked_cells_neighbors": vector_loss(batch.neighbor_mean, target, kind),
        }


def vector_loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over cells of the squared distance (paper), or of one minus the cosine (published code)."""
    if not len(target):
        return predicted.sum() * 0
    if kind == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()
    return (predicted - target).square().sum(-1).mean()
