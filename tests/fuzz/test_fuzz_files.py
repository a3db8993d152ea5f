"""Any damage to a file that is read: the slice, or one line that says what is wrong; never another exception."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hostile_files import copy_of, damage, write_all

import terrazzo as tz
from terrazzo.cli import main
from terrazzo.errors import TerrazzoError, TerrazzoWarning


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    paths = write_all(folder)
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerrazzoWarning)
            tz.read(path)  # all are fine before they are damaged
    return paths


def check(path: Path, done: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tissue = tz.read(path)
        except TerrazzoError as error:
            text = str(error)
            assert text, done
            assert "\n" not in text.strip(), done
            assert len(text) < 3000, done
            return
    assert np.isfinite(tissue.coords).all(), done
    assert tissue.spacing > 0, done
    tissue.counts.check_format(full_check=True)
    assert len(tissue.obs_names) == tissue.n_cells, done


def info(path: Path) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(["info", str(path)])


def run(sources: list[Path], folder: Path, seeds: range, kinds: tuple[str, ...] = ()) -> None:
    chosen = [path for path in sources if not kinds or path.suffix in kinds]
    for seed in seeds:
        rng = random.Random(seed)
        path = copy_of(rng.choice(chosen), folder)
        done = f"seed {seed}: {path.name}: {damage(path, rng)}"
        try:
            check(path, done)
            assert not path.exists() or info(path) in (0, 2), done
        except Exception as error:
            error.add_note(done)
            raise
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.case(
    "L",
    given="Files with changed arrays, attributes, links, words or bytes, cut short, or with claims of absurd sizes",
    gets="The slice, or one line that names the file; no memory is taken for what is only claimed",
)
def test_damaged_files(sources: list[Path], tmp_path: Path) -> None:
    run(sources, tmp_path, range(60))


@pytest.mark.slow
def test_a_thousand_damaged_files(sources: list[Path], tmp_path: Path) -> None:
    run(sources, tmp_path, range(1000, 2000))


@pytest.mark.slow
def test_six_hundred_damaged_stores(sources: list[Path], tmp_path: Path) -> None:
    run(sources, tmp_path, range(2000, 2600), kinds=(".zarr",))
