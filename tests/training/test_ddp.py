"""Two processes on the CPU (gloo): the losses of one process with twice the batch, and every cell once an epoch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from terrazzo.training.recipe import save_recipe

pytestmark = pytest.mark.slow

WATCHED = """
import hashlib, json, sys
from pathlib import Path
import torch
from lightning import Callback
from terrazzo.training.callbacks import gathered
from terrazzo.training.recipe import load_recipe
from terrazzo.training.run import pretrain

class Watch(Callback):
    def setup(self, trainer, module, stage):
        self.losses, self.seen = [], []
        module.train = lambda mode=True: module  # eval mode: no dropout, which no two processes share
        for part in module.modules():  # before the start is validated
            part.training = False

    def on_train_start(self, trainer, module):
        loader = trainer.train_dataloader
        read = loader._batches  # before a batch is collated
        def watched(epoch, first):
            for batch in read(epoch, first):
                if hasattr(batch, "hidden"):  # windows of ST as images, told apart by what is shown of them
                    shown = zip(batch.ids, batch.values, batch.target)
                    self.seen += [(epoch, id, hashlib.sha256(v.numpy().tobytes() + t.numpy().tobytes()).hexdigest())
                                  for id, v, t in shown]
                elif hasattr(batch, "spots"):  # of ST-Align
                    numbers = batch.spots.spots.tolist()
                    self.seen += [(epoch, id, number) for id, number in zip(batch.ids, numbers)]
                elif isinstance(batch, list):
                    self.seen += [(epoch, i.id, int(c)) for i in batch for c in i.sub.cells[:i.sub.n_core]]
                else:
                    self.seen += [(epoch, loader.ids[m], int(r)) for m, r in zip(batch.member, batch.rows)]
                yield batch
        loader._batches = watched
        for part in module.modules():
            part.training = False

    def on_train_batch_end(self, trainer, module, out, *rest):
        losses = gathered(float(out["loss"]))
        self.losses.append(sum(losses) / len(losses))

    def on_train_end(self, trainer, module):
        seen = gathered(self.seen)
        if trainer.is_global_zero:
            Path(sys.argv[2]).write_text(json.dumps({"losses": self.losses, "seen": seen}))

pretrain(load_recipe(sys.argv[1]), progress=False, callbacks=[Watch()])
"""


def watch(config: Any, folder: Path, name: str) -> dict[str, Any]:
    """Run in processes of their own; return the loss of each step, and the cells of each process."""
    save_recipe(config, folder / f"{name}.yaml")
    (folder / "watch.py").write_text(WATCHED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    words = [
        sys.executable,
        str(folder / "watch.py"),
        str(folder / f"{name}.yaml"),
        str(folder / f"{name}.json"),
    ]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / f"{name}.json").read_text())


def test_two_processes_equal_one_with_twice_the_batch(recipe: Any, tmp_path: Path) -> None:
    # masked cells only: of these every sub-slice has as many, so that the mean of two means is the mean of all
    common: dict[str, Any] = {
        "objective": {"kind": "paper", "gamma": 1.0, "frozen_epochs": 2, "reencode": 0}
    }
    optim = {"accumulate": 1, "epochs": 2}
    one = recipe(out="one", optim=optim, data={"batch_subslices": 4}, **common)
    two = recipe(
        out="two",
        optim=optim,
        data={"batch_subslices": 2},
        run={"devices": 2, "strategy": "ddp"},
        **common,
    )
    alone, both = watch(one, tmp_path, "one"), watch(two, tmp_path, "two")
    assert len(alone["losses"]) == len(both["losses"]) == 6
    torch.testing.assert_close(
        torch.tensor(both["losses"]), torch.tensor(alone["losses"]), rtol=1e-3, atol=0
    )
    assert_every_cell_once(alone["seen"], 1)
    assert_every_cell_once(both["seen"], 2)


def test_random_cells_are_shared_without_overlap(recipe: Any, tmp_path: Path) -> None:
    config = recipe("stofm-adapt", optim={"epochs": 2}, run={"devices": 2})
    assert_every_cell_once(watch(config, tmp_path, "cells")["seen"], 2)


def test_windows_are_shared_without_overlap_and_losses_are_those_of_one_process(
    recipe: Any, tmp_path: Path
) -> None:
    # windows without an empty site: as many hidden values in each, so that the mean of two means is the mean of all
    windows = {"window": 2, "occupancy": 1.0, "bin_um": 30.0, "channels": 16, "choose": "spatial"}
    common: dict[str, Any] = {
        "model": {"init": "informed", "windows": windows},
        "optim": {"accumulate": 1, "epochs": 2},
    }
    one = recipe(
        "stimage-pretrain", "one", data={"batch_windows": 4, "windows_per_slice": 4}, **common
    )
    two = recipe(
        "stimage-pretrain",
        "two",
        data={"batch_windows": 2, "windows_per_slice": 4},
        run={"devices": 2},
        **common,
    )
    alone, both = watch(one, tmp_path, "one"), watch(two, tmp_path, "two")
    assert len(alone["losses"]) == len(both["losses"]) == 6
    torch.testing.assert_close(
        torch.tensor(both["losses"]), torch.tensor(alone["losses"]), rtol=1e-3, atol=0
    )
    seen = [sorted(map(tuple, part)) for part in both["seen"]]
    assert [len(part) for part in seen] == [12, 12]
    assert sorted(seen[0] + seen[1]) == sorted(map(tuple, alone["seen"][0]))


@pytest.mark.parametrize("exclude", [False, True])
def test_negatives_are_those_of_both_processes(
    recipe: Any, tmp_path: Path, histology_folder: Path, exclude: bool
) -> None:
    # losses stay equal step by step, so that gradients are, too
    run = {"checkpoint_every": 100}
    common: dict[str, Any] = {
        "corpus": str(histology_folder),
        "optim": {"accumulate": 1, "epochs": 1, "max_steps": 6},
        "objective": {
            "exclude_neighbors": exclude,
            "learn_temperature": True,
            "residual": not exclude,
        },
    }
    one = recipe("stalign-pretrain", "one", data={"batch_spots": 24}, run=run, **common)
    two = recipe(
        "stalign-pretrain", "two", data={"batch_spots": 12}, run={**run, "devices": 2}, **common
    )
    alone, both = watch(one, tmp_path, "one"), watch(two, tmp_path, "two")
    assert len(alone["losses"]) == len(both["losses"]) == 6
    torch.testing.assert_close(
        torch.tensor(both["losses"]), torch.tensor(alone["losses"]), rtol=1e-3, atol=0
    )
    if exclude:  # with residuals six steps gain nothing on a start from regressions
        assert alone["losses"][-1] < alone["losses"][0]
    seen = [{tuple(spot) for spot in part} for part in both["seen"]]
    assert not seen[0] & seen[1]
    assert {tuple(spot) for spot in alone["seen"][0]} == seen[0] | seen[1]


def assert_every_cell_once(seen: list[list[list[Any]]], processes: int) -> None:
    assert len(seen) == processes
    assert all(part for part in seen)
    counts = Counter(tuple(cell) for part in seen for cell in part)
    assert set(counts.values()) == {1}
    assert len(counts) == 2 * 3 * 64  # epochs, training slices, cells
