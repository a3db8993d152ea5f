"""Why a run ended, and how many steps it did: for its record, for its model card, and as a line for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer

from terrazzo.errors import TerrazzoError
from terrazzo.files import write_text
from terrazzo.parsing import read_object
from terrazzo.training.recipe import OptimConfig
from terrazzo.training.resuming import RECORD

__all__ = [
    "ENDED",
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
    """

    reason: Reason
    steps: int
    planned_steps: int
    passes: float
    saved_step: int

    def line(self) -> str:
        """Return one line for people."""
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


def of_trainer(trainer: Trainer, plan: Plan) -> Ending:
    """Return why training ended that was not interrupted."""
    return _ending(trainer, plan, _reason(trainer, plan), trainer.global_step)


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
