"""Expression from histology: what is learned from which slices, what may not leak, and what the notes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo.errors import ConfigError, InputError
from terrazzo.expression import expression
from terrazzo.slices.panel import Panel
from terrazzo.tasks import Probe, TaskResult, fit_image_to_gene, image_to_gene

KEY = "X_img"


@pytest.fixture
def slices(simulated: Any) -> list[AnnData]:
    """Four slices of two donors; the vectors show the mixture of types of each spot, as a picture would."""
    out = []
    for i in range(4):
        adata = simulated(
            150,
            40,
            layout="visium",
            n_regions=3,
            n_types=4,
            seed=i,
            depth=4000.0,
            donor=f"donor_{i // 2}",
        )
        noise = np.random.default_rng(i).normal(0, 0.05, (adata.n_obs, 6))
        noise[:, :4] += adata.obsm["proportions"]
        adata.obsm[KEY] = noise.astype(np.float32)
        out.append(adata)
    return out


def of(result: TaskResult, metric: str, part: str = "", **where: str) -> float:
    table = result.metrics[(result.metrics["metric"] == metric) & (result.metrics["part"] == part)]
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table)
    return float(table["value"].mean())


def test_across_patients(slices: list[AnnData]) -> None:
    result = image_to_gene(
        slices, use_rep=KEY, genes=10, names=["a", "b", "c", "d"], runs=2, progress=False
    )
    metrics = result.metrics
    assert set(metrics["split"]) == {"patients"}
    assert dict(zip(metrics["slice"], metrics["patient"], strict=True)) == {
        "a": "donor_0",
        "b": "donor_0",
        "c": "donor_1",
        "d": "donor_1",
    }
    assert (metrics.groupby(["slice", "part", "metric"]).size() == 2).all()
    for name in "abcd":
        assert of(result, "mse", slice=name) < 0.8 * of(result, "mse_mean", slice=name)
        assert of(result, "pearson", slice=name) > 0.4
    assert [fold["n_training_slices"] for fold in result.config["folds"]] == [2, 2, 2, 2]
    assert result.config["genes"] == 10
    assert len(result.predictions) == 600
    assert result.score("mse") == pytest.approx(
        np.mean([of(result, "mse", slice=name) for name in "abcd"])
    )


def test_scores_by_hand(slices: list[AnnData]) -> None:
    genes = list(slices[0].var_names[[3, 7]])
    result = image_to_gene(
        slices[:2], test=slices[2], use_rep=KEY, genes=genes, names=["c"], runs=1, progress=False
    )
    learned = np.concatenate([expression(Panel.read(a), genes).to_numpy() for a in slices[:2]])
    true = expression(Panel.read(slices[2]), genes).to_numpy()
    rows = result.predictions
    np.testing.assert_array_equal(rows[[f"true:{g}" for g in genes]], true)
    predicted = rows[[f"cross:{g}" for g in genes]].to_numpy()
    assert of(result, "mse") == pytest.approx(((predicted - true) ** 2).mean(), rel=1e-5)
    assert of(result, "mse_mean") == pytest.approx(((learned.mean(0) - true) ** 2).mean(), rel=1e-5)
    for i, gene in enumerate(genes):
        assert of(result, "mse_mean", gene) == pytest.approx(
            ((learned[:, i].mean() - true[:, i]) ** 2).mean(), rel=1e-5
        )
        assert of(result, "pearson", gene) == pytest.approx(
            np.corrcoef(predicted[:, i], true[:, i])[0, 1], rel=1e-5
        )
    assert set(result.metrics["split"]) == {"cross"}


def shuffled(adata: AnnData, seed: int = 9) -> AnnData:
    """Another slice's worth of counts under the same vectors."""
    out = adata.copy()
    rng = np.random.default_rng(seed)
    out.X = sp.csr_matrix(rng.poisson(rng.uniform(0, 30, out.n_vars), out.shape).astype(np.float32))
    return out


@pytest.mark.parametrize("genes", [8, ["SIM1", "SIM4", "SIM5"]])
def test_no_count_of_the_scored_slice_reaches_what_is_learned(
    slices: list[AnnData], genes: Any
) -> None:
    def answers(third: AnnData) -> Any:
        options = {"use_rep": KEY, "genes": genes, "runs": 2, "names": ["c"], "progress": False}
        result = image_to_gene(slices[:2], test=third, **options)
        return result, result.predictions.filter(like="cross:")

    (first, before), (second, after) = answers(slices[2]), answers(shuffled(slices[2]))
    assert list(before.columns) == list(after.columns)  # the choice of genes
    np.testing.assert_array_equal(before.to_numpy(), after.to_numpy())
    assert of(first, "mse") != of(second, "mse")
    assert first.config["folds"][0]["scored"] == second.config["folds"][0]["scored"]


