"""Training recipes: the settings of all stages. Each stage has a recipe class of its own, with only what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from terrazzo.config import INF, from_dict, within
from terrazzo.errors import ConfigError, did_you_mean, shortened
from terrazzo.files import exists, write_text
from terrazzo.parsing import parse_yaml, read_text
from terrazzo.systems import registry

__all__ = [
    "DataConfig",
    "ModelSource",
    "OptimConfig",
    "Recipe",
    "RunConfig",
    "check_thinning",
    "load_recipe",
    "recipe_about",
    "recipe_from_dict",
    "recipe_text",
    "save_recipe",
]


@dataclass(frozen=True)
class ModelSource:
    """Where training starts: a checkpoint folder, or a preset.

    Attributes
    ----------
    preset
        ``"tiny"``, ``"small"`` or ``"paper"``; used where there is no checkpoint.
    checkpoint
        Folder of a model to start from; "": the preset.
    """

    preset: str = "small"
    checkpoint: str = ""


@dataclass(frozen=True)
class DataConfig:
    """Data that is read.

    Attributes
    ----------
    share
        Share of the training slices used (data-volume ablation, SToFM table A.5).
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and decay (SToFM, table A.8; ST as images, section 4.2).

    Attributes
    ----------
    lr, warmup_steps
        Peak of the learning rate, and the steps to it; 1e-4 after 500 steps as published.
    weight_decay, clip
        Of AdamW; largest norm of the gradient, 0 for no limit.
    weight_decay_end
        Weight decay at the last step, reached by half a cosine from ``weight_decay`` (ST-Align, section 4.1: 0.04 to
        0.4); None: constant.
    beta1, beta2
        Of AdamW's running means.
    schedule
        Decay to zero after the warm-up: ``"linear"`` (SToFM) or ``"cosine"`` (ST as images).
    accumulate
        Batches a step of the optimizer (paper 4).
    epochs, max_steps
        Passes over the data; or, where ``max_steps`` is not -1, so many steps, over as many passes as they take.
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

    def goes_beyond(self, epochs: int) -> bool:
        """Return whether a run may pass over the data more than so many times."""
        return self.max_steps > 0 or self.epochs > epochs


@dataclass(frozen=True)
class RunConfig:
    """Devices, logs and checkpoints of a run.

    Attributes
    ----------
    devices, nodes, strategy, precision, accelerator
        As in Lightning's Trainer; ``strategy`` ``"ddp"`` or ``"fsdp"`` for several processes.
    log_every, checkpoint_every
        Steps between log lines and between resumable checkpoints.
    validate_every
        Steps between validations on held-out slices; 0 for once an epoch. The start and the last weights are
        validated, too.
    keep
        Weights that the trained model has: ``"best"``, those of the validation with the lowest held-out loss, the start
        counted (the last ones for a corpus without validation slices); or ``"last"``.
    patience
        Validations without a lower held-out loss after which the run ends; 0: it never ends early.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    log_every: int = 10
    checkpoint_every: int = 500
    validate_every: int = 0
    keep: Literal["best", "last"] = "best"
    patience: int = 0

    def __post_init__(self) -> None:
        within(self, log_every=(1, INF), checkpoint_every=(1, INF), validate_every=(0, INF))
        within(self, devices=(1, 2**16), nodes=(1, 2**16), patience=(0, INF))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run; every stage has a subclass with its own ``stage``, ``model``, ``data`` and ``objective``.

    Attributes
    ----------
    stage
        Name of the stage, as its system registers it.
    corpus, out
        Corpus folder, and the folder for logs, checkpoints and the final model.
    model
        Where training starts.
    data
        Data that is read.
    objective
        The loss that is minimized.
    optim, run
        Optimizer; devices, logs and checkpoints.
    seed
        Of weights, order and noise.
    """

    stage: str
    corpus: str
    out: str
    model: ModelSource = field(default_factory=ModelSource)
    data: DataConfig = field(default_factory=DataConfig)
    objective: Any = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, seed=(0, 2**63 - 1))

    def changed(self, **sections: Any) -> Self:
        """Return a recipe with some settings changed: ``recipe.changed(run={"devices": 2}, seed=1)``.

        A None, as a value or within a section, changes nothing.

        Raises
        ------
        ConfigError
            Unknown or misspelled keys; values of the wrong kind.
        """
        data = dataclasses.asdict(self)
        for name, value in sections.items():
            if isinstance(value, Mapping):
                known = {k: v for k, v in value.items() if v is not None}
                before = data.get(name)
                data[name] = {**before, **known} if isinstance(before, Mapping) else known
            elif value is not None:
                data[name] = value
        return from_dict(type(self), data, f"recipe of {self.stage}")


