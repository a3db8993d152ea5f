"""Contrast between pairs (ST-Align, equations 10 and 11), over the batches of all ranks, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from terrazzo.errors import ConfigError


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of the ranks. Backward: what all ranks' losses say of this rank's rows, summed.

    The same as ``torch.distributed.nn.functional.all_gather``, whose backward needs an operation that gloo has not.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        most = max(sizes)
        padded = F.pad(rows.contiguous(), (0, 0) * (rows.ndim - 1) + (0, most - len(rows)))
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: dist.get_rank()])
        return total[start : start + ctx.sizes[dist.get_rank()]], None


def gathered(rows: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Return the rows of all ranks, ``(sum of n, ...)``, in the order of the ranks; gradients flow back to each.

    Without distributed training these rows are all there are. Ranks may have different numbers of rows.

    Parameters
    ----------
    rows
        ``(n, ...)`` of this rank.
    sizes
        Rows of each rank, where they are known; None: they are asked for.
    """
    if ranks() == 1:
        return rows
    sizes = sizes_of_ranks(rows) if sizes is None else sizes
    return _Gather.apply(rows, sizes)


def ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
    """Say which pairs are neighbors, so that they are not held against each other.

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
    other_spots = spots if other_spots is None else other_spots
    other_niches = niches if other_niches is None else other_niches
    forth = (niches[:, None, :] == other_spots[None, :, None]).any(dim=-1)
    back = (other_niches[None, :, :] == spots[:, None, None]).any(dim=-1)
    return forth | back


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
        Bring vectors to length 1 first, so that products are cosines. The paper does not say; without it the length of
        a vector takes the part of the temperature.
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
        anchors, partners = F.normalize(anchors, dim=-1), F.normalize(partners, dim=-1)
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
        image, genes = F.normalize(image, dim=-1), F.normalize(genes, dim=-1)
    sizes = sizes_of_ranks(image) if gather else [len(image)]
    there = _direction(image, genes, temperature, spots, niches, sizes)
    return (there + _direction(genes, image, temperature, spots, niches, sizes)) / 2


def _direction(
    anchors: Tensor,
    partners: Tensor,
    temperature: float | Tensor,
    spots: Tensor | None,
    niches: Tensor | None,
    sizes: list[int],
) -> Tensor:
    several = len(sizes) > 1
    every = gathered(partners, sizes) if several else partners
    first = sum(sizes[: dist.get_rank()]) if several else 0
    own = torch.arange(first, first + len(anchors), device=anchors.device)
    with torch.autocast(
        anchors.device.type, enabled=False
    ):  # in bfloat16, cosines over tau would be off by a tenth
        scores = anchors.float() @ every.float().T / temperature
    if spots is not None and niches is not None:
        all_spots, all_niches = (
            gathered(one, sizes) if several else one for one in (spots, niches)
        )
        near = same_niche(spots, niches, all_spots, all_niches)
        near[torch.arange(len(own), device=own.device), own] = False
        scores = scores.masked_fill(near, -torch.inf)
    # each rank counts by its rows: the mean over ranks is then the mean over all rows
    return F.cross_entropy(scores, own, reduction="sum") * (len(sizes) / sum(sizes))


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
