"""SToFM's objectives: domain adaptation, and masked cells with recovered distances; their heads and losses."""

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
from terrazzo.systems.stofm.warm_start import start_as_neighbor_means
from terrazzo.training.stage import Objective

__all__ = [
    "MLP",
    "DomainAdaptation",
    "MaskedGeneHead",
    "MultiScale",
    "contrastive_loss",
    "frequency_loss",
    "residual_loss",
    "start_constant",
    "vector_loss",
]

THETA = 1.0  # inverse overdispersion of counts within a slice
CLIP = 10.0  # largest residual: one molecule of a gene that is almost never seen is no evidence
PSEUDOCOUNT = 0.1
LEAST_HIDDEN = 256  # width of the own head


class MLP(nn.Sequential):
    """Two layers with GELU, as the paper's regression heads."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        first = nn.Linear(inputs, hidden)
        last = nn.Linear(hidden, outputs)
        super().__init__(first, nn.GELU(), last)


def start_constant(head: MLP, constant: Tensor) -> None:
    """Let a head return a constant, whatever its input, until it learns."""
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
    """Return the cross-entropy of always predicting the tokens' frequencies: what masked genes must beat.

    Parameters
    ----------
    seen, wanted
        int64 tokens of a batch, and those to be predicted.
    """
    if len(wanted) == 0:
        return torch.zeros((), device=seen.device)
    n_tokens = int(wanted.max()) + 1
    counts = torch.bincount(seen, minlength=n_tokens) + PSEUDOCOUNT
    log_share = (counts / counts.sum()).log()
    return -log_share[wanted].mean()


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCSE's loss (section A.1): each row's positive is the same row of ``second``, all other rows are negatives.

    Parameters
    ----------
    first, second
        ``(batch, d)``.
    temperature
        tau.
    """
    first_unit = F.normalize(first, dim=-1)
    second_unit = F.normalize(second, dim=-1)
    similarity = first_unit @ second_unit.T / temperature
    positive = torch.arange(len(first), device=first.device)
    return F.cross_entropy(similarity, positive)


