"""Any damage to a checkpoint: the model, or one line that says what is wrong; never another exception, nor a hang."""

from __future__ import annotations

import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_checkpoints import damage_checkpoint
from hostile_files import copy_of
from small_eye import small_eye

import terrazzo as tz
from terrazzo.errors import TerrazzoError


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory, simulated: Callable[..., Any]
) -> list[Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    vocabulary = tz.Vocabulary.from_slices([tz.Slice.from_anndata(simulated())])
    models: dict[str, Any] = {
        "stofm": tz.SToFM("tiny", vocabulary),
        "stimage": tz.STImage("tiny", vocabulary),
        "stalign": tz.STAlign("tiny", vocabulary, image_encoder=small_eye()),
    }
    models["cells"] = models["stofm"].cell_model()
    return [model.save_pretrained(folder / name) for name, model in models.items()]


def check_line(text: str, done: str) -> None:
    assert text, done
    assert "\n" not in text.strip(), done
    assert len(text) < 3000, done


def run(checkpoints: list[Path], folder: Path, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        path = copy_of(rng.choice(checkpoints), folder)
        done = f"seed {seed}: {path.name}: {damage_checkpoint(path, rng)}"
        start = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = tz.load(path)
                assert model.n_parameters > 0, done
                repr(model)
            except TerrazzoError as error:
                check_line(str(error), done)
            except Exception as error:
                error.add_note(done)
                raise
        assert time.monotonic() - start < 300, done  # a hang, not a measure of speed
        shutil.rmtree(path)


@pytest.mark.case(
    "L",
    given="Checkpoints with impossible or absurd settings, other shapes, types or values of tensors, damaged files",
    gets="One line, before memory is taken for what is not in the file",
)
def test_damaged_checkpoints(checkpoints: list[Path], tmp_path: Path) -> None:
    run(checkpoints, tmp_path, range(25))


@pytest.mark.slow
def test_a_hundred_hostile_checkpoints(checkpoints: list[Path], tmp_path: Path) -> None:
    run(checkpoints, tmp_path, range(1000, 1100))
