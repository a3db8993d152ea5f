"""ST as images trained on slices as they should not be: it learns from what is there, or says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo import simulate
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.training.logs import read
from terrazzo.training.recipe import recipe_from_dict

ARRAY = ["array_row", "array_col"]
GENES = 24


def visium(seed: int) -> AnnData:
    return simulate.tissue(80, layout="visium", n_genes=GENES, seed=seed)


def one_row() -> AnnData:
    adata = visium(1)
    return adata[(adata.obs["array_row"] == adata.obs["array_row"].mode()[0]).to_numpy()].copy()


def missing_rows() -> AnnData:
    adata = visium(2)
    return adata[(adata.obs["array_row"] % 4 > 1).to_numpy()].copy()


def twice_in_one_place() -> AnnData:
    adata = visium(3)
    adata.obs.loc[adata.obs_names[7], ARRAY] = adata.obs.loc[adata.obs_names[6], ARRAY]
    return adata


def without_counts_here_and_there() -> AnnData:
    adata = visium(4)
    counts = adata.X.toarray()
    counts[::3] = 0
    adata.X = counts
    return adata


def far_apart() -> AnnData:
    """Cells that see no other in any window."""
    adata = simulate.tissue(30, n_genes=GENES, seed=5)
    adata.obsm["spatial"] = np.random.default_rng(0).permutation(60).reshape(30, 2) * 200.0
    return adata


def trained(
    slices: list[AnnData], place: Path, scheme: str = "patch", **windows: Any
) -> list[dict[str, Any]]:
    """Build a corpus, take two steps, and return the log."""
    for number, adata in enumerate(slices):
        adata.write_h5ad(place / f"s{number}.h5ad")
    files = sorted(place.glob("*.h5ad"))
    corpus = tz.build_corpus(
        files, place / "corpus", min_genes=0, scheduler="synchronous", progress=False
    )
    settings = {"window": 6, "channels": 100, "choose": "spatial", **windows}
    recipe = {
        "stage": "stimage-pretrain",
        "corpus": str(corpus.folder),
        "out": str(place / "run"),
        "model": {"preset": "tiny", "init": "informed", "windows": settings},
        "data": {"batch_windows": 2, "windows_per_slice": 2},
        "optim": {"epochs": 4, "max_steps": 2, "warmup_steps": 1},
        "objective": {
            "scheme": scheme,
            "mask": "site" if scheme == "patch" else "entry",
            "target": "thinned",
        },
        "run": {"accelerator": "cpu", "log_every": 1},
    }
    model: Any = tz.load(tz.pretrain(recipe_from_dict(recipe), progress=False))
    for adata in slices:
        assert np.isfinite(model.embed(adata, progress=False).obsm["X_stimage"]).all()
    return read(place / "run" / "logs" / "metrics.csv")


def assert_it_learned(rows: list[dict[str, Any]]) -> None:
    for name in ("train/loss", "train/gradient_norm"):
        found = [float(row[name]) for row in rows if row[name]]
        assert len(found) == 2
        assert np.isfinite(found).all()
        assert max(found) > 0


@pytest.mark.parametrize("scheme", ["patch", "slice"])
def test_slices_with_less_than_a_window(tmp_path: Path, scheme: str) -> None:
    """One spot, one row, rows that are missing, spots without counts; and fewer genes than channels."""
    slices = [visium(0)[:1].copy(), one_row(), missing_rows(), without_counts_here_and_there()]
    assert_it_learned(trained(slices, tmp_path, scheme))


def test_spots_in_one_place_are_summed(tmp_path: Path) -> None:
    with pytest.warns(TerrazzoWarning, match="1 cells share their lattice position"):
        assert_it_learned(trained([twice_in_one_place()], tmp_path))


@pytest.mark.filterwarnings("ignore:if a unit of the coordinates")  # no tissue is so thin
@pytest.mark.parametrize("scheme", ["patch", "multi-spot"])
def test_windows_with_a_single_cell(tmp_path: Path, scheme: str) -> None:
    assert_it_learned(trained([far_apart()], tmp_path, scheme, bin_um=20.0))


def test_cells_without_an_array_need_a_bin_which_the_recipe_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^s0: .* in a recipe model\.windows\.bin_um: 20"):
        trained([far_apart()], tmp_path)
    assert not (tmp_path / "run").exists()
