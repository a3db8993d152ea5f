"""Distances to attention bias: the Gaussian module, and the sparse, shifted form that makes it cheap.

The published model evaluates the Gaussian module on all n x n pairs, although almost all of them hold one constant
("far") distance. Softmax does not see a constant added to a row, so the fast form subtracts ``bias(far)`` everywhere:
what is left is non-zero only on listed pairs, the graph token and the diagonal. The result is exact, not approximate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EDGE_CHUNK = 16_384  # distances per Gaussian evaluation: (chunk, kernels) stays in the cache
STD_FLOOR = 1e-5  # as published: std = |s| + 1e-5


class GaussianBias(nn.Module):
    """Attention bias per head as a learnable function of distance (SToFM section 3.2; Uni-Mol's Gaussian module).

    Parameters
    ----------
    kernels
        Number of Gaussian kernels K.
    heads
        Number of attention heads.
    """

    def __init__(self, kernels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(1, 1)
        self.means = nn.Parameter(torch.empty(kernels))
        self.stds = nn.Parameter(torch.empty(kernels))
        self.proj = nn.Sequential(nn.Linear(kernels, kernels), nn.ReLU(), nn.Linear(kernels, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from the identity on distances and kernels that are dense near zero, wide far away."""
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            position = torch.linspace(0, 1, len(self.means))
            self.means.copy_(100 * position**2)
            self.stds.copy_(0.5 + 5 * position)

    def forward(self, distance: Tensor) -> Tensor:
        """Return the bias of each distance, ``(..., heads)``; exactly 0 where the distance is exactly 0."""
        flat = distance.reshape(-1)
        parts = [self._evaluate(part) for part in flat.split(EDGE_CHUNK)]
        bias = torch.cat(parts) if parts else flat.new_zeros((0, self.heads))
        return bias.reshape(*distance.shape, -1)

    def _evaluate(self, distance: Tensor) -> Tensor:
        scaled = distance[:, None] * self.linear.weight[0, 0] + self.linear.bias[0]
        std = self.stds.abs() + STD_FLOOR
        kernels = torch.exp(-0.5 * ((scaled - self.means) / std).square()) / (math.sqrt(2 * math.pi) * std)
        return self.proj(kernels).masked_fill((distance == 0)[:, None], 0.0)


@dataclass(frozen=True)
class Pairs:
    """The pair distances of one sub-slice; token 0 is the graph token.

    Attributes
    ----------
    n
        Number of tokens.
    row, col
        Listed pairs, int64 ``(e,)``, each unordered pair once with ``row < col`` and both above 0.
    distance
        float32 ``(e,)``. A pair that is not listed is ``far``; the graph token and the diagonal have bias 0.
    positions
        float32 ``(n, 2)``; only for ``pair="full"``, where every distance counts and nothing is listed.
    """

    n: int
    row: Tensor
    col: Tensor
    distance: Tensor
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Pairs:
        """Return the same pairs on another device."""
        positions = None if self.positions is None else self.positions.to(device)
        return Pairs(self.n, self.row.to(device), self.col.to(device), self.distance.to(device), positions)

    def dense_distance(self, far: float) -> Tensor:
        """Return the ``(n, n)`` distance matrix that the published code builds."""
        if self.positions is not None:
            dense = torch.cdist(self.positions, self.positions, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            dense = self.distance.new_full((self.n, self.n), far)
            dense[self.row, self.col] = self.distance
            dense[self.col, self.row] = self.distance
        dense[0, :] = 0
        dense[:, 0] = 0
        return dense.fill_diagonal_(0)


class SparseBias:
    """The bias of one sub-slice minus ``bias(far)``, evaluated once per listed pair, handed out by rows.

    Parameters
    ----------
    gaussian
        The bias module.
    pairs
        The listed pairs.
    far
        The distance that stands for every pair that is not listed.
    """

    def __init__(self, gaussian: GaussianBias, pairs: Pairs, far: float) -> None:
        self.pairs, self.gaussian, self.n = pairs, gaussian, pairs.n
        if pairs.positions is not None:
            self.far_bias = gaussian.means.new_zeros(gaussian.heads)
            return
        self.far_bias = gaussian(pairs.distance.new_full((1,), far))[0]
        value = (gaussian(pairs.distance) - self.far_bias).T  # (heads, e)
        order = torch.argsort(torch.cat([pairs.row, pairs.col]), stable=True)
        self.value = torch.cat([value, value], dim=1)[:, order]
        self.row = torch.cat([pairs.row, pairs.col])[order]
        self.col = torch.cat([pairs.col, pairs.row])[order]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the bias of the query rows ``start:stop``, ``(heads, stop - start, n)``."""
        if self.pairs.positions is not None:
            return self._full_rows(start, stop)
        heads = len(self.far_bias)
        first, last = torch.searchsorted(self.row, torch.tensor([start, stop], device=self.row.device)).tolist()
        out = self.value.new_zeros((heads, (stop - start) * self.n))
        place = (self.row[first:last] - start) * self.n + self.col[first:last]
        out = out.index_copy(1, place, self.value[:, first:last]).view(heads, stop - start, self.n)
        return self._without_distance(out, start, stop)

    def _without_distance(self, out: Tensor, start: int, stop: int) -> Tensor:
        """Give the graph token and the diagonal their bias: exactly zero, here ``-bias(far)``."""
        zero = -self.far_bias[:, None]
        diagonal = torch.arange(start, stop, device=out.device)
        out[:, :, 0] = zero
        out[:, diagonal - start, diagonal] = zero
        if start == 0:
            out[:, 0, :] = zero
        return out

    def _full_rows(self, start: int, stop: int) -> Tensor:
        positions = self.pairs.positions
        if positions is None:
            raise ValueError("rows of a full bias need positions")
        distance = torch.cdist(positions[start:stop], positions, compute_mode="donot_use_mm_for_euclid_dist")
        out = self.gaussian(distance).permute(2, 0, 1).contiguous()
        return self._without_distance(out, start, stop)

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield ``(start, stop)`` over all rows in steps of ``size``."""
        for start in range(0, self.n, size):
            yield start, min(start + size, self.n)
