"""The demo runs, says that nothing was trained, and its baseline works."""

from __future__ import annotations

from pathlib import Path

import anndata
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo import demo
from terrazzo.errors import OutputError

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import matplotlib as mpl

    mpl.use("Agg", force=True)
    return demo.run(tmp_path_factory.mktemp("demo") / "out", n_cells=1500, progress=False)


def test_everything_is_there(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    assert names == {"demo.h5ad", "demo.png", "demo.md", "demo.csv", "model"}
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert not tz.load(folder / "model").trained
    adata = anndata.read_h5ad(folder / "demo.h5ad")
    assert adata.n_obs == 1500
    assert {"X_stofm", "X_pca_nb"} <= set(adata.obsm)
    assert {"X_stofm_domain", "X_pca_nb_domain", "region"} <= set(adata.obs)
    assert not adata.uns["terrazzo"]["X_stofm"]["trained"]


def test_the_text_says_that_nothing_was_trained(folder: Path) -> None:
    text = (folder / "demo.md").read_text(encoding="utf-8")
    assert "nothing was trained" in text
    assert "(untrained)" in text


def test_the_baseline_finds_the_regions(folder: Path) -> None:
    table = pd.read_csv(folder / "demo.csv").set_index("embedding")
    assert table.loc["PCA + neighbour mean", "ARI"] > 0.5
    assert (table["seeds"] == demo.SEEDS).all()
    assert table["ARI"].between(-1, 1).all()
    for title, row in table.iterrows():
        assert f"| {title} | {row['ARI']} |" in (folder / "demo.md").read_text(encoding="utf-8")


def test_a_second_run_replaces_the_first(folder: Path) -> None:
    before = tz.load(folder / "model").fingerprint()
    demo.run(folder, n_cells=200, seed=1, progress=False)
    assert tz.load(folder / "model").fingerprint() != before
    assert anndata.read_h5ad(folder / "demo.h5ad").n_obs == 200


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        demo.run(tmp_path / "file" / "below", n_cells=100)
