"""Which weights of a run are kept: the best by held-out loss, the start counted; and when it ends early."""

from __future__ import annotations

import logging
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

import terrazzo as tz
from terrazzo.errors import CheckpointError
from terrazzo.systems.stofm.stages import Pretrain
from terrazzo.training.endings import of_run
from terrazzo.training.logs import read
from terrazzo.training.validation import Candidates

BEST_STEP = 4


def after(*losses: float) -> Candidates:
    candidates = Candidates()
    for step, loss in enumerate(losses):
        candidates = candidates.after(step, loss, metrics={"val/loss": loss})
    return candidates


@pytest.mark.parametrize(
    ("losses", "best_step", "waited"),
    [
        ((3.0, 2.0, 1.0), 2, 0),
        ((3.0, 2.0, 2.0), 1, 1),
        ((1.0, 1.0, 2.0), 0, 2),
        ((1.0, math.nan, 0.5, 0.7), 2, 1),
        ((math.nan, 1.0), 1, 0),
        ((math.inf, math.nan), 0, 1),
    ],
    ids=["falls", "a tie", "the start", "a nan", "from nan", "nothing finite"],
)
def test_the_lowest_loss_wins_and_of_equal_ones_the_earlier(
    losses: tuple[float, ...], best_step: int, waited: int
) -> None:
    candidates = after(*losses)
    assert (candidates.best_step, candidates.waited) == (best_step, waited)
    assert candidates.last_step == len(losses) - 1
    shown = candidates.metrics["val/loss"]
    assert shown == losses[best_step] or math.isnan(shown)


def test_a_new_phase_begins_anew() -> None:
    candidates = after(1.0, 2.0).after(2, 9.0, phase=1)
    assert (candidates.best_step, candidates.best_loss, candidates.waited) == (2, 9.0, 0)
    assert candidates.start_loss is None
    assert candidates.after(3, 8.0, phase=1).best_step == 3


def train(config: Any, **options: Any) -> Path:
    from terrazzo.training.run import pretrain

    return pretrain(config, progress=False, **options)


class Kill(Callback):
    """Ends a run suddenly after some steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._steps:
            raise RuntimeError("killed")


@pytest.fixture
def best_at_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the held-out loss be lowest after four steps."""
    losses = Pretrain.objective_class.losses

    def scripted(objective: Any, batch: Any) -> Any:
        parts = losses(objective, batch)
        if not objective.training:
            distance = abs(objective.global_step - BEST_STEP)
            parts["loss"] = torch.tensor(1.0 + distance)
        return parts

    monkeypatch.setattr(Pretrain.objective_class, "losses", scripted)


@pytest.mark.slow
@pytest.mark.usefixtures("best_at_four")
def test_the_best_weights_are_kept_also_by_a_resumed_run(recipe: Any) -> None:
    run = {"validate_every": 2, "checkpoint_every": 3}
    one_phase = {"reencode": 0}
    whole = recipe(out="whole", run=run, objective=one_phase)
    model = train(whole)
    ending = of_run(whole.out)
    assert ending is not None
    kept = (ending.kept_step, ending.kept_loss, ending.start_loss, ending.last_loss)
    assert kept == (4, 1.0, 5.0, 6.0)
    assert "model/ holds the weights of step 4 (held-out loss 1, start 5, last 6)." in ending.line()
    provenance = tz.load(model).provenance
    assert (provenance["weights of step"], provenance["steps"]) == (4, 9)
    assert (provenance["val/loss"], provenance["held-out loss at the end"]) == (1.0, 6.0)
    folder = Path(whole.out) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["best-4.ckpt", "last.ckpt"]
    rows = read(Path(whole.out) / "logs" / "metrics.csv")
    assert [float(row["val/loss"]) for row in rows if row["val/loss"]] == [5, 3, 1, 3, 5, 6]
    weights = load_file(model / "model.safetensors")
    # before and after the best one, with and without a checkpoint since
    for steps in (1, 3, 4, 5, 7):
        stopped = recipe(out=f"stopped{steps}", run=run, objective=one_phase)
        with pytest.raises(RuntimeError, match="killed"):
            train(stopped, callbacks=[Kill(steps)])
        again = load_file(train(stopped, resume=True) / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
        assert of_run(stopped.out) == ending
    last = recipe(out="last", run={**run, "keep": "last"}, objective=one_phase)
    others = load_file(train(last) / "model.safetensors")
    assert any(not torch.equal(others[name], tensor) for name, tensor in weights.items())
    ending = of_run(last.out)
    assert ending is not None
    assert (ending.kept_step, ending.kept_loss) == (9, 6.0)
    assert not list((Path(last.out) / "checkpoints").glob("best-*"))


@pytest.mark.slow
@pytest.mark.usefixtures("best_at_four")
def test_patience_ends_a_run_and_is_remembered(recipe: Any) -> None:
    run = {"validate_every": 1, "patience": 2, "checkpoint_every": 1}
    config = recipe(run=run, objective={"reencode": 0})
    with pytest.raises(RuntimeError, match="killed"):
        train(config, callbacks=[Kill(5)])
    train(config, resume=True)
    ending = of_run(config.out)
    assert ending is not None
    assert (ending.reason, ending.steps, ending.kept_step) == ("early stopping", 6, 4)


@pytest.mark.slow
def test_a_run_that_was_no_better_than_its_start_says_so(
    recipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe(optim={"lr": 0.0}, run={"patience": 1})
    with caplog.at_level(logging.WARNING):
        model = train(config)
    assert "No step was better on the held-out slices than the start" in caplog.text
    ending = of_run(config.out)
    assert ending is not None
    assert (ending.reason, ending.steps, ending.kept_step) == ("early stopping", 3, 0)
    assert ending.kept_loss == ending.start_loss
    assert tz.load(model).provenance["weights of step"] == 0
    assert "weights of step: 0" in (model / "README.md").read_text()


@pytest.mark.slow
def test_best_weights_that_are_no_checkpoint_are_refused(recipe: Any) -> None:
    config = recipe(optim={"lr": 0.0})
    with pytest.raises(RuntimeError, match="killed"):
        train(config, callbacks=[Kill(4)])
    best = Path(config.out) / "checkpoints" / "best-0.ckpt"
    best.write_bytes(pickle.dumps({"state_dict": Path("x")}))
    with pytest.raises(CheckpointError, match=r"best-0\.ckpt cannot be read"):
        train(config, resume=True)
