"""What each stage of training minimizes, as settings: the sections of a recipe that belong to one stage alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from terrazzo.systems.stimage.config import Recipe, Scheme

Limits = tuple[float, float]
INF = math.inf


def within(settings: object, **limits: Limits) -> None:
    """Check numbers against their lowest and highest value; ``from_dict`` says where a refused one stands."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < INF else ""
            raise ValueError(f"{name} is {value}; it must be at least {low:g}{most}.")


def check_thinning(low: float, high: float) -> None:
    """Check the shares between which counts are split."""
    if not 0 < low <= high < 1:
        raise ValueError(
            f"thin_low is {low} and thin_high {high}; they must lie between 0 and 1, in order."
        )


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
        What makes a positive pair: ``"dropout"`` (SimCSE, the paper) or ``"thinned"`` (two independent splits).
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
class MultiScaleObjective:
    """Masked cell modeling and pairwise distance recovery (section 3.3).

    Attributes
    ----------
    objective
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

    objective: Literal["paper", "own+niche"] = "own+niche"
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
                f"mask_share {self.mask_share} and kept_share {self.kept_share} are more than 1 together."
            )


@dataclass(frozen=True)
class PatchObjective:
    """ST as images: what a training sample is, what of it is hidden, and what is predicted.

    Attributes
    ----------
    scheme
        ``"patch"``: sites of a window (eq 8); ``"spot"``: sites alone (eq 2); ``"multi-spot"``: the mean over a site
        and its neighbors (eq 3); ``"slice"``: a site joined with its domain, on sites from all over a slice (eq 4).
    recipe
        ``"paper"`` or ``"terrazzo"``: normalization, channels, positions and output of the model.
    mask
        ``"site"``: hidden sites never enter the encoder (scheme ``"patch"`` alone); ``"entry"``: single values are
        hidden.
    mask_share
        Share of them (paper 0.30).
    target
        Of what is shown: ``"values"``: nothing is predicted; ``"thinned"``: the counts of every site are split, one
        part is shown and the other predicted. What is hidden is predicted whole either way.
    thin_low, thin_high
        Share of a site's counts that is shown, drawn between these for each site.
    hidden_weight, visible_weight
        Weights of the losses of what is hidden and what is shown.
    neighbors, domains
        Of the schemes ``"multi-spot"`` (16, as scGPT-spatial) and ``"slice"``.
    """

    scheme: Scheme = "patch"
    recipe: Recipe = "terrazzo"
    mask: Literal["site", "entry"] = "site"
    mask_share: float = 0.30
    target: Literal["values", "thinned"] = "values"
    thin_low: float = 0.4
    thin_high: float = 0.9
    hidden_weight: float = 1.0
    visible_weight: float = 1.0
    neighbors: int = 16
    domains: int = 8

    def __post_init__(self) -> None:
        within(self, mask_share=(0, 1), hidden_weight=(0, INF), visible_weight=(0, INF))
        within(self, neighbors=(1, INF), domains=(1, INF))
        if self.mask == "site" and self.scheme != "patch":
            raise ValueError(
                f"mask 'site' needs the scheme 'patch'; a hidden site of the scheme {self.scheme!r} has no "
                "neighbors to be predicted from: take mask 'entry'."
            )
        if not (self.hidden_weight and self.mask_share) and not (
            self.visible_weight and self.target == "thinned"
        ):
            raise ValueError("nothing is hidden and nothing is split: nothing would be learned.")
        check_thinning(self.thin_low, self.thin_high)


@dataclass(frozen=True)
class AlignObjective:
    """ST-Align: what is read of a spot, what its vectors are, and what is contrasted (sections 3.1 to 3.4).

    The first six decide what the model is; one that training starts from has to have the same, but for its genes, which
    are chosen already.

    Attributes
    ----------
    recipe
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
    modality
        Table 3: ``"image"`` or ``"genes"`` alone; there are then no pairs, and only spot and niche are contrasted.
    spot_weight, niche_weight, cross_weight
        Of the contrast of image and genes at spots and at niches (eq 10), and of spots with niches (eq 11); 0 leaves
        one out. The paper's are 0.4, 0.3 and 0.3.
    symmetric
        Niches look for spots, too; in the paper only spots look for niches.
    exclude_neighbors
        Spots of one niche are no negatives of each other; in the paper they are.
    temperature, learn_temperature
        Tau, which the paper does not state, and whether it is trained.
    augment
        Spot crops are turned and mirrored by chance.
    """

    recipe: Recipe = "terrazzo"
    neighbors: int = 3
    spot_um: float = 0.0
    genes: Literal["autocorrelation", "variance"] = "autocorrelation"
    adaptive: bool = True
    fusion: Literal["attention", "concatenation"] = "attention"
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
        within(self, spot_weight=(0, INF), niche_weight=(0, INF), cross_weight=(0, INF))
        if not self.cross_weight and (
            self.modality != "both" or not (self.spot_weight or self.niche_weight)
        ):
            raise ValueError(
                "spot_weight, niche_weight and cross_weight leave nothing to be learned."
            )
