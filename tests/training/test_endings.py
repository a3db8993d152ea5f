"""Why a run ended: steps go before epochs, and its record, its card and one line say how many were done."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.training.endings import Ending, Plan, of_run, planned
from terrazzo.training.logs import read
from terrazzo.training.recipe import OptimConfig, save_recipe

STAGES = ["stofm-adapt", "stofm-pretrain", "stimage-pretrain", "stalign-pretrain"]


def optim(**settings: Any) -> OptimConfig:
    return OptimConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "n_batches", "plan"),
    [
        ({"epochs": 10}, 2, Plan(20, 2)),
        ({"epochs": 10, "max_steps": 100}, 2, Plan(100, 2)),
        ({"epochs": 10, "max_steps": 3}, 2, Plan(3, 2)),
        ({"epochs": 3, "accumulate": 4}, 6, Plan(6, 2)),
        ({"epochs": 1, "max_steps": 7, "accumulate": 4}, 6, Plan(7, 2)),
    ],
    ids=["epochs", "more steps", "fewer steps", "accumulated", "accumulated steps"],
)
def test_a_number_of_steps_goes_before_epochs(
    settings: dict[str, Any], n_batches: int, plan: Plan
) -> None:
    assert planned(optim(**settings), n_batches) == plan


def test_epochs_after_a_frozen_phase() -> None:
    assert not optim(epochs=2).goes_beyond(2)
    assert optim(epochs=3).goes_beyond(2)
    assert optim(epochs=1, max_steps=50).goes_beyond(2)


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        (
            Ending("steps", 100, 100, 50.0, 100),
            "Training ended after 100 steps, the number that was set (50 passes over the data).",
        ),
        (
            Ending("epochs", 1, 1, 1.0, 1),
            "Training ended after 1 pass over the data, the number that was set (1 step).",
        ),
        (
            Ending("early stopping", 12, 1200, 1.5, 12),
            "Training ended after 12 of 1,200 steps (1.5 passes over the data): early stopping.",
        ),
        (
            Ending("time", 12, 120, 1.5, 12),
            "Training ended after 12 of 120 steps (1.5 passes over the data): the limit on its time.",
        ),
        (
            Ending("callback", 12, 120, 1.5, 12),
            "Training ended after 12 of 120 steps (1.5 passes over the data): a callback.",
        ),
        (
            Ending("interrupt", 57, 100, 5.7, 50),
            "Training was stopped after 57 of 100 steps (5.7 passes over the data); the checkpoint is of step 50.",
        ),
        (
            Ending("interrupt", 3, 100, 0.3, 0),
            "Training was stopped after 3 of 100 steps (0.3 passes over the data); there is no checkpoint yet.",
        ),
    ],
    ids=lambda value: value.reason if isinstance(value, Ending) else "",
)
def test_the_line(ending: Ending, line: str) -> None:
    assert ending.line() == line


class Stop(Callback):
    """Stops, or interrupts, after a number of steps."""

    def __init__(self, steps: int, *, interrupts: bool) -> None:
        self._steps = steps
        self._interrupts = interrupts

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step < self._steps:
            return
        if self._interrupts:
            raise KeyboardInterrupt
        trainer.should_stop = True


def train(config: Any, **options: Any) -> Path:
    from terrazzo.training.run import pretrain

    return pretrain(config, progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_data_are_passed_again_until_the_steps_are_done(
    recipe: Any, tmp_path: Path, stage: str, simulated: Any
) -> None:
    sections: dict[str, Any] = {"optim": {"epochs": 1, "max_steps": 12, "accumulate": 1}}
    if stage in ("stimage-pretrain", "stalign-pretrain"):  # need an array, and histology
        adata = simulated(60, 40, layout="visium", image=True, image_px=200)
        adata.write_h5ad(tmp_path / "slice.h5ad")
        quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
        folder = tmp_path / "corpus"
        tz.build_corpus([tmp_path / "slice.h5ad"], folder, min_genes=0, **quiet)
        sections["corpus"] = str(folder)
    config = recipe(stage, **sections)
    model = train(config)
    ending = of_run(config.out)
    assert ending is not None
    assert (ending.reason, ending.steps, ending.planned_steps) == ("steps", 12, 12)
    assert ending.passes > 1
    provenance = tz.load(model).provenance
    assert (provenance["steps"], provenance["ended by"]) == (12, "steps")
    assert "ended by: steps" in (model / "README.md").read_text()
    rows = read(Path(config.out) / "logs" / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(12))


def how(ending: Ending | None) -> Ending:
    """Return an ending without the weights that are kept."""
    assert ending is not None
    nothing = dict.fromkeys(("kept_step", "kept_loss", "start_loss", "last_loss"))
    return replace(ending, **nothing)


@pytest.mark.slow
def test_epochs_alone(recipe: Any) -> None:
    config = recipe(optim={"epochs": 2})
    train(config)
    assert how(of_run(config.out)) == Ending("epochs", 6, 6, 2.0, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "reason", "steps"),
    [
        (lambda: EarlyStopping("train/loss", patience=1, min_delta=100.0), "early stopping", 12),
        (lambda: Timer(timedelta(microseconds=1), verbose=False), "time", 1),
        (lambda: Stop(2, interrupts=False), "callback", 2),
    ],
    ids=["early stopping", "time", "callback"],
)
def test_what_callbacks_end(recipe: Any, callback: Any, reason: str, steps: int) -> None:
    config = recipe(optim={"epochs": 5, "accumulate": 1})
    train(config, callbacks=[callback()])
    ending = of_run(config.out)
    assert ending is not None
    assert (ending.reason, ending.steps, ending.planned_steps) == (reason, steps, 30)


@pytest.mark.slow
@pytest.mark.parametrize(("every", "saved"), [(2, 4), (100, 0)])
def test_an_interrupt_says_how_far_it_came_and_the_resumed_run_its_own_end(
    recipe: Any, every: int, saved: int
) -> None:
    config = recipe(run={"checkpoint_every": every})
    with pytest.raises(KeyboardInterrupt, match="after 5 of 9 steps"):
        train(config, callbacks=[Stop(5, interrupts=True)])
    assert of_run(config.out) == Ending("interrupt", 5, 9, 1.667, saved)
    train(config, resume=True)
    assert how(of_run(config.out)) == Ending("epochs", 9, 9, 3.0, 9)
    record = json.loads((Path(config.out) / "run.json").read_text())
    assert record["recipe"]["optim"]["epochs"] == 3


@pytest.mark.slow
def test_the_command_says_it(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recipe(recipe("stofm-adapt", optim={"epochs": 1}), tmp_path / "recipe.yaml")
    words = ["pretrain", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    assert main([*words, "--max-steps", "8"]) == 0
    assert "Training ended after 8 steps, the number that was set" in capsys.readouterr().out


@pytest.mark.slow
def test_with_a_bar_it_is_said_below_it(recipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from terrazzo.training.run import pretrain

    pretrain(recipe(optim={"max_steps": 2}), progress=True)
    last = capfd.readouterr().err.splitlines()[-1]
    said = "Training ended after 2 steps, the number that was set (0.667 passes over the data). "
    assert said in last
    assert "held-out loss" in last


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    assert of_run(tmp_path) is None
    (tmp_path / "run.json").write_text("{}")
    assert of_run(tmp_path) is None
