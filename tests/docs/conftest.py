"""The folder of the how-to pages: simulated slices by the names that they use, and models trained a little."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fenced
import pandas as pd
import pytest

STEPS = 3


def write_slices(folder: Path) -> None:
    """Write annotated Visium slices with histology, a slice of single cells, and a mouse slice with its orthologs."""
    from terrazzo import simulate

    (folder / "slices").mkdir()
    made = simulate.corpus(
        4, 90, seed=1, n_donors=4, layout="visium", n_genes=160, image=True, image_px=300
    )
    for name, adata in zip("abcd", made, strict=True):
        adata.write_h5ad(folder / "slices" / f"{name}.h5ad")
    simulate.tissue(300, n_genes=160, seed=2).write_h5ad(folder / "cells.h5ad")
    mouse = simulate.tissue(120, layout="visium", n_genes=160, seed=3, organism="mouse")
    mouse.write_h5ad(folder / "mouse.h5ad")
    pairs = {
        "mouse": mouse.var["ensembl_id"].to_numpy(),
        "human": made[0].var["ensembl_id"].to_numpy(),
    }
    pd.DataFrame(pairs).to_csv(folder / "mouse_to_human.csv", index=False)


def train(folder: Path) -> None:
    """Train each system for a few steps on slices a to c into ``runs/<system>/model``."""
    import terrazzo as tz

    paths = [folder / "slices" / f"{name}.h5ad" for name in "abc"]
    corpus = tz.build_corpus(
        paths, folder / "corpus", min_genes=1, scheduler="synchronous", progress=False
    )

    def run(recipe: str, name: str, **changes: Any) -> Path:
        read = tz.load_recipe(
            recipe,
            corpus=corpus.folder,
            out=folder / "runs" / name,
            optim={"max_steps": STEPS},
            **changes,
        )
        return tz.pretrain(read, progress=False)

    adapted = run("stofm-tiny-adapt", "adapt")
    run("stofm-tiny-pretrain", "stofm", model={"checkpoint": str(adapted)})
    run("stimage-tiny-patch", "stimage", data={"batch_windows": 2})
    run("stalign-tiny", "stalign", data={"batch_spots": 32})


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder once."""
    folder = tmp_path_factory.mktemp("howto") / "made"
    folder.mkdir()
    write_slices(folder)
    train(folder)
    shutil.rmtree(folder / "corpus")  # pages build their own
    return folder


@pytest.fixture
def reader(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_figures: None
) -> fenced.Reader:
    """Sit down in a fresh copy of the folder."""
    folder = tmp_path / "work"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return fenced.Reader(folder)
