"""Callbacks of a run: checkpoints, a check that losses are finite, progress, logs."""

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
from terrazzo.training.validation import Validation

__all__ = ["CheckpointWriter", "CsvLog", "Guard", "Meter", "cells_of", "gathered", "loggers"]

SHOWN_IDS = 20  # slices that a message names

REFRESH = 0.5  # seconds between two drawings of the bar

RANK_SEED = 1_000_003  # distance between the seeds of two processes


def gathered(value: Any) -> list[Any]:
    """Return every process's value."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def cells_of(batch: Any) -> int:
    """Return the number of cells in a batch: its own count (halos counted, sites for cells), else its length."""
    if hasattr(batch, "cells"):
        return int(batch.cells)
    return len(batch)


class CheckpointWriter(Callback):
    """Writer of ``last.ckpt`` after every few steps of the optimizer and at the end, with the random streams' state.

    Parameters
    ----------
    path
        The checkpoint.
    every
        Steps of the optimizer between two.
    io
        Writes the file.
    record
        Record of the run, stored in the checkpoint.
    seed
        Of the random streams; each process has another one.
    validation
        Its decisions are in the checkpoint: it comes before this callback.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        io: AtomicCheckpoints,
        record: dict[str, Any],
        *,
        seed: int,
        validation: Validation,
    ) -> None:
        self._path = path
        self._every = every
        self._io = io
        self._record = record
        self._seed = seed
        self._validation = validation
        self._resumed: list[dict[str, Any]] = []
        self._saved = -1
        self.saved_step = 0  # of the checkpoint in the folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed, or continue, the random streams."""
        self._saved = trainer.global_step
        self.saved_step = trainer.global_step
        if len(self._resumed) == trainer.world_size:
            set_random_state(self._resumed[trainer.global_rank])
        else:
            seed_everything(self._seed + RANK_SEED * trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save after a step of the optimizer."""
        step = trainer.global_step
        if step != self._saved and step % self._every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        trainer.save_checkpoint(self._path)
        failure = trainer.strategy.broadcast(self._io.failure)
        if failure:
            raise OutputError(
                f"{failure}; the checkpoint before it is complete. Free some space, then use --resume."
            )
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._validation.tidy()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state that Lightning does not store."""
        loader = cast(Any, trainer.train_dataloader)
        checkpoint[KEY] = {
            "record": self._record,
            "random": gathered(random_state()),
            "loader": loader.state_dict(),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the random streams until training starts."""
        self._resumed = checkpoint[KEY]["random"]


class Guard(Callback):
    """Clip gradients, and stop before a loss or gradient that is not finite changes the weights.

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
        """Check the loss."""
        self._check(trainer, "the loss", loss.detach(), set(self._last))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Clip the gradient; log its norm, and check it."""
        wrapped: Any = trainer.strategy.model
        if hasattr(wrapped, "clip_grad_norm_"):  # FSDP: each process has a part of every gradient
            norm = wrapped.clip_grad_norm_(self._clip)
        else:
            norm = torch.nn.utils.clip_grad_norm_(pl_module.parameters(), self._clip)
        self._check(trainer, "the gradient", norm, self._since)
        pl_module.log("train/gradient_norm", norm)
        self._since = set()

    def _check(self, trainer: Trainer, what: str, value: Tensor, ids: set[str]) -> None:
        """Raise TrainingError in all processes where the value of one of them is not finite."""
        bad = (~torch.isfinite(value)).any().float()
        if trainer.world_size > 1:  # all stop, or none
            bad = torch.as_tensor(trainer.strategy.reduce(bad, reduce_op="sum"))
        if not bad:
            return
        values = []
        names: set[str] = set()
        for one, names_of_process in gathered((float(value), sorted(ids))):
            if not math.isfinite(one):
                values.append(one)
                names.update(names_of_process)
        shown = ", ".join(sorted(names)[:SHOWN_IDS])
        if len(names) > SHOWN_IDS:
            shown = f"{shown} and {len(names) - SHOWN_IDS} more"
        raise TrainingError(
            f"{what} is {values[0]} at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}); slices in "
            f"the batch: {shown}. The weights are not changed by it. Check these slices, or start another run with a "
            "lower optim.lr, or with run.precision 32-true."
        )


class Meter(Callback):
    """Log cells a second and the learning rate, and draw a bar with the parts of the loss.

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
        first_group = trainer.optimizers[0].param_groups[0]
        pl_module.log("cells_per_second", rate, batch_size=1)
        pl_module.log("lr", first_group["lr"], batch_size=1)
        if self._bar is not None and now - self._drawn > REFRESH:
            self._drawn = now
            self._draw(trainer, rate)

    def _draw(self, trainer: Trainer, rate: float) -> None:
        parts = [f"{rate:,.0f} cells/s"]
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("train/", "val/loss")):
                parts.append(f"{name.removeprefix('train/')} {float(value):.3g}")
        epoch = f"epoch {trainer.current_epoch + 1}"
        if trainer.max_epochs not in (None, -1):  # else a number of steps was set
            epoch = f"{epoch}/{trainer.max_epochs}"
        self._bar.set_description(epoch, refresh=False)
        self._bar.set_postfix_str(" ".join(parts), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock: validation is not training."""
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
    """Log of one wide CSV file, a line a logged step; columns are added when they are first logged.

    Parameters
    ----------
    path
        The file.
    resumed
        Step that a resumed run continues from: later lines, which will be written again, are dropped.
    """

    def __init__(self, path: Path, resumed: int = 0) -> None:
        super().__init__()
        self._path = path
        self._resumed = resumed
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the file has a fixed path."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the file has a fixed path."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the recipe is saved beside the logs."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a line."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = float(value)
        row["epoch"] = int(row.get("epoch") or 0)
        columns = self._columns
        if columns is None or not set(row) <= set(columns):
            columns = self._widen(row)
        with self._path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, columns).writerow(row)

    def _widen(self, row: dict[str, Any]) -> list[str]:
        """Write the file again with the columns of a row; at first without the lines that a resumed run writes again.

        Return the columns.
        """
        rows = read(self._path)
        columns = self._columns
        if columns is None:
            rows = [line for line in rows if int(line["step"]) < self._resumed]
            columns = list(rows[0]) if rows else list(FIRST)
        new = sorted(set(row) - set(columns) - set(FIRST))
        columns = [*columns, *new]
        self._columns = columns
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(self._path) as draft,
            draft.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
        return columns


def loggers(folder: Path, resumed: int) -> list[Logger]:
    """Return the loggers of a run that has done ``resumed`` steps."""
    board = TensorBoardLogger(
        folder, name="", version="tensorboard", default_hp_metric=False, purge_step=resumed
    )
    return [CsvLog(folder / CSV, resumed), board]
