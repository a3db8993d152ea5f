"""A table as a protocol: what is measured on which slices, with the published numbers beside it; read from YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from terrazzo.config import from_dict
from terrazzo.errors import ConfigError, did_you_mean
from terrazzo.parsing import parse_yaml, read_text
from terrazzo.safe_files import check_name
from terrazzo.tasks.domains import Method
from terrazzo.tasks.experiments import KINDS as SPLITS
from terrazzo.tasks.heads import HEADS
from terrazzo.tasks.reconstruction import Choose

__all__ = [
    "KEYS_OF_ROW",
    "METRICS",
    "NO_HEAD",
    "Part",
    "Protocol",
    "Published",
    "Variant",
    "changed",
    "load",
    "names",
]

Task = Literal[
    "probe", "domains", "deconvolution", "imputation", "finetune", "reconstruction", "image_to_gene"
]
UNLABELED = ("imputation", "reconstruction", "image_to_gene")  # the truth of these tasks are counts
KEYS_OF_ROW = ("model", "part", "note")
_OF_CLASSES = ("accuracy", "macro_f1", "ari", "nmi")
_OF_VALUES = (
    "pearson",
    "pearson_overall",
    "rmse",
    "mae",
    "mse",
    "rmse_mean",
    "mae_mean",
    "mse_mean",
)
METRICS = {
    "probe": _OF_CLASSES,
    "finetune": _OF_CLASSES,
    "domains": ("ari", "nmi", "chaos", "pas"),
    "deconvolution": _OF_VALUES,
    "imputation": _OF_VALUES,
    "reconstruction": ("mse", "mae"),
    "image_to_gene": (
        "mse",
        "mse_level",
        "mse_pattern",
        "pearson",
        "pearson_overall",
        "rmse",
        "mae",
    ),
}
NO_HEAD = "none"  # the head of tasks that fit none
LEAST_SEEDS = 5  # of zero-shot domains: another seed moves the ARI by up to 0.17


@dataclass(frozen=True)
class Part:
    """One group of columns: the slice that is scored, and the slices that may be learned from.

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
    patient
        The patient of the scored slice. Weights may be given for all parts of a patient, ``NAME@PATIENT=FOLDER``, and
        no part learns from a slice that another part of the same patient scores.
    """

    name: str
    dataset: str
    test: str
    train: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=lambda: ["within"])
    published_name: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes
    ----------
    name
        Of the row.
    change
        Stage to settings, nested as a recipe, that differ from the table's ``training``.
    skip
        Stages that are left out.
    vector
        What is scored: the whole embedding, or the cell encoder alone, which is trained in the first stage.
    """

    name: str
    change: dict = field(default_factory=dict)
    skip: list[str] = field(default_factory=list)
    vector: Literal["whole", "cell_encoder"] = "whole"


