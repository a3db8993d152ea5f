"""Distances to attention bias: the Gaussian module, and the sparse, shifted form that makes it cheap.

The published model evaluates the Gaussian module on all n x n pairs, although almost all of them hold one constant
("far") distance. Softmax does not see a constant added to a row, so the fast form subtracts ``bias(far)`` everywhere:
what is left is non-zero only on listed pairs, the graph token and the diagonal. The result is exact, not approximate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EDGE_CHUNK = 16_384  # distances per Gaussian evaluation: (chunk, kernels) stays in the cache


LEAST_EXPONENT = (
    -60.0
)  # below it a kernel is nothing in float32, but subnormal numbers make products 10 times slower


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
        return bias.reshape(*distance.shape, self.heads)

    def kernels(self, distance: Tensor) -> Tensor:
        """Return the Gaussian kernels of distances ``(n,)``, ``(n, kernels)``."""
        scaled = distance[:, None] * self.linear.weight[0, 0] + self.linear.bias[0]
        std = self.stds.abs() + STD_FLOOR
        exponent = (-0.5 * ((scaled - self.means) / std).square()).clamp(min=LEAST_EXPONENT)
        return torch.exp(exponent) / (math.sqrt(2 * math.pi) * std)

    def _evaluate(self, distance: Tensor) -> Tensor:
        return self.proj(self.kernels(distance)).masked_fill((distance == 0)[:, None], 0.0)


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
        return Pairs(
            self.n, self.row.to(device), self.col.to(device), self.distance.to(device), positions
        )

    def dense_distance(self, far: float) -> Tensor:
        """Return the ``(n, n)`` distance matrix that the published code builds."""
        if self.positions is not None:
            dense = torch.cdist(
                self.positions, self.positions, compute_mode="donot_use_mm_for_euclid_dist"
            )
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
        self.pairs, self.gaussian, self.n, self.heads = pairs, gaussian, pairs.n, gaussian.heads
        if pairs.positions is not None:
            self.far_bias = gaussian.means.new_zeros(gaussian.heads)
            return
        self.far_bias = gaussian(pairs.distance.new_full((1,), far))[0]
        value = (gaussian(pairs.distance) - self.far_bias).T  # (heads, e)
        place = torch.cat([pairs.row * self.n + pairs.col, pairs.col * self.n + pairs.row])
        self.place, order = place.sort()
        self.value = torch.cat([value, value], dim=1)[:, order]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the bias of the query rows ``start:stop``, ``(heads, stop - start, n)``."""
        if self.pairs.positions is not None:
            return self._full_rows(self.pairs.positions, start, stop)
        here = self._listed(start, stop)
        out = self.value.new_zeros((self.heads, (stop - start) * self.n))
        out = out.index_copy(1, self.place[here] - start * self.n, self.value[:, here])
        return self._without_distance(out.view(self.heads, stop - start, self.n), start, stop)

    def write(self, start: int, stop: int, buffer: Tensor) -> Tensor:
        """Write the same into a flat buffer of zeros and return it as ``(heads, stop - start, n)``; no gradient."""
        if self.pairs.positions is not None:
            return self._full_rows(self.pairs.positions, start, stop)
        here = self._listed(start, stop)
        out = buffer[: self.heads * (stop - start) * self.n].view(self.heads, -1)
        out.index_copy_(1, self.place[here] - start * self.n, self.value[:, here])
        return self._without_distance(out.view(self.heads, stop - start, self.n), start, stop)

    def clear(self, start: int, stop: int, buffer: Tensor) -> None:
        """Set what :meth:`write` wrote back to zero: far cheaper than a new buffer."""
        if self.pairs.positions is None:
            here = self._listed(start, stop)
            out = buffer[: self.heads * (stop - start) * self.n].view(self.heads, -1)
            out.index_fill_(1, self.place[here] - start * self.n, 0.0)
            self._without_distance(
                out.view(self.heads, stop - start, self.n), start, stop, torch.zeros_like
            )

    def _listed(self, start: int, stop: int) -> slice:
        bounds = torch.tensor([start * self.n, stop * self.n], device=self.place.device)
        first, last = torch.searchsorted(self.place, bounds).tolist()
        return slice(first, last)

    def _without_distance(
        self, out: Tensor, start: int, stop: int, value: Callable[[Tensor], Tensor] = torch.neg
    ) -> Tensor:
        """Give the graph token and the diagonal their bias: exactly zero, here ``-bias(far)``."""
        zero = value(self.far_bias)[:, None]
        diagonal = torch.arange(start, stop, device=out.device)
        out[:, :, 0] = zero
        out[:, diagonal - start, diagonal] = zero
        if start == 0:
            out[:, 0, :] = zero
        return out

    def _full_rows(self, positions: Tensor, start: int, stop: int) -> Tensor:
        distance = torch.cdist(
            positions[start:stop], positions, compute_mode="donot_use_mm_for_euclid_dist"
        )
        out = self.gaussian(distance).permute(2, 0, 1).contiguous()
        return self._without_distance(out, start, stop)
