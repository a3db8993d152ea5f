"""The first screen: what was found, its table, its markers, its neighbors, and the known labels beside it."""

from __future__ import annotations

from typing import Any

import answered
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.plot.palettes import in_order
from terrazzo.report import regions
from terrazzo.report.found import is_found

pytestmark = pytest.mark.usefixtures("quiet_figures")
NAMES = [f"R{i}" for i in range(1, 6)]
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def found(simulated: Any) -> Any:
    return answered.with_regions(simulated(300, 60), NAMES)


def test_a_slice_opens_on_what_was_found(found: Any, page: Any) -> None:
    made = page(found)
    (table,) = made.data["found"]
    assert (table["key"], table["kind"]) == ("terrazzo_region", "region")
    assert made.data["slices"][0]["columns"][0]["name"] == "terrazzo_region"
    assert made.text.index('id="found"') < made.text.index('class="slice"')
    codes = found.obs["terrazzo_region"].cat.codes
    sizes = np.bincount(codes)
    assert [region["name"] for region in table["regions"]] == NAMES
    assert [region["cells"] for region in table["regions"]] == sizes.tolist()
    shares = [region["share"] for region in table["regions"]]
    np.testing.assert_allclose(shares, sizes / sizes.sum())
    mean = found.obs["terrazzo_region_agreement"].groupby(codes).mean()
    np.testing.assert_allclose([region["sure"] for region in table["regions"]], mean, rtol=1e-6)
    for region in table["regions"]:
        assert region["name"] in made.words
        assert f"{region['share']:.1%}" in made.words
        assert made.named("circle", fill=region["color"])
    assert "marker genes" not in made.words


@pytest.mark.parametrize(
    ("column", "record", "expected"),
    [
        ("terrazzo_region", {}, True),
        ("terrazzo_type", {}, True),
        ("mine", {"task": "regions"}, True),
        ("mine", {"task": "types"}, True),
        ("mine", {"task": "domains"}, True),
        ("X_t3_domain", {}, True),
        ("mine", {"task": "annotate"}, False),
        ("region", {}, False),
    ],
)
def test_what_counts_as_found(
    simulated: Any, column: str, record: dict[str, str], expected: bool
) -> None:
    adata = simulated(30, 40)
    adata.uns["terrazzo"] = {column: record}
    assert is_found(adata, column) is expected
    adata.uns["terrazzo"] = "damaged"
    assert is_found(adata, "region") is False


def test_nothing_found_no_first_screen(simulated: Any, page: Any) -> None:
    made = page(simulated(60, 40))
    assert made.data["found"] == []
    assert not made.named("section", id="found")


def test_known_labels_have_the_colors_of_the_regions_that_they_match(found: Any, page: Any) -> None:
    made = page(found)
    (table,) = made.data["found"]
    columns = [known["column"] for known in table["known"]]
    assert columns == ["region", "cell_type"]  # regions are compared with regions first
    known = table["known"][0]
    expected = adjusted_rand_score(found.obs["region"], found.obs["terrazzo_region"])
    assert known["ari"] == pytest.approx(expected)
    declared = list(found.obs["region"].astype("category").cat.categories)
    for label in known["labels"]:
        assert label["match"] == declared.index(label["name"])
        assert label["color"] == table["regions"][label["match"]]["color"]
    rows = pd.crosstab(found.obs["terrazzo_region"], found.obs["region"], normalize="index")
    order = [label["name"] for label in known["labels"]]
    np.testing.assert_allclose(known["shares"], rows[order].to_numpy(), atol=1e-4)
    colors = [label["color"] for label in table["known"][1]["labels"]]
    assert len(set(colors)) == len(colors)


def test_more_labels_than_regions_have_colors_of_their_own(simulated: Any, page: Any) -> None:
    adata = answered.with_regions(simulated(300, 60), ["a", "b"])
    (table,) = page(adata).data["found"]
    labels = table["known"][0]["labels"]
    assert [label["match"] for label in labels].count(None) == len(labels) - 2
    used = {region["color"] for region in table["regions"]}
    others = [label["color"] for label in labels if label["match"] is None]
    assert not used & set(others)
    assert len(set(others)) == len(others)


