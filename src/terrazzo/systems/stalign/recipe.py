"""Recipe of ST-Align: image and genes of spots and their niches, contrasted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from terrazzo.config import INF, within
from terrazzo.systems.stalign.config import Components, Flavor
from terrazzo.training.recipe import DataConfig, ModelSource, Recipe

__all__ = ["STAlignObjective", "STAlignRecipe", "STAlignSource", "SpotData"]


@dataclass(frozen=True)
class STAlignSource(ModelSource):
    """Where ST-Align's training starts.

    Attributes
    ----------
    preset, checkpoint
        As in :class:`terrazzo.training.recipe.ModelSource`.
    image_encoder
        The frozen encoder of niches: ``efficientnet-lite0`` (the extra ``histology``; also ``""``), ``-lite1``,
        ``-lite2``, the folder of a transformers vision model, or ``random``, a small vision transformer with random
        weights.
    gene_encoder
        Folder of a checkpoint that encodes single cells (SToFM, cell encoder, scGPT), the frozen encoder of the genes
        of spots; "": principal components of the training slices.
    """

    image_encoder: str = ""
    gene_encoder: str = ""


@dataclass(frozen=True)
class SpotData(DataConfig):
    """Random spots.

    Attributes
    ----------
    share
        As in :class:`terrazzo.training.recipe.DataConfig`.
    batch_spots
        Spots a batch in each process; the spots of all processes' batches are each other's negatives.
    """

    batch_spots: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, batch_spots=(2, INF))


@dataclass(frozen=True)
class STAlignObjective:
    """Settings of spots and their vectors, and weights of the contrasts (sections 3.1 to 3.4).

    The first six are settings of the model; a checkpoint that training starts from must have the same, but for
    ``genes``, which are chosen already.

    Attributes
    ----------
    flavor
        ``"paper"`` or ``"terrazzo"``: how values, features and colors are brought to a common scale.
    neighbors
        K of a niche (eq 1).
    spot_um
        Diameter of a spot's crop in micrometers; 0: that of the platform's spots. Single cells need one.
    genes
        AE-Gene's genes are those of the highest spatial autocorrelation, or variance, in the training slices.
    adaptive, fusion
        Table 3: False, both adaptive encoders replaced by linear maps of frozen features; ``"concatenation"`` in place
        of cross-attention.
    residual, components
        Vectors start from components of frozen features and keep them beside what is trained; these keep their
        proportions, or are whitened. The flavor ``"paper"`` has neither, ``adaptive: false`` no residual.
    anchor_weight
        Of the mean square of what training adds to the components, relative to their own.
    modality
        Table 3: ``"image"`` or ``"genes"`` alone; there are then no pairs, and only spot and niche are contrasted.
    spot_weight, niche_weight, cross_weight
        Of the contrast of image and genes at spots and at niches (eq 10), and of spots with niches (eq 11); 0 leaves
        one out. The paper's are 0.4, 0.3 and 0.3.
    symmetric
        Contrast in both directions, niches with spots, too; in the paper only spots with niches.
    exclude_neighbors
        Spots of one niche are no negatives of each other; in the paper they are.
    temperature, learn_temperature
        Tau, which the paper does not state; train it, too.
    augment
        Turn and mirror spot crops at random.
    """

    flavor: Flavor = "terrazzo"
    neighbors: int = 3
    spot_um: float = 0.0
    genes: Literal["autocorrelation", "variance"] = "autocorrelation"
    adaptive: bool = True
    fusion: Literal["attention", "concatenation"] = "attention"
    residual: bool = True
    components: Components = "kept"
    anchor_weight: float = 1.0
    modality: Literal["both", "genes", "image"] = "both"
    spot_weight: float = 0.4
    niche_weight: float = 0.3
    cross_weight: float = 0.3
    symmetric: bool = False
    exclude_neighbors: bool = False
    temperature: float = 0.07
    learn_temperature: bool = False
    augment: bool = True

    def __post_init__(self) -> None:
        within(self, neighbors=(0, INF), spot_um=(0, INF), temperature=(1e-3, INF))
        within(self, anchor_weight=(0, INF))
        within(self, spot_weight=(0, INF), niche_weight=(0, INF), cross_weight=(0, INF))
        pairs = self.modality == "both" and (self.spot_weight or self.niche_weight)
        if not self.cross_weight and not pairs:
            raise ValueError(
                "spot_weight, niche_weight and cross_weight leave nothing to be learned."
            )


@dataclass(frozen=True, kw_only=True)
class STAlignRecipe(Recipe):
    """Recipe of ST-Align (section 4.1); sections as in :class:`terrazzo.training.recipe.Recipe`."""

    stage: Literal["stalign-pretrain"] = "stalign-pretrain"
    model: STAlignSource = field(default_factory=STAlignSource)
    data: SpotData = field(default_factory=SpotData)
    objective: STAlignObjective = field(default_factory=STAlignObjective)
