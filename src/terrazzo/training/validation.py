"""Validation of a run on held-out slices: when it runs, which step's weights are kept, and when it ends a run early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from terrazzo.errors import OutputError
from terrazzo.training.recipe import RunConfig
from terrazzo.training.resuming import (
    KEY,
    AtomicCheckpoints,
    random_state,
    read_checkpoint,
    seed_everything,
    set_random_state,
)

__all__ = ["DECIDES", "Candidates", "Validation"]

DECIDES = "val/loss"  # held-out loss that decides; lower is better

PATTERN = "best-{step}.ckpt"


@dataclass(frozen=True)
class Candidates:
    """What the validations of a run say so far.

    Attributes
    ----------
    phase
        Of the objective; losses of two phases are not comparable, so the candidates are those of this phase alone.
    last_step, last_loss
        Steps of the optimizer before the last validation, and its loss; step -1: there was none.
    best_step, best_loss
        The same of the validation with the lowest loss; of equal ones the earlier.
    start_loss
        Loss before the first step; None: not measured, or of another phase.
    waited
        Validations since the best one.
    metrics
        All held-out numbers of the best one, by the name that is logged.
    """

    phase: int = 0
    last_step: int = -1
    last_loss: float = math.nan
    best_step: int = -1
    best_loss: float = math.nan
    start_loss: float | None = None
    waited: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def after(
        self, step: int, loss: float, *, phase: int = 0, metrics: Mapping[str, float] | None = None
    ) -> Candidates:
        """Return the candidates after one more validation."""
        before = self if phase == self.phase else Candidates(phase)
        start_loss = loss if step == 0 else before.start_loss
        last = replace(before, last_step=step, last_loss=loss, start_loss=start_loss)
        is_first = before.best_step < 0
        is_lower = math.isfinite(loss) and not loss >= before.best_loss
        if not is_first and not is_lower:
            return replace(last, waited=before.waited + 1)
        numbers = dict(metrics or {})
        return replace(last, best_step=step, best_loss=loss, waited=0, metrics=numbers)


class Validation(Callback):
    """Validate before the first step, after every few steps or each epoch, and after the last step.

    It runs before the checkpoint of the same step is written, so that a checkpoint holds what its validation decided,
    and a resumed run decides as one that was never stopped. It sees the same batches with the same random numbers every
    time, and does not change the random streams: weights do not depend on how often it runs.

    Parameters
    ----------
    run
        Settings of the run: ``keep``, ``patience``, ``validate_every``.
    folder
        Of the checkpoints; the best weights are written there.
    io
        Writes the file.
    seed
        Of the random numbers of every validation.
    enabled
        Whether there are held-out slices.
    """

    def __init__(
        self, run: RunConfig, folder: Path, io: AtomicCheckpoints, *, seed: int, enabled: bool
    ) -> None:
        self._run = run
        self._folder = folder
        self._io = io
        self._seed = seed
        self._enabled = enabled
        self._before: dict[str, Any] | None = None
        self.candidates = Candidates()

    @property
    def best(self) -> Path | None:
        """Return the file of the best weights; None where the last ones are kept."""
        if self._run.keep != "best" or self.candidates.best_step < 0:
            return None
        return self._folder / PATTERN.format(step=self.candidates.best_step)

    @property
    def has_waited(self) -> bool:
        """Return whether so many validations were no better than the best one that the run ends."""
        patience = self._run.patience
        return patience > 0 and self.candidates.waited >= patience

    def state_dict(self) -> dict[str, Any]:
        """Return what the validations say so far, for a checkpoint."""
        return asdict(self.candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.candidates = Candidates(**state_dict)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the losses of the start, which Lightning does not, and take it as the first candidate."""
        metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}
        metrics["epoch"] = 0
        for run_logger in trainer.loggers:
            run_logger.log_metrics(metrics, step=0)
        self._decide(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the best weights of a resumed run can be read.

        Raises
        ------
        CheckpointError
            They cannot.
        """
        if self.best is not None:
            read_checkpoint(self.best)
        if self.has_waited:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate after a step where it is time to."""
        if not self._enabled or not self._is_due(trainer):
            return
        self._validate(trainer, pl_module)
        if self.has_waited:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the last weights, where something else ended the run."""
        if self._enabled and self.candidates.last_step != trainer.global_step:
            self._validate(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        """Return whether to validate after this batch."""
        step = trainer.global_step
        if step == self.candidates.last_step:
            return False
        if step == trainer.max_steps:
            return True
        every = self._run.validate_every
        if every:
            return step % every == 0
        return trainer.is_last_batch

    def _validate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the validation loop, and keep the weights if they are the best."""
        connector: Any = trainer._logger_connector
        is_first_batch = connector._first_loop_iter
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter = is_first_batch
        self._decide(trainer, pl_module)

    def _decide(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {}
        for name, value in trainer.callback_metrics.items():
            if name.startswith("val/"):
                measured[name] = float(value)
        measured = trainer.strategy.broadcast(measured)  # all processes decide alike
        loss = measured.get(DECIDES)
        if loss is None:
            return
        step = trainer.global_step
        phase = int(getattr(pl_module, "phase", 0))
        self.candidates = self.candidates.after(step, loss, phase=phase, metrics=measured)
        if self.best is not None and self.candidates.best_step == step:
            self._write(trainer, self.best)

    def _write(self, trainer: Trainer, path: Path) -> None:
        """Write the weights.

        Raises
        ------
        OutputError
            In all processes: the disk is full.
        """
        state = trainer.strategy.lightning_module_state_dict()  # FSDP: of all processes
        step = trainer.global_step
        if trainer.is_global_zero:
            content = {KEY: {}, "state_dict": state, "global_step": step}
            self._io.save_checkpoint(content, path)
        failure = trainer.strategy.broadcast(self._io.failure)
        if failure:
            raise OutputError(
                f"{failure}; the last checkpoint is complete. Free some space, then use --resume."
            )

    def tidy(self) -> None:
        """Remove weights that were the best once; called when no checkpoint refers to them any more."""
        for path in self._folder.glob(PATTERN.format(step="*")):
            if path != self.best:
                path.unlink(missing_ok=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the same batches and random streams in every validation."""
        self._before = random_state()
        loaders: Any = trainer.val_dataloaders
        if not isinstance(loaders, list):
            loaders = [loaders]
        for loader in loaders:
            loader.set_epoch(0)
        seed_everything(self._seed)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random streams."""
        if self._before is not None:
            set_random_state(self._before)
