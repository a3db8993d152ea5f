"""Published corpora: the papers' numbers, and which files of a folder belong to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from terrazzo import corpus, simulate
from terrazzo.cli import main
from terrazzo.errors import ConfigError, CorpusError

FOLDER = Path(corpus.__file__).with_name("published_corpora")


def test_stocorpus_is_table_a10() -> None:
    published = corpus.load_published("stocorpus-88m")
    counted = {source.name: (source.slices, source.cells) for source in published.sources}
    assert counted == {
        "10xGENOMICS": (20, 6_496_946),
        "CELLxGENE": (762, 23_531_670),
        "nanoString": (6, 1_118_500),
        "SODB": (817, 19_582_014),
        "STOmicsDB": (242, 24_768_293),
        "Vizgen": (32, 12_344_989),
        "SeekSpace": (33, 338_953),
    }
    assert sum(slices for slices, _ in counted.values()) == published.expected.slices == 1912
    assert sum(cells for _, cells in counted.values()) == published.expected.cells == 88_181_365
    assert (
        len({name for source in published.sources for name in source.technologies})
        == published.expected.technologies
        == 6
    )
    assert published.quality.min_genes == 100


def test_the_other_papers_numbers() -> None:
    images = corpus.load_published("stimage-1m")
    assert [source.name for source in images.sources] == ["CELLxGENE", "GEO"]
    assert images.expected.cells == 1_089_785
    visium = corpus.load_published("stimage-1k4m-visium-human")
    assert (visium.expected.slices, visium.expected.cells, visium.expected.rounded) == (
        573,
        1_300_000,
        True,
    )
    assert visium.quality.min_cells == 50
    assert visium.sources[0].organisms == ["human"]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_commented_once(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = {
        line.split(":")[0].strip(" -")
        for line in lines
        if ":" in line.split("#")[0] and not line.startswith("#")
    }
    explained = {
        line.split(":")[0].strip(" -")
        for above, line in zip(["", *lines], lines, strict=False)
        if ":" in line.split("#")[0] and ("#" in line or above.startswith("#"))
    }
    assert keys - explained <= {
        "quality",
        "sources",
        "expected",
    }  # the headings of what is explained below them


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    for place, options in {
        "Visium/Human_Brain_A": {"layout": "visium", "seed": 1},
        "Visium/Human_Brain_B": {"layout": "visium", "seed": 2},
        "Visium/Human_Brain_Maynard_Visium_151673": {"layout": "visium", "seed": 3},
        "Visium/small": {"layout": "visium", "seed": 4, "n_cells": 30},
        "Visium/mouse": {"layout": "visium", "seed": 5, "organism": "mouse"},
        "Visium/other": {"layout": "st", "seed": 6},
        "ST/Human_Breast": {"layout": "st", "seed": 7},
    }.items():
        path = folder / f"{place}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        adata = simulate.tissue(**{"n_cells": 70, "n_genes": 40, **options})
        if place == "Visium/Human_Brain_B":
            del adata.uns["organism"], adata.uns["technology"]
        adata.write_h5ad(path)
    return folder


def test_plan_and_build_of_a_published_corpus(
    downloads: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "stimage-1k4m-visium-human"
    plan = corpus.plan_corpus(name, downloads)
    found = {file.path.stem: file.verdict for file in plan.files}
    assert found == {
        "Human_Brain_A": "match",
        "Human_Brain_B": "match",
        "Human_Brain_Maynard_Visium_151673": "excluded",
        "small": "filtered",
        "mouse": "filtered",
        "other": "filtered",
        "Human_Breast": "unmatched",
    }
    total = plan.table().iloc[-1]
    assert total[["slices_expected", "slices_found", "slices_missing", "cells_found"]].tolist() == [
        573,
        2,
        571,
        140,
    ]
    assert plan.missing()[0].startswith("STimage-1K4M: 571 of 573 slices missing")
    built = corpus.build(
        downloads, tmp_path / "out", published=name, scheduler="synchronous", progress=False
    )
    assert built.ids() == ["Human_Brain_A", "Human_Brain_B"]
    assert built.manifest["technology"].tolist() == ["Visium", "Visium"]
    assert built.manifest["origin"].unique().tolist() == ["STimage-1K4M"]
    assert built.about["published"]["name"] == "stimage-1k4m-visium-human"
    words = ["corpus", "build", str(downloads), "--published", name, "--out", str(built.folder)]
    assert main([*words, "--workers", "1"]) == 0
    assert "2 slices, 140 cells; 0 slices left out" in capsys.readouterr().out


def test_technology_from_the_folder_or_unclear(downloads: Path, tmp_path: Path) -> None:
    for place in ("sodb/MERFISH/a", "sodb/b"):
        adata = simulate.tissue(60, n_genes=40, seed=len(place))
        del adata.uns["technology"]
        path = tmp_path / "new" / f"{place}.h5ad"
        path.parent.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(path)
    plan = corpus.plan_corpus("stocorpus-88m", tmp_path / "new")
    assert {file.path.stem: (file.verdict, file.technology) for file in plan.files} == {
        "a": ("match", "MERFISH"),
        "b": ("unclear", None),
    }
    with pytest.raises(CorpusError, match=r"1 files cannot be placed(.|\n)*b.h5ad: which of"):
        corpus.build(tmp_path / "new", tmp_path / "out", published="stocorpus-88m")
    with pytest.raises(CorpusError, match="no file matches the published corpus 'stocorpus-88m'"):
        corpus.build(downloads, tmp_path / "out", published="stocorpus-88m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qualty": {}}, "unknown key 'qualty'. Did you mean 'quality'"),
        ({"quality": {"min_gene": 1}}, "unknown key 'min_gene'. Did you mean 'min_genes'"),
        ({"sources": [{"name": "a", "file": ["*"]}]}, "unknown key 'file'. Did you mean 'files'"),
        ({"sources": []}, "sources must not be empty"),
        ({"sources": [{"name": "a"}]}, "files must name at least one pattern"),
        ({"sources": [{"name": "a", "files": [1]}]}, r"files\[0\] is 1; it must be of type str"),
        ({"sources": [{"name": "a", "files": ["*"], "slices": "many"}]}, "must be of type int"),
        ({"quality": {"min_cells": 0}}, "min_cells at least 1"),
    ],
)
def test_a_wrong_description_says_where(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    good = {"name": "mine", "sources": [{"name": "a", "files": ["*"]}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(good))
    assert corpus.load_published(tmp_path / "mine.yaml").sources[0].name == "a"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**good, **change}))
    with pytest.raises(ConfigError, match=message):
        corpus.load_published(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not a readable YAML file"):
        corpus.load_published(tmp_path / "mine.yaml")


def test_command_line(downloads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "plan", "stimage-1k4m-visium-human", str(downloads)]) == 0
    printed = capsys.readouterr().out
    assert "will hold 2 slices, 140 cells" in printed
    assert "571 of 573 slices missing" in printed
    assert "excluded" in printed
    assert main(["corpus", "plan", str(downloads / "no.yaml"), str(downloads)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["corpus", "plan", "stocorpus", str(downloads)]) == 2
    assert "Did you mean 'stocorpus-88m'?" in capsys.readouterr().err


def test_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = corpus.published_names()
    assert names == ["stimage-1k4m-visium-human", "stimage-1m", "stocorpus-88m"]
    for name in names:
        published = corpus.load_published(name)
        assert published.name == name
        assert corpus.load_published(FOLDER / f"{name}.yaml") == published
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\nsources: [{name: a, files: ['*']}]")
    assert corpus.load_published("mine.yaml").name == corpus.load_published("./mine.yaml").name
    with pytest.raises(ConfigError, match=r"There are .*stocorpus-88m; .* must end in \.yaml"):
        corpus.load_published("mine")


def test_reprs_are_short(downloads: Path) -> None:
    plan = corpus.plan_corpus("stimage-1k4m-visium-human", downloads)
    assert repr(plan) == "CorpusPlan('stimage-1k4m-visium-human', 2 of 7 files match)"
    assert repr(plan.published) == "PublishedCorpus('stimage-1k4m-visium-human', 1 sources)"
