"""From loader items to tensors: what is hidden, moved or split is drawn here, from a seed per batch or sub-slice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from terrazzo.models.base import FoundationModel
from terrazzo.systems.stofm.pair_bias import Pairs
from terrazzo.training.recipe import OptimConfig, PretrainConfig


class Movable:
    """Dataclass of tensors that goes to a device as one."""

    def to(self, device: torch.device | str, **options: Any) -> Self:
        """Return the same on another device."""
        moved = {f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**moved)


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor | Pairs):
        return value.to(torch.device(device))
    if isinstance(value, list):
        return [_move(v, device) for v in value]
    return value


class Objective(LightningModule):
    """What all stages share: the optimizer and the names of the logged losses."""

    def __init__(self, model: FoundationModel, config: PretrainConfig) -> None:
        super().__init__()
        self.model = model
        self.trained = model.module  # registered, so that Lightning moves, saves and averages it
        self.config = config
        self.total_steps = 1  # of the optimizer; known once there is one

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the parts of the loss by name; ``"loss"`` is what is minimized."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Log the parts, return the sum."""
        parts = self.losses(batch)
        self.log_dict({f"train/{k}": v.detach() for k, v in parts.items()}, batch_size=len(batch))
        return parts["loss"]

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Log the same parts on held-out slices."""
        parts = self.losses(batch)
        self.log_dict(
            {f"val/{k}": v for k, v in parts.items()}, batch_size=len(batch), sync_dist=True
        )

    def batch_ids(self, batch: Any) -> list[str]:
        """Return the slices of a batch, for messages."""
        return sorted(set(batch.ids))

    def later(self) -> list[nn.Parameter]:
        """Return the parameters that may stay frozen at first."""
        return []

    def undecayed(self) -> list[nn.Parameter]:
        """Return the parameters that no weight decay touches."""
        return []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Bring the weight decay to where its schedule is at this step."""
        bare = {id(p) for p in self.undecayed()}
        for group in optimizer.param_groups:
            if id(group["params"][0]) in bare:
                continue
            group["weight_decay"] = decay(self.global_step, self.config.optim, self.total_steps)

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then decay to zero over the planned steps."""
        optim = self.config.optim
        place = {id(p): 1 for p in self.later()} | {id(p): 2 for p in self.undecayed()}
        groups: list[dict[str, Any]] = [
            {"params": []},
            {"params": []},
            {"params": [], "weight_decay": 0.0},
        ]
        for parameter in filter(lambda p: p.requires_grad, self.parameters()):
            groups[place.get(id(parameter), 0)]["params"].append(parameter)
        options: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
        optimizer = AdamW(
            [g for g in groups if g["params"]], betas=(optim.beta1, optim.beta2), **options
        )
        self.total_steps = total = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: rate(step, optim, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate(step: int, optim: OptimConfig, total: int) -> float:
    """Return the share of the peak learning rate at a step; a run shorter than its warm-up warms up over a tenth."""
    warmup = max(1, min(optim.warmup_steps, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    return left if optim.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def decay(step: int, optim: OptimConfig, total: int) -> float:
    """Return the weight decay at a step: constant, or along half a cosine from its first value to its last."""
    end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
    share = min(1.0, step / max(1, total - 1))
    return optim.weight_decay + (end - optim.weight_decay) * (1 - math.cos(math.pi * share)) / 2


T = TypeVar("T")


class Collated(Generic[T]):
    """A resumable loader whose items are turned into tensors as they pass.

    Parameters
    ----------
    loader
        From :mod:`terrazzo.systems.stofm.loaders`.
    make
        Called with an item and the (epoch, step) that it is.
    """

    def __init__(self, loader: Any, make: Callable[[Any, int, int], T]) -> None:
        self.loader, self.make = loader, make

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        state = self.loader.state_dict()
        epoch, step = state["epoch"], state["step"]
        for number, item in enumerate(self.loader, start=step):
            yield self.make(item, epoch, number)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state: the next item."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.loader.load_state_dict(state)
