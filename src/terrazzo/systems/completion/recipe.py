"""Recipe of completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from terrazzo.config import INF, within
from terrazzo.systems.completion.config import CompletionConfig
from terrazzo.training.recipe import DataConfig, ModelSource, OptimConfig, Recipe

__all__ = [
    "CompletionObjective",
    "CompletionRecipe",
    "CompletionSource",
    "TileData",
    "ViewSettings",
]


@dataclass(frozen=True)
class CompletionSource(ModelSource):
    """Where training starts.

    Attributes
    ----------
    preset, checkpoint
        As in :class:`terrazzo.training.recipe.ModelSource`; the preset is a name alone. The checkpoint may be a
        completed model, which is trained further.
    base
        Folder of a model of any system, or its name: its vectors are read beside the components, and it stays as it is.
        "": none.
    base_options
        Options of its ``embed``, e.g. ``{modality: genes}`` of ST-Align.
    add_bases
        A model that is trained further gets a basis for each study of this corpus, beside those that it has.
    sizes
        Of the network.
    """

    base: str = ""
    base_options: dict[str, Any] = field(default_factory=dict)
    add_bases: bool = False
    sizes: CompletionConfig = field(default_factory=CompletionConfig)


@dataclass(frozen=True)
class TileData(DataConfig):
    """Tiles of slices, a view of one a step.

    Attributes
    ----------
    share
        As in :class:`terrazzo.training.recipe.DataConfig`.
    views
        Views of each study in an epoch.
    distinct
        Different views of a tile; further ones are these again, since a base model embeds each of them once.
    max_cells
        Cells of a tile; larger slices are cut.
    """

    views: int = 20
    distinct: int = 16
    max_cells: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, views=(1, INF), distinct=(1, INF), max_cells=(10, INF))


@dataclass(frozen=True)
class ViewSettings:
    """How views of a slice are degraded.

    Attributes
    ----------
    genes_low, counts_low
        Least share of the genes and of the counts that a view keeps; shares are log-uniform from there to 1.
    all_genes, all_counts
        Share of the views that keep all genes, and all counts.
    least
        Least product of both shares.
    panels
        Share of the views that keep the genes of another training slice, where that is at least 5 % of them.
    scale_noise
        Standard deviation of the logarithm of a noise in each gene's scale.
    crop
        Share of the views that are standardized on a part of the slice, and whose loss counts that part only.
    """

    genes_low: float = 0.05
    counts_low: float = 0.05
    all_genes: float = 0.35
    all_counts: float = 0.25
    least: float = 0.02
    panels: float = 0.15
    scale_noise: float = 0.15
    crop: float = 0.6

    def __post_init__(self) -> None:
        within(self, genes_low=(1e-3, 1), counts_low=(1e-3, 1), least=(0, 0.5))
        within(self, all_genes=(0, 1), all_counts=(0, 1), panels=(0, 1), crop=(0, 1))
        within(self, scale_noise=(0, 2))


@dataclass(frozen=True)
class CompletionObjective(ViewSettings):
    """How views are degraded, and the weights of the losses.

    Attributes
    ----------
    genes_low, counts_low, all_genes, all_counts, least, panels, scale_noise, crop
        As in :class:`ViewSettings`.
    own_weight, ring_weight, state_weight
        Weights of the losses: squared error of components and of their ring means, Kullback-Leibler divergence of the
        states in each ring.
    """

    own_weight: float = 1.0
    ring_weight: float = 1.0
    state_weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, own_weight=(0, INF), ring_weight=(0, INF), state_weight=(0, INF))
        if not self.own_weight + self.ring_weight + self.state_weight:
            raise ValueError("all losses have weight 0: nothing would be learned.")


@dataclass(frozen=True, kw_only=True)
class CompletionRecipe(Recipe):
    """Recipe of completion; sections as in :class:`terrazzo.training.recipe.Recipe`."""

    stage: Literal["complete"] = "complete"
    model: CompletionSource = field(default_factory=CompletionSource)
    data: TileData = field(default_factory=TileData)
    objective: CompletionObjective = field(default_factory=CompletionObjective)
    optim: OptimConfig = field(default_factory=OptimConfig)
