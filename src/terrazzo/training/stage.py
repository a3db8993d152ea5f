"""Base classes of a training stage and its objective, which systems subclass."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from terrazzo.corpus.loader import Loader, Members, Shard
from terrazzo.corpus.store import Corpus
from terrazzo.models.base import FoundationModel
from terrazzo.training.recipe import OptimConfig, Recipe

__all__ = ["Movable", "Objective", "Shard", "Stage", "decay", "rate"]

R = TypeVar("R", bound=Recipe)
M = TypeVar("M", bound=FoundationModel)


class Movable:
    """Dataclass of tensors that can be moved to a device."""

    def to(self, device: torch.device | str, **options: Any) -> Self:
        """Return the same on another device."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        moved = {field.name: _moved(getattr(self, field.name), device) for field in fields}
        return type(self)(**moved)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, list):
        return [_moved(one, device) for one in value]
    if hasattr(value, "to"):
        return value.to(torch.device(device))
    return value


class Objective(LightningModule):
    """The loss of a stage: its parts for a batch, the optimizer, and what is logged.

    Parameters
    ----------
    model
        Its module is trained.
    recipe
        The settings.
    """

    def __init__(self, model: FoundationModel, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.trained = model.module  # registered, so that Lightning moves, saves and averages it
        self.recipe = recipe
        self.total_steps = 1  # of the optimizer; known once there is one

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the parts of the loss by name; ``"loss"`` is minimized."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Log the parts, return the sum."""
        parts = self.losses(batch)
        logged = {f"train/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(logged, batch_size=len(batch))
        return parts["loss"]

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Log the same parts on held-out slices."""
        parts = self.losses(batch)
        logged = {f"val/{name}": part for name, part in parts.items()}
        self.log_dict(logged, batch_size=len(batch), sync_dist=True)

    @property
    def phase(self) -> int:
        """Number of the phase of training; held-out losses are compared within a phase only."""
        return 0

    def batch_ids(self, batch: Any) -> list[str]:
        """Return the slices of a batch, for messages."""
        return sorted(set(batch.ids))

    def later(self) -> list[nn.Parameter]:
        """Return the parameters that may stay frozen at first."""
        return []

    def undecayed(self) -> list[nn.Parameter]:
        """Return the parameters without weight decay."""
        return []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Set the weight decay of this step."""
        undecayed = {id(parameter) for parameter in self.undecayed()}
        for group in optimizer.param_groups:
            if id(group["params"][0]) not in undecayed:
                weight_decay = decay(self.global_step, self.recipe.optim, self.total_steps)
                group["weight_decay"] = weight_decay

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then decay to zero over the planned steps."""
        optim = self.recipe.optim
        later = {id(parameter) for parameter in self.later()}
        undecayed = {id(parameter) for parameter in self.undecayed()}
        first: dict[str, Any] = {"params": []}
        second: dict[str, Any] = {"params": []}
        third: dict[str, Any] = {"params": [], "weight_decay": 0.0}
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            group = first
            if id(parameter) in undecayed:
                group = third
            elif id(parameter) in later:
                group = second
            group["params"].append(parameter)
        optimizer = AdamW(
            [group for group in (first, second, third) if group["params"]],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            weight_decay=optim.weight_decay,
        )
        total = int(self.trainer.estimated_stepping_batches)
        self.total_steps = total
        schedule = LambdaLR(optimizer, lambda step: rate(step, optim, total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def rate(step: int, optim: OptimConfig, total: int) -> float:
    """Return the share of the peak learning rate at a step; a run shorter than its warm-up warms up over a tenth."""
    warmup = max(1, min(optim.warmup_steps, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    if optim.schedule == "linear":
        return left
    return (1 - math.cos(math.pi * left)) / 2


def decay(step: int, optim: OptimConfig, total: int) -> float:
    """Return the weight decay at a step: constant, or along half a cosine from its first value to its last."""
    start = optim.weight_decay
    end = start if optim.weight_decay_end is None else optim.weight_decay_end
    share = min(1.0, step / max(1, total - 1))
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


class Stage(abc.ABC, Generic[R, M]):
    """One training stage on one corpus: everything of a run that depends on the system.

    Parameters
    ----------
    recipe
        Of the class's ``recipe_class``.
    corpus
        The slices.
    progress
        Show progress bars; None: in a terminal and in a notebook.

    Attributes
    ----------
    recipe_class
        Settings of this stage.
    objective_class
        Its loss.
    adapting
        What is different in the recipe's section ``model`` where a model is adapted to other slices.
    """

    recipe_class: ClassVar[type[Recipe]]
    objective_class: ClassVar[type[Objective]]
    adapting: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, recipe: R, corpus: Corpus, *, progress: bool | None = None) -> None:
        self.recipe = recipe
        self.corpus = corpus
        self.progress = progress

    @cached_property
    def model(self) -> M:
        """The model that is trained, made by :meth:`initial_model`.

        Raises
        ------
        ConfigError
            A checkpoint of another kind; no such preset.
        """
        return self.initial_model()

    @abc.abstractmethod
    def initial_model(self) -> M:
        """Return the model that training starts from."""

    @abc.abstractmethod
    def loader(self, split: str, shard: Shard = Shard()) -> Loader[Any]:
        """Return the loader of a split, of one process's batches of tensors; in validation they are always the same."""

    def objective(self) -> Objective:
        """Return the objective, in training mode."""
        objective = self.objective_class(self.model, self.recipe)
        return objective.train()

    def prepare(self) -> None:
        """Compute and store all that the loaders only read; called in the first process alone."""

    def start(self, objective: Any) -> None:
        """Change the objective before the first step; not called in a resumed run, whose checkpoint has the result."""

    def finish(self, model: M) -> None:
        """Change the trained model before it is written."""

    def describe(self) -> dict[str, str]:
        """Return lines on the stage for the model card, by name."""
        return {}

    def members(self, split: str) -> list[str]:
        """Return the slices of a split that are read."""
        return Members(self.corpus, split, self.share(split)).ids

    def share(self, split: str) -> float:
        """Return the share of a split's slices that is read: a data-volume ablation leaves out training slices only."""
        return self.recipe.data.share if split == "train" else 1.0

    def splits(self) -> list[str]:
        """Return the splits that are read: training, and validation where the corpus has it."""
        return ["train", "validation"] if self.corpus.ids("validation") else ["train"]

    def weight_folders(self) -> list[str]:
        """Return the folders whose weights the initial model has; "" for one that is not set."""
        return [self.recipe.model.checkpoint]

    @property
    def cache_folder(self) -> Path:
        """Folder beside the corpus for results that can be computed again."""
        return Path(self.corpus.folder) / "cache"