def test_cells_without_a_label_are_compared_with_nothing(found: Any, page: Any) -> None:
    labels = found.obs["region"].astype(object).to_numpy()
    labels[:50] = None
    found.obs["region"] = pd.Categorical(labels)
    (table,) = page(found).data["found"]
    assert sum(label["cells"] for label in table["known"][0]["labels"]) == 250
    labels[:] = None
    found.obs["region"] = pd.Categorical(labels)
    (table,) = page(found).data["found"]
    assert [known["column"] for known in table["known"]] == ["cell_type"]


def test_where_a_cell_comes_from_is_no_known_label(found: Any, page: Any) -> None:
    for column in ("batch", "sample_id", "donor"):
        found.obs[column] = pd.Categorical(["a", "b", "c"] * 100)
    found.obs["leiden"] = pd.Categorical(["a", "b", "c"] * 100)
    (table,) = page(found, slice_key="none").data["found"]
    assert [known["column"] for known in table["known"]] == ["region", "cell_type", "leiden"]


def test_regions_touch_their_neighbors(page: Any, simulated: Any) -> None:
    adata = simulated(300, 40)
    x = np.repeat(np.arange(30.0), 10)
    adata.obsm["spatial"] = 10 * np.stack([x, np.tile(np.arange(10.0), 30)], axis=1)
    codes = (x // 10).astype(int)
    adata.obs["terrazzo_region"] = pd.Categorical.from_codes(codes, categories=["w", "m", "e"])
    (table,) = page(adata).data["found"]
    by_name = {region["name"]: region for region in table["regions"]}
    touched = {name: [n for n, _ in region["neighbors"]] for name, region in by_name.items()}
    assert touched["w"] == touched["e"] == [1]
    assert sorted(touched["m"]) == [0, 2]
    for region in table["regions"]:
        assert sum(share for _, share in region["neighbors"]) == pytest.approx(1)


def test_an_answer_adds_markers(found: Any, page: Any) -> None:
    answer = answered.answer_of([found], ["mine"], NAMES)
    made = page([found], answer=answer, n_genes=3)
    (table,) = made.data["found"]
    assert made.data["slices"][0]["name"] == "mine"
    first = table["regions"][0]
    assert [marker["against"] for marker in first["markers"]] == ["rest", "rest", "touching"]
    assert [marker["gene"] for marker in first["dots"]] == list(found.var_names[1:3])
    assert first["genesSure"] == pytest.approx(0.5)
    held = {gene["name"] for gene in made.data["slices"][0]["genes"]}
    assert {marker["gene"] for region in table["regions"] for marker in region["dots"]} <= held
    assert "marker genes" in made.words
    assert "5 regions: where the score of held-out counts bends." in made.words


def test_regions_without_a_cell_are_not_listed(found: Any, page: Any) -> None:
    names = [*NAMES[:2], "empty", *NAMES[2:]]
    codes = found.obs["terrazzo_region"].cat.codes.to_numpy().copy()
    codes[codes >= 2] += 1
    found.obs["terrazzo_region"] = pd.Categorical.from_codes(codes, categories=names)
    made = page([found], answer=answered.answer_of([found], ["mine"], names))
    (table,) = made.data["found"]
    assert [region["name"] for region in table["regions"]] == NAMES
    third = table["regions"][2]["markers"][0]["gene"]
    assert third == found.var_names[3 * 3 + 1]  # of region 3, as it was numbered with the empty one


def test_a_real_answer_writes_its_own_report(
    simulated: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}
    monkeypatch.setattr("terrazzo.report.write", lambda *args, **options: given.update(options))
    from terrazzo.answers.result import Answer

    empty = Answer.__new__(Answer)
    for name, value in (("slices", [None]), ("names", NAMES), ("kind", "region")):
        object.__setattr__(empty, name, value)
    empty.report(tmp_path / "report.html", n_genes=2)
    assert given["title"] == "5 regions in 1 slice"
    assert given["answer"] is empty
    assert given["n_genes"] == 2


def test_several_slices_have_one_legend(simulated: Any, page: Any) -> None:
    slices = [answered.with_regions(simulated(120, 60, seed=seed), NAMES) for seed in (0, 1)]
    slices[1] = slices[1][slices[1].obs["terrazzo_region"] != "R2"].copy()
    slices[1].obs["cell_type"] = slices[1].obs["cell_type"].astype(str) + "x"
    made = page(slices)
    (table,) = made.data["found"]
    colors = {region["name"]: region["color"] for region in table["regions"]}
    for sheet in made.data["slices"]:
        for label in sheet["columns"][0]["labels"]:
            assert label["color"] == colors[label["name"]]
    assert table["regions"][1]["slices"][1] == 0
    every: dict[str, str] = {}
    for sheet in made.data["slices"]:
        (column,) = [one for one in sheet["columns"] if one["name"] == "cell_type"]
        every.update({label["name"]: label["color"] for label in column["labels"]})
    assert len(set(every.values())) == len(every)  # also of labels that no slice has together
    assert "found in each slice by itself" not in " ".join(made.words)


def test_names_of_separate_runs_are_not_taken_for_one(simulated: Any, page: Any) -> None:
    slices = []
    for seed in (0, 1):
        adata = simulated(60, 40, seed=seed)
        adata.obs["X_t3_domain"] = pd.Categorical(np.where(np.arange(60) % 2, "0", "1"))
        slices.append(adata)
    assert "found in each slice by itself" in " ".join(page(slices).words)


def test_a_slice_without_regions_is_named(found: Any, simulated: Any, page: Any) -> None:
    made = page([found, simulated(60, 60)])
    assert "not in slice 2" in made.words
    (table,) = made.data["found"]
    assert table["regions"][0]["slices"][1] is None


def test_regions_go_before_types_and_domains(found: Any, page: Any) -> None:
    found.obs["X_t3_domain"] = pd.Categorical(["0", "1", "2"] * 100)
    found.obs["terrazzo_type"] = pd.Categorical(["T1", "T2", "T3"] * 100)
    tables = page(found).data["found"]
    assert [one["kind"] for one in tables] == ["region", "type", "domain"]
    assert tables[1]["known"][0]["column"] == "cell_type"
    answer = answered.answer_of([found], ["mine"], NAMES)
    answer.key = "X_t3_domain"
    answer.names = ["0", "1", "2"]
    assert page(found, answer=answer).data["found"][0]["key"] == "X_t3_domain"


def test_hostile_regions_are_texts(simulated: Any, page: Any) -> None:
    names = [f"{HOSTILE}{i}" for i in range(5)]
    adata = answered.with_regions(simulated(100, 40), names)
    adata.uns["terrazzo"]["terrazzo_region"]["vectors"] = HOSTILE
    answer = answered.answer_of([adata], [HOSTILE], names)
    answer.markers["gene"] = HOSTILE
    answer.markers["share_in"] = np.nan
    answer.notes = (HOSTILE,)
    made = page(adata, answer=answer)
    assert not made.named("img", src="x")
    assert "<img src=x" not in made.text
    assert made.text.count("<script") == made.text.count("</script>")
    assert made.data["found"][0]["regions"][0]["markers"][0]["inside"] is None


def test_the_embedding_in_which_regions_were_found_is_drawn_first(
    simulated: Any, page: Any
) -> None:
    adata = simulated(80, 40)
    for name in ("pca", "t3"):
        tz.Baseline(name, n_components=5).embed(adata)
    tz.tasks.domains(adata, use_rep="X_t3", n_domains=3)
    layouts = page(adata).data["slices"][0]["layouts"]
    assert [one["key"] for one in layouts] == ["X_t3", "X_pca"]


def test_more_than_ten_regions_have_patterns(simulated: Any, page: Any) -> None:
    names = [f"R{i}" for i in range(1, 13)]
    adata = simulated(240, 40)
    adata.obs["terrazzo_region"] = pd.Categorical.from_codes(np.arange(240) % 12, categories=names)
    adata.uns["terrazzo_region_colors"] = in_order(12)
    made = page(adata)
    colors = [region["color"] for region in made.data["found"][0]["regions"]]
    kinds = [made.data["patterns"].get(color, 0) for color in colors]
    assert kinds == [0] * 10 + [1] * 2
    patterned = {str(one["id"]) for one in made.named("pattern")}
    for color in colors[10:]:
        assert f"pattern-{color[1:]}" in patterned
        assert made.named("circle", fill=f"url(#pattern-{color[1:]})")
    plain = page(answered.with_regions(simulated(100, 40), NAMES), overwrite=True)
    assert not plain.named("pattern", id=f"pattern-{in_order(1)[0][1:]}")


@pytest.mark.parametrize(
    ("record", "title"),
    [
        ({"model_type": "baseline:t3", "model": "T3"}, "X_t3_domain (baseline)"),
        ({"model_type": "stofm", "trained": False}, "X_t3_domain (untrained model)"),
        ({"model_type": "stofm", "trained": True}, "X_t3_domain"),
        ({}, "X_t3_domain"),
    ],
    ids=["baseline", "untrained", "trained", "not recorded"],
)
def test_baselines_are_marked(
    simulated: Any, page: Any, record: dict[str, Any], title: str
) -> None:
    adata = simulated(60, 40)
    adata.obs["X_t3_domain"] = pd.Categorical(["0", "1", "2"] * 20)
    adata.uns["terrazzo"] = {"X_t3_domain": {"task": "domains", "use_rep": "X_t3:niche"}}
    if record:
        adata.uns["terrazzo"]["X_t3"] = record
    made = page(adata)
    assert made.data["found"][0]["title"] == title
    assert any(word.startswith(f"{title} beside region") for word in made.words)


def test_listed_markers_are_in_the_file_unless_they_are_many(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answered.answer_of([found], ["mine"], NAMES)
    answer.markers.loc[answer.markers.index[-2], "rank"] = regions.N_MARKERS
    every = list(dict.fromkeys(answer.markers["gene"]))
    assert regions.gene_names(answer) == every
    monkeypatch.setattr(regions, "MARKER_VALUES", found.n_obs)
    assert regions.gene_names(answer) == every[:-1]
    assert regions.gene_names(None) == []


def test_regions_of_a_baseline_are_marked_by_its_name(found: Any, page: Any) -> None:
    found.uns["terrazzo"]["terrazzo_region"]["vectors"] = "T3 (Z20, rings)"
    found.uns["terrazzo"]["X_t3"] = {"model_type": "baseline:t3", "model": "T3 (Z20, rings)"}
    assert page(found).data["found"][0]["title"] == "terrazzo_region (baseline)"


def test_colors_of_scanpy_stay_where_there_is_one_slice() -> None:
    own = {"kind": {"a": "#ff0000", "b": "#ff0000"}}
    assert regions.joint_colors([own]) == own
    both = regions.joint_colors([own, {"kind": {"c": "#ff0000", "a": "#000000"}}])
    assert both["kind"]["a"] == "#ff0000"
    assert both["kind"]["c"] != "#ff0000"


@pytest.mark.slow
def test_from_slices_to_the_page(simulated: Any, tmp_path: Any) -> None:
    from terrazzo.answers.run import regions as find_regions

    slices = [simulated(300, 100, seed=seed) for seed in (0, 1)]
    answer = find_regions(slices, k=4, n_seeds=1, bootstraps=2, progress=False)
    path = answer.report(tmp_path / "report.html", projection="pca", progress=False)
    text = path.read_text(encoding="utf-8")
    assert all(name in text for name in answer.names)
    assert "marker genes" in text
    assert is_found(answer.slices[0], answer.key)
