"""What a site sees, by training scheme: from values to the states that predictions are made of (eqs 2, 3, 4 and 8).

One backbone serves all of them. Patch: sites attend to each other. Spot: every site alone. Multi-spot: the mean over a
site and its nearest. Slice: a site's state joined with the mean over its domain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terrazzo.nn.vit import MaskedViT


def scheme_states(
    vit: MaskedViT,
    values: Tensor,
    genes: Tensor,
    places: Tensor,
    shown: Tensor,
    *,
    neighbors: int = 0,
    domain: Tensor | None = None,
) -> Tensor:
    """Return the states ``(B, S, width)`` that :meth:`MaskedViT.predict` takes.

    Parameters
    ----------
    vit
        With ``context`` for the patch scheme, without for the others.
    values
        ``(B, S, m)``; those of sites that are not shown are not read.
    genes
        int64 ``(B, m)``, -1 for none.
    places
        ``(B, S, 2)`` in pitches.
    shown
        bool ``(B, S)``: sites that enter.
    neighbors
        Above 0: the mean over a site and so many of its nearest (multi-spot, eq 3).
    domain
        int64 ``(B, S)``, -1 for none: joined with the mean over the site's domain (slice, eq 4; needs ``fuse``).
    """
    states = vit.decode(vit.encode(vit.tokens(values, genes, shown), places, shown), places, shown)
    if neighbors:
        states = neighbour_average(states, places, shown, neighbors)
    if vit.fusion is not None and domain is not None:
        states = vit.fusion(torch.cat([states, domain_means(states, domain.masked_fill(~shown, -1))], dim=-1))
    return states


def nearest(places: Tensor, present: Tensor, k: int) -> Tensor:
    """Return 1 for each site's ``k`` nearest present sites, itself not counted, else 0; ``(B, S, S)``."""
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
    distance = distance.masked_fill(~present[:, None] | itself, torch.inf)
    near = distance.topk(min(k, places.shape[1]), dim=-1, largest=False)
    return torch.zeros_like(distance).scatter(2, near.indices, near.values.isfinite().to(distance.dtype))


def neighbour_average(states: Tensor, places: Tensor, present: Tensor, k: int) -> Tensor:
    """Return the mean state of each site and its ``k`` nearest present sites, with equal weights (eq 3).

    Parameters
    ----------
    states
        ``(B, S, width)``; those of sites that are not present are not read.
    places
        ``(B, S, 2)``.
    present
        bool ``(B, S)``.
    k
        Where fewer are there, the mean is over those.
    """
    weight = nearest(places, present, k) + torch.diag_embed(present.to(places.dtype))
    states = torch.where(present[..., None], states, 0.0)
    return weight @ states / weight.sum(dim=-1, keepdim=True).clamp_min(1)


def domain_means(states: Tensor, domain: Tensor) -> Tensor:
    """Return the mean state of each site's domain (eq 4), ``(B, S, width)``; zero for a site without one (-1)."""
    held = domain[..., None] == torch.arange(int(domain.max()) + 1, device=domain.device)
    member = held.to(states.dtype)
    states = torch.where(held.any(dim=-1, keepdim=True), states, 0.0)
    means = member.transpose(1, 2) @ states / member.sum(dim=1).clamp_min(1)[..., None]
    return member @ means
