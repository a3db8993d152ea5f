"""Recipe of ST as images: a masked autoencoder on windows of slices, in any of four schemes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from terrazzo.config import INF, within
from terrazzo.systems.stimage.config import Flavor, Scheme
from terrazzo.systems.stimage.windows import WindowConfig
from terrazzo.training.recipe import DataConfig, ModelSource, Recipe, check_thinning

__all__ = ["STImageObjective", "STImageRecipe", "STImageSource", "WindowData"]


@dataclass(frozen=True)
class STImageSource(ModelSource):
    """Where the training of ST as images starts.

    Attributes
    ----------
    preset, checkpoint
        As in :class:`terrazzo.training.recipe.ModelSource`.
    init
        Weights without a checkpoint: ``"random"``, or ``"informed"``: gene embeddings from an SVD of training sites,
        and a decoder whose heads attend to nearby sites.
    windows
        Grid, windows and channels; None: those of the flavor or the checkpoint.
    """

    init: Literal["random", "informed"] = "random"
    windows: WindowConfig | None = None


@dataclass(frozen=True)
class WindowData(DataConfig):
    """Windows of slices.

    Attributes
    ----------
    share
        As in :class:`terrazzo.training.recipe.DataConfig`.
    batch_windows
        Windows a batch in each process (paper 32).
    windows_per_slice
        Windows of each slice in an epoch; 0: as many as it takes for all of its sites once.
    """

    batch_windows: int = 32
    windows_per_slice: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, batch_windows=(1, INF), windows_per_slice=(0, INF))


@dataclass(frozen=True)
class STImageObjective:
    """Settings of training samples and masking, and weights of the losses.

    Attributes
    ----------
    scheme
        ``"patch"``: sites of a window (eq 8); ``"spot"``: sites alone (eq 2); ``"multi-spot"``: the mean over a site
        and its neighbors (eq 3); ``"slice"``: a site joined with its domain, on sites from all over a slice (eq 4).
    flavor
        ``"paper"`` or ``"terrazzo"``: normalization, channels, positions and output of the model.
    mask
        ``"site"``: hidden sites never enter the encoder (scheme ``"patch"`` alone); ``"entry"``: single values are
        hidden.
    mask_share
        Share of them (paper 0.30).
    target
        Of what is shown: ``"values"``: nothing is predicted; ``"thinned"``: the counts of every site are split, one
        part is shown and the other predicted. Hidden values are predicted whole either way.
    thin_low, thin_high
        Share of a site's counts that is shown, drawn between these for each site.
    hidden_weight, visible_weight
        Weights of the losses of what is hidden and what is shown.
    neighbors, domains
        Of the schemes ``"multi-spot"`` (16, as scGPT-spatial) and ``"slice"``.
    """

    scheme: Scheme = "patch"
    flavor: Flavor = "terrazzo"
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


@dataclass(frozen=True, kw_only=True)
class STImageRecipe(Recipe):
    """Recipe of ST as images (section 4.2); sections as in :class:`terrazzo.training.recipe.Recipe`."""

    stage: Literal["stimage-pretrain"] = "stimage-pretrain"
    model: STImageSource = field(default_factory=STImageSource)
    data: WindowData = field(default_factory=WindowData)
    objective: STImageObjective = field(default_factory=STImageObjective)
