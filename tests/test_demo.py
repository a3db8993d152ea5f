"""The demo trains on slices that are not the one it embeds, and leaves what it names and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo import demo, keys
from terrazzo.errors import OutputError
from terrazzo.progress import Progress

pytestmark = [pytest.mark.usefixtures("quiet_figures"), pytest.mark.slow]  # trains all systems
MODELS = {"stofm", "stimage", "stalign"}
FILES = {
    "report.html",
    "demo.h5ad",
    "demo.png",
    "losses.png",
    "demo.md",
    "demo.csv",
    "stofm-adapt.csv",
    "stofm-pretrain.csv",
    "stimage-pretrain.csv",
    "stalign-pretrain.csv",
} | MODELS


@dataclass(frozen=True)
class Done:
    """The folder of a run, the corpus that was trained on, and the slices that went into it."""

    folder: Path
    manifest: pd.DataFrame
    sources: list[AnnData]

    @property
    def embedded(self) -> AnnData:
        return anndata.read_h5ad(self.folder / "demo.h5ad")

    @property
    def text(self) -> str:
        return (self.folder / "demo.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    import matplotlib as mpl

    mpl.use("Agg", force=True)
    made: list[tuple[pd.DataFrame, list[AnnData]]] = []
    build = demo.build

    def spy(paths: Any, *rest: Any, **options: Any) -> Any:
        corpus = build(paths, *rest, **options)
        made.append((corpus.manifest.copy(), [anndata.read_h5ad(path) for path in paths]))
        return corpus

    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "build", spy)
        folder = demo.run(
            out,
            n_cells=150,
            adapt_epochs=1,
            pretrain_epochs=2,
            window_epochs=2,
            align_epochs=2,
            progress=False,
        )
    assert folder == out
    return Done(folder, *made[0])


def test_everything_is_there_and_nothing_else(done: Done) -> None:
    assert {p.name for p in done.folder.iterdir()} == FILES  # no work folder either
    for name in ("demo.png", "losses.png"):
        assert (done.folder / name).read_bytes().startswith(b"\x89PNG")
    for name in demo.STAGES:
        log = pd.read_csv(done.folder / f"{name}.csv")
        assert log["train/loss"].notna().any()
        assert log["val/loss"].notna().any()


def test_the_report_shows_all_of_it(done: Done) -> None:
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    for word in (
        "terrazzo demo",
        "what training does",
        "SToFM, niche block",
        "X_stofm_niche_domain",
        *demo.STAGES,
    ):
        assert word in text


@pytest.mark.parametrize(
    ("name", "key"), [("stofm", "X_stofm"), ("stimage", "X_stimage"), ("stalign", "X_stalign")]
)
def test_the_models_are_trained(done: Done, name: str, key: str) -> None:
    model: Any = tz.load(done.folder / name)
    assert model.trained
    assert name == "stalign" or model.config.output == "own+niche"
    assert model.provenance["epochs"] == 2
    records = done.embedded.uns["terrazzo"]
    assert (records[key]["trained"], records[f"{key}_untrained"]["trained"]) == (True, False)
    assert records[key]["checkpoint_sha256"] == model.fingerprint()


def test_the_embedded_slice_holds_every_method(done: Done) -> None:
    adata = done.embedded
    assert adata.n_obs == 150
    methods = set(demo.METHODS.values())
    assert {"X_stofm", "X_stimage", "X_stalign"} | methods <= set(adata.obsm)
    assert {keys.domain_key(key) for key in methods} <= set(adata.obs)
    assert set(demo.DRAWN) <= methods
    for key in ("X_stofm", "X_stimage", "X_stalign"):
        blocks = np.hstack([adata.obsm[f"{key}_own"], adata.obsm[f"{key}_niche"]])
        np.testing.assert_array_equal(blocks, adata.obsm[key])


def test_the_embedded_slice_was_never_seen(done: Done) -> None:
    adata = done.embedded
    assert sorted(done.manifest["id"]) == [
        f"slice_{n + 1}" for n in range(demo.SLICES + demo.VALIDATION)
    ]
    assert done.manifest["split"].value_counts().to_dict() == {
        "train": demo.SLICES,
        "validation": demo.VALIDATION,
    }
    assert not set(adata.obs["donor"].unique()) & set(done.manifest["donor"])
    seeds = {source.uns["simulation"]["seed"] for source in done.sources}
    assert len(seeds) == len(done.manifest)
    assert adata.uns["simulation"]["seed"] not in seeds
    assert all(
        list(source.obs) == ["donor"] for source in done.sources
    )  # no label gets near the training


def test_the_table(done: Done) -> None:
    table = pd.read_csv(done.folder / "demo.csv")
    assert list(table["embedding"]) == list(demo.METHODS)
    assert (table["seeds"] == demo.SEEDS).all()
    assert table["ARI"].between(-1, 1).all()
    assert table.set_index("embedding").loc["PCA + neighbor mean, 3 hops", "ARI"] > 0.3
    for row in table.itertuples():
        assert f"| {row.embedding} | {row.kind} | {row.ARI} |" in done.text
    kinds = table.set_index("embedding")["kind"]
    assert kinds["PCA + neighbor mean, 3 hops"] == "baseline"
    assert kinds["SToFM untrained"] == "untrained"
    assert kinds["SToFM, niche block"] == "trained"
    assert "-0.0" not in done.text


def test_the_report_opens_on_regions_chosen_on_another_slice(done: Done) -> None:
    adata = done.embedded
    record = adata.uns["terrazzo"]["terrazzo_region"]
    assert record["task"] == "regions"
    assert adata.obs["terrazzo_region"].nunique() == record["k"]
    assert adata.obs["terrazzo_region_agreement"].between(0, 1).all()
    assert "It was chosen on another slice" in done.text
    text = (done.folder / "report.html").read_text(encoding="utf-8")
    first = text.index('data-found="0"')
    assert "regions of terrazzo_region" in text[first : first + 400]
    assert "marker genes" in text
    assert "X_pca_nb3_domain (baseline)" in text


def test_the_best_candidate_is_chosen_by_another_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"X_pca": 0.2, "X_pca_nb3": 0.9}
    monkeypatch.setattr(demo, "NICHES", {})

    def known(adata: AnnData, use_rep: str, advance: Any) -> pd.DataFrame:
        return pd.DataFrame({"ARI": [scores[use_rep]]})

    monkeypatch.setattr(demo, "agreements", known)
    adata = tz.simulate.tissue(80, n_genes=60, seed=0)
    before = set(adata.obsm)
    choice = demo.choose(adata, {}, Progress(False))
    assert choice.title == "PCA + neighbor mean, 3 hops"
    assert set(adata.obsm) == before
    assert demo.kinds_of([choice.title]) == {choice.title: "baseline"}


def test_the_text_says_that_it_is_simulated(done: Done) -> None:
    assert "trained for a few minutes on simulated slices" in done.text
    assert "not how good a system is" in done.text
    assert "chance is 6.7%" in done.text  # of finding the genes of one of 150 cells among 10


def test_a_second_run_replaces_the_first(done: Done, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "again"))
    before = {name: (folder / name).read_bytes() for name in FILES - MODELS}
    demo.run(
        folder,
        n_cells=100,
        adapt_epochs=1,
        pretrain_epochs=1,
        window_epochs=1,
        align_epochs=1,
        seed=1,
        progress=False,
    )
    assert {p.name for p in folder.iterdir()} == FILES
    assert all((folder / name).read_bytes() != content for name, content in before.items())
    for name in MODELS:
        assert tz.load(folder / name).fingerprint() != tz.load(done.folder / name).fingerprint()
    assert anndata.read_h5ad(folder / "demo.h5ad").n_obs == 100


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        demo.run(tmp_path / "file" / "below", n_cells=100)
