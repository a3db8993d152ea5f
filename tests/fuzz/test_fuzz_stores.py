"""Any damage to a corpus or a SpatialData store: what was asked for, or one line; never another exception."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spatialdata_stores as stores
from hostile_files import copy_of, damage

import terrazzo as tz
from terrazzo import corpus
from terrazzo.errors import TerrazzoError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, simulated: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("built")
    for seed in range(2):
        simulated(60, 30, seed=seed).write_h5ad(folder / f"s{seed}.h5ad")
    out = folder / "corpus"
    sources = [folder / "s0.h5ad", folder / "s1.h5ad"]
    corpus.build(sources, out, min_genes=1, scheduler="synchronous", progress=False)
    return out


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    xy = np.stack([np.arange(8) * 10.0, np.arange(8) * 5.0], axis=1)
    return stores.make(
        folder / "x.zarr",
        images={"he": stores.image(np.full((3, 20, 30), 200, np.uint8))},
        shapes={"cells": stores.circles(xy)},
        tables={"table": stores.table("cells", list(range(8)), obsm=xy)},
    )


def use(path: Path) -> None:
    """Read all that training reads of a corpus."""
    opened = corpus.Corpus.open(path)
    for id in opened.ids():
        rows = opened.take(id, np.arange(int(opened.row(id)["n_cells"])))
        rows.check_format(full_check=True)
        assert (rows.data >= 0).all()
        assert np.isfinite(opened.coords(id)).all()
        opened.genes(id)
        opened.lattice(id)
        opened.slice(id)
    opened.vocabulary()
    corpus.verify(path, progress=False)


def read(path: Path) -> None:
    tissue = tz.read(path)
    assert np.isfinite(tissue.coords).all()
    tissue.counts.check_format(full_check=True)


def run(source: Path, folder: Path, seeds: range, reader: Callable[[Path], None]) -> None:
    for seed in seeds:
        path = copy_of(source, folder)
        done = f"seed {seed}: {damage(path, random.Random(seed))}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                reader(path)
            except TerrazzoError as error:
                lines = str(error).strip().split("\n")
            except Exception as error:
                error.add_note(done)
                raise
            else:
                lines = ["fine"]
        assert len(lines) == 1, (done, lines)
        assert lines[0], done
        shutil.rmtree(path)


@pytest.mark.case(
    "J",
    given="A corpus of which any file was changed, cut, or made a link",
    gets="One line with the file; counts that cannot be are never handed to training",
)
def test_damaged_corpora(built: Path, tmp_path: Path) -> None:
    run(built, tmp_path, range(15), use)


@pytest.mark.slow
def test_three_hundred_damaged_corpora(built: Path, tmp_path: Path) -> None:
    run(built, tmp_path, range(1000, 1300), use)


@pytest.mark.slow
def test_three_hundred_damaged_spatialdata(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, range(2000, 2300), read)