def test_a_patient_that_is_held_out_is_held_out_whole(slices: list[AnnData]) -> None:
    options = {
        "use_rep": KEY,
        "genes": 6,
        "runs": 1,
        "names": ["a", "b", "c", "d"],
        "progress": False,
    }
    before = image_to_gene(slices, **options).predictions
    after = image_to_gene([slices[0], shuffled(slices[1]), *slices[2:]], **options).predictions
    for table in (before, after):
        assert len(table) == 600

    def row(table: Any, name: str) -> Any:
        return table[table["slice"] == name].filter(like="cross:").dropna(axis=1)

    assert row(before, "a").equals(
        row(after, "a")
    )  # b is of the same patient: its counts are not learned from
    assert not row(before, "c").equals(row(after, "c"))


def test_vectors_of_one_spot_do_not_move_the_answer_for_another(slices: list[AnnData]) -> None:
    options = {"use_rep": KEY, "genes": 5, "runs": 1, "progress": False}
    before = (
        image_to_gene(slices[:2], test=slices[2], **options)
        .predictions.filter(like="cross:")
        .to_numpy()
    )
    slices[2].obsm[KEY][:75] += 5
    after = (
        image_to_gene(slices[:2], test=slices[2], **options)
        .predictions.filter(like="cross:")
        .to_numpy()
    )
    np.testing.assert_array_equal(before[75:], after[75:])
    assert not np.allclose(before[:75], after[:75])


def test_depth_of_a_slice_is_taken_out_by_its_own_totals(slices: list[AnnData]) -> None:
    deeper = slices[2].copy()
    deeper.X = deeper.X * 3
    options = {"use_rep": KEY, "genes": 5, "runs": 1, "progress": False}

    def errors(third: AnnData, scale: Any) -> float:
        return of(image_to_gene(slices[:2], test=third, scale=scale, **options), "mse")

    assert errors(deeper, 1e4) == pytest.approx(errors(slices[2], 1e4), rel=1e-5)
    assert errors(deeper, "median") > 1.5 * errors(slices[2], "median")


def test_vectors_without_information_score_as_the_gene_mean(slices: list[AnnData]) -> None:
    nothing = [np.zeros((a.n_obs, 2)) for a in slices]
    result = image_to_gene(slices, use_rep=nothing, genes=5, runs=2, progress=False)
    assert result.score("mse") == pytest.approx(result.score("mse_mean"), rel=0.02)
    assert result.score("pearson") == 0
    assert result.config["use_rep"] == "array"


def test_cells_without_counts_are_not_learned_from_or_scored(slices: list[AnnData]) -> None:
    holed = slices[2].copy()
    keep = np.ones(holed.n_obs)
    keep[:20] = 0
    holed.X = sp.csr_matrix(sp.diags(keep) @ holed.X)
    result = image_to_gene(slices[:2], test=holed, use_rep=KEY, genes=5, runs=1, progress=False)
    assert result.config["folds"][0]["n_labeled"] == 130
    assert any("20 cells have no values: predicted, not scored" in note for note in result.notes)
    assert result.predictions.filter(like="cross:").notna().all(axis=None)
    assert result.predictions.filter(like="true:")[:20].isna().all(axis=None)


def test_genes_that_some_slices_lack(slices: list[AnnData]) -> None:
    a, b, c = slices[0], slices[1][:, 1:].copy(), slices[2][:, [2, *range(4, 40)]].copy()
    first, second, third, fourth = slices[0].var_names[:4]
    options = {"use_rep": KEY, "runs": 1, "progress": False, "names": ["c"]}
    result = image_to_gene([a, b], test=c, genes=[first, second, third], **options)
    assert result.config["folds"][0]["scored"] == [third]
    all_notes = " | ".join(result.notes)
    assert f"not learned, for not every training slice has them: {first} (in 1 of 2)" in all_notes
    assert f"c: not scored: {second} only in the training slices" in all_notes
    with pytest.raises(
        InputError, match="no slice could be scored: c: not scored, it has none of the genes"
    ):
        image_to_gene([a, b], test=c, genes=[second, fourth], **options)
    with pytest.raises(InputError, match="no gene is in every training slice"):
        image_to_gene([a, b], test=c, genes=[first], **options)
    chosen = image_to_gene([a, b], test=c, genes=39, **options)
    assert first not in chosen.config["folds"][0]["scored"]
    assert (
        image_to_gene([a, b], test=c, genes=500, **options)
        .notes[0]
        .startswith("39 genes are predicted, not 500")
    )


