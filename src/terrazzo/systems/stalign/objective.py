"""The objective of ST-Align: image and genes of a spot, and a spot and its niche, find each other among all others."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from terrazzo.models.base import FoundationModel
from terrazzo.systems.stalign.features import AlignBatch
from terrazzo.systems.stalign.losses import contrast, symmetric_contrast
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stalign.network import AlignNet
from terrazzo.systems.stalign.stages import AlignPack
from terrazzo.tasks.retrieval import recall
from terrazzo.training.callbacks import gathered
from terrazzo.training.recipe import PretrainConfig
from terrazzo.training.stage import Objective

RECALL_AT = 10


RECALL_SPOTS = 2000  # of a slice, on each process, among which the partner is sought


Pair = dict[str, Tensor]  # vectors of image and genes


class SpotNiche(Objective):
    """Contrast of image and genes at two scales, and of spots with their niches (eqs 10 and 11).

    Parameters
    ----------
    model
        ST-Align; its frozen encoders have done their work before.
    config
        The recipe; ``align`` holds the objective.
    """

    net: AlignNet

    def __init__(self, model: FoundationModel, config: PretrainConfig) -> None:
        super().__init__(model, config)
        self.net = model.module.net  # type: ignore[assignment]
        self.model: STAlign
        self._found: dict[str, list[dict[str, Pair]]] = {}

    def undecayed(self) -> list[nn.Parameter]:
        """Return the temperature, where it is learned: weight decay would draw it to 1."""
        return [p for p in [self.net.log_temperature] if isinstance(p, nn.Parameter)]

    def vectors(self, batch: AlignBatch) -> dict[str, Pair]:
        """Return the vectors of image and genes at both scales, those of the recipe's modality."""
        net, modality = self.net, self.config.align.modality
        out: dict[str, Pair] = {"spot": {}, "niche": {}}
        if modality != "genes" and batch.spot_image is not None and batch.niche_image is not None:
            out["spot"]["image"] = net.spot_image(batch.spot_image, batch.colors)
            out["niche"]["image"] = net.niche_image(batch.niche_image)
        if modality != "image" and batch.spot_genes is not None and batch.niche_genes is not None:
            out["spot"]["genes"] = net.spot_genes(batch.spot_genes)
            out["niche"]["genes"] = net.niche_genes(batch.niche_genes, batch.known)
        return out

    def losses(self, batch: AlignPack) -> dict[str, Tensor]:
        """Compute the parts that have a weight; in validation beside what vectors that say nothing would cost."""
        return self._contrasts(self.vectors(batch.spots), batch.spots)

    def _contrasts(self, found: dict[str, Pair], spots: AlignBatch) -> dict[str, Tensor]:
        goal, tau = self.config.align, self.net.temperature
        near: dict[str, Any] = (
            {"spots": spots.spots, "niches": spots.niches} if goal.exclude_neighbors else {}
        )
        parts: dict[str, Tensor] = {}
        pairs: tuple[tuple[Literal["spot", "niche"], float], ...] = (
            ("spot", goal.spot_weight),
            ("niche", goal.niche_weight),
        )
        for scale, weight in pairs:
            if weight and goal.modality == "both":
                parts[scale] = symmetric_contrast(
                    found[scale]["image"], found[scale]["genes"], tau, **near
                )
        if goal.cross_weight:
            own, around = (self._joined(scale, found[scale]) for scale, _ in pairs)
            lost = symmetric_contrast if goal.symmetric else contrast
            parts["spot_niche"] = lost(own, around, tau, **near)
        weights = {
            "spot": goal.spot_weight,
            "niche": goal.niche_weight,
            "spot_niche": goal.cross_weight,
        }
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        if not self.training:
            nothing = torch.zeros(len(spots), 1, device=total.device)
            chance = contrast(
                nothing, nothing, 1.0, **near
            )  # log of the number of partners to choose from
            parts |= {f"{name}_chance": chance for name in list(parts)}
        if goal.learn_temperature:
            parts["temperature"] = tau
        return {"loss": total, **parts}

    def _joined(self, scale: Literal["spot", "niche"], pair: Pair) -> Tensor:
        return (
            self.net.fuse(scale, pair["image"], pair["genes"])
            if len(pair) == 2
            else next(iter(pair.values()))
        )

    def validation_step(self, batch: AlignPack, batch_index: int) -> None:
        """Log the losses, and keep some vectors of every slice."""
        found = self.vectors(batch.spots)
        parts = self._contrasts(found, batch.spots)
        self.log_dict(
            {f"val/{k}": v for k, v in parts.items()}, batch_size=len(batch), sync_dist=True
        )
        if self.config.align.modality == "both":
            for name in set(batch.ids):
                rows = torch.tensor(
                    [id == name for id in batch.ids], device=batch.spots.spots.device
                )
                held = self._found.setdefault(name, [])
                if sum(len(one["spot"]["image"]) for one in held) < RECALL_SPOTS:
                    held.append(
                        {
                            s: {k: v[rows].float().cpu() for k, v in pair.items()}
                            for s, pair in found.items()
                        }
                    )

    def on_validation_epoch_end(self) -> None:
        """Log how often the genes of a spot are among the 10 that are most like its image, in its own slice."""
        parts = gathered(self._found)
        self._found = {}
        for scale in ("spot", "niche"):
            scores, chances = [], []
            for name in sorted({name for part in parts for name in part}):
                kept = [one[scale] for part in parts for one in part.get(name, [])]
                image, genes = (
                    torch.cat([one[k] for one in kept]).numpy() for k in ("image", "genes")
                )
                scores.append(recall(image, genes, [RECALL_AT])[RECALL_AT])
                chances.append(min(1.0, RECALL_AT / len(image)))
            if scores:
                self.log(f"val/{scale}_recall_{RECALL_AT}", sum(scores) / len(scores))
                self.log(f"val/{scale}_recall_{RECALL_AT}_chance", sum(chances) / len(chances))
