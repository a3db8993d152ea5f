"""Settings of completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from terrazzo.config import SIZE, within

__all__ = ["CompletedConfig", "CompletionConfig"]


@dataclass(frozen=True)
class CompletionConfig:
    """Sizes of the network that completes.

    Attributes
    ----------
    n_genes
        Genes that all bases together are made of.
    n_bases
        Bases at most: one a study.
    basis_genes
        Genes of a basis at most.
    n_components
        Components of a basis that are estimated and predicted.
    n_smoothed
        The first of them: what the network reads, and what states are made of.
    n_projected
        Learned projections of the genes, read beside the components.
    n_states
        Soft states of cells, of each basis at each scale.
    cell_width, cell_size
        Hidden and last layer of the map of single cells.
    width
        Hidden layers over a cell and its rings.
    dropout
        Of the hidden layers, in training.
    """

    n_genes: int = 12_000
    n_bases: int = 16
    basis_genes: int = 1200
    n_components: int = 50
    n_smoothed: int = 20
    n_projected: int = 64
    n_states: int = 30
    cell_width: int = 256
    cell_size: int = 96
    width: int = 384
    dropout: float = 0.1

    def __post_init__(self) -> None:
        within(self, n_genes=SIZE, n_bases=(1, 1024), n_components=(1, 4096), n_projected=SIZE)
        within(self, basis_genes=(2, self.n_genes), n_smoothed=(1, self.n_components))
        within(self, n_states=(2, 100_000))
        within(self, cell_width=SIZE, cell_size=SIZE, width=SIZE, dropout=(0, 0.99))


@dataclass(frozen=True)
class CompletedConfig:
    """Everything that decides the output of a completed model, apart from weights and vocabulary.

    Attributes
    ----------
    completion
        Sizes of the network.
    base_type, base
        Kind of the model whose vectors it reads, as checkpoints state it, and that model's settings; "" for none.
    base_width
        Width of those vectors; 0 for none.
    base_options
        Options of its ``embed`` that were set in training.
    """

    completion: CompletionConfig = field(default_factory=CompletionConfig)
    base_type: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    base_width: int = 0
    base_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        within(self, base_width=(0, SIZE[1]))
        if bool(self.base_type) != bool(self.base_width):
            raise ValueError("base_type and base_width must both be set, or neither.")
