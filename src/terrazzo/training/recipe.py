"""A training recipe: frozen nested dataclasses, strict, one YAML file a recipe (configs/)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError
from terrazzo.files import write_text
from terrazzo.systems.stimage.windows import PatchConfig
from terrazzo.systems.stofm.subslices import SubSliceConfig
from terrazzo.training.goals import (
    INF,
    AdaptObjective,
    AlignObjective,
    MultiScaleObjective,
    PatchObjective,
    within,
)


@dataclass(frozen=True)
class ModelSource:
    """Where training starts: a checkpoint folder, or a preset with random weights.

    Attributes
    ----------
    preset
        ``"tiny"``, ``"small"`` or ``"paper"``; used where there is no checkpoint.
    checkpoint
        Folder to start from; a SToFM checkpoint, or a cell encoder (converted Geneformer) whose encoder is taken; for
        stage ``"patches"`` one of ST as images, for ``"align"`` one of ST-Align.
    init
        Weights without a checkpoint: ``"random"``, or ``"informed"``: gene embeddings from an SVD of training cells,
        and heads of the SE(2) Transformer, or of the decoder of ST as images, that look near.
    subslices
        How slices are cut (SToFM), in place of the preset's.
    patches
        Grid, windows and channels (ST as images); None: those of the recipe or the checkpoint.
    image_encoder
        Folder of a transformers vision model, which encodes niches and stays as it is (ST-Align); "": a small vision
        transformer with random weights.
    gene_encoder
        Folder of a SToFM, cell encoder or scGPT checkpoint, which encodes the genes of spots and stays as it is
        (ST-Align); "": principal components of the training slices.
    """

    preset: str = "small"
    checkpoint: str = ""
    init: Literal["random", "informed"] = "random"
    subslices: SubSliceConfig = field(default_factory=SubSliceConfig)
    patches: PatchConfig | None = None
    image_encoder: str = ""
    gene_encoder: str = ""


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
    batch_spots
        Spots a step (ST-Align); with those of all processes they are each other's negatives.
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
    batch_spots: int = 256
    windows_per_slice: int = 0
    share: float = 1.0
    block: int = 256
    buffer_blocks: int = 32

    def __post_init__(self) -> None:
        within(
            self,
            batch_cells=(1, INF),
            batch_subslices=(1, INF),
            block=(1, INF),
            buffer_blocks=(1, INF),
        )
        within(self, batch_windows=(1, INF), batch_spots=(2, INF), windows_per_slice=(0, INF))
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
        Batches a step of the optimizer (paper 4).
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
        within(self, lr=(0, 1), warmup_steps=(0, INF), weight_decay=(0, INF), clip=(0, INF))
        if self.weight_decay_end is not None:
            within(self, weight_decay_end=(0, INF))
        within(self, accumulate=(1, INF), epochs=(1, INF), beta1=(0, 0.9999), beta2=(0, 0.999999))
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(
                f"max_steps is {self.max_steps}; it must be at least 1, or -1 for no limit."
            )


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
        within(self, log_every=(1, INF), checkpoint_every=(1, INF), validate_every=(0, INF))


@dataclass(frozen=True)
class PretrainConfig:
    """One training run.

    Attributes
    ----------
    stage
        ``"adapt"``: domain adaptation of the cell encoder; ``"pretrain"``: the SE(2) Transformer on sub-slices, both of
        SToFM; ``"patches"``: ST as images on windows; ``"align"``: ST-Align on spots and their histology.
    corpus, out
        Corpus folder, and the folder for logs, checkpoints and the final model.
    """

    stage: Literal["adapt", "pretrain", "patches", "align"]
    corpus: str
    out: str
    model: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    adapt: AdaptObjective = field(default_factory=AdaptObjective)
    pretrain: MultiScaleObjective = field(default_factory=MultiScaleObjective)
    patches: PatchObjective = field(default_factory=PatchObjective)
    align: AlignObjective = field(default_factory=AlignObjective)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, seed=(0, INF))


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
        Not a readable YAML mapping; unknown or misspelled keys; values of the wrong kind.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); recipes to start from lie in configs/."
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"{path}{where}: not a readable YAML file ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} must hold settings, one `key: value` a line, as the recipes in configs/ do."
        )
    given = {k: v for k, v in overrides.items() if v is not None}
    return from_dict(PretrainConfig, {**data, **given}, str(path))


def changed(config: PretrainConfig, **sections: dict[str, object]) -> PretrainConfig:
    """Return a recipe with some settings changed: ``changed(config, run={"devices": 2})``; None changes nothing.

    Raises
    ------
    ConfigError
        Unknown or misspelled keys; values of the wrong kind.
    """
    data = dataclasses.asdict(config)
    for section, settings in sections.items():
        data[section] = {**data[section], **{k: v for k, v in settings.items() if v is not None}}
    return from_dict(PretrainConfig, data)


def save(config: PretrainConfig, path: str | Path) -> None:
    """Write a recipe back as YAML."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))
