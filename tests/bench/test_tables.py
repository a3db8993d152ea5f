"""Every table that is shipped: it loads, names known things, and its published numbers are the papers'."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from terrazzo import datasets
from terrazzo.bench import protocols
from terrazzo.bench.ablation import recipes_of
from terrazzo.bench.entries import resolve
from terrazzo.tasks.domains import Method
from terrazzo.tasks.heads import HEADS

TABLES = {name: protocols.load(name) for name in protocols.names()}
FOLDER = Path(protocols.__file__).parent / "tables"
SCORES = {
    "accuracy",
    "macro_f1",
    "ari",
    "nmi",
    "chaos",
    "pas",
    "pearson",
    "pearson_overall",
    "rmse",
    "mae",
    "mse",
    "mse_level",
    "mse_pattern",
}
USER_SUPPLIED = {
    "stofm-1-embryo",
    "stofm-2",
    "stofm-3",
    "stofm-4",
}  # none of their slices is at hand
ASKED_FOR = [
    *("stofm-1-dlpfc", "stofm-1-embryo", "stofm-2", "stofm-3", "stofm-4", "stofm-5", "stofm-fig3"),
    *(f"stofm-a{n}" for n in range(1, 8)),
    *("st-images-1-dlpfc", "st-images-3-dlpfc", "st-align-1-dlpfc"),
    *(f"st-images-{n}" for n in range(1, 8)),
    "st-images-schemes",
    *(f"st-align-{n}" for n in range(1, 4)),
    "st-align-3-genes",
    *("regions-her2st", "regions-osmfish", "regions-starmap", "regions-xenium"),
    *("celltype-merfish", "celltype-seqfish", "celltype-cosmx", "celltype-starmap"),
    *("deconvolution-liver", "deconvolution-her2st", "imputation-xenium", "imputation-cosmx"),
]

every_table = pytest.mark.parametrize("name", TABLES)


def row(table: str, model: str, part: str) -> dict:
    """Return the one published row."""
    found = [
        r
        for r in TABLES[table].published.rows
        if r["model"] == model and r["part"] == part and "note" not in r
    ]
    assert len(found) == 1, (table, model, part)
    return found[0]


def only_recipes(table: str, stage: str) -> dict:
    """Return the recipe of one stage of each variant."""
    protocol = TABLES[table]
    return {v.name: recipes_of(protocol, v)[stage] for v in protocol.variants}


def test_every_table_that_was_asked_for_is_there() -> None:
    assert sorted(TABLES) == sorted(ASKED_FOR)


@every_table
def test_a_table_is_called_what_its_file_is_called(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert TABLES[name].name == name
    assert f"#     terrazzo bench {name} --data DATA\n" in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(text.splitlines()) <= 400


@every_table
def test_a_table_names_known_scores_heads_systems_and_datasets(name: str) -> None:
    table = TABLES[name]
    assert set(table.metrics) <= SCORES
    assert table.note
    known = {"domains": set(get_args(Method)), "reconstruction": {"none"}}
    assert set(table.heads) <= known.get(table.task, set(HEADS))
    resolve(table.models)  # refuses a name that it does not know
    for part in table.parts:
        known = datasets.info(part.dataset)
        assert {part.test, *part.train} <= set(known.slices)
        assert part.test not in part.train
        assert table.label in ("", *known.labels)


@every_table
def test_published_rows_hold_known_scores_only(name: str) -> None:
    table = TABLES[name]
    for given in table.published.rows:
        numbers = {k: v for k, v in given.items() if k not in protocols.KEYS_OF_ROW}
        assert {k.removesuffix("_sd") for k in numbers} <= SCORES
        assert all(isinstance(v, float) and 0 <= v < 1 for v in numbers.values())
    keys = [(r["model"], r["part"], "note" in r) for r in table.published.rows]
    assert len(set(keys)) == len(keys)
    assert not table.published.rows or table.published.data
    parts = {r["part"] for r in table.published.rows}
    assert {p.published_name for p in table.parts if p.published_name} <= parts | {""}
    if table.task == "reconstruction":  # a group of columns for each of theirs
        assert [f"{size} x {size}" for size in table.sizes] == list(
            dict.fromkeys(r["part"] for r in table.published.rows)
        )


@every_table
def test_the_rules_of_honesty(name: str) -> None:
    table = TABLES[name]
    assert "blocked" in table.all_splits
    assert table.runs >= {"domains": 5}.get(table.task, 3)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.variants])
def test_every_variant_is_a_recipe(name: str) -> None:
    table = TABLES[name]
    assert table.training
    recipes = [
        recipe for variant in table.variants for recipe in recipes_of(table, variant).values()
    ]
    assert all(r.model.preset == "tiny" for r in recipes)
    trained = [r for r in recipes if r.stage == "stofm-adapt"]
    assert all(
        r == trained[0] for r in trained
    )  # so that the cell encoder is adapted once for all of them
    published, ours = {r["model"] for r in table.published.rows}, {v.name for v in table.variants}
    if name == "st-images-4":  # seven sizes of theirs, three of ours
        assert ours < published
    elif name.startswith("st-align-3"):  # their single encoders are UNI and scGPT as published
        assert len(ours & published) == 3
        assert len(ours) == 6
    else:  # a row of ours for each of theirs
        assert ours == published or not published


@pytest.mark.parametrize(
    "name", [name for name, table in TABLES.items() if "stimage-pretrain" in table.training]
)
def test_variants_of_st_as_images_have_one_stage_and_one_budget(name: str) -> None:
    table = TABLES[name]
    found = only_recipes(name, "stimage-pretrain")
    assert set(table.training) == {"stimage-pretrain"}
    assert len({(r.optim, r.run, r.seed, r.data.windows_per_slice) for r in found.values()}) == 1
    sites = [r.data.batch_windows * r.model.windows.window**2 for r in found.values()]
    assert max(sites) < 1.2 * min(sites)


def test_variants_of_st_align_have_one_budget_and_change_what_their_name_says() -> None:
    for table in ("st-align-3", "st-align-3-genes"):
        found = only_recipes(table, "stalign-pretrain")
        assert set(TABLES[table].training) == {"stalign-pretrain"}
        assert len({(r.optim, r.run, r.seed, r.data) for r in found.values()}) == 1
        goals = {name: r.objective for name, r in found.items()}
        assert goals["AE + ABFN (w/o L_NS)"].cross_weight == 0
        assert goals["ABFN + L_NS (w/o AEs)"].adaptive is False
        assert goals["AE + L_NS (concatenation)"].fusion == "concatenation"
        assert [goals[f"{m} only, L_NS alone"].modality for m in ("image", "genes")] == [
            "image",
            "genes",
        ]
        assert sorted(map(repr, goals.values())) == sorted(set(map(repr, goals.values())))


def test_nobody_learns_from_the_patient_that_is_scored() -> None:
    patient = {"A1": "A", "B4": "B", "C2": "C", "C3": "C", "C4": "C"}
    for table in ("st-align-2", "st-align-3-genes"):
        for part in TABLES[table].parts:
            assert part.patient == patient[part.test]
            assert part.patient not in {
                patient[name] for name in part.train
            }  # nor A2, whose picture is misplaced


def test_variants_of_st_as_images_change_what_their_name_says() -> None:
    def of(table: str) -> dict:
        return only_recipes(table, "stimage-pretrain")

    for window in (8, 16, 24):
        assert (
            of("st-images-4")[f"ST as images, windows of {window}"].model.windows.window == window
        )
    for channels in (128, 256, 512):
        assert (
            of("st-images-5")[f"ST as images, {channels} channels"].model.windows.channels
            == channels
        )
    for name, choose in (("Weighted", "weighted"), ("HVGs", "hvg"), ("Random", "random")):
        assert of("st-images-6")[f"ST as images, channels {name}"].model.windows.choose == choose
    schemes = of("st-images-schemes")
    assert len(schemes) == 8
    for name, found in schemes.items():
        scheme, _, own = name.partition(", flavor ")
        assert (found.objective.scheme, found.objective.flavor) == (scheme, own)
        assert found.model.init == {"terrazzo": "informed", "paper": "random"}[own]


def test_variants_change_what_their_name_says() -> None:
    def second(table: str, name: str):
        return only_recipes(table, "stofm-pretrain")[name]

    assert second("stofm-5", "SToFM w/o VCs").model.subslices.virtual is False
    assert (
        second("stofm-a2", "SToFM, sub-slices of 100, Leiden 1.0").model.subslices.subslice_size
        == 100
    )
    assert (
        second(
            "stofm-a2", "SToFM, sub-slices of 1000, Leiden 0.5"
        ).model.subslices.leiden_resolution
        == 0.5
    )
    assert second("stofm-a3", "w/o micro").model.subslices.subslice_size == 1
    assert second("stofm-a3", "w/o spatial matrix").model.subslices.pair == "none"
    assert second("stofm-a4", "SToFM, 4 cells encoded again").objective.reencode == 4
    assert second("stofm-a5", "SToFM, 12.5% of the data").data.share == 0.125
    assert second("stofm-a6", "SToFM, alpha 0.4").model.subslices.alpha == 0.4
    assert second("stofm-a7", "SToFM, gamma 0.8").objective.gamma == 0.8
    for table in ("stofm-a3", "stofm-a4", "stofm-a7"):
        assert list(TABLES[table].training) == ["stofm-adapt", "stofm-pretrain"]
        recipes = only_recipes(table, "stofm-pretrain").values()
        assert {recipe.objective.kind for recipe in recipes} == {"paper"}


@pytest.mark.parametrize(
    ("table", "model", "part", "numbers"),
    [
        ("stofm-1-embryo", "CellPLM", "Embryo3", {"accuracy": 0.8068, "macro_f1": 0.7566}),
        ("stofm-1-dlpfc", "SToFM", "DLPFC2", {"accuracy": 0.6974, "macro_f1": 0.6453}),
        ("stofm-1-dlpfc", "scGPT", "Average", {"accuracy": 0.6781, "macro_f1": 0.6178}),
        ("stofm-2", "SToFM", "Brain1", {"accuracy": 0.6349, "macro_f1": 0.4951}),
        ("stofm-3", "SToFM", "LiverCross", {"pearson": 0.7546, "rmse": 0.0867, "mae": 0.0430}),
        ("stofm-4", "Geneformer", "SkinCross", {"pearson": 0.3610, "rmse": 0.3671, "mae": 0.1029}),
        ("stofm-5", "Cell encoder w/ DA", "EmbryoCross", {"macro_f1": 0.4155}),
        (
            "stofm-a1",
            "SToFM full-parameter tuning",
            "Brain2",
            {"accuracy": 0.9725, "macro_f1": 0.8903},
        ),
        (
            *("stofm-a2", "SToFM, sub-slices of 500, Leiden 1.0", "EmbryoCross"),
            {"accuracy": 0.5977, "macro_f1": 0.4475},
        ),
        ("stofm-a3", "w/o spatial matrix", "EmbryoCross", {"macro_f1": 0.413}),
        ("stofm-a4", "SToFM, 4 cells encoded again", "Embryo2", {"macro_f1": 0.754}),
        ("stofm-a5", "SToFM, 50% of the data", "Embryo2", {"macro_f1": 0.782}),
        ("stofm-a6", "SToFM, alpha 0.4", "EmbryoCross", {"macro_f1": 0.440}),
        ("stofm-a7", "SToFM, gamma 0", "Embryo2", {"macro_f1": 0.683}),
        ("st-images-1", "scGPT-spatial", "LND", {"accuracy": 0.573, "ari": 0.319}),
        ("st-images-1", "ST as images (16)", "BrC", {"accuracy": 0.773, "ari": 0.709}),
        ("st-images-1-dlpfc", "raw expression", "DLPFC", {"accuracy": 0.571, "ari": 0.305}),
        ("st-images-2", "SToFM", "Avg", {"accuracy": 0.542}),
        ("st-images-3-dlpfc", "ST as images (24)", "DLPFC", {"accuracy": 0.775, "ari": 0.595}),
        ("st-images-3", "ST as images (30)", "Ton", {"accuracy": 0.704, "ari": 0.324}),
        ("st-images-4", "ST as images, windows of 14", "Col", {"accuracy": 0.422, "ari": 0.157}),
        ("st-images-5", "ST as images, 512 channels", "LNA", {"accuracy": 0.670, "ari": 0.374}),
        (
            "st-images-6",
            "ST as images, channels Weighted",
            "LND",
            {"accuracy": 0.640, "ari": 0.381},
        ),
        ("st-images-7", "ST as images (22)", "16 x 16", {"mse": 0.231, "mae": 0.186}),
        ("st-images-7", "scGPT-spatial", "18 x 18", {"mse": 0.326, "mae": 0.332}),
        ("st-align-1", "scGPT", "151669", {"ari": 0.212, "ari_sd": 0.145}),
        ("st-align-1-dlpfc", "ST-Align", "151673", {"ari": 0.278, "ari_sd": 0.014}),
        ("st-align-2", "UNI", "HBB", {"mse": 0.049, "mse_sd": 0.021}),
        ("st-align-3", "AE + ABFN (w/o L_NS)", "Mean", {"ari": 0.162}),
    ],
)
def test_published_numbers_typed_from_the_papers(
    table: str, model: str, part: str, numbers: dict
) -> None:
    given = row(table, model, part)
    assert {k: v for k, v in given.items() if k not in protocols.KEYS_OF_ROW} == numbers


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("st-images-1-dlpfc", "st-images-1"),
        ("st-images-3-dlpfc", "st-images-3"),
        ("st-align-1-dlpfc", "st-align-1"),
        ("deconvolution-liver", "stofm-3"),
        ("imputation-xenium", "stofm-4"),
    ],
)
def test_a_number_that_stands_in_two_tables_is_the_same(short: str, whole: str) -> None:
    rows = TABLES[short].published.rows
    assert rows
    assert all(r in TABLES[whole].published.rows for r in rows)


@pytest.mark.parametrize("name", [name for name in TABLES if name not in USER_SUPPLIED])
def test_the_data_at_hand_have_what_a_table_asks_for(name: str, shared_dir: Path) -> None:
    import anndata

    table, data = TABLES[name], shared_dir / "data"
    missing = []
    for part in table.parts:
        try:
            paths = [datasets.find(part.dataset, s, data) for s in (part.test, *part.train)]
        except datasets.DataMissing:
            missing.append(part.name)
            continue
        labeled = paths if "cross" in part.settings else paths[:1]
        for path in labeled if table.label else []:
            adata = anndata.read_h5ad(path, backed="r")
            assert table.label in (adata.obsm if table.task == "deconvolution" else adata.obs), path
            adata.file.close()
    expected = {"st-images-1": 5, "st-images-2": 5, "st-images-3": 5, "st-align-1": 5}.get(name, 0)
    assert len(missing) == expected, missing


@pytest.mark.parametrize("name", sorted(USER_SUPPLIED))
def test_data_that_the_user_supplies_are_asked_for_by_name(name: str, tmp_path: Path) -> None:
    part = TABLES[name].parts[0]
    with pytest.raises(datasets.DataMissing, match=f"put it at .*{part.dataset}.*get it from"):
        datasets.find(part.dataset, part.test, tmp_path)
