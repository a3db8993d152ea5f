"""A run that is killed at any step and resumed ends with the same weights, bit for bit, as one that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from terrazzo import corpus, simulate
from terrazzo.errors import ConfigError
from terrazzo.training.logs import read
from terrazzo.training.recipe import save_recipe

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
from lightning import Callback
from terrazzo.training.recipe import load_recipe
from terrazzo.training.run import pretrain

class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.fit_loop.total_batch_idx == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

pretrain(load_recipe(sys.argv[1]), callbacks=[Kill()])
"""


class Killed(BaseException):
    """As sudden as it gets within a process."""


def follow(
    config: Any, *, resume: bool = False, kill_after: int | None = None
) -> list[tuple[int, int, list[str]]]:
    """Run; return epoch, step and slices of every batch; stop after so many batches."""
    from lightning import Callback

    from terrazzo.training.run import pretrain

    class Follow(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int, list[str]]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            self.seen.append((trainer.current_epoch, trainer.global_step, module.batch_ids(batch)))

        def on_train_batch_end(self, *rest: Any) -> None:
            if len(self.seen) == kill_after:
                raise Killed

    watch = Follow()
    if kill_after is None:
        pretrain(config, resume=resume, progress=False, callbacks=[watch])
    else:
        with pytest.raises(Killed):
            pretrain(config, resume=resume, progress=False, callbacks=[watch])
    return watch.seen


def weights(config: Any) -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / "model" / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def losses(config: Any, name: str = "train/loss") -> list[tuple[str, str]]:
    """Every logged step with its loss, in the order of the file."""
    return [
        (row["step"], row[name])
        for row in read(Path(config.out) / "logs" / "metrics.csv")
        if row[name]
    ]


# 18 batches: 3 epochs of 6 batches, 3 steps of 2 batches each; the first epoch with a frozen encoder
@pytest.mark.parametrize(
    ("sections", "stops"),
    [
        (
            {},
            (1, 2, 6, 7, 13, 18),
        ),  # within a step, after one, at and after an epoch's end, in the second phase, at the end
        ({"run": {"checkpoint_every": 2, "validate_every": 2}}, (5, 8, 12)),
        ({"optim": {"max_steps": 7, "accumulate": 2}}, (6, 11, 14)),
        ({"optim": {"accumulate": 4}, "data": {"batch_subslices": 1}}, (12, 17)),
    ],
    ids=["each step", "validated within epochs", "limited steps", "ragged"],
)
def test_killed_anywhere(recipe: Any, sections: dict[str, Any], stops: tuple[int, ...]) -> None:
    whole = recipe(out="whole", **sections)
    every = follow(whole)
    for stop in stops:
        config = recipe(out=f"stopped{stop}", **sections)
        before = follow(config, kill_after=stop)
        after = follow(config, resume=True)
        assert before == every[:stop]
        assert after == every[len(every) - len(after) :]
        assert len(before) + len(after) >= len(every)
        assert_equal(weights(config), weights(whole))
        curve, full = losses(config), losses(whole)
        assert [line for line in full if line in curve] == curve
        assert len(curve) >= len(full) - 1  # the line of the step at which it was killed
        # a validation that was killed is not repeated; the others give the same numbers, each once
        seen, all_seen = ([loss for _, loss in losses(c, "val/loss")] for c in (config, whole))
        assert [loss for loss in all_seen if loss in seen] == seen
        assert len(seen) >= len(all_seen) - 1


def test_killed_twice(recipe: Any) -> None:
    whole, config = recipe("stofm-adapt", out="whole"), recipe("stofm-adapt", out="stopped")
    every = follow(whole)
    follow(config, kill_after=5)
    follow(config, resume=True, kill_after=6)
    after = follow(config, resume=True)
    assert after == every[len(every) - len(after) :]
    assert_equal(weights(config), weights(whole))


@pytest.mark.parametrize(
    ("stage", "sections"),
    [
        ("stofm-adapt", {"objective": {"own_weight": 1.0, "view": "thinned"}}),
        ("stofm-pretrain", {}),  # the seventh batch is the first with cells encoded again
        ("stofm-pretrain", {"objective": {"kind": "own+niche", "mask_share": 0.5}}),
        (
            "stalign-pretrain",
            {"objective": {"learn_temperature": True}, "optim": {"weight_decay_end": 0.4}},
        ),
    ],
    ids=["own head", "paper", "own+niche", "stalign"],
)
def test_killed_by_the_system(
    recipe: Any, tmp_path: Path, histology_folder: Path, stage: str, sections: dict[str, Any]
) -> None:
    if stage == "stalign-pretrain":
        sections = {"corpus": str(histology_folder), **sections}
    whole, config = recipe(stage, out="whole", **sections), recipe(stage, out="killed", **sections)
    follow(whole)
    save_recipe(config, tmp_path / "recipe.yaml")
    words = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (Path(config.out) / "model").exists()
    follow(config, resume=True)
    assert_equal(weights(config), weights(whole))


def test_another_run_is_refused_and_the_difference_shown(recipe: Any, tmp_path: Path) -> None:
    config = recipe(optim={"max_steps": 1})
    follow(config)
    last = (Path(config.out) / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 then, 0\.002 now") as caught:
        follow(recipe(optim={"max_steps": 1, "lr": 2e-3}, seed=1), resume=True)
    assert "seed: 0 then, 1 now" in str(caught.value)
    assert (
        follow(recipe(optim={"max_steps": 1}, run={"log_every": 5}), resume=True) == []
    )  # how often it speaks may change
    simulate.tissue(80, n_genes=40, seed=9).write_h5ad(tmp_path / "other.h5ad")
    options: dict[str, Any] = {"min_genes": 0, "scheduler": "synchronous", "progress": False}
    corpus.build([tmp_path / "other.h5ad"], tmp_path / "other", **options)
    with pytest.raises(ConfigError, match="content of the corpus: "):
        follow(recipe(optim={"max_steps": 1}, corpus=str(tmp_path / "other")), resume=True)
    assert (Path(config.out) / "checkpoints" / "last.ckpt").read_bytes() == last
