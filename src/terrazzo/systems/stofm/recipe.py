"""Recipes of SToFM's two stages: domain adaptation of the cell encoder, multi-scale pretraining on sub-slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from terrazzo.config import INF, within
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.training.recipe import DataConfig, ModelSource, Recipe, check_thinning

__all__ = [
    "AdaptObjective",
    "AdaptRecipe",
    "CellData",
    "PretrainObjective",
    "PretrainRecipe",
    "SToFMSource",
    "SubSliceData",
]


@dataclass(frozen=True)
class SToFMSource(ModelSource):
    """Source of the weights that SToFM's training starts from.

    Attributes
    ----------
    preset, checkpoint
        As in :class:`terrazzo.training.recipe.ModelSource`; a checkpoint is one of SToFM, or of a cell encoder
        (converted Geneformer) whose encoder is taken.
    init
        Weights without a checkpoint: ``"random"``, or ``"informed"``: gene embeddings from an SVD of training cells,
        and heads of the SE(2) Transformer that attend to near cells.
    subslices
        Settings of sub-slices, in place of the preset's.
    """

    init: Literal["random", "informed"] = "random"
    subslices: SubSliceConfig = field(default_factory=SubSliceConfig)


@dataclass(frozen=True)
class CellData(DataConfig):
    """Random cells.

    Attributes
    ----------
    share
        As in :class:`terrazzo.training.recipe.DataConfig`.
    batch_cells
        Cells a batch in each process.
    block, buffer_blocks
        Rows read at once, and blocks mixed in memory.
    """

    batch_cells: int = 32
    block: int = 256
    buffer_blocks: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, batch_cells=(1, INF), block=(1, INF), buffer_blocks=(1, INF))


@dataclass(frozen=True)
class SubSliceData(DataConfig):
    """Whole sub-slices.

    Attributes
    ----------
    share
        As in :class:`terrazzo.training.recipe.DataConfig`.
    batch_subslices
        Sub-slices a batch in each process (paper 16).
    """

    batch_subslices: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, batch_subslices=(1, INF))


@dataclass(frozen=True)
class AdaptObjective:
    """Domain adaptation: masked genes + contrastive (section A.1), and the thinned-count own head beyond the paper.

    Attributes
    ----------
    mask_share
        Share of tokens chosen for masked gene modeling (0.15).
    masked_weight, contrastive_weight, own_weight
        Weights of the three losses; the paper's are 1, 1, 0.
    temperature
        Of the contrastive loss.
    thin_low, thin_high
        With an own head, or ``view="thinned"``: each cell's counts are split, and this share is the input.
    view
        Positive pairs: ``"dropout"`` (two passes, SimCSE, the paper) or ``"thinned"`` (two independent splits).
    """

    mask_share: float = 0.15
    masked_weight: float = 1.0
    contrastive_weight: float = 1.0
    own_weight: float = 0.0
    temperature: float = 0.05
    thin_low: float = 0.4
    thin_high: float = 0.9
    view: Literal["dropout", "thinned"] = "dropout"

    def __post_init__(self) -> None:
        weights = ("masked_weight", "contrastive_weight", "own_weight")
        within(
            self, mask_share=(0, 1), temperature=(1e-3, INF), **dict.fromkeys(weights, (0.0, INF))
        )
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)} are all 0: nothing would be learned.")
        check_thinning(self.thin_low, self.thin_high)


@dataclass(frozen=True)
class PretrainObjective:
    """Masked cell modeling and pairwise distance recovery (section 3.3).

    Attributes
    ----------
    kind
        ``"paper"``, or ``"own+niche"``: more cells masked, no distances, and ``embed`` writes two blocks.
    loss
        ``"mse"`` (paper) or ``"cosine"`` (published code).
    gamma
        Weight of masked cells against distances; 0.5 is 1:1.
    mask_share, kept_share
        Real cells whose embedding is hidden, and cells that are predicted but shown (paper 0.10, 0; code 0.12, 0.03).
    perturb_share, sigma_spacing
        Cells that get noise on their coordinates, and its standard deviation in spacings (paper 0.10, code 5).
    frozen_epochs
        Epochs with the cell encoder frozen and its vectors precomputed (paper 2 of 3).
    reencode
        Cells a sub-slice that are encoded again with gradient afterwards (paper 12; 0 freezes the encoder).
    """

    kind: Literal["paper", "own+niche"] = "own+niche"
    loss: Literal["mse", "cosine"] = "mse"
    gamma: float = 0.5
    mask_share: float = 0.10
    kept_share: float = 0.0
    perturb_share: float = 0.10
    sigma_spacing: float = 5.0
    frozen_epochs: int = 2
    reencode: int = 12

    def __post_init__(self) -> None:
        within(
            self,
            gamma=(0, 1),
            mask_share=(0, 1),
            kept_share=(0, 1),
            perturb_share=(0, 1),
            sigma_spacing=(0, INF),
        )
        within(self, frozen_epochs=(0, INF), reencode=(0, INF))
        if self.mask_share + self.kept_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share} and kept_share {self.kept_share} add up to more than 1."
            )


@dataclass(frozen=True, kw_only=True)
class AdaptRecipe(Recipe):
    """Recipe of domain adaptation (SToFM, section A.1); sections as in :class:`terrazzo.training.recipe.Recipe`."""

    stage: Literal["stofm-adapt"] = "stofm-adapt"
    model: SToFMSource = field(default_factory=SToFMSource)
    data: CellData = field(default_factory=CellData)
    objective: AdaptObjective = field(default_factory=AdaptObjective)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """Recipe of multi-scale pretraining (section 3.3); sections as in :class:`terrazzo.training.recipe.Recipe`."""

    stage: Literal["stofm-pretrain"] = "stofm-pretrain"
    model: SToFMSource = field(default_factory=SToFMSource)
    data: SubSliceData = field(default_factory=SubSliceData)
    objective: PretrainObjective = field(default_factory=PretrainObjective)
