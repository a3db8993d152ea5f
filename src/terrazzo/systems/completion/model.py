"""Completed vectors: clean components of every cell and the states around it, from any genes and any depth."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from terrazzo import keys
from terrazzo.arrays import Bools, Vectors
from terrazzo.config import from_dict
from terrazzo.errors import ConfigError
from terrazzo.genes import GeneMatch, Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Prepared, joined, require_counts
from terrazzo.models.estimate import Plan, matmul_rate
from terrazzo.models.options import EmbedOptions
from terrazzo.models.states import (
    SCALES,
    at_scales,
    nearest_in_rings,
    ring_means,
    standardized_alone,
)
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems import registry
from terrazzo.systems.completion.config import CompletedConfig
from terrazzo.systems.completion.network import CompletionNetwork
from terrazzo.systems.completion.panels import Counted, Panel, numbered, panel_of
from terrazzo.systems.completion.targets import home_basis
from terrazzo.systems.completion.views import Scaled, on_scale

__all__ = ["Completed", "PreparedCompleted"]

ROWS = 20_000  # cells whose surroundings are in memory together

ROWS_OF_GENES = 4000  # cells whose genes are dense together

REACH = 0.3  # of the matrix-product rate


class Completed(FoundationModel):
    """A model that completes: alone, or beside the vectors of another, its base, which stays as it is.

    Parameters
    ----------
    config
        :class:`CompletedConfig`.
    vocabulary
        Genes and tokens; those of the base, where there is one.
    seed
        Seed of random initial weights.
    provenance
        Where the weights come from.
    """

    model_type: ClassVar[str] = "completion"
    config_class: ClassVar[type] = CompletedConfig
    title = "Completion"
    default_key = keys.X_COMPLETED
    limits: ClassVar[tuple[str, ...]] = (
        "Each gene is standardized within its slice: differences between whole slices are not in the vectors.",
        "Rings are of nearest cells or spots, whatever their distance.",
        "Vectors are in the components of one study of the training corpus, the one that explains the slice best: "
        "slices are comparable where that is the same (`basis` in their record).",
    )
    module: CompletedModule

    def __init__(
        self,
        config: CompletedConfig,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.base: FoundationModel | None = None
        if config.base_type:
            self.base = _base_of(config, vocabulary, seed)
            self.title = f"{self.base.title}, completed"
            self.default_key = self.base.default_key
            self.options_class = type(self.base).options_class
            self.citation = self.base.citation
        super().__init__(config, vocabulary, seed=seed, provenance=provenance)

    def _build(self) -> CompletedModule:
        network = CompletionNetwork(self.config.completion, self.config.base_width)
        return CompletedModule(network, None if self.base is None else self.base.module)

    @property
    def network(self) -> CompletionNetwork:
        """What is trained."""
        return self.module.completion

    def _base_options(self, options: EmbedOptions) -> EmbedOptions:
        """Return the options of the base: those passed, and the checkpoint's for those left at their default."""
        changed = {}
        for item in dataclasses.fields(options):
            is_default = getattr(options, item.name) == item.default
            if is_default and item.name in self.config.base_options:
                changed[item.name] = self.config.base_options[item.name]
        return dataclasses.replace(options, **changed)

    def prepared_base(
        self, tissue: Slice, options: EmbedOptions | None = None, obs: pd.DataFrame | None = None
    ) -> Prepared | None:
        """Return a slice prepared for the base; None where there is none."""
        if self.base is None:
            return None
        chosen = self._base_options(options or self.options_class())
        return self.base.prepare(tissue, chosen, obs=obs)

    def prepare(
        self, tissue: Slice, options: Any = None, *, obs: pd.DataFrame | None = None
    ) -> PreparedCompleted:
        """Match one slice; see :meth:`terrazzo.models.base.FoundationModel.prepare`."""
        chosen = options or self.options_class()
        require_counts(tissue, "completion reads counts")
        match = self.vocabulary.match(tissue, orthologs=chosen.orthologs)
        base = self.prepared_base(tissue, chosen, obs)
        return PreparedCompleted(self, tissue, match, base)


class CompletedModule(nn.Module):
    """The network, and the base under it, under the names of a checkpoint's tensors."""

    def __init__(self, completion: CompletionNetwork, base: nn.Module | None) -> None:
        super().__init__()
        self.completion = completion
        self.base = base
        if base is not None:
            base.requires_grad_(False)


def _base_of(config: CompletedConfig, vocabulary: Vocabulary, seed: int) -> FoundationModel:
    base_class = registry.model_class(config.base_type)
    if base_class is None or base_class is Completed:
        raise ConfigError(f"base_type is {config.base_type!r}: no system has such a model.")
    base_config = from_dict(base_class.config_class, config.base, "base")
    base = base_class(base_config, vocabulary, seed=seed)
    return cast(FoundationModel, base)


