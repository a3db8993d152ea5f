"""Distances to attention bias: the Gaussian module, and a sparse, shifted form of its bias that is cheap.

The published model evaluates the Gaussian module on all n x n pairs, although almost all of them have one constant
("far") distance. Softmax does not see a constant added to a row, so the fast form subtracts ``bias(far)`` everywhere:
what is left is non-zero only on listed pairs, the graph token and the diagonal. The result is exact, not approximate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["GaussianBias", "Pairs", "SparseBias"]

EDGE_CHUNK = 16_384  # distances per Gaussian evaluation: (chunk, kernels) stays in the cache

# Below it a kernel is nothing in float32, but subnormal numbers make products 10 times slower.
LEAST_EXPONENT = -60.0

ROOT_2_PI = math.sqrt(2 * math.pi)
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
        hidden = nn.Linear(kernels, kernels)
        output = nn.Linear(kernels, heads)
        self.proj = nn.Sequential(hidden, nn.ReLU(), output)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start from the identity on distances and kernels that are dense near zero, wide far away."""
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            count = len(self.means)
            position = torch.linspace(0, 1, count)
            self.means.copy_(100 * position**2)
            self.stds.copy_(0.5 + 5 * position)

    def forward(self, distance: Tensor) -> Tensor:
        """Return the bias of each distance, ``(..., heads)``; exactly 0 where the distance is exactly 0."""
        flat = distance.reshape(-1)
        chunks = flat.split(EDGE_CHUNK)
        bias = torch.cat([self._evaluate(chunk) for chunk in chunks])
        shape = (*distance.shape, self.heads)
        return bias.reshape(shape)

    def kernels(self, distance: Tensor) -> Tensor:
        """Return the Gaussian kernels of distances ``(n,)``, ``(n, kernels)``."""
        slope = self.linear.weight[0, 0]
        offset = self.linear.bias[0]
        scaled = distance[:, None] * slope + offset
        std = self.stds.abs() + STD_FLOOR
        deviation = (scaled - self.means) / std
        exponent = -0.5 * deviation.square()
        exponent = exponent.clamp(min=LEAST_EXPONENT)
        norm = ROOT_2_PI * std
        return torch.exp(exponent) / norm

    def _evaluate(self, distance: Tensor) -> Tensor:
        kernels = self.kernels(distance)
        bias = self.proj(kernels)
        is_zero = distance == 0
        return bias.masked_fill(is_zero[:, None], 0.0)


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
        row = self.row.to(device)
        col = self.col.to(device)
        distance = self.distance.to(device)
        positions = self.positions
        if positions is not None:
            positions = positions.to(device)
        return Pairs(self.n, row, col, distance, positions)

    def dense_distance(self, far: float) -> Tensor:
        """Return the ``(n, n)`` distance matrix that the published code builds."""
        if self.positions is not None:
            dense = _exact_distances(self.positions, self.positions)
        else:
            shape = (self.n, self.n)
            dense = self.distance.new_full(shape, far)
            dense[self.row, self.col] = self.distance
            dense[self.col, self.row] = self.distance
        dense[0, :] = 0
        dense[:, 0] = 0
        return dense.fill_diagonal_(0)


class SparseBias:
    """The bias of one sub-slice minus ``bias(far)``, evaluated once per listed pair and returned by rows.

    Parameters
    ----------
    gaussian
        The bias module.
    pairs
        The listed pairs.
    far
        The distance of every pair that is not listed.
    """

    def __init__(self, gaussian: GaussianBias, pairs: Pairs, far: float) -> None:
        self.positions = pairs.positions
        self.gaussian = gaussian
        self.n = pairs.n
        self.heads = gaussian.heads
        if self.positions is not None:
            self.far_bias = gaussian.means.new_zeros(gaussian.heads)
            return
        far_distance = pairs.distance.new_full((1,), far)
        self.far_bias = gaussian(far_distance)[0]
        shifted = gaussian(pairs.distance) - self.far_bias
        value = shifted.T  # (heads, e)
        # each pair twice, by its place in a flat (n, n) matrix
        row = pairs.row
        col = pairs.col
        above = row * pairs.n + col
        below = col * pairs.n + row
        places = torch.cat([above, below])
        values = torch.cat([value, value], dim=1)
        self.place, order = places.sort()
        self.value = values[:, order]

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the bias of the query rows ``start:stop``, ``(heads, stop - start, n)``."""
        if self.positions is not None:
            return self._full_rows(self.positions, start, stop)
        place, value = self._listed(start, stop)
        size = (stop - start) * self.n
        flat = self.value.new_zeros((self.heads, size))
        flat = flat.index_copy(1, place, value)
        return self._finished(flat, start, -self.far_bias)

    def write(self, start: int, stop: int, buffer: Tensor) -> Tensor:
        """Write the same into a flat buffer of zeros and return it as ``(heads, stop - start, n)``; no gradient."""
        if self.positions is not None:
            return self._full_rows(self.positions, start, stop)
        place, value = self._listed(start, stop)
        flat = self._flat(start, stop, buffer)
        flat.index_copy_(1, place, value)
        return self._finished(flat, start, -self.far_bias)

    def clear(self, start: int, stop: int, buffer: Tensor) -> None:
        """Set what :meth:`write` wrote back to zero: far cheaper than a new buffer."""
        if self.positions is not None:
            return
        place, _ = self._listed(start, stop)
        flat = self._flat(start, stop, buffer)
        flat.index_fill_(1, place, 0.0)
        zero = torch.zeros_like(self.far_bias)
        self._finished(flat, start, zero)

    def _listed(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the listed pairs of some rows: their places in a flat block of these rows, and their values."""
        first_place = start * self.n
        stop_place = stop * self.n
        device = self.place.device
        bounds = torch.tensor([first_place, stop_place], device=device)
        listed = torch.searchsorted(self.place, bounds)
        first, last = listed.tolist()
        place = self.place[first:last] - first_place
        value = self.value[:, first:last]
        return place, value

    def _flat(self, start: int, stop: int, buffer: Tensor) -> Tensor:
        """Return the part of a buffer that some rows fill, ``(heads, (stop - start) * n)``."""
        n_rows = stop - start
        part = buffer[: self.heads * n_rows * self.n]
        return part.view(self.heads, -1)

    def _full_rows(self, positions: Tensor, start: int, stop: int) -> Tensor:
        from_rows = positions[start:stop]
        distance = _exact_distances(from_rows, positions)
        bias = self.gaussian(distance)  # (rows, n, heads)
        heads_first = bias.permute(2, 0, 1)
        block = heads_first.contiguous()
        return self._finished(block, start, -self.far_bias)

    def _finished(self, block: Tensor, start: int, value: Tensor) -> Tensor:
        """Return a block as ``(heads, rows, n)``, with a value per head for pairs of the graph token and the diagonal.

        Their bias is exactly zero, which is ``-bias(far)`` in the shifted form.
        """
        rows = block.view(self.heads, -1, self.n)
        stop = start + rows.shape[1]
        diagonal = torch.arange(start, stop, device=rows.device)
        within = diagonal - start
        column = value[:, None]
        rows[:, :, 0] = column
        rows[:, within, diagonal] = column
        if start == 0:
            rows[:, 0, :] = column
        return rows


def _exact_distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
