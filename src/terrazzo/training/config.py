"""A training recipe: frozen nested dataclasses, strict, one YAML file a recipe (configs/)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError
from terrazzo.models.stimage_config import Recipe, Scheme
from terrazzo.units.patches import PatchConfig
from terrazzo.units.subslices import SubSliceConfig

Limits = tuple[float, float]
INF = math.inf


def _within(settings: object, **limits: Limits) -> None:
    """Check numbers against their lowest and highest value; ``from_dict`` says where a refused one stands."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            most = f" and at most {high:g}" if high < INF else ""
            raise ValueError(f"{name} is {value}; it must be at least {low:g}{most}.")


def _check_thinning(low: float, high: float) -> None:
    if not 0 < low <= high < 1:
        raise ValueError(f"thin_low is {low} and thin_high {high}; they must lie between 0 and 1, in order.")


@dataclass(frozen=True)
class ModelSource:
    """Where training starts: a checkpoint folder, or a preset with random weights.

    Attributes
    ----------
    preset
        ``"tiny"``, ``"small"`` or ``"paper"``; used where there is no checkpoint.
    checkpoint
        Folder to start from; a SToFM checkpoint, or a cell encoder (converted Geneformer) whose encoder is taken; for
        stage ``"patches"`` one of ST as images.
    init
        Weights without a checkpoint: ``"random"``, or ``"informed"``: gene embeddings from an SVD of training cells,
        and heads of the SE(2) Transformer, or of the decoder of ST as images, that look near.
    subslices
        How slices are cut (SToFM), in place of the preset's.
    patches
        Grid, windows and channels (ST as images); None: those of the recipe or the checkpoint.
    """

    preset: str = "small"
    checkpoint: str = ""
    init: Literal["random", "informed"] = "random"
    subslices: SubSliceConfig = field(default_factory=SubSliceConfig)
    patches: PatchConfig | None = None


@dataclass(frozen=True)
class DataConfig:
    """What is read.

    Attributes
    ----------
    batch_cells
        Cells a step (domain adaptation).
    batch_subslices
        Sub-slices a step (multi-scale pretraining; paper 16).
    batch_windows
        Windows a step (ST as images; paper 32).
    windows_per_slice
        Windows of each slice in an epoch; 0: as many as it takes to hold its sites once.
    share
        Share of the slices used (data-volume ablation, table A.5).
    block, buffer_blocks
        Rows read at once, and blocks mixed in memory.
    """

    batch_cells: int = 32
    batch_subslices: int = 16
    batch_windows: int = 32
    windows_per_slice: int = 0
    share: float = 1.0
    block: int = 256
    buffer_blocks: int = 32

    def __post_init__(self) -> None:
        _within(self, batch_cells=(1, INF), batch_subslices=(1, INF), block=(1, INF), buffer_blocks=(1, INF))
        _within(self, batch_windows=(1, INF), windows_per_slice=(0, INF))
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and decay (SToFM, table A.8; ST as images, section 4.2).

    Attributes
    ----------
    lr, warmup_steps, weight_decay, clip
        Peak rate 1e-4 after 500 steps as published.
    weight_decay_end
        Weight decay at the last step, reached by half a cosine from ``weight_decay`` (ST-Align, section 4.1: 0.04 to
        0.4); None: it stays as it is.
    beta1, beta2
        Of AdamW's running means.
    schedule
        Decay to zero after the warm-up: ``"linear"`` (SToFM) or ``"cosine"`` (ST as images).
    accumulate
        Batches a step of the optimiser (paper 4).
    epochs, max_steps
        Whichever ends first; ``max_steps`` -1 for no limit.
    """

    lr: float = 1e-4
    warmup_steps: int = 500
    weight_decay: float = 0.01
    weight_decay_end: float | None = None
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: Literal["linear", "cosine"] = "linear"
    accumulate: int = 1
    epochs: int = 1
    max_steps: int = -1

    def __post_init__(self) -> None:
        _within(self, lr=(0, 1), warmup_steps=(0, INF), weight_decay=(0, INF), clip=(0, INF))
        if self.weight_decay_end is not None:
            _within(self, weight_decay_end=(0, INF))
        _within(self, accumulate=(1, INF), epochs=(1, INF), beta1=(0, 0.9999), beta2=(0, 0.999999))
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; it must be at least 1, or -1 for no limit.")


@dataclass(frozen=True)
class AdaptObjective:
    """Domain adaptation: masked genes + contrastive (section A.1), and the thinned-count own head beyond the paper.

    Attributes
    ----------
    mask_share
        Share of tokens chosen for masked gene modelling (0.15).
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
        _within(self, mask_share=(0, 1), temperature=(1e-3, INF), **dict.fromkeys(weights, (0.0, INF)))
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)} are all 0: nothing would be learnt.")
        _check_thinning(self.thin_low, self.thin_high)


