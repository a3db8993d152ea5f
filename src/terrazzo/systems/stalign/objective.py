"""The objective of ST-Align: contrast of image and genes, and of spots and niches (equations 10 and 11)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from terrazzo.errors import ConfigError
from terrazzo.models.base import FoundationModel
from terrazzo.systems.stalign.features import AlignBatch, Scale
from terrazzo.systems.stalign.model import SCALES, STAlign
from terrazzo.systems.stalign.network import AlignNet, Part
from terrazzo.systems.stalign.recipe import STAlignRecipe
from terrazzo.tasks.retrieval import recall
from terrazzo.training.callbacks import gathered
from terrazzo.training.stage import Objective

__all__ = [
    "AlignPack",
    "SpotNiche",
    "contrast",
    "gathered_rows",
    "ranks",
    "same_niche",
    "sizes_of_ranks",
    "symmetric_contrast",
]


class _Gather(torch.autograd.Function):
    """Gather the rows of all ranks, in their order. Backward: the sum of all ranks' gradients of this rank's rows.

    The same as ``torch.distributed.nn.functional.all_gather``, whose backward needs an operation that gloo lacks.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        most = max(sizes)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        end = start + ctx.sizes[rank]
        return total[start:end], None


def gathered_rows(rows: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Return the rows of all ranks, ``(sum of n, ...)``, in the order of the ranks; gradients flow back to each.

    Without distributed training these rows are all there are. Ranks may have different numbers of rows.

    Parameters
    ----------
    rows
        ``(n, ...)`` of this rank.
    sizes
        Rows of each rank, where they are known; None: they are gathered first.
    """
    if ranks() == 1:
        return rows
    if sizes is None:
        sizes = sizes_of_ranks(rows)
    return _Gather.apply(rows, sizes)


def ranks() -> int:
    """Return the number of processes that train together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return 1


def sizes_of_ranks(rows: Tensor) -> list[int]:
    """Return the number of rows of each rank."""
    if ranks() == 1:
        return [len(rows)]
    own = torch.tensor([len(rows)], device=rows.device)
    parts = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(parts, own)
    return [int(part) for part in parts]


def same_niche(
    spots: Tensor,
    niches: Tensor,
    other_spots: Tensor | None = None,
    other_niches: Tensor | None = None,
) -> Tensor:
    """Return a mask of the pairs that are neighbors, which are no negatives of each other.

    Parameters
    ----------
    spots
        int64 ``(n,)``: a number for each spot that no other spot of any slice has.
    niches
        int64 ``(n, members)``: the numbers of its niche, the spot itself included; -1 for none.
    other_spots, other_niches
        ``(m,)`` and ``(m, members)``; None: the same.

    Returns
    -------
    bool ``(n, m)``: one is in the niche of the other, or they are one spot drawn twice.
    """
    if other_spots is None:
        other_spots = spots
    if other_niches is None:
        other_niches = niches
    other_in_niche = (niches[:, None, :] == other_spots[None, :, None]).any(dim=-1)
    in_other_niche = (other_niches[None, :, :] == spots[:, None, None]).any(dim=-1)
    return other_in_niche | in_other_niche


def contrast(
    anchors: Tensor,
    partners: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    normalize: bool = True,
    spots: Tensor | None = None,
    niches: Tensor | None = None,
    gather: bool = True,
) -> Tensor:
    """InfoNCE in one direction: each anchor is to find its partner among all partners (eq 11).

    With several ranks the partners are those of all; the mean of the losses of all ranks, which is what distributed
    training minimizes, is the loss of one rank with the joined batch, also where ranks have different numbers of rows.

    Parameters
    ----------
    anchors, partners
        ``(n, d)``; row i of both belong together.
    temperature
        The paper's tau; a tensor where it is learned.
    normalize
        Bring vectors to length 1 first, so that products are cosines. The paper does not state this; without it the
        length of a vector acts as a temperature.
    spots, niches
        As in :func:`same_niche`: neighbors are then no negatives of each other. None: all others are, as in the paper.
    gather
        Take the partners of all ranks; False: of this rank alone.

    Returns
    -------
    A number.

    Raises
    ------
    ConfigError
        Batches of different shapes, ``spots`` without ``niches``, or a temperature that is not positive.
    """
    _check(anchors, partners, temperature, spots, niches)
    if normalize:
        anchors = F.normalize(anchors, dim=-1)
        partners = F.normalize(partners, dim=-1)
    sizes = sizes_of_ranks(anchors) if gather else [len(anchors)]
    return _direction(anchors, partners, temperature, spots, niches, sizes)


def symmetric_contrast(
    image: Tensor,
    genes: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    normalize: bool = True,
    spots: Tensor | None = None,
    niches: Tensor | None = None,
    gather: bool = True,
) -> Tensor:
    """InfoNCE in both directions, averaged (eq 10); arguments, result and errors as in :func:`contrast`."""
    _check(image, genes, temperature, spots, niches)
    if normalize:
        image = F.normalize(image, dim=-1)
        genes = F.normalize(genes, dim=-1)
    sizes = sizes_of_ranks(image) if gather else [len(image)]
    from_image = _direction(image, genes, temperature, spots, niches, sizes)
    from_genes = _direction(genes, image, temperature, spots, niches, sizes)
    return (from_image + from_genes) / 2


def _direction(
    anchors: Tensor,
    partners: Tensor,
    temperature: float | Tensor,
    spots: Tensor | None,
    niches: Tensor | None,
    sizes: list[int],
) -> Tensor:
    """Return the cross-entropy of each anchor's partner among the partners of all ranks."""
    several = len(sizes) > 1
    first = 0
    all_partners = partners
    if several:
        first = sum(sizes[: dist.get_rank()])
        all_partners = gathered_rows(partners, sizes)
    own = torch.arange(first, first + len(anchors), device=anchors.device)
    # in bfloat16, cosines over tau would be off by a tenth
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ all_partners.float().T / temperature
    if spots is not None and niches is not None:
        all_spots = gathered_rows(spots, sizes) if several else spots
        all_niches = gathered_rows(niches, sizes) if several else niches
        near = same_niche(spots, niches, all_spots, all_niches)
        row = torch.arange(len(own), device=own.device)
        near[row, own] = False
        scores = scores.masked_fill(near, -torch.inf)
    # each rank is weighted by its rows: the mean over ranks is then the mean over all rows
    weight = len(sizes) / sum(sizes)
    return F.cross_entropy(scores, own, reduction="sum") * weight


def _check(
    anchors: Tensor,
    partners: Tensor,
    temperature: float | Tensor,
    spots: Tensor | None,
    niches: Tensor | None,
) -> None:
    if anchors.shape != partners.shape or anchors.ndim != 2:
        raise ConfigError(
            f"contrast needs two batches of one shape (n, d), got {anchors.shape} and {partners.shape}."
        )
    if (spots is None) != (niches is None):
        raise ConfigError("contrast without neighbors as negatives needs both spots and niches.")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ConfigError(f"the temperature is {temperature}; it must be positive.")


def _square_length(moved: Tensor, start: Tensor) -> Tensor:
    """Return the mean square length of a difference; that of components is 1 over the training slices."""
    return (moved - start).square().sum(dim=-1).mean()


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
            spot["image"] = net.spot_image(batch.spot_image, batch.colors, batch.niche_image)
            niche["image"] = net.niche_image(batch.niche_image)
        if modality != "image" and batch.spot_genes is not None and batch.niche_genes is not None:
            spot["genes"] = net.spot_genes(batch.spot_genes)
            niche["genes"] = net.niche_genes(batch.niche_genes, batch.known, batch.niche_components)
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
                image, genes = self.net.shared(scale, pair["image"], pair["genes"])
                parts[scale] = symmetric_contrast(image, genes, tau, **near)
        if objective.cross_weight:
            own = self.joined("spot", vectors["spot"])
            around = self.joined("niche", vectors["niche"])
            cross = symmetric_contrast if objective.symmetric else contrast
            first, second = self.net.shared("spot_niche", own, around)
            parts["spot_niche"] = cross(first, second, tau, **near)
        contrasted = list(parts)
        weights["anchor"] = objective.anchor_weight
        if self.net.config.residual and objective.anchor_weight:
            parts["anchor"] = self.moved(vectors, spots)
        weighted = [weights[name] * part for name, part in parts.items()]
        total = torch.stack(weighted).sum()
        if not self.training:
            equal = torch.zeros(len(spots), 1, device=total.device)
            # log of the number of partners to choose from
            chance = contrast(equal, equal, 1.0, **near)
            for name in contrasted:
                parts[f"{name}_chance"] = chance
        if objective.learn_temperature:
            parts["temperature"] = tau
        return {"loss": total, **parts}

    def joined(self, scale: Scale, pair: Pair) -> Tensor:
        """Return vectors of image and genes; of one modality its vectors, with 0 for the other where it keeps sides."""
        if len(pair) == 2:
            return self.net.fuse(scale, pair["image"], pair["genes"])
        modality: Literal["image", "genes"] = "image" if "image" in pair else "genes"
        return self.net.one_side(modality, pair[modality])

    def moved(self, vectors: dict[Scale, Pair], spots: AlignBatch) -> Tensor:
        """Return how far vectors are from the components that they start from: mean square, relative to these."""
        net = self.net
        features: dict[Part, Tensor | None] = {
            "spot_image": spots.niche_image,
            "niche_image": spots.niche_image,
            "spot_genes": spots.spot_genes,
            "niche_genes": spots.niche_components,
        }
        distances = []
        for scale, pair in vectors.items():
            starts = []
            for kind, moved in pair.items():
                part: Part = f"{scale}_{kind}"  # type: ignore[assignment]
                start = net.components(part, features[part])
                if start is not None:
                    distances.append(_square_length(moved, start))
                starts.append(moved if start is None else start)
            if len(starts) == 2 and net.config.fusion_mode == "attention":
                fused = net.fuse(scale, pair["image"], pair["genes"])
                both = torch.cat(starts, dim=-1)
                distances.append(_square_length(fused, both) / 2)
        return torch.stack(distances).mean()

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
            image, genes = self.net.shared(scale, pair["image"][rows], pair["genes"][rows])
            of_slice[scale] = {"image": image.float().cpu(), "genes": genes.float().cpu()}
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
                image = torch.cat([part["image"] for part in parts])
                genes = torch.cat([part["genes"] for part in parts])
                recalls = recall(image.numpy(), genes.numpy(), [RECALL_AT])
                scores.append(recalls[RECALL_AT])
                chances.append(min(1.0, RECALL_AT / len(image)))
            if scores:
                label = f"val/{scale}_recall_{RECALL_AT}"
                self.log(label, sum(scores) / len(scores))
                self.log(f"{label}_chance", sum(chances) / len(chances))
