"""Adaptation to slices without labels: kept where a held-out part gains, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import terrazzo as tz
from terrazzo.corpus.build import build
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.training.adapting import Adapted
from terrazzo.training.recipe import load_recipe
from terrazzo.training.run import pretrain

SIZES = {
    "n_genes": 200,
    "n_bases": 2,
    "basis_genes": 100,
    "n_components": 8,
    "n_smoothed": 8,
    "n_projected": 4,
    "n_states": 6,
    "cell_width": 16,
    "cell_size": 8,
    "width": 16,
}


@pytest.fixture(scope="module")
def trained(simulated: Any, tmp_path_factory: Any) -> Path:
    """Train a small completed model on two slices."""
    folder = tmp_path_factory.mktemp("adapting")
    paths = []
    for number in range(2):
        path = folder / f"s{number}.h5ad"
        simulated(200, n_genes=120, seed=number).write_h5ad(path)
        paths.append(path)
    build(paths, folder / "corpus", min_genes=0, scheduler="synchronous", progress=False)
    recipe = load_recipe(
        "complete-tiny",
        corpus=folder / "corpus",
        out=folder / "run",
        model={"sizes": SIZES},
        optim={"max_steps": 3},
    )
    return pretrain(recipe, progress=False)


@pytest.fixture
def target(simulated: Any, tmp_path: Path) -> Path:
    path = tmp_path / "target.h5ad"
    simulated(200, n_genes=120, seed=7).write_h5ad(path)
    return path


def test_a_model_is_adapted_and_says_what_it_gained(trained: Path, target: Path, tmp_path: Path):
    adapted = tz.adapt(trained, target, tmp_path / "adapted", steps=10, progress=False)
    assert adapted.folder == tmp_path / "adapted" / "run" / "model"
    assert adapted.loss <= adapted.start_loss
    assert adapted.gained == (adapted.loss < adapted.start_loss)
    model: Any = tz.load(adapted.folder)
    before: Any = tz.load(trained)
    assert (model.network.basis_genes[1] >= 0).any()
    assert not (before.network.basis_genes[1] >= 0).any()
    with pytest.raises(OutputError, match="exists already"):
        tz.adapt(trained, target, tmp_path / "adapted", steps=1, progress=False)


def test_lines_say_whether_training_was_kept():
    gained = Adapted(Path("out/model"), 40, 2.0, 1.5)
    assert gained.line() == "out/model: held-out loss 2 -> 1.5 (25.0% less) after 40 steps."
    kept = Adapted(Path("out/model"), 0, 2.0, 2.0)
    assert kept.line().startswith("nothing was gained: no step was better")
    assert not kept.gained


def test_weights_without_a_recipe_are_refused(trained: Path, target: Path, tmp_path: Path):
    model = tz.SToFM("tiny", tz.load(trained).vocabulary, seed=0)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="has no recipe in it"):
        tz.adapt(tmp_path / "model", target, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_slice_that_is_too_small_is_refused(trained: Path, simulated: Any, tmp_path: Path):
    path = tmp_path / "small.h5ad"
    simulated(50, n_genes=120, seed=3).write_h5ad(path)
    with pytest.raises(InputError, match="small has 50 cells"):
        tz.adapt(trained, path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_line(trained: Path, target: Path, tmp_path: Path, call: Any):
    code, out, err = call(
        "adapt", str(trained), str(target), "--out", str(tmp_path / "out"), "--steps", "2"
    )
    assert code == 0, err
    assert "held-out" in out
    assert (tmp_path / "out" / "run" / "model" / "config.json").is_file()
