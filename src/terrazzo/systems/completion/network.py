"""Network of completion: a map of single cells, their means over rings, and two heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from terrazzo.models.states import SCALES, States
from terrazzo.systems.completion.config import CompletionConfig
from terrazzo.systems.completion.views import N_DEPTH

__all__ = [
    "NO_GENE",
    "NO_TOKEN",
    "N_RINGS",
    "CompletionNetwork",
    "Predicted",
    "RingMeans",
]

NO_TOKEN = 2**62  # above all tokens

NO_GENE = -1

N_RINGS = 6  # the cell itself and five rings of its neighbors

RingMeans = Callable[[Tensor], Tensor]  # (n, m) -> (n, 6 m), the cell's own values first


@dataclass(frozen=True)
class Predicted:
    """What is predicted of every cell.

    Attributes
    ----------
    own
        ``(n, n_bases n_components)``: its clean components in each basis.
    states
        ``(n, 6, n_states)``: logits of the states of one basis in each ring.
    """

    own: Tensor
    states: Tensor


class CompletionNetwork(nn.Module):
    """Predicts clean components of cells, and the states around them, from the components that a view gives.

    Parameters
    ----------
    config
        Sizes. Buffers (genes, directions, states, scales) are set by
        :func:`terrazzo.systems.completion.reference.fit_reference`.
    base_width
        Width of another model's vectors, which are read beside the components; 0 for none.
    """

    tokens: Tensor
    basis_genes: Tensor
    directions: Tensor
    variances: Tensor
    noise: Tensor
    centers: Tensor
    width: Tensor
    ring_scale: Tensor

    def __init__(self, config: CompletionConfig, base_width: int = 0) -> None:
        super().__init__()
        self.config = config
        n_genes = config.n_genes
        n_bases = config.n_bases
        n_smoothed = config.n_smoothed
        n_rows = config.basis_genes
        n_components = config.n_components
        n_scales = len(SCALES)
        self._number("tokens", NO_TOKEN, n_genes)
        self._number("basis_genes", NO_GENE, n_bases, n_rows)
        self._scale("directions", 0, n_bases, n_rows, n_components)
        self._scale("variances", 1, n_bases, n_components)
        self._scale("noise", 1, n_bases)
        self._scale("centers", 0, n_bases, n_scales, config.n_states, n_smoothed)
        self._scale("width", 1, n_bases, n_scales)
        self._scale("ring_scale", 1, n_bases, N_RINGS * n_smoothed)
        start = torch.randn(n_genes, config.n_projected)
        self.projection = nn.Parameter(start / n_genes**0.5)
        n_of_bases = n_bases * n_smoothed
        n_read = n_of_bases + config.n_projected + N_DEPTH + base_width
        self.cell = nn.Sequential(
            nn.Linear(n_read, config.cell_width),
            nn.GELU(),
            nn.Linear(config.cell_width, config.cell_size),
        )
        n_around = N_RINGS * config.cell_size
        self.around = nn.Sequential(
            nn.Linear(n_around + N_DEPTH, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        n_own = n_bases * n_components
        n_in_rings = N_RINGS * config.n_states
        self.gain = nn.Linear(N_DEPTH, n_own)
        self.own = nn.Linear(config.width, n_own)
        self.states = nn.Linear(config.width, n_bases * n_in_rings)
        for start_at_estimate in (self.gain, self.own):
            nn.init.zeros_(start_at_estimate.weight)
            nn.init.zeros_(start_at_estimate.bias)

    def _number(self, name: str, value: int, *shape: int) -> None:
        """Register a buffer of whole numbers."""
        self.register_buffer(name, torch.full(shape, value, dtype=torch.int64))

    def _scale(self, name: str, value: float, *shape: int) -> None:
        """Register a buffer of real numbers."""
        self.register_buffer(name, torch.full(shape, float(value)))

    def estimate(self, values: Tensor, genes: Tensor) -> Tensor:
        """Return the least-squares estimate of the components of all bases, in units of their sd.

        ``(U_m' U_m + s2 / lambda)^-1 U_m' x_m`` for the genes ``m`` that are there: a missing gene is missing, not
        zero.

        Parameters
        ----------
        values
            ``(n, m)``: standardized log counts.
        genes
            Their numbers ``(m,)``.

        Returns
        -------
        ``(n, n_bases n_components)``.
        """
        column = self._columns(genes)
        parts = []
        for basis in range(self.config.n_bases):
            rows, columns = self._present(basis, column)
            directions = self.directions[basis, rows].double()
            gram = directions.T @ directions + self._prior(basis)
            solved = torch.linalg.solve(gram, directions.T)
            sd = self.variances[basis].sqrt()
            scaled = solved.float() / sd[:, None]
            measured = values[:, columns]
            parts.append(measured @ scaled.T)
        return torch.cat(parts, dim=1)

    def _columns(self, genes: Tensor) -> Tensor:
        """Return the column of each gene of the model among those that are there, or -1."""
        column = torch.full((self.config.n_genes,), -1, device=genes.device)
        column[genes] = torch.arange(len(genes), device=genes.device)
        return column

    def _present(self, basis: int, column: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of a basis whose genes are there, and their columns; ``column``: of each gene, or -1."""
        genes = self.basis_genes[basis]
        known = genes >= 0
        of_gene = column[genes.clamp(min=0)]
        present = known & (of_gene >= 0)
        rows = present.nonzero().flatten()
        return rows, of_gene[rows]

    def _prior(self, basis: int) -> Tensor:
        ratio = self.noise[basis] / self.variances[basis]
        return torch.diag(ratio.double())

    def explained(self, values: Tensor, genes: Tensor) -> Tensor:
        """Return how much of the sum of squares of the values each basis explains, ``(n_bases,)``."""
        column = self._columns(genes)
        sums = []
        for basis in range(self.config.n_bases):
            rows, columns = self._present(basis, column)
            part = values[:, columns].double()
            directions = self.directions[basis, rows].double()
            gram = directions.T @ directions + self._prior(basis)
            scores = directions.T @ part.T
            components = torch.linalg.solve(gram, scores)
            left = part.T - directions @ components
            before = part.square().sum()
            after = left.square().sum()
            sums.append(before - after)
        return torch.stack(sums)

    def known_share(self, genes: Tensor) -> Tensor:
        """Return the share of the variance of each basis' first components that these genes tell, ``(n_bases,)``."""
        column = self._columns(genes)
        shares = []
        for basis in range(self.config.n_bases):
            rows, _ = self._present(basis, column)
            directions = self.directions[basis, rows].double()
            prior = self._prior(basis)
            gram = directions.T @ directions + prior
            left = torch.linalg.solve(gram, prior)
            unknown = left.diagonal()[: self.config.n_smoothed]
            known = 1 - unknown
            shares.append(known.mean())
        return torch.stack(shares).float()

    def cells(
        self, components: Tensor, values: Tensor, genes: Tensor, depth: Tensor, base: Tensor
    ) -> Tensor:
        """Return the map of single cells, ``(n, cell_size)``.

        Parameters
        ----------
        components
            From :meth:`estimate`.
        values, genes
            As there.
        depth
            ``(n, 3)``, as in :class:`terrazzo.systems.completion.views.View`.
        base
            ``(n, base_width)``: vectors of another model.
        """
        scale = max(len(genes), 1) ** 0.5
        projected = values @ self.projection[genes] / scale
        by_basis = components.unflatten(1, (self.config.n_bases, -1))
        read = by_basis[:, :, : self.config.n_smoothed].flatten(1)
        return self.cell(torch.cat([read, projected, depth, base], dim=1))

    def hidden(self, around: Tensor, depth: Tensor) -> Tensor:
        """Return the hidden state of every cell, ``(n, width)``; ``around``: the map of cells in rings."""
        return self.around(torch.cat([around, depth], dim=1))

    def completed(
        self, components: Tensor, hidden: Tensor, depth: Tensor, basis: int | None = None
    ) -> Tensor:
        """Return the predicted components: the estimate, scaled by depth, and what the surroundings add.

        Parameters
        ----------
        components
            The estimate, of all bases or of one.
        hidden, depth
            From :meth:`hidden`, and as for :meth:`cells`.
        basis
            That one; None: all.
        """
        n_components = self.config.n_components
        part = slice(None)
        if basis is not None:
            part = slice(basis * n_components, (basis + 1) * n_components)
        gain = linear(depth, self.gain.weight[part], self.gain.bias[part])
        added = linear(hidden, self.own.weight[part], self.own.bias[part])
        return components * (1 + gain) + added

    def state_logits(self, hidden: Tensor, basis: int) -> Tensor:
        """Return the logits of the states of a basis in each ring, ``(n, 6, n_states)``."""
        n_outputs = N_RINGS * self.config.n_states
        part = slice(basis * n_outputs, (basis + 1) * n_outputs)
        logits = linear(hidden, self.states.weight[part], self.states.bias[part])
        return logits.unflatten(1, (N_RINGS, -1))

    def states_of(self, basis: int, scale: int) -> States:
        """Return the states of a basis at one of the scales."""
        return States(self.centers[basis, scale].cpu().numpy(), float(self.width[basis, scale]))

    def of_basis(self, own: Tensor, basis: int) -> Tensor:
        """Return the components of one basis, ``(n, n_components)``."""
        first = basis * self.config.n_components
        return own[:, first : first + self.config.n_components]

    def forward(
        self,
        values: Tensor,
        genes: Tensor,
        depth: Tensor,
        base: Tensor,
        ring_means: RingMeans,
        basis: int,
    ) -> Predicted:
        """Return what is predicted; ``basis``: that of the states; others as for :meth:`cells`."""
        components = self.estimate(values, genes)
        cells = self.cells(components, values, genes, depth, base)
        hidden = self.hidden(ring_means(cells), depth)
        own = self.completed(components, hidden, depth)
        return Predicted(own, self.state_logits(hidden, basis))
