"""A table as a protocol: what is measured on which slices, with the published numbers beside it; read from YAML."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError

Task = Literal["probe", "domains", "deconvolution", "imputation", "finetune", "reconstruction", "image_to_gene"]
TASKS_BUILT = ("probe", "domains", "deconvolution", "imputation", "finetune")
KEYS_OF_ROW = ("model", "part", "note")


@dataclass(frozen=True)
class Part:
    """One group of columns: the slice that is scored, and the slices that may be learnt from.

    Attributes
    ----------
    name
        As the table calls it.
    dataset
        Folder of the data (:mod:`terrazzo.datasets`).
    test
        The slice that is scored.
    train
        Other slices of the dataset: baselines are fitted on them without labels; in a cross-slice setting heads learn
        from their labels. Empty: baselines are fitted on the scored slice itself, without labels.
    settings
        ``within`` (splits of the scored slice) and ``cross`` (training slices to scored slice).
    published_name
        The part's name in the published rows, where it differs.
    """

    name: str
    dataset: str
    test: str
    train: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=lambda: ["within"])
    published_name: str = ""


@dataclass(frozen=True)
class Training:
    """How the variants of an ablation are trained, on the unlabelled training slices of the parts.

    Attributes
    ----------
    recipe
        Settings of :class:`terrazzo.training.config.PretrainConfig` common to both stages, nested.
    adapt, pretrain
        What differs between the stages, nested.
    """

    recipe: dict = field(default_factory=dict)
    adapt: dict = field(default_factory=dict)
    pretrain: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One row of an ablation: changes of the recipes, nested; ``skip_adapt`` leaves out domain adaptation.

    ``vector`` says what is scored: the whole embedding, or the cell encoder alone.
    """

    name: str
    recipe: dict = field(default_factory=dict)
    adapt: dict = field(default_factory=dict)
    pretrain: dict = field(default_factory=dict)
    skip_adapt: bool = False
    vector: Literal["whole", "cell_encoder"] = "whole"


@dataclass(frozen=True)
class Published:
    """What the paper printed: a dict a row, ``model``, ``part`` and metrics; ``data`` says what it was measured on."""

    data: str = ""
    rows: list[dict] = field(default_factory=list)


@dataclass(frozen=True)
class Protocol:
    """A table.

    Attributes
    ----------
    name, title, source
        Name of the command; headline; paper and table, or "data at hand".
    task
        What is done with an embedding.
    label
        ``obs`` column, or ``obsm`` key of proportions.
    parts
        Groups of columns.
    metrics
        What is printed, in this order.
    heads
        Read-outs of :mod:`terrazzo.tasks.heads`, or clustering methods of :mod:`terrazzo.tasks.domains`.
    splits
        Splits of the within setting; ``blocked`` is added where ``random`` or ``few-shot`` stand alone.
    runs
        Seeds or draws of each.
    models
        Systems compared; those that a table always carries are added.
    genes
        Genes hidden (imputation).
    refine
        Spatial neighbours of the refinement that is reported apart (domains).
    variants, training
        An ablation: what is trained, and how.
    published
        Theirs.
    note
        How this differs from the paper.
    """

    name: str
    title: str
    source: str
    task: Task
    metrics: list[str]
    label: str = ""
    parts: list[Part] = field(default_factory=list)
    heads: list[str] = field(default_factory=lambda: ["mlp3"])
    splits: list[str] = field(default_factory=lambda: ["random", "blocked"])
    runs: int = 3
    models: list[str] = field(default_factory=list)
    genes: int = 50
    refine: int = 0
    variants: list[Variant] = field(default_factory=list)
    training: Training | None = None
    published: Published = field(default_factory=Published)
    note: str = ""

    def __post_init__(self) -> None:
        for part in self.parts:
            if unknown := set(part.settings) - {"within", "cross"}:
                raise ConfigError(f"{self.name}: part {part.name} has the setting {unknown.pop()!r}; within or cross.")
            if "cross" in part.settings and not part.train:
                raise ConfigError(f"{self.name}: part {part.name} is cross-slice and names no training slice.")
        for row in self.published.rows:
            if "model" not in row or not set(row) - set(KEYS_OF_ROW):
                raise ConfigError(f"{self.name}: a published row needs a model and a number: {row}.")

    @property
    def all_splits(self) -> tuple[str, ...]:
        """Return the splits of the within setting: a split that leaks space never stands without a blocked one."""
        given = tuple(self.splits)
        return given if "blocked" in given else (*given, "blocked")


def names() -> list[str]:
    """Return the names of all tables, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def load(name: str | Path) -> Protocol:
    """Read a table by name, or from a YAML file of one's own.

    Raises
    ------
    ConfigError
        No such table (the nearest is named), or a file that is not a protocol.
    """
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{path} does not exist.")
        text, where = path.read_text(encoding="utf-8"), str(path)
    else:
        if str(name) not in names():
            near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"there is no table {str(name)!r}. {hint} Tables: {', '.join(names())}.")
        text, where = (_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"tables/{name}.yaml"
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}.") from error
    return from_dict(Protocol, data, where)


def changed(protocol: Protocol, **values: Any) -> Protocol:
    """Return the protocol with other values; those that are None stay."""
    return replace(protocol, **{k: v for k, v in values.items() if v is not None})


def _folder() -> Any:
    return resources.files("terrazzo.bench") / "tables"
