"""The objective of ST-Align: contrast of image and genes at spots and niches, and of spots with niches."""

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

RECALL_AT = 10  # partners that are retrieved

RECALL_SPOTS = 2000  # of a slice, on each process, that the partner is retrieved from

Pair = dict[str, Tensor]  # vectors of "image" and "genes"


@dataclass(frozen=True)
class AlignPack:
    """Spots as tensors, and which slice each is of.

    Attributes
    ----------
    spots
        Features of the spots.
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
        ST-Align; features of its frozen encoders are computed before.
    recipe
        ``recipe.objective`` says what is contrasted.
    """

    recipe: STAlignRecipe
    net: AlignNet
    model: STAlign

    def __init__(self, model: FoundationModel, recipe: STAlignRecipe) -> None:
        super().__init__(model, recipe)
        self.net = model.module.net  # type: ignore[assignment]
        self._vectors: dict[str, list[dict[Scale, Pair]]] = {}  # of the validation, by slice

    def undecayed(self) -> list[nn.Parameter]:
        """Return the temperature, where it is learned: weight decay would pull it to 1."""
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
        """Compute the parts that have a weight; in validation also the loss of vectors without information."""
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
        weighted = [weights[name] * part for name, part in parts.items()]
        total = torch.stack(weighted).sum()
        if not self.training:
            equal = torch.zeros(len(spots), 1, device=total.device)
            # log of the number of partners to choose from
            chance = contrast(equal, equal, 1.0, **near)
            for name in list(parts):
                parts[f"{name}_chance"] = chance
        if objective.learn_temperature:
            parts["temperature"] = tau
        return {"loss": total, **parts}

    def _joined(self, scale: Scale, pair: Pair) -> Tensor:
        if len(pair) == 2:
            return self.net.fuse(scale, pair["image"], pair["genes"])
        return next(iter(pair.values()))

    def validation_step(self, batch: AlignPack, batch_index: int) -> None:
        """Log the losses, and store some vectors of every slice."""
        vectors = self.vectors(batch.spots)
        parts = self._contrasts(vectors, batch.spots)
        logged = {f"val/{name}": part for name, part in parts.items()}
        self.log_dict(logged, batch_size=len(batch), sync_dist=True)
        if self.recipe.objective.modality == "both":
            for name in set(batch.ids):
                self._store(name, batch, vectors)

    def _store(self, name: str, batch: AlignPack, vectors: dict[Scale, Pair]) -> None:
        """Store the vectors of one slice's spots, unless there are enough."""
        stored = self._vectors.setdefault(name, [])
        n_stored = sum(len(one["spot"]["image"]) for one in stored)
        if n_stored >= RECALL_SPOTS:
            return
        is_of_slice = [one == name for one in batch.ids]
        rows = torch.tensor(is_of_slice, device=batch.spots.spots.device)
        of_slice: dict[Scale, Pair] = {}
        for scale, pair in vectors.items():
            of_slice[scale] = {kind: v[rows].float().cpu() for kind, v in pair.items()}
        stored.append(of_slice)

    def on_validation_epoch_end(self) -> None:
        """Log how often the genes of a spot are among the 10 that are most like its image, in its own slice."""
        by_slice: dict[str, list[dict[Scale, Pair]]] = {}
        for of_process in gathered(self._vectors):
            for name, vectors in of_process.items():
                by_slice.setdefault(name, []).extend(vectors)
        self._vectors = {}
        for scale in SCALES:
            scores = []
            chances = []
            for name in sorted(by_slice):
                parts = [vectors[scale] for vectors in by_slice[name]]
                image = torch.cat([part["image"] for part in parts]).numpy()
                genes = torch.cat([part["genes"] for part in parts]).numpy()
                recalls = recall(image, genes, [RECALL_AT])
                scores.append(recalls[RECALL_AT])
                chances.append(min(1.0, RECALL_AT / len(image)))
            if scores:
                label = f"val/{scale}_recall_{RECALL_AT}"
                self.log(label, sum(scores) / len(scores))
                self.log(f"{label}_chance", sum(chances) / len(chances))
