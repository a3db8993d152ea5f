"""A corpus of small slices, and short runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus of three training slices and a held-out one, 64 cells each."""
    from terrazzo import corpus, simulate
    from terrazzo.corpus.splits import Splits

    folder = tmp_path_factory.mktemp("trained")
    for number, adata in enumerate(simulate.corpus(4, 64, n_genes=40, seed=2, n_donors=4)):
        adata.write_h5ad(folder / f"s{number}.h5ad")
    files, splits = sorted(folder.glob("*.h5ad")), Splits("slice", validation=0.25)
    quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
    return Path(corpus.build(files, folder / "corpus", min_genes=0, splits=splits, **quiet).folder)


@pytest.fixture(scope="session")
def histology_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a corpus of three training slices and a held-out one with histology, 60 spots each, and one without."""
    import pandas as pd

    from terrazzo import corpus, simulate

    folder = tmp_path_factory.mktemp("histology")
    options: dict[str, Any] = {"layout": "visium", "n_genes": 50, "seed": 3, "image": True, "image_px": 300}
    for number, adata in enumerate(simulate.corpus(5, 60, n_donors=5, **options)):
        if number == 3:
            del adata.uns["spatial"]
        adata.write_h5ad(folder / f"s{number}.h5ad")
    rows = [{"path": f"s{i}.h5ad", "split": "validation" if i == 4 else "train"} for i in range(5)]
    pd.DataFrame(rows).to_csv(folder / "slices.csv", index=False)
    quiet: dict[str, Any] = {"scheduler": "synchronous", "progress": False}
    return Path(corpus.build(folder / "slices.csv", folder / "corpus", min_genes=0, **quiet).folder)


@pytest.fixture
def recipe(corpus_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Make a short recipe: 4 sub-slices a slice, 3 epochs of 6 batches and 3 steps; keywords change its sections."""

    def make(stage: str = "pretrain", out: str | Path = "run", **sections: Any) -> Any:
        from terrazzo.config import from_dict
        from terrazzo.training.config import PretrainConfig

        base: dict[str, Any] = {
            "stage": stage,
            "corpus": str(corpus_folder),
            "out": str(tmp_path / out),
            "model": {"preset": "tiny", "subslices": {"split_size": 16}},
            "data": {"batch_subslices": 2, "batch_cells": 32, "batch_spots": 24, "block": 16, "buffer_blocks": 4},
            "optim": {"lr": 1e-3, "epochs": 3, "warmup_steps": 2, "accumulate": 2},
            "adapt": {},
            "pretrain": {"objective": "paper", "frozen_epochs": 1},
            "run": {"accelerator": "cpu", "log_every": 1, "checkpoint_every": 1},
        }
        for name, values in sections.items():
            base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
        return from_dict(PretrainConfig, base)

    return make
