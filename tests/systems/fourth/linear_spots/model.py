"""A linear autoencoder of log counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from terrazzo.corpus.genes import columns_by_token
from terrazzo.genes import GeneMatch
from terrazzo.models.base import Embedding, FoundationModel, Prepared
from terrazzo.models.estimate import Plan
from terrazzo.progress import Progress
from terrazzo.slices import Slice

from .options import LinearEmbedOptions


@dataclass(frozen=True)
class LinearConfig:
    """Sizes: tokens of the vocabulary, and numbers of a spot."""

    n_tokens: int
    width: int = 8


class LinearNetwork(nn.Module):
    """Log counts to a vector, and back."""

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        self.encoder = nn.Linear(config.n_tokens, config.width)
        self.decoder = nn.Linear(config.width, config.n_tokens)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values again."""
        return self.decoder(self.encoder(values))


class Linear(FoundationModel):
    """A linear autoencoder over spots."""

    model_type: ClassVar[str] = "linear"
    default_key: ClassVar[str] = "X_linear"
    config_class: ClassVar[type] = LinearConfig
    options_class: ClassVar[type[LinearEmbedOptions]] = LinearEmbedOptions
    title: ClassVar[str] = "Linear"

    def _build(self) -> nn.Module:
        return LinearNetwork(self.config)

    def prepare(
        self, tissue: Slice, options: Any = None, *, obs: pd.DataFrame | None = None
    ) -> PreparedLinear:
        """Match the genes of a slice."""
        chosen = options or LinearEmbedOptions()
        match = self.vocabulary.match(tissue, orthologs=chosen.orthologs)
        return PreparedLinear(self, tissue, match, chosen)


class PreparedLinear(Prepared):
    """A slice as counts by token."""

    def __init__(
        self, model: Linear, tissue: Slice, match: GeneMatch, options: LinearEmbedOptions
    ) -> None:
        self.model = model
        self.match = match
        self.sharpness = options.sharpness
        n_tokens = model.config.n_tokens
        self.counts = columns_by_token(tissue.counts, match.column_token, n_tokens)
        self.settings = {"sharpness": options.sharpness}

    def _plan(self) -> Plan:
        return Plan(self.counts.shape[0], 0, self.match.coverage, seconds=0.1)

    def embed(self, bars: Progress | None = None) -> Embedding:
        """Encode every spot."""
        values = torch.from_numpy(np.log1p(self.counts.toarray()).astype(np.float32))
        with torch.inference_mode():
            states = self.model.module.encoder(values.to(self.model.device))
        vectors = states.cpu().numpy() * np.float32(self.sharpness)
        empty = np.asarray(self.counts.sum(axis=1)).ravel() == 0
        return Embedding(vectors, empty, self.match.coverage)
