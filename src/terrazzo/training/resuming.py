"""Resuming of runs: their record, atomic checkpoints, the state of random streams."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins import CheckpointIO

from terrazzo._version import __version__
from terrazzo.errors import CheckpointError, ConfigError, OutputError
from terrazzo.files import whole_file, write_text
from terrazzo.locks import LOCK
from terrazzo.parsing import read_object
from terrazzo.training.recipe import Recipe, recipe_from_dict, save_recipe

__all__ = [
    "FREE",
    "KEY",
    "RECIPE",
    "RECORD",
    "AtomicCheckpoints",
    "check",
    "describe",
    "flat",
    "random_state",
    "read_checkpoint",
    "seed_everything",
    "set_random_state",
    "start",
]

RECORD = "run.json"

RECIPE = "recipe.yaml"

KEY = "terrazzo"  # in a checkpoint

# settings that may differ on resuming: paths (corpus and weights are compared by content), and how often to log
FREE = {
    "corpus",
    "out",
    "model.checkpoint",
    "model.image_encoder",
    "model.gene_encoder",
    "run.log_every",
    "run.checkpoint_every",
}
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


class AtomicCheckpoints(CheckpointIO):
    """Checkpoints that are written whole or not at all, and read without running code from them.

    A failed write does not raise, because other processes would wait for this one: its message is in ``failure``.
    """

    failure: str = ""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the target, then rename."""
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target) as draft, draft.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (
            OSError,
            RuntimeError,
        ) as error:  # the second is of torch's zip writer on a full disk
            self.failure = f"{target} could not be written ({error})"

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read tensors and plain containers."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint; tensors are mapped, not copied.

    Raises
    ------
    CheckpointError
        It is damaged, or contains more than tensors and plain containers.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        needed = {KEY, "state_dict", "global_step"}
        if not isinstance(checkpoint, dict) or not needed <= set(checkpoint):
            raise ValueError("it is not a checkpoint of a run")
    except UNREADABLE as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path} cannot be read ({lines[0]}); start again in another folder."
        ) from error
    return dict(checkpoint)


def random_state() -> dict[str, Any]:
    """Return the state of python's, numpy's and torch's random streams, as plain containers and tensors."""
    name, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - the global stream
    words = torch.from_numpy(np.asarray(key, np.int64))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (str(name), words, int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore the random streams to a state from :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed python's, numpy's and torch's random streams."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def describe(recipe: Recipe, corpus_sha256: str, initial: str) -> dict[str, Any]:
    """Return the record of a run, in plain containers: recipe, corpus, initial weights."""
    return {
        "recipe": asdict(recipe),
        "corpus_sha256": corpus_sha256,
        "initial_weights": initial,
        "terrazzo_version": __version__,
    }


def start(out: Path, recipe: Recipe, record: Mapping[str, Any]) -> None:
    """Create the folder of a new run, with its recipe and its record.

    Raises
    ------
    OutputError
        The folder is not empty, or cannot be written.
    """
    is_run = (out / RECORD).is_file()
    in_use = out.is_file() or (out.is_dir() and any(path.name != LOCK for path in out.iterdir()))
    if in_use and is_run:
        raise OutputError(
            f"{out} holds a run already: continue it with --resume (resume=True), or choose another folder (--out)."
        )
    if in_use:
        raise OutputError(f"{out} is not empty already: please choose another folder (--out).")
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1)
        write_text(out / RECORD, f"{text}\n")  # first: a folder with it can be resumed
        save_recipe(recipe, out / RECIPE)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}).") from error


def check(out: Path, now: Mapping[str, Any]) -> None:
    """Check that a run to be resumed is the same run.

    Raises
    ------
    ConfigError
        There is none, or its recipe, corpus or initial weights differ; the differences are shown.
    """
    path = out / RECORD
    if not path.exists():
        raise ConfigError(
            f"{out} holds no run to resume (no {RECORD}); leave out --resume to start one."
        )
    try:
        before = read_object(path)
        recipe = recipe_from_dict(before["recipe"], f"{path}: recipe")
    except KeyError as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); start again in another folder."
        ) from error
    old = flat(asdict(recipe))
    new = flat(now["recipe"])
    lines = []
    for key in dict.fromkeys([*new, *old]):
        if key not in FREE and old.get(key) != new.get(key):
            lines.append(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now")
    names = {"corpus_sha256": "content of the corpus", "initial_weights": "initial weights"}
    for key, name in names.items():
        if before.get(key) != now[key]:
            lines.append(f"{name}: {str(before.get(key))[:12]} then, {str(now[key])[:12]} now")
    if lines:
        shown = "".join(f"\n  {line}" for line in lines)
        raise ConfigError(
            f"{out} cannot be resumed as another run:{shown}\nTake the same settings, or another --out."
        )


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"optim.lr": 1e-4, ...}``."""
    settings: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            settings.update(flat(value, f"{prefix}{key}."))
        else:
            settings[f"{prefix}{key}"] = value
    return settings
