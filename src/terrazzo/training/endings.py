"""Why a run ended, and how many steps it did: for its record, for its model card, and as a line for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from terrazzo.errors import TerrazzoError
from terrazzo.files import write_text
from terrazzo.parsing import read_object
from terrazzo.training.recipe import OptimConfig
from terrazzo.training.resuming import RECORD
from terrazzo.training.validation import Validation

__all__ = [
    "ENDED",
    "START_KEPT",
    "Ending",
    "Plan",
    "Reason",
    "forget",
    "interrupted",
    "of_run",
    "of_trainer",
    "planned",
    "write",
]

ENDED = "ended"  # key of the record

START_KEPT = "No step was better on the held-out slices than the start; model/ holds the start"

Reason = Literal["steps", "epochs", "early stopping", "time", "callback", "interrupt"]


@dataclass(frozen=True)
class Plan:
    """How long a run is to be.

    Attributes
    ----------
    steps
        Of the optimizer.
    steps_per_epoch
        Of one pass over the data, by all processes together.
    """

    steps: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Ending:
    """Why a run ended.

    Attributes
    ----------
    reason
        ``"steps"`` or ``"epochs"``: all that were planned are done. ``"early stopping"``, ``"time"`` or ``"callback"``:
        a callback ended it. ``"interrupt"``: Ctrl-C or the end of the job.
    steps, planned_steps
        Steps of the optimizer that were done, those of a resumed run's beginning included, and those planned.
    passes
        Over the training data; the last one may be incomplete.
    saved_step
        Step of the checkpoint that an interrupted run is resumed from; 0: there is none.
    kept_step, kept_loss
        Step of the weights in ``model/``, and their held-out loss. None, as below: no validation, or an interrupt.
    start_loss, last_loss
        Held-out losses before the first step (None also where its loss is of another phase of the objective, and not
        comparable) and after the last step.
    """

    reason: Reason
    steps: int
    planned_steps: int
    passes: float
    saved_step: int
    kept_step: int | None = None
    kept_loss: float | None = None
    start_loss: float | None = None
    last_loss: float | None = None

    @property
    def kept_the_start(self) -> bool:
        """Return whether no step was better than the start."""
        return self.kept_step == 0

    def line(self) -> str:
        """Return one line for people."""
        weights = self._weights()
        return f"{self._end()} {weights}" if weights else self._end()

    def _weights(self) -> str:
        """Return which weights are kept; "" where nothing was held out."""
        if self.kept_step is None or self.kept_loss is None:
            return ""
        if self.kept_the_start:
            return f"{START_KEPT} (held-out loss {self.kept_loss:.4g}, last {self.last_loss:.4g})."
        others = []
        if self.start_loss is not None:
            others.append(f"start {self.start_loss:.4g}")
        if self.last_loss is not None and self.kept_step != self.steps:
            others.append(f"last {self.last_loss:.4g}")
        losses = ", ".join([f"held-out loss {self.kept_loss:.4g}", *others])
        return f"model/ holds the weights of step {self.kept_step:,} ({losses})."

    def kept_record(self) -> dict[str, Any]:
        """Return the lines of the model card on the weights that are kept, by name."""
        lines = {
            "weights of step": self.kept_step,
            "held-out loss": self.kept_loss,
            "held-out loss at the start": self.start_loss,
            "held-out loss at the end": self.last_loss,
        }
        record: dict[str, Any] = {}
        for name, value in lines.items():
            if value is not None:
                record[name] = value if isinstance(value, int) else float(f"{value:.6g}")
        return record

    def _end(self) -> str:
        steps = f"{self.steps:,} {_plural('step', self.steps)}"
        passes = f"{self.passes:.3g} {_plural('pass', self.passes)} over the data"
        if self.reason == "steps":
            return f"Training ended after {steps}, the number that was set ({passes})."
        if self.reason == "epochs":
            return f"Training ended after {passes}, the number that was set ({steps})."
        done = f"{self.steps:,} of {self.planned_steps:,} steps ({passes})"
        if self.reason == "interrupt":
            saved = "there is no checkpoint yet"
            if self.saved_step:
                saved = f"the checkpoint is of step {self.saved_step:,}"
            return f"Training was stopped after {done}; {saved}."
        by = {
            "early stopping": "early stopping",
            "time": "the limit on its time",
            "callback": "a callback",
        }
        return f"Training ended after {done}: {by[self.reason]}."


def _plural(word: str, n: float) -> str:
    if n == 1:
        return word
    return f"{word}es" if word.endswith("s") else f"{word}s"


def planned(optim: OptimConfig, n_batches: int) -> Plan:
    """Return how long a run is to be: a number of steps goes before a number of epochs.

    Parameters
    ----------
    optim
        Settings of the optimizer.
    n_batches
        Of one pass over the data, in each process.
    """
    steps_per_epoch = math.ceil(n_batches / optim.accumulate)
    steps = optim.max_steps
    if steps < 1:
        steps = steps_per_epoch * optim.epochs
    return Plan(steps, steps_per_epoch)


def of_trainer(trainer: Trainer, plan: Plan, validation: Validation) -> Ending:
    """Return why training ended that was not interrupted, and which weights are kept."""
    reason = _reason(trainer, plan)
    if reason == "callback" and validation.has_waited:
        reason = "early stopping"
    ending = _ending(trainer, plan, reason, trainer.global_step)
    candidates = validation.candidates
    if candidates.last_step < 0:
        return ending
    keeps_best = validation.best is not None
    return replace(
        ending,
        kept_step=candidates.best_step if keeps_best else ending.steps,
        kept_loss=candidates.best_loss if keeps_best else candidates.last_loss,
        start_loss=candidates.start_loss,
        last_loss=candidates.last_loss,
    )


def interrupted(trainer: Trainer, plan: Plan, saved_step: int) -> Ending:
    """Return how far training came that was interrupted."""
    return _ending(trainer, plan, "interrupt", saved_step)


def _ending(trainer: Trainer, plan: Plan, reason: Reason, saved_step: int) -> Ending:
    steps = int(trainer.global_step)
    passes = steps / max(plan.steps_per_epoch, 1)
    return Ending(reason, steps, plan.steps, round(passes, 3), saved_step)


def _reason(trainer: Trainer, plan: Plan) -> Reason:
    if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
        return "steps"
    max_epochs = trainer.max_epochs or -1
    if max_epochs > 0 and trainer.current_epoch >= max_epochs:
        return "epochs"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience:
            return "early stopping"
        if isinstance(callback, Timer):
            left = callback.time_remaining()
            if left is not None and left <= 0:
                return "time"
    return "callback"


def write(out: Path, ending: Ending) -> None:
    """Add the ending to the record of a run."""
    _change_record(out, ending)


def forget(out: Path) -> None:
    """Take the ending out of the record of a run that goes on."""
    _change_record(out, None)


def of_run(out: str | Path) -> Ending | None:
    """Return why the run of a folder ended; None where that is not recorded."""
    try:
        return Ending(**read_object(Path(out) / RECORD)[ENDED])
    except (TerrazzoError, KeyError, TypeError):
        return None


def _change_record(out: Path, ending: Ending | None) -> None:
    record = read_object(out / RECORD)
    before = record.pop(ENDED, None)
    if ending is None and before is None:
        return
    if ending is not None:
        record[ENDED] = asdict(ending)
    text = json.dumps(record, indent=1)
    write_text(out / RECORD, f"{text}\n")
