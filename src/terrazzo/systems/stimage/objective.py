"""The objective of ST as images: what is hidden of a window, and what its counts' other part is, from what is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from terrazzo.models.base import FoundationModel
from terrazzo.systems.stimage.masking import PatchPack
from terrazzo.systems.stimage.network import MaskedViT, nearest, scheme_states
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Objective

NEAREST = 6  # shown sites whose mean is an answer to be beaten


class MaskedPatches(Objective):
    """Mean squared error of hidden values, and of the other part of shown ones (eqs 2, 3, 4 and 8).

    Parameters
    ----------
    model
        ST as images.
    config
        The recipe; ``patches`` holds the objective.
    """

    vit: MaskedViT

    def __init__(self, model: FoundationModel, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.vit = model.module  # type: ignore[assignment]

    def losses(self, batch: PatchPack) -> dict[str, Tensor]:
        """Compute both parts; in validation each also beside what a trivial answer would cost."""
        goal = self.config.patches
        neighbors = goal.neighbors if goal.scheme == "multi-spot" else 0
        states = scheme_states(
            self.vit,
            batch.values,
            batch.genes,
            batch.places,
            batch.shown,
            neighbors=neighbors,
            domain=batch.domain,
        )
        predicted, what = (
            self.vit.predict(states, batch.genes),
            "sites" if goal.mask == "site" else "entries",
        )
        hidden = squared_error(predicted, batch.target, batch.hidden)
        parts, loss = {f"masked_{what}": hidden}, goal.hidden_weight * hidden
        if goal.target == "thinned":
            parts["visible"] = squared_error(predicted, batch.target, batch.visible)
            loss = loss + goal.visible_weight * parts["visible"]
        if not self.training:
            parts |= self._references(batch, f"masked_{what}")
        return {"loss": loss, **parts}

    def _references(self, batch: PatchPack, masked: str) -> dict[str, Tensor]:
        """Return the cost of trivial answers: the gene's mean over the slice, and the mean of the nearest shown sites.

        Of standardized values the mean is zero.
        """
        mean = batch.mean[:, None].expand_as(batch.target)
        near = nearest(batch.places, batch.shown, NEAREST)
        seen = batch.shown[..., None] & ~batch.hidden
        total = near @ torch.where(seen, batch.values, 0.0)
        around = total / (near @ seen.to(near.dtype)).clamp_min(1)
        out = {
            f"{masked}_mean": squared_error(mean, batch.target, batch.hidden),
            f"{masked}_neighbors": squared_error(around, batch.target, batch.hidden),
        }
        if self.config.patches.target == "thinned":
            out["visible_mean"] = squared_error(mean, batch.target, batch.visible)
            out["visible_neighbors"] = squared_error(around, batch.target, batch.visible)
        return out


def squared_error(predicted: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Return the mean squared error over the entries chosen by ``where``; others are not looked at, NaN or not."""
    error = torch.where(where, predicted - target, 0.0).square()
    return error.sum() / where.sum().clamp_min(1)
