"""The objective of ST as images: predict what is hidden of a window, and the other part of its counts."""

from __future__ import annotations

import torch
from torch import Tensor

from terrazzo.models.base import FoundationModel
from terrazzo.systems.stimage.masking import MaskedWindows
from terrazzo.systems.stimage.network import MaskedViT, nearest, scheme_states
from terrazzo.systems.stimage.recipe import STImageRecipe
from terrazzo.training.stage import Objective

__all__ = ["MaskedAutoencoding", "squared_error"]

NEAREST = 6  # shown sites whose mean is a trivial prediction


class MaskedAutoencoding(Objective):
    """Mean squared error of hidden values, and of the other part of shown ones (eqs 2, 3, 4 and 8).

    Parameters
    ----------
    model
        ST as images.
    recipe
        ``recipe.objective`` says what is hidden and predicted.
    """

    recipe: STImageRecipe
    vit: MaskedViT

    def __init__(self, model: FoundationModel, recipe: STImageRecipe) -> None:
        super().__init__(model, recipe)
        self.vit = model.module  # type: ignore[assignment]

    def losses(self, batch: MaskedWindows) -> dict[str, Tensor]:
        """Compute both parts; in validation also those of trivial predictions."""
        objective = self.recipe.objective
        states = scheme_states(
            self.vit,
            batch.values,
            batch.genes,
            batch.places,
            batch.shown,
            neighbors=objective.neighbors if objective.scheme == "multi-spot" else 0,
            domain=batch.domain,
        )
        predicted = self.vit.predict(states, batch.genes)
        hidden = squared_error(predicted, batch.target, batch.hidden)
        name = "masked_sites" if objective.mask == "site" else "masked_entries"
        parts = {name: hidden}
        loss = objective.hidden_weight * hidden
        if objective.target == "thinned":
            visible = squared_error(predicted, batch.target, batch.visible)
            parts["visible"] = visible
            loss = loss + objective.visible_weight * visible
        if not self.training:
            parts.update(self._trivial_losses(batch, name))
        return {"loss": loss, **parts}

    def _trivial_losses(self, batch: MaskedWindows, masked: str) -> dict[str, Tensor]:
        """Return the losses of trivial predictions: a gene's mean over the slice, and over the nearest shown sites.

        Of standardized values the mean over the slice is zero.
        """
        mean = batch.mean[:, None].expand_as(batch.target)
        around = _mean_around(batch)
        losses = {
            f"{masked}_mean": squared_error(mean, batch.target, batch.hidden),
            f"{masked}_neighbors": squared_error(around, batch.target, batch.hidden),
        }
        if self.recipe.objective.target == "thinned":
            losses["visible_mean"] = squared_error(mean, batch.target, batch.visible)
            losses["visible_neighbors"] = squared_error(around, batch.target, batch.visible)
        return losses


def _mean_around(batch: MaskedWindows) -> Tensor:
    """Return the mean value of each site's nearest shown sites, ``(B, S, m)``."""
    near = nearest(batch.places, batch.shown, NEAREST)
    seen = batch.shown[..., None] & ~batch.hidden
    total = near @ torch.where(seen, batch.values, 0.0)
    n_seen = near @ seen.to(near.dtype)
    return total / n_seen.clamp_min(1)


def squared_error(predicted: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Return the mean squared error over the entries chosen by ``where``; others are not read, even if they are NaN."""
    error = torch.where(where, predicted - target, 0.0).square()
    return error.sum() / where.sum().clamp_min(1)
