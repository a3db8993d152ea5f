"""The page: whole, self-contained, and harmless whatever the names in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo import report
from terrazzo.errors import ConfigError, InputError, OutputError
from terrazzo.report import page as pages

pytestmark = pytest.mark.usefixtures("quiet_figures")
HOSTILE = "</script><img src=x onerror=alert(1)>"
ADDRESSES = ("src", "href", "action", "data", "poster", "srcset", "xlink:href", "formaction")


@pytest.fixture(scope="module")
def once(simulated: Any) -> Any:
    adata = simulated(150, 40, image=True, image_px=200)
    for name in ("pca", "t3"):
        tz.Baseline(name, n_components=10).embed(adata)
    return tz.tasks.domains(adata, use_rep="X_t3", n_domains=3)


@pytest.fixture
def embedded(once: Any) -> Any:
    """Two baselines, domains of one, and an image."""
    return once.copy()


def test_the_page_is_whole(embedded: Any, page: Any) -> None:
    made = page(embedded, title="Mine & yours", about="What it is <about>.")
    assert made.text.startswith("<!doctype html>")
    assert made.text.endswith("</html>\n")
    for word in (
        "Mine & yours",
        "What it is <about>.",
        "Provenance",
        "This file needs no network.",
    ):
        assert word in " ".join(made.words)
    assert len(made.named("section", id="slice-0")) == 1
    assert made.named("html")[0]["lang"] == "en"
    assert {"role", "aria-label", "aria-labelledby"} <= {
        name for _, attributes in made.tags for name in attributes
    }


def test_nothing_comes_from_elsewhere(embedded: Any, page: Any) -> None:
    made = page(embedded)
    for tag, attributes in made.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        for name in ADDRESSES:
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/")), f"{tag} {name}={value[:60]}"
    own = [pages._template(name) for name in (*pages.SCRIPTS, pages.STYLE, "report.html")]
    for text in own:
        assert not re.search(r"https?:|//[a-z0-9-]+\.|@import|url\((?!#)", text)


def test_the_policy_runs_this_script_and_no_other(embedded: Any, page: Any) -> None:
    made = page(embedded)
    (policy,) = [
        a["content"] for a in made.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for kind, text in (("script", made.scripts["script"]), ("style", made.scripts["style"])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any(
        name.startswith("on") or name == "style"
        for _, attributes in made.tags
        for name in attributes
    )


def test_the_script_makes_no_html_of_data() -> None:
    for name in pages.SCRIPTS:
        text = pages._template(name)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
        )


def test_hostile_names_are_texts(simulated: Any, page: Any, tmp_path: Path) -> None:
    adata = simulated(30, 40)
    adata.obs["kind"] = pd.Categorical([HOSTILE, "plain"] * 15)
    adata.obs[HOSTILE] = pd.Categorical(["a", "b", "c"] * 10)
    adata.obs["donor"] = HOSTILE
    adata.var_names = [HOSTILE, *adata.var_names[1:]]
    adata.obs_names = [f"{HOSTILE}{i}" for i in range(30)]
    tz.Baseline("pca", n_components=3).embed(adata, key_added=HOSTILE)
    adata.uns["terrazzo"][HOSTILE]["model"] = HOSTILE
    adata.uns["terrazzo"][HOSTILE]["coverage"] = "{}"
    adata.uns["terrazzo"][HOSTILE]["details"] = '{"a": "' + HOSTILE + '"}'
    scores = tmp_path / f"{HOSTILE.replace('/', '')}.csv"
    pd.DataFrame({HOSTILE: [HOSTILE]}).to_csv(scores, index=False)
    del adata.uns["terrazzo"][HOSTILE]["coverage"]
    made = page(
        [adata, scores], title=HOSTILE, about=HOSTILE, genes=[HOSTILE], embeddings=[HOSTILE]
    )
    assert not made.named("img", src="x")
    assert not any("onerror" in attributes for _, attributes in made.tags)
    assert "<img src=x" not in made.text
    assert made.text.count("<script") == made.text.count("</script>")
    assert HOSTILE in made.words
    (sheet,) = made.data["slices"]
    kinds = {
        column["name"]: [label["name"] for label in column.get("labels", [])]
        for column in sheet["columns"]
    }
    assert HOSTILE in kinds["kind"]
    assert HOSTILE in kinds
    assert sheet["genes"][0]["name"].startswith(HOSTILE)
    assert sheet["layouts"][0]["key"] == HOSTILE
    assert made.unpack(sheet["names"])[3] == f"{HOSTILE}3"


def test_the_data_are_those_of_the_slice(embedded: Any, page: Any) -> None:
    made = page(embedded, n_genes=7)
    (sheet,) = made.data["slices"]
    tissue = tz.Slice.from_anndata(embedded)
    for axis, field in enumerate((sheet["x"], sheet["y"])):
        places = field["low"] + field["step"] * made.unpack(field)
        np.testing.assert_allclose(
            places, tissue.coords[:, axis], atol=field["step"]
        )  # y as it is: it grows downwards
    assert made.unpack(sheet["names"]) == list(embedded.obs_names)
    np.testing.assert_array_equal(made.unpack(sheet["totals"]), tissue.total_counts)
    column = next(c for c in sheet["columns"] if c["name"] == "region")
    labels = [label["name"] for label in column["labels"]]
    assert [labels[code] for code in made.unpack(column)] == embedded.obs["region"].tolist()
    assert [label["cells"] for label in column["labels"]] == embedded.obs["region"].value_counts()[
        labels
    ].tolist()
    assert {label["name"]: label["color"] for label in column["labels"]} == tz.plot.colors(
        embedded, "region"
    )
    assert len(sheet["genes"]) == 7
    for gene in sheet["genes"]:
        expected = embedded[:, gene["name"]].X.toarray().ravel()
        np.testing.assert_array_equal(made.unpack(gene) * gene["unit"], expected)
    others = made.unpack(sheet["others"])
    assert sorted([*others, *(gene["name"] for gene in sheet["genes"])]) == sorted(
        embedded.var_names
    )


def test_groups_of_columns(embedded: Any, page: Any) -> None:
    embedded.obs["share"] = np.linspace(0, 1, 150)
    embedded.obs["share"] = embedded.obs["share"].where(embedded.obs["share"] < 0.9)
    embedded.obs["flag"] = [True, False] * 75
    embedded.obs["known"] = pd.Categorical(["a", None, "b"] * 50)
    embedded.obs["barcode"] = [f"b{i % 140}" for i in range(150)] * 1
    embedded.obs["one"] = "the same"
    embedded.obs["none"] = None
    made = page(embedded)
    (sheet,) = made.data["slices"]
    groups = {column["name"]: column["group"] for column in sheet["columns"]}
    assert groups["X_t3_domain"] == "Found"
    assert (groups["flag"], groups["share"], groups["genes detected"]) == (
        "Labels",
        "Numbers",
        "Numbers",
    )
    assert not {"one", "none"} & set(groups)
    text = " ".join(made.words)
    assert "one: the same" in text
    assert "obs['none'] is empty" in text
    by_name = {column["name"]: column for column in sheet["columns"]}
    assert made.unpack(by_name["known"])[:3].tolist() == [0, 255, 1]
    assert np.isnan(made.unpack(by_name["share"])[-1])
    names = [column["name"] for column in sheet["columns"]]
    assert names[:2] == [
        "X_t3_domain",
        "region",
    ]  # what was found, then three to forty labels, then flags


def test_too_many_labels_are_named(simulated: Any, page: Any) -> None:
    adata = simulated(300, 40)
    adata.obs["barcode"] = [f"b{i}" for i in range(300)]
    assert "obs['barcode'] has 300 labels" in " ".join(page(adata).words)


def test_numbers_that_are_no_counts(simulated: Any, page: Any) -> None:
    adata = simulated(60, 40)
    adata.X = adata.X.astype(np.float32).log1p()
    made = page(adata, n_genes=3)
    (sheet,) = made.data["slices"]
    assert sheet["isCounts"] is False
    assert "normalized values from X" in " ".join(made.words)
    gene = sheet["genes"][0]
    expected = adata[:, gene["name"]].X.toarray().ravel()
    np.testing.assert_allclose(made.unpack(gene) * gene["unit"], expected, atol=gene["unit"])


def test_coverage_and_provenance(simulated: Any, page: Any) -> None:
    adata = simulated()
    met = tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata[:, :45])]).coverage(
        tz.Slice.from_anndata(adata)
    )
    record = {
        "model": "SToFM",
        "trained": np.bool_(True),
        "checkpoint_sha256": "5e2f" * 16,
        "date": "2026-11-28T10:00:00",
        "coverage": json.dumps(met.to_dict()),
        "settings": json.dumps({"subslice_size": 1000}),
        "n_empty": np.int64(3),
    }
    adata.uns["terrazzo"] = {"X_stofm": record}
    made = page(adata)
    assert {"Gene coverage", "Provenance", "5e2f" * 16, "2026-11-28T10:00:00", "True"} <= set(
        made.words
    )
    assert f"{met.share_counts:.1%}" in made.words
    assert "45 of 60" in made.words
    assert ", ".join(met.unmatched_examples) in made.words
    (rest,) = [json.loads(word) for word in made.words if word.startswith("{")]
    assert rest == {"settings": {"subslice_size": 1000}, "n_empty": 3}


def test_the_histology_is_there_and_a_misplaced_one_is_not(simulated: Any, page: Any) -> None:
    adata = simulated(80, 40)
    low, high = adata.obsm["spatial"].min(axis=0), adata.obsm["spatial"].max(axis=0)
    pixels = np.full((40, 50, 3), 200, np.uint8)
    factors = {"tissue_hires_scalef": float(40 / high.max())}
    adata.uns["spatial"] = {"lib": {"images": {"hires": pixels}, "scalefactors": factors}}
    made = page(adata)
    left, top, right, bottom = made.data["slices"][0]["extent"]
    assert left <= low[0] + 1e-6
    assert right > left
    assert bottom > top
    assert made.named("img", **{"class": "histology"})
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1e5
    made = page(adata)
    assert not made.named("img", **{"class": "histology"})
    assert "the histology is not shown: no cell is on the image" in " ".join(made.words)


def test_a_still_picture_for_paper(embedded: Any, page: Any) -> None:
    made = page(embedded, stills=True)
    (picture,) = [a for a in made.named("img") if str(a["src"]).startswith("data:image/png")]
    content = base64.b64decode(str(picture["src"]).partition(",")[2])
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000
    assert "colored by X_t3_domain, region, " in str(picture["alt"])


def test_many_cells_are_sampled_and_that_is_said(
    simulated: Any, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terrazzo.report.slices.CELLS", 50)
    made = page(simulated(80, 40))
    assert made.data["slices"][0]["cells"] == 50
    assert "50 of 80 cells, drawn at random, are shown" in made.words


def test_same_input_same_page(embedded: Any, page: Any) -> None:
    first, second = page(embedded), page(embedded)
    assert first.scripts == second.scripts


def test_the_slice_is_left_alone(embedded: Any, page: Any) -> None:
    before = embedded.copy()
    page(embedded)
    pd.testing.assert_frame_equal(before.obs, embedded.obs)
    assert set(before.uns) == set(embedded.uns)
    assert set(before.obsm) == set(embedded.obsm)


def test_impossible_settings(simulated: Any, tmp_path: Path) -> None:
    adata = simulated(30, 40)
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        report.write(adata, tmp_path / "report.txt")
    with pytest.raises(ConfigError, match="projection is 'tsne'"):
        report.write(adata, tmp_path / "r.html", projection="tsne")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_genes is -1"):
        report.write(adata, tmp_path / "r.html", n_genes=-1)
    with pytest.raises(InputError, match="no slice has the gene 'SIM'"):
        report.write(adata, tmp_path / "r.html", genes=["SIM"], projection="pca")
    with pytest.raises(InputError, match="obsm has no 'X_none'"):
        report.write(adata, tmp_path / "r.html", embeddings=["X_none"])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="could not be written"):
        report.write(adata, tmp_path / "file" / "r.html", projection="pca")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