def test_fit_predict_save_load(slices: list[AnnData], tmp_path: Path) -> None:
    probe = fit_image_to_gene(slices[:2], use_rep=KEY, genes=6)
    bare = AnnData(
        obs=slices[2].obs[[]], obsm={KEY: slices[2].obsm[KEY]}
    )  # a slice that nobody has sequenced
    probe.annotate(bare)
    result = bare.obsm["expression_predicted"]
    assert result.shape == (150, 6)
    assert list(bare.uns["expression_predicted_names"]) == list(probe.names)
    again = Probe.load(probe.save(tmp_path / "probe"))
    np.testing.assert_array_equal(again.predict(bare), result)
    assert (again.info["task"], again.info["scale"], again.target) == (
        "image_to_gene",
        1e4,
        "expression",
    )
    true = expression(Panel.read(slices[2]), probe.names).to_numpy()
    assert np.mean((result - true) ** 2) < 0.9 * np.mean((true.mean(0) - true) ** 2)
    arrays = fit_image_to_gene(
        slices[:2], use_rep=[a.obsm[KEY] for a in slices[:2]], genes=list(probe.names)
    )
    np.testing.assert_allclose(arrays.predict(bare.obsm[KEY]), result, rtol=1e-5, atol=1e-5)
    assert arrays.use_rep is None
    mlp = fit_image_to_gene(slices[:2], use_rep=KEY, genes=4, head="knn")
    assert mlp.predict(bare).shape == (150, 4)


def test_patients_by_key_or_by_list(slices: list[AnnData]) -> None:
    options: dict[str, Any] = {"use_rep": KEY, "genes": 3, "runs": 1, "progress": False}
    by_list = image_to_gene(slices, donors=["p", "q", "p", "q"], **options)
    assert list(dict.fromkeys(by_list.metrics["patient"])) == ["p", "q"]
    for one, who in zip(slices, "ppqr", strict=True):
        one.uns["case"] = who
    by_key = image_to_gene(slices, donors="case", **options)
    assert [fold["n_training_slices"] for fold in by_key.config["folds"]] == [2, 2, 3, 3]
    with pytest.raises(InputError, match="the patient of slice 1, 2, 3, 4 of 4 is not known"):
        image_to_gene(slices, donors="gone", **options)
    with pytest.raises(InputError, match="3 names for 4 slices"):
        image_to_gene(slices, donors=["a", "b", "c"], **options)
    with pytest.raises(InputError, match="all 4 slices are of one patient, 'x'"):
        image_to_gene(slices, donors=["x"] * 4, **options)
    joined = image_to_gene(
        slices, donors=["p|q", "q", "r", "p"], **options
    )  # a slice of two patients ties both
    assert set(joined.metrics["patient"]) == {"p|q", "r"}


def test_a_test_slice_of_a_training_patient_is_told(slices: list[AnnData]) -> None:
    result = image_to_gene(
        [slices[0], slices[2]], test=slices[1], use_rep=KEY, genes=3, runs=1, progress=False
    )
    assert (
        result.notes[0]
        == "'donor_0' is in training and is scored: this is no score across patients"
    )


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"genes": ["SIM1", "SIM99999"]},
            InputError,
            "'SIM99999' is in none of the 2 training slices; the nearest",
        ),
        ({"genes": []}, ConfigError, "at least one gene"),
        ({"genes": ["SIM1", "SIM1"]}, ConfigError, "each of them once"),
        ({"genes": 0}, ConfigError, "genes is 0"),
        ({"use_rep": "X_gone"}, InputError, "obsm has no 'X_gone'"),
        ({"use_rep": [np.zeros((150, 2))]}, InputError, "1 arrays for 3 slices"),
        (
            {"use_rep": [np.zeros((150, 2)), np.zeros((9, 2)), np.zeros((150, 2))]},
            InputError,
            "slice 2 of 3: vectors",
        ),
        ({"head": "forest"}, ConfigError, "head is 'forest'"),
        ({"names": ["a", "b"]}, ConfigError, "1 different names"),
        ({"runs": 0}, ConfigError, "runs is 0"),
    ],
)
def test_bad_input(slices: list[AnnData], options: dict[str, Any], kind: type, words: str) -> None:
    plain: dict[str, Any] = {"use_rep": KEY, "genes": 3, "runs": 1, "progress": False}
    with pytest.raises(kind, match=words):
        image_to_gene(slices[:2], test=slices[2], **(plain | options))


def test_one_gene_under_two_names(slices: list[AnnData]) -> None:
    both = [slices[0].var_names[0], slices[0].var["ensembl_id"].iloc[0]]
    with pytest.raises(ConfigError, match="under two names"):
        image_to_gene(slices[:2], test=slices[2], use_rep=KEY, genes=both, progress=False)


def test_no_counts(slices: list[AnnData]) -> None:
    slices[1].X = None
    with pytest.raises(InputError, match="slice 2 of 2: the AnnData holds no expression matrix"):
        fit_image_to_gene(slices[:2], use_rep=KEY)