@dataclass(frozen=True)
class MultiScaleObjective:
    """Masked cell modelling and pairwise distance recovery (section 3.3).

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
        _within(self, gamma=(0, 1), mask_share=(0, 1), kept_share=(0, 1), perturb_share=(0, 1), sigma_spacing=(0, INF))
        _within(self, frozen_epochs=(0, INF), reencode=(0, INF))
        if self.mask_share + self.kept_share > 1:
            raise ValueError(f"mask_share {self.mask_share} and kept_share {self.kept_share} are more than 1 together.")


@dataclass(frozen=True)
class PatchObjective:
    """ST as images: what a training sample is, what of it is hidden, and what is predicted.

    Attributes
    ----------
    scheme
        ``"patch"``: sites of a window (eq 8); ``"spot"``: sites alone (eq 2); ``"multi-spot"``: the mean over a site
        and its neighbours (eq 3); ``"slice"``: a site joined with its domain, on sites from all over a slice (eq 4).
    recipe
        ``"paper"`` or ``"terrazzo"``: normalisation, channels, positions and output of the model.
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
        _within(self, mask_share=(0, 1), hidden_weight=(0, INF), visible_weight=(0, INF))
        _within(self, neighbors=(1, INF), domains=(1, INF))
        if self.mask == "site" and self.scheme != "patch":
            raise ValueError(
                f"mask 'site' needs the scheme 'patch'; a hidden site of the scheme {self.scheme!r} has no "
                "neighbours to be predicted from: take mask 'entry'."
            )
        if not (self.hidden_weight and self.mask_share) and not (self.visible_weight and self.target == "thinned"):
            raise ValueError("nothing is hidden and nothing is split: nothing would be learnt.")
        _check_thinning(self.thin_low, self.thin_high)


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs (Lightning).

    Attributes
    ----------
    devices, nodes, strategy, precision, accelerator
        As Lightning's Trainer names them; ``strategy`` ``"ddp"`` or ``"fsdp"`` for several processes.
    log_every, checkpoint_every
        Steps between log lines and between resumable checkpoints.
    validate_every
        Steps between validations on held-out slices; 0 for once an epoch.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    log_every: int = 10
    checkpoint_every: int = 500
    validate_every: int = 0

    def __post_init__(self) -> None:
        _within(self, log_every=(1, INF), checkpoint_every=(1, INF), validate_every=(0, INF))


@dataclass(frozen=True)
class PretrainConfig:
    """One training run.

    Attributes
    ----------
    stage
        ``"adapt"``: domain adaptation of the cell encoder; ``"pretrain"``: the SE(2) Transformer on sub-slices, both of
        SToFM; ``"patches"``: ST as images on windows.
    corpus, out
        Corpus folder, and the folder for logs, checkpoints and the final model.
    """

    stage: Literal["adapt", "pretrain", "patches"]
    corpus: str
    out: str
    model: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    adapt: AdaptObjective = field(default_factory=AdaptObjective)
    pretrain: MultiScaleObjective = field(default_factory=MultiScaleObjective)
    patches: PatchObjective = field(default_factory=PatchObjective)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _within(self, seed=(0, INF))


def load(path: str | Path, **overrides: object) -> PretrainConfig:
    """Read a recipe.

    Parameters
    ----------
    path
        YAML file.
    **overrides
        Top-level values in place of the file's (``corpus=``, ``out=``, ``seed=``).

    Raises
    ------
    ConfigError
        Not a readable YAML mapping; unknown or misspelt keys; values of the wrong kind.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a readable YAML file ({str(error).splitlines()[0]}).") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of settings.")
    given = {k: v for k, v in overrides.items() if v is not None}
    return from_dict(PretrainConfig, {**data, **given}, str(path))


def changed(config: PretrainConfig, **sections: dict[str, object]) -> PretrainConfig:
    """Return a recipe with some settings changed: ``changed(config, run={"devices": 2})``; None changes nothing.

    Raises
    ------
    ConfigError
        Unknown or misspelt keys; values of the wrong kind.
    """
    data = dataclasses.asdict(config)
    for section, settings in sections.items():
        data[section] = {**data[section], **{k: v for k, v in settings.items() if v is not None}}
    return from_dict(PretrainConfig, data)


def save(config: PretrainConfig, path: str | Path) -> None:
    """Write a recipe back as YAML."""
    Path(path).write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")
