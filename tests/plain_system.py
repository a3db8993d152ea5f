"""The smallest model there can be, and a system that registers it: for what does not depend on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from terrazzo.genes import Vocabulary
from terrazzo.models.base import Embedding, FoundationModel, Prepared
from terrazzo.models.estimate import Plan
from terrazzo.models.options import EmbedOptions, option
from terrazzo.slices import Slice
from terrazzo.systems.registry import System


@dataclass(frozen=True)
class PlainConfig:
    """One number."""

    width: int = 4


@dataclass(frozen=True)
class PlainOptions(EmbedOptions):
    """One option, which is added to the vectors."""

    shift: int = option(0, "Added to the vectors. Default 0.")


class Plain(FoundationModel):
    """Random projections of log counts."""

    model_type: ClassVar[str] = "plain"
    default_key: ClassVar[str] = "X_plain"
    config_class: ClassVar[type] = PlainConfig
    options_class: ClassVar[type[EmbedOptions]] = PlainOptions
    title: ClassVar[str] = "Plain"

    def _build(self) -> nn.Module:
        return nn.Linear(self.vocabulary.n_tokens, self.config.width)

    def prepare(self, tissue: Slice, options: Any = None, *, obs: Any = None) -> Prepared:
        return PreparedPlain(self, tissue, options or PlainOptions())


class PreparedPlain(Prepared):
    """A slice and its genes."""

    def __init__(self, model: Plain, tissue: Slice, options: PlainOptions) -> None:
        self.model, self.tissue, self.options = model, tissue, options
        self.match = model.vocabulary.match(tissue, orthologs=options.orthologs)
        self.settings = {"shift": options.shift}

    def _plan(self) -> Plan:
        return Plan(self.tissue.n_cells, 0, self.match.coverage, 0.0)

    def embed(self, bars: Any = None) -> Embedding:
        weights = self.model.module.weight.detach().numpy()[:, self.match.column_token]
        vectors = np.log1p(self.tissue.counts.toarray()) @ weights.T + self.options.shift
        empty = np.zeros(self.tissue.n_cells, dtype=bool)
        return Embedding(vectors.astype(np.float32), empty, self.match.coverage)


SYSTEM = System(
    name="plain",
    title="Plain",
    models={"plain": "plain_system:Plain"},
    options={"plain": "plain_system:PlainOptions"},
)


def plain_model(adata: Any, width: int = 4, **options: Any) -> Plain:
    """Make the model for the genes of a slice."""
    vocabulary = Vocabulary.from_slices([Slice.from_anndata(adata)])
    return Plain(PlainConfig(width), vocabulary, **options)
