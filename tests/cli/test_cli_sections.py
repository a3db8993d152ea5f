"""`--slice-key` on the command line: files with several sections in several verbs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import terrazzo as tz
from terrazzo import corpus
from terrazzo.cli import main
from terrazzo.errors import CorpusError


@pytest.fixture
def both(simulated: Any, tmp_path: Path) -> Path:
    """A file with two sections on top of each other."""
    parts = {"a/1": simulated(80, seed=1), "b": simulated(60, seed=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = ad.concat(parts, label="library_id", index_unique="-")
    whole.obsm["X_other"] = np.asarray(whole.obsm["spatial"], np.float32)
    order = np.random.default_rng(0).permutation(whole.n_obs)
    path = tmp_path / "both.h5ad"
    whole[order].copy().write_h5ad(path)
    return path


def run(*words: Any) -> int:
    return main([str(word) for word in words])


@pytest.mark.case(
    "A",
    given="`terrazzo info`, `report`, `corpus build` of a file with several sections that overlap",
    gets="Exit code 2 with one line; by `--slice-key` facts, part of the page and member of each section",
)
@pytest.mark.parametrize("verb", ["info", "report", "domains", "corpus build"])
def test_refused_in_one_line(verb: str, both: Path, tmp_path: Path, capsys: Any) -> None:
    options = {
        "info": [],
        "report": ["--out", tmp_path / "r.html"],
        "domains": ["--use-rep", "X_other", "-k", 2, "--out", tmp_path / "d"],
        "corpus build": ["--out", tmp_path / "c", "--min-genes", 1],
    }
    assert run(*verb.split(), both, *options[verb]) == 2
    error = capsys.readouterr().err.strip()
    assert "obs['library_id'] tells 2 sections apart (a/1, b)" in error
    assert "--slice-key library_id" in error
    assert run(*verb.split(), both, *options[verb], "--slice-key", "library_id") == 0


def test_info_prints_each_section(both: Path, tmp_path: Path, capsys: Any) -> None:
    figure = tmp_path / "grid.png"
    words = ["--slice-key", "library_id", "--grid", figure, "--bin-um", 80]
    assert run("info", both, *words) == 0
    text = capsys.readouterr().out
    assert re.findall(r"n cells +(\d+)", text) == ["80", "60"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["grid_a_1.png", "grid_b.png"]


def test_report_has_a_part_for_each(both: Path, tmp_path: Path) -> None:
    page = tz.report.write(
        both, tmp_path / "r.html", slice_key="library_id", projection="pca", progress=False
    )
    text = page.read_text(encoding="utf-8")
    assert "both, a/1" in text
    assert "both, b" in text


@pytest.mark.case(
    "A",
    given="A corpus of a file with several sections, `slice_key=`",
    gets="One member for each section, as if each were a file",
)
def test_a_corpus_has_a_member_for_each(both: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"min_genes": 1, "scheduler": "synchronous", "progress": False}
    built = corpus.build(both, tmp_path / "c", slice_key="library_id", **options)
    assert built.ids() == ["both_a_1", "both_b"]
    adata = ad.read_h5ad(both)
    files = []
    for name in ("a/1", "b"):
        file = tmp_path / f"both_{name.replace('/', '_')}.h5ad"
        adata[adata.obs["library_id"] == name].copy().write_h5ad(file)
        files.append(file)
    alone = corpus.build(files, tmp_path / "c2", **options)
    assert built.manifest["content"].tolist() == alone.manifest["content"].tolist()
    table = tmp_path / "slices.csv"
    table.write_text("path,id,slice_key,section\nboth.h5ad,mine,library_id,b\n")
    assert corpus.build(table, tmp_path / "c3", **options).n_cells() == 60
    table.write_text("path,slice_key,section\nboth.h5ad,library_id,c\n")
    with pytest.raises(CorpusError, match="has no section 'c'"):
        corpus.build(table, tmp_path / "c4", **options)
    with pytest.raises(CorpusError, match="no such column"):
        corpus.build(both, tmp_path / "c5", slice_key="library", **options)
    with pytest.raises(CorpusError, match="no slice is left"):
        corpus.build(both, tmp_path / "c6", slice_key="library_id", exclude=[both], **options)


def test_predict_genes_of_each_section(histology: Any, tmp_path: Path) -> None:
    parts = {"A": histology(60, seed=1), "B": histology(60, seed=2)}
    for name, one in parts.items():
        (library,) = one.uns["spatial"].values()
        one.uns["spatial"] = {name: library}
    both = ad.concat(parts, label="library_id", index_unique="-", uns_merge="unique")
    file = tmp_path / "both.h5ad"
    both.write_h5ad(file)
    words = ["--model", "colors", "--n-genes", 5, "--runs", 1, "--out", tmp_path / "out"]
    assert run("predict-genes", file, "--predict", file, *words) == 2
    key = ["--slice-key", "library_id"]
    assert run("predict-genes", file, "--predict", file, *words, *key) == 0
    written = ad.read_h5ad(tmp_path / "out" / "both.h5ad")
    assert list(written.obs_names) == list(both.obs_names)
    assert np.isfinite(written.obsm["expression_predicted"]).all()
    result = tz.tasks.TaskResult.load(tmp_path / "out" / "scores")
    assert set(result.metrics["slice"]) == {"both_A", "both_B"}
