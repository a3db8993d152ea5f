"""FSDP, in two processes on the CPU: torch refuses it there only by default. It equals DDP, and it can be resumed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from terrazzo.training.logs import read
from terrazzo.training.recipe import save_recipe

pytestmark = pytest.mark.slow

ON_CPU = """
import os, signal, sys
import torch
from lightning import Callback
from lightning.pytorch.strategies import FSDPStrategy, fsdp
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel
from torch.distributed.fsdp import StateDictType
from terrazzo.training import run
from terrazzo.training.recipe import load_recipe

def whole(module, world_size, rank0_only=True):
    # Lightning moves the whole state to the CPU; where it is there already, torch frees what it returns
    kept = dict(offload_to_cpu=False, rank0_only=rank0_only)
    return FullyShardedDataParallel.state_dict_type(
        module, StateDictType.FULL_STATE_DICT, FullStateDictConfig(**kept), FullOptimStateDictConfig(**kept)
    )

class OnCPU(FSDPStrategy):
    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), mixed_precision=self.mixed_precision_config, **self.kwargs
        )

class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == int(sys.argv[2]):
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

def on_cpu(config):
    made = make_strategy(config)
    if not isinstance(made, FSDPStrategy):
        return made
    return OnCPU(state_dict_type="full", process_group_backend="gloo", precision_plugin=made.precision_plugin)

fsdp._get_full_state_dict_context = whole
make_strategy, run.make_strategy = run.make_strategy, on_cpu
run.pretrain(load_recipe(sys.argv[1]), resume="--resume" in sys.argv, progress=False, callbacks=[Kill()])
"""


def train(config: Any, folder: Path, *words: str, kill_at: int = -1) -> dict[str, torch.Tensor]:
    """Run in two processes; return the trained weights."""
    save_recipe(config, folder / "recipe.yaml")
    (folder / "on_cpu.py").write_text(ON_CPU)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(folder / "on_cpu.py"),
        str(folder / "recipe.yaml"),
        str(kill_at),
    ]
    done = subprocess.run(
        [*command, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert (done.returncode == 0) == (kill_at < 0), done.stderr
    weights = Path(config.out) / "model" / "model.safetensors"
    return load_file(weights) if kill_at < 0 else {}


def losses(config: Any) -> torch.Tensor:
    rows = read(Path(config.out) / "logs" / "metrics.csv")
    return torch.tensor([float(row["train/loss"]) for row in rows if row["train/loss"]])


@pytest.mark.parametrize(
    ("stage", "objective"),
    [("stofm-adapt", {"own_weight": 1.0}), ("stofm-pretrain", {})],
    ids=["adapt", "pretrain"],
)
def test_fsdp_equals_ddp(
    recipe: Any, tmp_path: Path, stage: str, objective: dict[str, Any]
) -> None:
    run, optim = (
        {"devices": 2},
        {"accumulate": 1, "epochs": 2},
    )  # the second epoch of pretraining encodes cells again
    sharded = recipe(
        stage, "sharded", optim=optim, run={**run, "strategy": "fsdp"}, objective=objective
    )
    copied = recipe(
        stage, "copied", optim=optim, run={**run, "strategy": "ddp"}, objective=objective
    )
    one, two = train(sharded, tmp_path), train(copied, tmp_path)
    # Where the encoder was frozen, AdamW has counted its steps under FSDP: its first changes are larger
    both = losses(sharded), losses(copied)
    torch.testing.assert_close(*(curve[:4] for curve in both), rtol=1e-4, atol=0)
    torch.testing.assert_close(*both, rtol=1e-2, atol=0)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 5e-3


def test_fsdp_resumes(recipe: Any, tmp_path: Path) -> None:
    run = {"devices": 2, "strategy": "fsdp"}
    whole, killed = (
        recipe(out=name, optim={"accumulate": 1, "epochs": 2}, run=run)
        for name in ("whole", "killed")
    )
    weights = train(whole, tmp_path)
    train(killed, tmp_path, kill_at=4)
    assert not (Path(killed.out) / "model").exists()
    resumed = train(killed, tmp_path, "--resume")
    assert [name for name in weights if not torch.equal(weights[name], resumed[name])] == []
