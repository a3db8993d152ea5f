"""What happens around the steps of a run: checkpoints, a guard against losses that are no numbers, progress."""

from __future__ import annotations

import csv
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from terrazzo.errors import OutputError, TrainingError
from terrazzo.files import whole_file
from terrazzo.progress import make_bar
from terrazzo.training.logs import CSV, FIRST, read
from terrazzo.training.resuming import (
    KEY,
    AtomicCheckpoints,
    random_state,
    seed_everything,
    set_random_state,
)

SHOWN_IDS = 20


REFRESH = 0.5  # seconds


RANK_SEED = 1_000_003  # distance between the seeds of two processes


def gathered(value: Any) -> list[Any]:
    """Return every process's value."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    out: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(out, value)
    return out


def cells_of(batch: Any) -> int:
    """Return the number of cells in a batch: its own count (halos counted, sites for cells), else its length."""
    return int(batch.cells) if hasattr(batch, "cells") else len(batch)


class Keeper(Callback):
    """Writes ``last.ckpt`` after every few steps of the optimizer and at the end, with the random streams' state.

    Validation leaves the random streams as they were, so that how often it runs changes no weight.

    Parameters
    ----------
    path
        The checkpoint.
    every
        Steps of the optimizer between two.
    io
        What writes it.
    record
        What the run is; written into it.
    seed
        Of the random streams; each process has another one.
    """

    def __init__(
        self, path: Path, every: int, io: AtomicCheckpoints, record: dict[str, Any], seed: int
    ) -> None:
        self._path, self._every, self._io, self._record, self._seed = path, every, io, record, seed
        self._resumed: list[dict[str, Any]] = []
        self._before: dict[str, Any] | None = None
        self._saved = -1
        self.validated = -1  # step of the last validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed, or continue, the random streams."""
        self._saved = trainer.global_step
        if len(self._resumed) == trainer.world_size:
            set_random_state(self._resumed[trainer.global_rank])
        else:
            seed_everything(self._seed + RANK_SEED * trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save where the optimizer has just done a step."""
        if trainer.global_step != self._saved and trainer.global_step % self._every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self._path)
        if failure := trainer.strategy.broadcast(self._io.failure):
            raise OutputError(
                f"{failure}; the checkpoint before it is whole. Free some space, then use --resume."
            )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not keep."""
        loader = cast(Any, trainer.train_dataloader).state_dict()
        checkpoint[KEY] = {
            "record": self._record,
            "random": gathered(random_state()),
            "loader": loader,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the random streams until training starts."""
        self._resumed = checkpoint[KEY]["random"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let every validation see the same batches."""
        self._before = random_state()
        self.validated = trainer.global_step
        held_out: Any = trainer.val_dataloaders
        for loader in held_out if isinstance(held_out, list) else [held_out]:
            loader.set_epoch(0)
        seed_everything(self._seed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random streams back."""
        if self._before is not None:
            set_random_state(self._before)


class Guard(Callback):
    """Clips gradients, and stops before a loss or gradient that is no number reaches the weights.

    Parameters
    ----------
    clip
        Largest norm of all gradients together; 0 for no limit.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip if clip > 0 else math.inf
        self._last: list[str] = []
        self._since: set[str] = set()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember which slices are in the batch."""
        self._last = pl_module.batch_ids(batch)
        self._since |= set(self._last)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss."""
        self._check(trainer, "the loss", loss.detach(), set(self._last))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Clip, log the norm, and look at it."""
        whole: Any = trainer.strategy.model
        if hasattr(whole, "clip_grad_norm_"):  # FSDP: each process holds a part of every gradient
            norm = whole.clip_grad_norm_(self._clip)
        else:
            norm = torch.nn.utils.clip_grad_norm_(pl_module.parameters(), self._clip)
        self._check(trainer, "the gradient", norm, self._since)
        pl_module.log("train/gradient_norm", norm)
        self._since = set()

    def _check(self, trainer: Trainer, what: str, value: Tensor, ids: set[str]) -> None:
        bad = (~torch.isfinite(value)).any().float()
        if trainer.world_size > 1:  # all stop, or none
            bad = torch.as_tensor(trainer.strategy.reduce(bad, reduce_op="sum"))
        if not bad:
            return
        found = [(float(v), names) for v, names in gathered((float(value), sorted(ids)))]
        names = sorted({name for v, names in found if not math.isfinite(v) for name in names})
        shown = ", ".join(names[:SHOWN_IDS]) + (
            f" and {len(names) - SHOWN_IDS} more" if len(names) > SHOWN_IDS else ""
        )
        worst = next((v for v, _ in found if not math.isfinite(v)), math.nan)
        raise TrainingError(
            f"{what} is {worst} at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}); slices in the "
            f"batch: {shown}. The weights are not touched by it. Look at these slices, or start another run with a "
            "lower optim.lr, or with run.precision 32-true."
        )


class Meter(Callback):
    """Cells a second and the learning rate in the logs, and a bar with the loss parts.

    Parameters
    ----------
    show
        Draw the bar.
    """

    def __init__(self, show: bool) -> None:
        self._show = show
        self._window: deque[tuple[float, int]] = deque(maxlen=50)  # (time, cells) of the last steps
        self._bar: Any = None
        self._drawn = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if self._show and trainer.is_global_zero:
            n_steps = int(trainer.estimated_stepping_batches)
            self._bar = make_bar("train", n_steps, "steps", done=trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the clock."""
        if not self._window:
            self._window.append((time.monotonic(), 0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, out: Any, batch: Any, i: int
    ) -> None:
        """Count cells."""
        now = time.monotonic()
        self._window.append((now, cells_of(batch) * trainer.world_size))
        started, _ = self._window[0]
        n_cells = sum(n for _, n in list(self._window)[1:])
        rate = n_cells / max(now - started, 1e-9)
        pl_module.log("cells_per_second", rate, batch_size=1)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], batch_size=1)
        if self._bar is not None and now - self._drawn > REFRESH:
            self._drawn = now
            self._draw(trainer, rate)

    def _draw(self, trainer: Trainer, rate: float) -> None:
        parts = [f"{rate:,.0f} cells/s"]
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("train/", "val/loss")):
                parts.append(f"{name.removeprefix('train/')} {float(value):.3g}")
        self._bar.set_description(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False
        )
        self._bar.set_postfix_str(" ".join(parts), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew: validation is not training."""
        self._window.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar at the last step."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CsvLog(Logger):
    """One wide CSV file, a line a logged step, written at once; columns join when they are first logged.

    Parameters
    ----------
    path
        The file.
    resumed
        Step that a resumed run continues from: later lines, which will be written again, are dropped.
    """

    def __init__(self, path: Path, resumed: int = 0) -> None:
        super().__init__()
        self._path, self._resumed = path, resumed
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Nothing: the file has a fixed place."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the file has a fixed place."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is saved beside the logs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
        row["epoch"] = int(row.get("epoch") or 0)
        if self._columns is None or set(row) - set(self._columns):
            self._widen(sorted(set(row) - {*FIRST, *(self._columns or ())}))
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self._columns or []).writerow(row)

    def _widen(self, new: list[str]) -> None:
        """Write the file again with more columns; at first, with what a resumed run keeps of it."""
        rows = read(self._path)
        if self._columns is None:
            rows = [row for row in rows if int(row["step"]) < self._resumed]
            self._columns = list(rows[0]) if rows else list(FIRST)
        self._columns += [name for name in new if name not in self._columns]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(self._path) as draft,
            draft.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def loggers(folder: Path, resumed: int) -> list[Logger]:
    """Return the loggers of a run that has done ``resumed`` steps."""
    board = TensorBoardLogger(
        folder, name="", version="tensorboard", default_hp_metric=False, purge_step=resumed
    )
    return [CsvLog(folder / CSV, resumed), board]
