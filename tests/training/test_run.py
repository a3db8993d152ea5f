"""A run: what it leaves, what it refuses, and how it stops."""

from __future__ import annotations

import csv
import json
import logging
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.errors import CheckpointError, ConfigError, OutputError, TrainingError
from terrazzo.systems.stofm.stages import Pretrain
from terrazzo.training.callbacks import CsvLog
from terrazzo.training.logs import final, read
from terrazzo.training.recipe import save_recipe

pytestmark = pytest.mark.slow
SHORT = {"epochs": 1, "max_steps": 2}


@pytest.fixture
def train() -> Callable[..., Path]:
    """Run quietly."""

    def run(config: Any, **options: Any) -> Path:
        from terrazzo.training.run import pretrain

        return pretrain(config, progress=False, **options)

    return run


@pytest.mark.parametrize("stage", ["stofm-adapt", "stofm-pretrain"])
def test_a_run_leaves_a_model_with_its_provenance(
    train: Any, recipe: Any, simulated: Any, stage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = recipe(stage, optim=SHORT)
    numbers = random.getstate(), torch.get_rng_state()
    folder = train(config)
    assert capfd.readouterr() == ("", "")
    assert (random.getstate(), torch.equal(torch.get_rng_state(), numbers[1])) == (numbers[0], True)
    assert logging.getLogger("lightning.pytorch").level != logging.WARNING
    out = Path(config.out)
    assert folder == out / "model"
    model = tz.load(folder)
    assert model.trained
    assert np.isfinite(model.embed(simulated(50, 40), progress=False).obsm["X_stofm"]).all()
    provenance = model.provenance
    assert provenance["weights"] == "trained"
    assert (
        provenance["train slices"],
        provenance["train cells"],
        provenance["validation cells"],
    ) == (3, 192, 64)
    assert (provenance["steps"], provenance["stage"]) == (2, stage)
    assert provenance["train/loss"] > 0
    assert provenance["val/loss"] > 0
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", provenance["git_revision"])
    card = (folder / "README.md").read_text()
    for word in ("train/loss", "steps: 2", "192", "git_revision", provenance["corpus_sha256"]):
        assert word in card
    rows = list(csv.DictReader((out / "logs" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "1"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["0", "1"]  # the start; the end
    assert all(float(row["cells_per_second"]) > 0 for row in rows if row["cells_per_second"])
    assert list((out / "logs" / "tensorboard").glob("events*"))
    assert json.loads((out / "run.json").read_text())["recipe"]["stage"] == stage


def test_checkpoints_hold_plain_data_only(train: Any, recipe: Any) -> None:
    from terrazzo.training.resuming import read_checkpoint

    config = recipe(optim=SHORT)
    train(config)
    last = Path(config.out) / "checkpoints" / "last.ckpt"
    held = torch.load(last, weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "terrazzo"} <= set(held)
    assert {"record", "random", "loader"} == set(held["terrazzo"])
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(last)


def test_a_folder_with_a_run_is_refused(train: Any, recipe: Any, tmp_path: Path) -> None:
    config = recipe(optim=SHORT)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(config, resume=True)
    folder = train(config)
    with pytest.raises(OutputError, match="--resume"):
        train(config)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert train(config, resume=True) == folder  # finished
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        train(recipe(out="other"))
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


class Poison:
    """Makes the loss nan from a batch on."""

    def __init__(self, objective: Any, at: int, value: float) -> None:
        self.objective, self.at, self.value, self.seen = objective, at, value, 0

    def __call__(self, batch: Any) -> Any:
        parts = type(self.objective).losses(self.objective, batch)
        if self.objective.training:
            self.seen += 1
        return {**parts, "loss": parts["loss"] * (self.value if self.seen > self.at else 1)}


def poison(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> None:
    make = Pretrain.objective

    def poisoned(stage: Pretrain) -> Any:
        objective: Any = make(stage)
        objective.losses = Poison(objective, at, value)
        return objective

    monkeypatch.setattr(Pretrain, "objective", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(
    train: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    poison(monkeypatch, 3, value)
    config = recipe(optim={"accumulate": 1})
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at step 4 .*slices in the batch: s\d"
    ) as caught:
        train(config)
    assert "(epoch 1)" in str(caught.value)
    held = torch.load(Path(config.out) / "checkpoints" / "last.ckpt", weights_only=True)
    assert held["global_step"] == 3
    assert all(torch.isfinite(v).all() for v in held["state_dict"].values())


def test_a_checkpoint_outlives_an_error_before_the_first_log_line(
    train: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, float("nan"))
    config = recipe(optim={"accumulate": 1}, run={"log_every": 100, "checkpoint_every": 2})
    with pytest.raises(TrainingError, match="at step 3"):
        train(config)
    last = Path(config.out) / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    monkeypatch.undo()
    assert tz.load(train(config, resume=True)).provenance["steps"] == 18


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),  # torchrun
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        (
            {"SLURM_PROCID": "0", "LOCAL_RANK": "1"},
            False,
        ),  # started by Lightning within an interactive SLURM job
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_which_process_is_the_first(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: bool
) -> None:
    from terrazzo.training.run import RANKS, first_process

    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert first_process() is first


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ({"strategy": "fsdp"}, "GPU"),
        ({"accelerator": "abacus"}, "abacus"),
    ],
)
def test_impossible_machines_are_refused(
    train: Any, recipe: Any, run: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        train(config := recipe(run=run))
    assert not Path(config.out).exists()


def test_no_devices_are_refused_with_the_recipe(recipe: Any) -> None:
    with pytest.raises(ConfigError, match="devices"):
        recipe(run={"devices": 0})


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    from terrazzo.training.resuming import AtomicCheckpoints, read_checkpoint

    io, path = AtomicCheckpoints(), tmp_path / "last.ckpt"
    good = {"terrazzo": {}, "state_dict": {"a": torch.ones(3)}, "global_step": 4}
    io.save_checkpoint(good, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        io.save_checkpoint({**good, "state_dict": {"a": torch.ones(1_000_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in io.failure
    assert read_checkpoint(path)["global_step"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    train: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save_now = [], torch.save

    def full(thing: Any, stream: Any) -> None:
        if "optimizer_states" in thing:  # else the best weights
            saved.append(thing["global_step"])
        if len(saved) == 3:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        save_now(thing, stream)

    monkeypatch.setattr(torch, "save", full)
    config = recipe()
    with pytest.raises(OutputError, match="No space left"):
        train(config)
    monkeypatch.undo()
    assert (
        torch.load(Path(config.out) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        == 2
    )
    assert tz.load(train(config, resume=True)).provenance["steps"] == 9


def test_a_full_disk_elsewhere_stops_the_run(
    train: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(log: Any, metrics: Any, step: int) -> None:
        if step == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(CsvLog, "log_metrics", full)
    config = recipe()
    with pytest.raises(OutputError, match=r"No space left on device.*--resume"):
        train(config)
    monkeypatch.undo()
    assert tz.load(train(config, resume=True)).provenance["steps"] == 9


def test_a_bar_shows_speed_losses_and_time_left(
    recipe: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from terrazzo.training.run import pretrain

    pretrain(recipe(optim=SHORT), progress=True)
    drawn = " ".join(capfd.readouterr().err.split())
    assert re.search(r"epoch 1: .*2/2 steps \[left [\d:]+, .*[\d,]+ cells/s loss [\d.]+", drawn), (
        drawn
    )


def test_the_log_continues_and_widens(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.csv"
    log = CsvLog(path)
    log.log_metrics({"train/loss": 3.0, "epoch": 0}, step=0)
    log.log_metrics({"train/loss": 2.0, "lr": 0.1}, step=1)
    log.log_metrics({"val/loss": 1.0, "epoch": 1}, step=1)
    log.log_metrics({"train/loss": 9.0}, step=2)
    path.write_text(path.read_text() + "3,0,9")  # killed while it wrote
    resumed = CsvLog(path, resumed=2)
    resumed.log_metrics({"train/loss": 1.0}, step=2)
    assert [(r["step"], r["train/loss"], r["lr"], r["val/loss"]) for r in read(path)] == [
        ("0", "3.0", "", ""),
        ("1", "2.0", "0.1", ""),
        ("1", "", "", "1.0"),
        ("2", "1.0", "", ""),
    ]
    assert final(path) == {"train/loss": 2.0, "val/loss": 1.0}
    assert final(tmp_path / "none.csv") == {}


def test_the_command(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus_folder: Path
) -> None:
    save_recipe(recipe("stofm-adapt"), tmp_path / "recipe.yaml")
    words = [
        "pretrain",
        str(tmp_path / "recipe.yaml"),
        "--out",
        str(tmp_path / "cli"),
        "--max-steps",
        "1",
    ]
    assert main(words) == 0
    assert str(tmp_path / "cli" / "model") in capsys.readouterr().out
    assert tz.load(tmp_path / "cli" / "model").provenance["steps"] == 1
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words[:-1], "2", "--resume"]) == 2
    assert "optim.max_steps: 1 then, 2 now" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert (
        main([*words[:2], "--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    )
    assert "nowhere" in capsys.readouterr().err
    assert main(["pretrain", "--help"]) == 0
    assert "Example: terrazzo pretrain" in " ".join(capsys.readouterr().out.split())
