"""The training objectives, one LightningModule each; the models themselves stay plain modules."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from terrazzo.models.base import FoundationModel
from terrazzo.models.stofm import SToFM
from terrazzo.nn.cell_encoder import CellEncoder
from terrazzo.training.batches import RINGS, AdaptBatch, ScenePack
from terrazzo.training.config import OptimConfig, PretrainConfig
from terrazzo.training.heads import MLP, MaskedGeneHead, answer_with, contrastive_loss, frequency_loss, residual_loss
from terrazzo.training.references import References, with_constant
from terrazzo.training.warm_start import show_neighbours


class Objective(LightningModule):
    """What all stages share: the optimiser and the names of the logged losses."""

    def __init__(self, model: FoundationModel, config: PretrainConfig) -> None:
        super().__init__()
        self.model = model
        self.trained = model.module  # registered, so that Lightning moves, saves and averages it
        self.config = config
        self.total_steps = 1  # of the optimiser; known once there is one

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the parts of the loss by name; ``"loss"`` is what is minimised."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Log the parts, return the sum."""
        parts = self.losses(batch)
        self.log_dict({f"train/{k}": v.detach() for k, v in parts.items()}, batch_size=len(batch))
        return parts["loss"]

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Log the same parts on held-out slices."""
        parts = self.losses(batch)
        self.log_dict({f"val/{k}": v for k, v in parts.items()}, batch_size=len(batch), sync_dist=True)

    def batch_ids(self, batch: Any) -> list[str]:
        """Return the slices of a batch, for messages."""
        return sorted(set(batch.ids))

    def later(self) -> list[nn.Parameter]:
        """Return the parameters that may stay frozen at first."""
        return []

    def undecayed(self) -> list[nn.Parameter]:
        """Return the parameters that no weight decay touches."""
        return []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Bring the weight decay to where its schedule is at this step."""
        bare = {id(p) for p in self.undecayed()}
        for group in optimizer.param_groups:
            if id(group["params"][0]) in bare:
                continue
            group["weight_decay"] = decay(self.global_step, self.config.optim, self.total_steps)

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then decay to zero over the planned steps."""
        optim = self.config.optim
        place = {id(p): 1 for p in self.later()} | {id(p): 2 for p in self.undecayed()}
        groups: list[dict[str, Any]] = [{"params": []}, {"params": []}, {"params": [], "weight_decay": 0.0}]
        for parameter in filter(lambda p: p.requires_grad, self.parameters()):
            groups[place.get(id(parameter), 0)]["params"].append(parameter)
        options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
        optimizer = AdamW([g for g in groups if g["params"]], betas=(optim.beta1, optim.beta2), **options)
        self.total_steps = total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: rate(step, optim, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate(step: int, optim: OptimConfig, total: int) -> float:
    """Return the share of the peak learning rate at a step; a run shorter than its warm-up warms up over a tenth."""
    warmup = max(1, min(optim.warmup_steps, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    return left if optim.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def decay(step: int, optim: OptimConfig, total: int) -> float:
    """Return the weight decay at a step: constant, or along half a cosine from its first value to its last."""
    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    share = min(1.0, step / max(1, total - 1))
    return optim.weight_decay + (end - optim.weight_decay) * (1 - math.cos(math.pi * share)) / 2


class DomainAdaptation(Objective):
    """Masked gene modelling + contrastive loss (section A.1), and beyond the paper the thinned-count own head.

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
        self.own_head = MLP(width, max(256, width), sizes.vocab_size) if config.adapt.own_weight else None
        self.own_scale = nn.Parameter(torch.tensor([float(width) ** 0.5]))  # unit vectors need room; FSDP, a dimension

    def losses(self, batch: AdaptBatch) -> dict[str, Tensor]:
        """Masked genes on the masked view; contrast between two passes or two thinnings; own head on the rest."""
        weights = self.config.adapt
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=batch.ids_masked.device)
        if weights.masked_weight:
            states = self.encoder.bert(batch.ids_masked, attention_mask=batch.mask).last_hidden_state
            chosen = batch.labels >= 0
            logits = self.gene_head(states[chosen], self.encoder.bert.embeddings.word_embeddings.weight)
            parts["masked_genes"] = F.cross_entropy(logits, batch.labels[chosen]) if chosen.any() else logits.sum() * 0
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
            parts["own"] = residual_loss(self.own_head(vectors * self.own_scale), batch.rest, batch.base)
            total = total + weights.own_weight * parts["own"]
            if not self.training:
                parts["own_slice_mean"] = residual_loss(torch.zeros_like(batch.rest), batch.rest, batch.base)
        return {"loss": total, **parts}


