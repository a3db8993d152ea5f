"""Contrastive losses (ST-Align, equations 10 and 11) over the batches of all ranks, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from terrazzo.errors import ConfigError

__all__ = ["contrast", "gathered", "ranks", "same_niche", "sizes_of_ranks", "symmetric_contrast"]


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


def gathered(rows: Tensor, sizes: list[int] | None = None) -> Tensor:
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
        all_partners = gathered(partners, sizes)
    own = torch.arange(first, first + len(anchors), device=anchors.device)
    # in bfloat16, cosines over tau would be off by a tenth
    with torch.autocast(anchors.device.type, enabled=False):
        scores = anchors.float() @ all_partners.float().T / temperature
    if spots is not None and niches is not None:
        all_spots = gathered(spots, sizes) if several else spots
        all_niches = gathered(niches, sizes) if several else niches
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