def residual_loss(change: Tensor, counts: Tensor, base: Tensor) -> Tensor:
    """Squared error of predicted Pearson residuals of held-out counts: how a cell differs from its slice.

    The count ``x`` of a gene is expected to be ``mu``, its share of the slice's mean composition; its variance is
    ``mu + mu^2 / theta``, as of a negative binomial. The residual of ``mu (1 + change)`` is compared with that of
    ``x``. Unlike the multinomial likelihood, in which a few highly expressed genes decide, no gene weighs more than
    ``theta`` molecules do (measured on DLPFC, STARmap and MERFISH; docs/training.md).

    Parameters
    ----------
    change
        ``(batch, vocabulary)``: relative change of each gene against the slice; zeros predict its mean.
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
    is_measured = ~base.isneginf()
    scored = is_measured & (total > 0)
    variance = expected + expected.square() / THETA
    sd = torch.where(scored, variance, 1.0).sqrt()
    residual = (counts - expected) / sd
    residual = residual.clamp(-CLIP, CLIP)
    predicted = change * expected / sd
    squared = (residual - predicted).square()
    error = squared.masked_fill(~scored, 0.0)
    return error.sum() / scored.sum().clamp_min(1)


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
            hidden = max(LEAST_HIDDEN, width)
            self.own_head = MLP(width, hidden, sizes.vocab_size)
        # numbers of a unit vector are small for a head; of one dimension for FSDP
        scale = float(width) ** 0.5
        self.own_scale = nn.Parameter(torch.tensor([scale]))

    def losses(self, batch: MaskedCells) -> dict[str, Tensor]:
        """Compute masked genes, the contrast of two passes or two thinnings, and the own head on the other counts."""
        objective = self.recipe.objective
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.ids_masked.device)
        if objective.masked_weight:
            parts.update(self._masked_genes(batch))
            total = total + objective.masked_weight * parts["masked_genes"]
        vectors = self.encoder(batch.ids_plain, batch.mask)
        if objective.contrastive_weight:
            parts.update(self._contrast(batch, vectors))
            total = total + objective.contrastive_weight * parts["contrastive"]
        if self.own_head is not None and batch.rest is not None and batch.base is not None:
            change = self.own_head(vectors * self.own_scale)
            parts["own"] = residual_loss(change, batch.rest, batch.base)
            total = total + objective.own_weight * parts["own"]
            if not self.training:
                no_change = torch.zeros_like(batch.rest)
                parts["own_slice_mean"] = residual_loss(no_change, batch.rest, batch.base)
        return {"loss": total, **parts}

    def _contrast(self, batch: MaskedCells, vectors: Tensor) -> dict[str, Tensor]:
        """Compute the contrastive loss; in validation beside that of vectors that are all alike."""
        temperature = self.recipe.objective.temperature
        second = self.encoder(batch.ids_second, batch.mask_second)
        parts = {"contrastive": contrastive_loss(vectors, second, temperature)}
        if not self.training:
            n_cells = vectors.new_tensor(len(vectors))
            parts["contrastive_chance"] = n_cells.log()
        return parts

    def _masked_genes(self, batch: MaskedCells) -> dict[str, Tensor]:
        """Compute masked gene modeling; in validation beside the loss of predicting frequencies."""
        bert = self.encoder.bert
        words = bert.embeddings.word_embeddings.weight
        states = bert(batch.ids_masked, attention_mask=batch.mask).last_hidden_state
        is_masked = batch.labels >= 0
        wanted = batch.labels[is_masked]
        logits = self.gene_head(states[is_masked], words)
        if len(wanted):
            loss = F.cross_entropy(logits, wanted)
        else:
            loss = logits.sum() * 0
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
        ``recipe.objective`` has the settings.
    """

    recipe: PretrainRecipe
    ridge: Tensor

    def __init__(self, model: SToFM, recipe: PretrainRecipe) -> None:
        super().__init__(model, recipe)
        self.se2 = model.module.se2
        self.encoder: CellEncoder = model.module.cell_encoder
        objective = recipe.objective
        sizes = model.config.se2
        has_unfrozen_epochs = recipe.optim.goes_beyond(objective.frozen_epochs)
        self.encoder.requires_grad_(objective.reencode > 0 and has_unfrozen_epochs)
        self.cell_head = MLP(sizes.hidden_size, sizes.hidden_size, sizes.input_dim)
        n_predictors = len(RINGS) * sizes.input_dim + 1
        ridge = torch.zeros(n_predictors, sizes.input_dim)
        self.register_buffer("ridge", ridge)
        self.distance_head = None
        if objective.kind == "paper" and objective.gamma < 1 and objective.perturb_share > 0:
            n_heads = sizes.num_heads
            self.distance_head = MLP(n_heads, 4 * n_heads, 1)

    @property
    def reencodes(self) -> bool:
        """Whether some cells are encoded again in this epoch, with gradient."""
        objective = self.recipe.objective
        return objective.reencode > 0 and self.current_epoch >= objective.frozen_epochs

    @property
    def phase(self) -> int:
        """1 where cells are encoded again: their vectors change, and so does what is shown of a sub-slice."""
        return int(self.reencodes)

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
        """Compute MCM on hidden cells and PDR on moved cells; each also beside the losses of trivial answers."""
        objective = self.recipe.objective
        hidden = batch.hidden[:, None]
        # a cell's vector has unit length, so that the model can tell zeros from it
        shown = self._features(batch).masked_fill(hidden, 0.0)
        pair_rows = None
        if self.distance_head is not None:
            pair_rows = batch.moved
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
            loss = objective.gamma * masked
        else:
            recovered = [self.distance_head(rows).squeeze(-1) for rows in output.pair]
            parts.update(self._distances(batch, recovered, masked * 0))
            loss = objective.gamma * masked + (1 - objective.gamma) * parts["distances"]
        return {"loss": 2 * loss, **parts}  # gamma 0.5 is 1:1

    def _features(self, batch: MaskedSubSlices) -> Tensor:
        """Return the tokens' vectors, some of them encoded again."""
        if not self.reencodes or batch.again_ids is None or batch.again_tokens is None:
            return batch.features
        again = self.encoder(batch.again_ids, batch.again_mask)
        return batch.features.index_copy(0, batch.again_tokens, again)

    def _distances(
        self, batch: MaskedSubSlices, recovered: list[Tensor], nothing: Tensor
    ) -> dict[str, Tensor]:
        """Compute distance recovery; in validation beside the noisy distances, and the variance of the true ones."""
        errors = []
        for rows, columns, true in zip(
            recovered, batch.moved_columns, batch.true_distance, strict=True
        ):
            error = rows[:, columns] - true
            errors.append(error.square().flatten())
        squared_errors = torch.cat(errors)
        if len(squared_errors) == 0:
            return {"distances": nothing}
        parts = {"distances": squared_errors.mean()}
        if self.training:
            return parts
        noise = []
        for noisy, true in zip(batch.noisy_distance, batch.true_distance, strict=True):
            error = noisy - true
            noise.append(error.square().flatten())
        parts["distances_noisy"] = torch.cat(noise).mean()
        true_distances = torch.cat([true.flatten() for true in batch.true_distance])
        parts["distances_variance"] = true_distances.var()
        return parts

    def start(self, references: References) -> None:
        """Let the heads start from constants, and store the regression; called once, before the first step.

        From random heads a short run spends its steps on learning the mean. An informed start also lets an untrained
        SE(2) Transformer begin with means over neighbors.
        """
        is_informed = self.recipe.model.init == "informed"
        if is_informed and self.model.provenance.get("se2") == "untrained":
            start_as_neighbor_means(self.se2, references.mean, references.covariance)
        self.ridge.copy_(references.ridge)
        start_constant(self.cell_head, references.mean_cell)
        if self.distance_head is not None:
            mean_distance = torch.tensor([references.mean_distance])
            start_constant(self.distance_head, mean_distance)

    def _trivial_answers(self, batch: MaskedSubSlices, target: Tensor) -> dict[str, Tensor]:
        """Return the losses of trivial answers: zero, the shown cells' mean, the neighbors' mean, a ridge on rings."""
        kind = self.recipe.objective.loss
        zero = torch.zeros_like(target)
        mean = zero  # where one-cell sub-slices are all hidden, as for the neighbors' mean
        shown = batch.features[batch.shown_cells]
        if len(shown):
            mean = shown.mean(0, keepdim=True).expand_as(target)
        if kind != "mse":  # zeros have no direction
            zero = mean
        ridge = with_constant(batch.rings) @ self.ridge
        return {
            "masked_cells_zero": vector_loss(zero, target, kind),
            "masked_cells_mean": vector_loss(mean, target, kind),
            "masked_cells_ridge": vector_loss(ridge, target, kind),
            "masked_cells_neighbors": vector_loss(batch.neighbor_mean, target, kind),
        }


def vector_loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return the mean over cells of the squared distance (paper), or of one minus the cosine (published code)."""
    if len(target) == 0:
        return predicted.sum() * 0
    if kind == "cosine":
        cosine = F.cosine_similarity(predicted, target, dim=-1)
        return (1 - cosine).mean()
    squared = (predicted - target).square()
    return squared.sum(-1).mean()