@dataclass(frozen=True)
class Published:
    """Published numbers: a dict a row, ``model``, ``part`` and metrics; ``data`` says what they were measured on."""

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
        Heads of :mod:`terrazzo.tasks.heads`, or clustering methods of :mod:`terrazzo.tasks.domains`; ``none``
        where expression is predicted (reconstruction).
    splits
        Splits of the within setting; ``blocked`` is added where ``random`` or ``few-shot`` stand alone.
    runs
        Seeds or draws of each.
    models
        Entries compared; those of every table are added.
    genes
        Genes hidden (imputation) or predicted (reconstruction; image to gene: the most variable of the training
        slices, in columns of their own; 0: none).
    gene_names
        Image to gene: genes predicted by name, scored together and one by one.
    sizes, choose, bin_um
        Reconstruction: sides of the hidden squares in sites; which genes (:func:`terrazzo.tasks.reconstruct`); side of
        a site in micrometers, for slices without a lattice.
    common_genes, copies
        Cross-slice probes, where genes or depth of training and scored slices differ: all slices cut to the shared
        genes before they are embedded (``auto``: where that wins on held-out parts of the training slices), and heads
        that learn also from cut and thinned copies; see :func:`terrazzo.tasks.probe`.
    refine
        Spatial neighbors of the refinement that is reported apart (domains).
    variants, training
        An ablation: what is trained, and how.
    published
        The paper's numbers.
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
    gene_names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    choose: Choose = "variance"
    bin_um: float = 0.0
    common_genes: Literal["auto", "yes", "no"] = "auto"
    copies: bool = True
    refine: int = 0
    variants: list[Variant] = field(default_factory=list)
    training: dict = field(default_factory=dict)
    published: Published = field(default_factory=Published)
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what would only show as an empty table, or as numbers of two things under one name."""
        check_name(self.name, "name of a table", ConfigError)
        for part in self.parts:
            for name in (part.dataset, part.test, *part.train):
                check_name(name, f"{self.name}: name of a dataset or slice", ConfigError)
        if self.runs < 1:
            raise ConfigError(f"{self.name}: runs is {self.runs}; it must be at least 1.")
        self._check_words("metrics", METRICS[self.task])
        self._check_words("heads", _heads_of(self.task))
        self._check_words("splits", SPLITS)
        self._check_task()
        self._check_names("parts", [part.name for part in self.parts])
        self._check_names("variants", [variant.name for variant in self.variants])
        self._check_training()
        for part in self.parts:
            self._check_patient(part)
        if self.task == "image_to_gene":
            self._check_image_to_gene()
        for part in self.parts:
            _check_part(self.name, part)
        for row in self.published.rows:
            _check_published(self.name, row)

    def _check_words(self, key: str, known: Sequence[str]) -> None:
        words: list[str] = getattr(self, key)
        unknown = [word for word in words if word not in known]
        if words and not unknown:
            return
        problem = f"names {unknown[0]!r}" if unknown else "is empty"
        raise ConfigError(
            f"{self.name}: {key} {problem}; known for {self.task}: {', '.join(known)}."
        )

    def _check_names(self, kind: str, used: list[str]) -> None:
        if len(set(used)) < len(used):
            raise ConfigError(
                f"{self.name}: two {kind} have one name; their numbers would be pooled."
            )

    def _check_task(self) -> None:
        """Refuse a table without what its task needs."""
        lacks_label = self.task not in UNLABELED and not self.label
        if lacks_label or not self.parts:
            raise ConfigError(f"{self.name}: the task {self.task!r} needs parts and a label.")
        lacks_size = not self.sizes or min(self.sizes) < 1
        if self.task == "reconstruction" and lacks_size:
            raise ConfigError(
                f"{self.name}: sizes are {self.sizes}; name at least one, each at least 1."
            )
        if self.task == "domains" and self.runs < LEAST_SEEDS:
            raise ConfigError(
                f"{self.name}: zero-shot scores need at least {LEAST_SEEDS} seeds, not {self.runs}."
            )

    def _check_training(self) -> None:
        if self.variants and not self.training:
            raise ConfigError(
                f"{self.name} has variants and does not say how they are trained (training)."
            )
        for variant in self.variants:
            for stage in (*variant.change, *variant.skip):
                if stage in self.training:
                    continue
                stages = ", ".join(self.training)
                hint = did_you_mean(stage, self.training, f"It has {stages}.")
                raise ConfigError(
                    f"{self.name}: variant {variant.name!r} names the stage {stage!r}, which training does not "
                    f"have.{hint}"
                )

    def _check_patient(self, part: Part) -> None:
        """Refuse a part that learns from a slice of the patient that it scores."""
        if not part.patient:
            return
        scored = {other.test for other in self.parts if other.patient == part.patient}
        learned = sorted(scored & set(part.train))
        if learned:
            raise ConfigError(
                f"{self.name}: part {part.name} learns from {', '.join(learned)}, of the patient that it scores."
            )

    def _check_image_to_gene(self) -> None:
        has_genes = self.genes > 0 or self.gene_names
        for part in self.parts:
            if part.settings != ["cross"] or not has_genes:
                raise ConfigError(
                    f"{self.name}: image to gene has genes or gene_names, and parts with settings: [cross]."
                )
        if not self.variants:
            return
        scored = {part.test for part in self.parts}
        learned = {name for part in self.parts for name in part.train}
        both = sorted(scored & learned)
        if both:
            raise ConfigError(
                f"{self.name}: variants are trained on all training slices together, and {', '.join(both)} is "
                "scored: give each patient a table."
            )

    @property
    def all_splits(self) -> tuple[str, ...]:
        """Return the splits of the within setting: a split that leaks space never stands without a blocked one."""
        splits = tuple(self.splits)
        return splits if "blocked" in splits else (*splits, "blocked")


def names() -> list[str]:
    """Return the names of all tables, sorted."""
    files = [file.name for file in _folder().iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load(name: str | Path) -> Protocol:
    """Read a table by name, or from a YAML file.

    Raises
    ------
    ConfigError
        No such table (the nearest is named), or a file that is not a protocol.
    """
    if str(name).endswith((".yaml", ".yml")):
        where = str(name)
        text = _read_file(Path(name))
    else:
        known = names()
        if str(name) not in known:
            hint = did_you_mean(name, known, cutoff=0.4)
            listed = ", ".join(known)
            raise ConfigError(f"there is no table {str(name)!r}.{hint} Tables: {listed}.")
        where = f"tables/{name}.yaml"
        file = _folder() / f"{name}.yaml"
        text = file.read_text(encoding="utf-8")
    return from_dict(Protocol, parse_yaml(text, where), where)


def changed(protocol: Protocol, **values: Any) -> Protocol:
    """Return the protocol with other values; those that are None stay."""
    stated = {name: value for name, value in values.items() if value is not None}
    return replace(protocol, **stated)


def _read_file(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist.")
    return read_text(path)


def _heads_of(task: Task) -> tuple[str, ...]:
    if task == "domains":
        return get_args(Method)
    if task == "reconstruction":
        return (NO_HEAD,)
    return tuple(HEADS)


def _check_part(table: str, part: Part) -> None:
    unknown = [setting for setting in part.settings if setting not in ("within", "cross")]
    if unknown or not part.settings:
        problem = f"the setting {unknown[0]!r}" if unknown else "no setting"
        raise ConfigError(f"{table}: part {part.name} has {problem}; within, cross, or both.")
    if "cross" in part.settings and not part.train:
        raise ConfigError(f"{table}: part {part.name} is cross-slice and names no training slice.")
    if part.test in part.train:
        raise ConfigError(
            f"{table}: part {part.name} learns from the slice that it scores, {part.test}."
        )


def _check_published(table: str, row: dict) -> None:
    numbers = [value for key, value in row.items() if key not in KEYS_OF_ROW]
    if "model" not in row or not numbers or not all(map(_is_number, numbers)):
        raise ConfigError(f"{table}: a published row needs a model and a number: {row}.")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float)


def _folder() -> Any:
    return resources.files("terrazzo.bench") / "tables"
