"""Small datasets of simulated slices in a folder, and small tables about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from anndata import AnnData

SLICES = ("s0", "s1")


def add_proportions(adata: AnnData) -> AnnData:
    """Write ``obsm["proportions"]``: the mixture of types that a region has, the same for all of its cells."""
    types = np.unique(adata.obs["cell_type"].astype(str))
    shares = (adata.obs["cell_type"].astype(str).to_numpy()[:, None] == types).astype(float)
    for region in adata.obs["region"].unique():
        here = (adata.obs["region"] == region).to_numpy()
        shares[here] = shares[here].mean(axis=0)
    adata.obsm["proportions"], adata.uns["proportions_names"] = shares, types
    return adata


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the dataset ``made``: two slices of one atlas with regions, types, proportions and ``obsm["X_given"]``."""
    from terrazzo import simulate

    folder = tmp_path_factory.mktemp("data")
    (folder / "made").mkdir()
    slices = simulate.corpus(len(SLICES), 240, n_genes=60, n_regions=3, n_types=4, seed=5)
    for name, adata in zip(SLICES, slices, strict=True):
        adata.obs["noise"] = np.random.default_rng(1).permutation(adata.obs["region"].astype(str))
        adata.obsm["X_given"] = (
            np.random.default_rng(0).normal(size=(adata.n_obs, 6)).astype(np.float32)
        )
        add_proportions(adata).write_h5ad(folder / "made" / f"{name}.h5ad")
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Any]:
    """Write a small table as YAML and load it; keywords change its keys."""

    def make(**keys: Any) -> Any:
        from terrazzo.bench import protocols

        plain = {
            "name": "small",
            "title": "A small table",
            "source": "data at hand",
            "task": "probe",
            "label": "region",
            "metrics": ["accuracy", "macro_f1"],
            "heads": ["linear"],
            "splits": ["random"],
            "runs": 2,
            "models": [],
            "parts": [
                {
                    "name": "one",
                    "dataset": "made",
                    "test": "s0",
                    "train": ["s1"],
                    "settings": ["within"],
                }
            ],
        }
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(plain | keys, sort_keys=False), encoding="utf-8")
        return protocols.load(path)

    return make