class PreparedCompleted(Prepared):
    """A slice, its genes, and what the base made of it."""

    def __init__(
        self, model: Completed, tissue: Slice, match: GeneMatch, base: Prepared | None
    ) -> None:
        self.model = model
        self.tissue = tissue
        self.match = match
        self.base = base
        self.settings = {} if base is None else dict(base.settings)

    def _plan(self) -> Plan:
        n_cells = self.tissue.n_cells
        n_weights = sum(one.numel() for one in self.model.network.parameters())
        seconds = 2.0 * n_cells * n_weights / (matmul_rate("float32", self.model.device) * REACH)
        if self.base is None:
            return Plan(n_cells, 0, self.match.coverage, seconds)
        plan = self.base.plan
        return dataclasses.replace(plan, seconds=plan.seconds + seconds)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Return the vectors: block ``own``, the predicted components; block ``niche``, the states around a cell.

        The niche has the square root of the share of each state of each scale in each ring.
        """
        panel, empty = self.panel()
        basis, own = self.components(panel, bars)
        niche = self._niche(own, basis)
        vectors, columns = joined({"own": own, "niche": niche})
        details = {"blocks": columns, "genes": len(panel.genes), "basis": basis}
        return Embedding(vectors, empty, self.match.coverage, details)

    def components(self, panel: Panel, bars: Progress | None = None) -> tuple[int, Vectors]:
        """Return the basis of the slice, and the predicted components of every cell, ``(n_cells, n_components)``."""
        base = np.zeros((self.tissue.n_cells, 0), dtype=np.float32)
        if self.base is not None:
            base = standardized_alone(self.base.embed(bars).vectors)
        network = self.model.network
        scaled = on_scale(panel, network.config.n_genes)
        basis = home_basis(network, scaled, self.tissue.coords)
        return basis, self._own(scaled, base, basis)

    def panel(self) -> tuple[Panel, Bools]:
        """Return the counts that the network reads, and which cells have none."""
        counts, tokens = numbered(self.tissue.counts, self.match.column_token)
        totals = self.tissue.total_counts.astype(np.float64)
        one = Counted(counts, tokens, totals, self.tissue.coords)
        panel = panel_of(one, self.model.network.tokens.cpu().numpy())
        empty = np.asarray(panel.counts.sum(axis=1)).ravel() == 0
        return panel, empty

    def _own(self, scaled: Scaled, base: Vectors, basis: int) -> Vectors:
        network = self.model.network
        device = self.model.device
        out = np.empty((self.tissue.n_cells, network.config.n_components), dtype=np.float32)
        with torch.inference_mode():
            components, cells = self._cells(scaled, base, basis)
            for rows, index in nearest_in_rings(self.tissue.coords, n_rows=ROWS):
                around = torch.from_numpy(ring_means(cells, index)).to(device)
                depth = torch.from_numpy(scaled.depth[rows]).to(device)
                hidden = network.hidden(around, depth)
                estimate = torch.from_numpy(components[rows]).to(device)
                own = network.completed(estimate, hidden, depth, basis)
                out[rows] = own.cpu().numpy()
        return out

    def _cells(self, scaled: Scaled, base: Vectors, basis: int) -> tuple[Vectors, Vectors]:
        """Return the estimated components of one basis, and the map of all single cells."""
        network = self.model.network
        device = self.model.device
        genes = torch.from_numpy(scaled.genes).to(device)
        estimates = []
        parts = []
        for first in range(0, self.tissue.n_cells, ROWS_OF_GENES):
            rows = slice(first, first + ROWS_OF_GENES)
            values = torch.from_numpy(scaled.rows(rows)).to(device)
            depth = torch.from_numpy(scaled.depth[rows]).to(device)
            of_base = torch.from_numpy(base[rows]).to(device)
            components = network.estimate(values, genes)
            estimates.append(network.of_basis(components, basis).cpu().numpy())
            parts.append(network.cells(components, values, genes, depth, of_base).cpu().numpy())
        return np.concatenate(estimates), np.concatenate(parts)

    def _niche(self, own: Vectors, basis: int) -> Vectors:
        """Return the square root of the share of each state in each ring, ``(n_cells, scales * 6 * n_states)``."""
        network = self.model.network
        scaled = at_scales(own[:, : network.config.n_smoothed], self.tissue.coords)
        shares = [network.states_of(basis, scale)(scaled[scale]) for scale in range(len(SCALES))]
        parts = []
        for _, index in nearest_in_rings(self.tissue.coords):
            of_scale = [np.sqrt(ring_means(part, index)) for part in shares]
            parts.append(np.concatenate(of_scale, axis=1))
        return np.concatenate(parts)