def check_thinning(low: float, high: float) -> None:
    """Check the bounds of the share at which counts are split."""
    if not 0 < low <= high < 1:
        raise ValueError(
            f"thin_low is {low} and thin_high {high}; they must be between 0 and 1, in order."
        )


def recipe_from_dict(data: Any, where: str = "recipe") -> Recipe:
    """Return the recipe of a mapping of settings, of the class of its ``stage``.

    Raises
    ------
    ConfigError
        No such stage; keys that the stage does not read (the nearest valid one is named); values of the wrong kind.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where} must hold settings, one `key: value` a line; `terrazzo recipes` lists recipes to start from."
        )
    if "stage" not in data:
        raise ConfigError(f"{where} lacks stage; `terrazzo recipes` lists recipes to start from.")
    try:
        stage = registry.stage_class(data["stage"])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return from_dict(stage.recipe_class, data, where)


def load_recipe(source: str | Path, **overrides: object) -> Recipe:
    """Read a recipe by name, or from a YAML file.

    Parameters
    ----------
    source
        Name of a recipe that ships with terrazzo or another system (``"stofm-tiny-adapt"``; ``terrazzo recipes`` lists
        them), or a YAML file.
    **overrides
        Top-level values in place of the recipe's (``corpus=``, ``out=``, ``seed=``), or sections of them
        (``optim={"max_steps": 100}``); None changes nothing.

    Raises
    ------
    ConfigError
        No such recipe; not a readable YAML mapping; unknown or misspelled keys; values of the wrong kind.
    """
    data = _parsed(recipe_text(source), source)
    sections: dict[str, Mapping[str, Any]] = {}
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            sections[name] = value
        elif isinstance(value, Path):
            values[name] = str(value)
        elif value is not None:
            values[name] = value
    if isinstance(data, Mapping):
        data = {**data, **values}
    return recipe_from_dict(data, str(source)).changed(**sections)


def _parsed(text: str, source: str | Path) -> Any:
    """Parse YAML."""
    return parse_yaml(text, str(source))


def recipe_text(source: str | Path) -> str:
    """Return the YAML text of a recipe by name or from a file, comments included.

    Raises
    ------
    ConfigError
        No such recipe or file; a file that is not text.
    """
    path = Path(source)
    shipped = registry.recipe_files()
    if str(source) in shipped and not exists(path):
        return shipped[str(source)].read_text(encoding="utf-8")
    if not exists(path):
        hint = did_you_mean(path.stem, shipped, "`terrazzo recipes` lists the names.")
        shown = shortened(source, quoted=False)
        raise ConfigError(f"{shown} is neither a recipe's name nor a file.{hint}")
    return read_text(path)


def recipe_about(text: str) -> str:
    """Return the text of a recipe's first line, a comment; "" where it has none."""
    lines = text.lstrip().splitlines()
    if not lines or not lines[0].startswith("#"):
        return ""
    return lines[0].removeprefix("#").strip()


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe as YAML."""
    settings = dataclasses.asdict(recipe)
    write_text(path, yaml.safe_dump(settings, sort_keys=False))
