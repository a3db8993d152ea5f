"""The wheel holds everything, and works in an empty environment, far from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "src" / "terrazzo"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, capture_output=True)
    return next(folder.glob("terrazzo-*.whl"))


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    wanted = {
        str(Path("terrazzo") / path.relative_to(PACKAGE))
        for path in files
        if "__pycache__" not in path.parts
    }
    assert wanted - packed == set()
    recipes = [name for name in packed if "/recipes/" in name and name.endswith(".yaml")]
    assert len(recipes) > 10


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Path:
    """Install the wheel in an empty environment that finds the libraries of this one, but not the repository."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    words = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.mark.slow
def test_a_recipe_by_name_far_from_the_repository(
    environment: Path, simulated: Any, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    (away / "slices").mkdir(parents=True)
    for number in range(2):
        path = away / "slices" / f"s{number}.h5ad"
        simulated(150, seed=number, donor=f"d{number}").write_h5ad(path)

    def terrazzo(*words: str) -> str:
        done = subprocess.run(
            [str(environment / "bin" / "terrazzo"), *words],
            cwd=away,
            env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [str(environment / "bin" / "python"), "-c", "import terrazzo; print(terrazzo.__file__)"],
        cwd=away,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(environment)
    assert "stofm-tiny-adapt" in terrazzo("recipes")
    terrazzo("corpus", "build", "slices", "--out", "corpus", "--min-genes", "0")
    terrazzo(
        "pretrain", "stofm-tiny-adapt", "--corpus", "corpus", "--out", "run", "--max-steps", "2"
    )
    assert (away / "run" / "model" / "config.json").is_file()
    terrazzo("embed", "slices/s0.h5ad", "--model", "run/model", "--out", "out")
    assert (away / "out" / "s0.h5ad").is_file()


@pytest.mark.slow
def test_weights_by_name_offline(
    environment: Path, ship_script: Any, tiny_model: Any, simulated: Any, tmp_path: Path
) -> None:
    from terrazzo.models.shipped import DataSource

    python = str(environment / "bin" / "python")
    env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    env["HF_HUB_OFFLINE"] = "1"

    def run(*words: str) -> str:
        done = subprocess.run(
            [python, *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    site = next(environment.glob("lib/python*/site-packages"))
    assert "terrazzo/tiny-1" not in run("-m", "terrazzo", "models")
    ship_script.ship(
        tiny_model().save_pretrained(tmp_path / "model"),
        "tiny-1",
        site / "terrazzo" / "weights",
        purpose="to be tried",
        quality="not measured",
        data=[DataSource("simulated", "terrazzo.simulate", "CC0")],
        trained_by="make weights",
        slices=[simulated()],
    )
    simulated(50).write_h5ad(tmp_path / "a.h5ad")
    listed = run("-m", "terrazzo", "models")
    assert "terrazzo/tiny-1  SToFM, " in listed
    assert "terrazzo/completion-1  Completion, " in listed
    run("-m", "terrazzo", "embed", "a.h5ad", "--model", "terrazzo/tiny-1", "--out", "out")
    assert (tmp_path / "out" / "a.h5ad").is_file()
    code = "import terrazzo as tz; print(tz.SToFM.from_pretrained('terrazzo/tiny-1').provenance)"
    assert "'shipped': 'terrazzo/tiny-1'" in run("-c", code)
