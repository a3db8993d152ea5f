"""The objective of ST-Align: image and genes of a spot, and a spot and its niche, find each other among all others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from terrazzo.models.base import FoundationModel
from terrazzo.systems.stalign.features import AlignBatch, Scale
from terrazzo.systems.stalign.losses import contrast, symmetric_contrast
from terrazzo.systems.stalign.model import SCALES, STAlign
from terrazzo.systems.stalign.network import AlignNet
from terrazzo.systems.stalign.recipe import STAlignRecipe
from terrazzo.tasks.retrieval import recall
from terrazzo.training.callbacks import gathered
from terrazzo.training.stage import Objective

__all__ = ["AlignPack", "SpotNiche"]

RECALL_AT = 10
RECALL_SPOTS = 2000  # of a slice, on each process, among which the partner is sought
Pair = dict[str, Tensor]  # vectors of "image" and "genes"


@dataclass(frozen=True)
class AlignPack:
    """Spots as tensors, and which slice each is of.

    Attributes
    ----------
    spots
        What the model reads.
    ids
        Slice of each spot.
    """

    spots: AlignBatch
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, **options: Any) -> AlignPack:
        """Return the same on another device."""
        return replace(self, spots=self.spots.to(device))


class SpotNiche(Objective):
    """Contrast of image and genes at two scales, and of spots with their niches (eqs 10 and 11).

    Parameters
    ----------
    model
        ST-Align; its frozen encoders have done their work before.
    recipe
        ``recipe.objective`` says what is contrasted.
    """

    recipe: STAlignRecipe
    net: AlignNet
    model: STAlign

    def __init__(self, model: FoundationModel, recipe: STAlignRecipe) -> None:
        super().__init__(model, recipe)
        self.net = model.module.net  # type: ignore[assignment]
        self._kept: dict[str, list[dict[Scale, Pair]]] = {}  # vectors of the validation by slice

    def undecayed(self) -> list[nn.Parameter]:
        """Return the temperature, where it is learned: weight decay would draw it to 1."""
        temperature = self.net.log_temperature
        return [temperature] if isinstance(temperature, nn.Parameter) else []

    def vectors(self, batch: AlignBatch) -> dict[Scale, Pair]:
        """Return the vectors of image and genes at both scales, those of the recipe's modality."""
        net = self.net
        modality = self.recipe.objective.modality
        spot: Pair = {}
        niche: Pair = {}
        if modality != "genes" and batch.spot_image is not None and batch.niche_image is not None:
            spot["image"] = net.spot_image(batch.spot_image, batch.colors)
            niche["image"] = net.niche_image(batch.niche_image)
        if modality != "image" and batch.spot_genes is not None and batch.niche_genes is not None:
            spot["genes"] = net.spot_genes(batch.spot_genes)
            niche["genes"] = net.niche_genes(batch.niche_genes, batch.known)
        return {"spot": spot, "niche": niche}

    def losses(self, batch: AlignPack) -> dict[str, Tensor]:
        """Compute the parts that have a weight; in validation beside what vectors that say nothing would cost."""
        return self._contrasts(self.vectors(batch.spots), batch.spots)

    def _contrasts(self, vectors: dict[Scale, Pair], spots: AlignBatch) -> dict[str, Tensor]:
        objective = self.recipe.objective
        tau = self.net.temperature
        near: dict[str, Any] = {}
        if objective.exclude_neighbors:
            near = {"spots": spots.spots, "niches": spots.niches}
        weights = {
            "spot": objective.spot_weight,
            "niche": objective.niche_weight,
            "spot_niche": objective.cross_weight,
        }
        parts: dict[str, Tensor] = {}
        for scale in SCALES:
            if weights[scale] and objective.modality == "both":
                pair = vectors[scale]
                parts[scale] = symmetric_contrast(pair["image"], pair["genes"], tau, **near)
        if objective.cross_weight:
            own = self._joined("spot", vectors["spot"])
            around = self._joined("niche", vectors["niche"])
            cross = symmetric_contrast if objective.symmetric else contrast
            parts["spot_niche"] = cross(own, around, tau, **near)
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        if not self.training:
            nothing = torch.zeros(len(spots), 1, device=total.device)
            chance = contrast(
                nothing, nothing, 1.0, **near
            )  # log of the number of partners to choose from
            parts.update({f"{name}_chance": chance for name in list(parts)})
        if objective.learn_temperature:
            parts["temperature"] = tau
        return {"loss": total, **parts}

    def _joined(self, scale: Scale, pair: Pair) -> Tensor:
        if len(pair) == 2:
            return self.net.fuse(scale, pair["image"], pair["genes"])
        return next(iter(pair.values()))

    def validation_step(self, batch: AlignPack, batch_index: int) -> None:
        """Log the losses, and keep some vectors of every slice."""
        vectors = self.vectors(batch.spots)
        parts = self._contrasts(vectors, batch.spots)
        logged = {f"val/{name}": part for name, part in parts.items()}
        self.log_dict(logged, batch_size=len(batch), sync_dist=True)
        if self.recipe.objective.modality == "both":
            for name in set(batch.ids):
                self._keep(name, batch, vectors)

    def _keep(self, name: str, batch: AlignPack, vectors: dict[Scale, Pair]) -> None:
        kept = self._kept.setdefault(name, [])
        n_kept = sum(len(one["spot"]["image"]) for one in kept)
        if n_kept >= RECALL_SPOTS:
            return
        rows = torch.tensor([one == name for one in batch.ids], device=batch.spots.spots.device)
        of_slice: dict[Scale, Pair] = {}
        for scale, pair in vectors.items():
            of_slice[scale] = {kind: v[rows].float().cpu() for kind, v in pair.items()}
        kept.append(of_slice)

    def on_validation_epoch_end(self) -> None:
        """Log how often the genes of a spot are among the 10 that are most like its image, in its own slice."""
        of_processes = gathered(self._kept)
        self._kept = {}
        names = sorted({name for kept in of_processes for name in kept})
        for scale in SCALES:
            scores = []
            chances = []
            for name in names:
                parts = [one[scale] for kept in of_processes for one in kept.get(name, [])]
                image = torch.cat([part["image"] for part in parts]).numpy()
                genes = torch.cat([part["genes"] for part in parts]).numpy()
                scores.append(recall(image, genes, [RECALL_AT])[RECALL_AT])
                chances.append(min(1.0, RECALL_AT / len(image)))
            if scores:
                label = f"val/{scale}_recall_{RECALL_AT}"
                self.log(label, sum(scores) / len(scores))
                self.log(f"{label}_chance", sum(chances) / len(chances))