class MultiScale(Objective):
    """Masked cell modelling + pairwise distance recovery on sub-slices (section 3.3).

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
        self.register_buffer("ridge", torch.zeros(len(RINGS) * sizes.input_dim + 1, sizes.input_dim))
        heads = sizes.num_heads
        self.recovers_distances = goal.objective == "paper" and goal.gamma < 1 and goal.perturb_share > 0
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
        shown = features.masked_fill(batch.hidden[:, None], 0.0)  # no unit vector: the model can tell
        wanted = batch.moved if self.recovers_distances else None
        output = self.se2(shown, batch.types, batch.pairs, pair_rows=wanted)
        target = batch.features[batch.predicted]
        predicted = self.cell_head(output.hidden[batch.predicted])
        masked = vector_loss(predicted, target, goal.loss)
        parts = {"masked_cells": masked}
        if not self.training:
            parts |= self._references(batch, target)
        if self.distance_head is None:
            return {"loss": 2 * goal.gamma * masked if goal.objective == "paper" else masked, **parts}
        guessed = [self.distance_head(rows).squeeze(-1) for rows in output.pair]
        pairs = [g[:, c] for g, c in zip(guessed, batch.moved_columns, strict=True)]
        error = torch.cat([(p - t).square().flatten() for p, t in zip(pairs, batch.true_distance, strict=True)])
        parts["distances"] = error.mean() if len(error) else masked * 0
        if not self.training and len(error):
            noisy = zip(batch.noisy_distance, batch.true_distance, strict=True)
            parts["distances_noisy"] = torch.cat([(n - t).square().flatten() for n, t in noisy]).mean()
            parts["distances_variance"] = torch.cat([t.flatten() for t in batch.true_distance]).var()
        loss = 2 * (goal.gamma * masked + (1 - goal.gamma) * parts["distances"])  # 0.5 is 1:1
        return {"loss": loss, **parts}

    def start(self, references: References) -> None:
        """Let the heads start from constant answers, and keep the regression; called once, before the first step.

        From random heads a short run spends its steps on finding the mean. An informed start also lets an untrained
        SE(2) Transformer begin with means over neighbours.
        """
        if self.config.model.init == "informed" and self.model.provenance.get("se2") == "untrained":
            show_neighbours(self.se2, references.mean, references.covariance)
        self.ridge.copy_(references.ridge)
        answer_with(self.cell_head, references.mean_cell)
        if self.distance_head is not None:
            answer_with(self.distance_head, torch.tensor([references.mean_distance]))

    def _references(self, batch: ScenePack, target: Tensor) -> dict[str, Tensor]:
        """Return the cost of trivial answers: zero, the shown cells' mean, the neighbours' mean, a ridge on rings."""
        goal = self.config.pretrain
        shown = batch.features[batch.shown_cells]
        # where one-cell sub-slices are all hidden no cell is shown: zeros, as for the neighbours' mean
        mean = (shown.mean(0, keepdim=True) if len(shown) else shown.new_zeros(1, shown.shape[1])).expand_as(target)
        zero = torch.zeros_like(target) if goal.loss == "mse" else mean
        ridge = with_constant(batch.rings) @ self.ridge
        return {
            "masked_cells_zero": vector_loss(zero, target, goal.loss),
            "masked_cells_mean": vector_loss(mean, target, goal.loss),
            "masked_cells_ridge": vector_loss(ridge, target, goal.loss),
            "masked_cells_neighbours": vector_loss(batch.neighbour_mean, target, goal.loss),
        }


def vector_loss(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean over cells of the squared distance (paper), or of one minus the cosine (published code)."""
    if not len(target):
        return predicted.sum() * 0
    if kind == "cosine":
        return (1 - F.cosine_similarity(predicted, target, dim=-1)).mean()
    return (predicted - target).square().sum(-1).mean()
