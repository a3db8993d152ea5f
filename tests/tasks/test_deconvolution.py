"""Proportions of cell types from an embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import deconvolve, fit_probe
from terrazzo.tasks.heads import MLPConfig

NO_BAR: dict[str, Any] = {"progress": False}
Corpus = Callable[..., list[AnnData]]


@pytest.fixture
def spots(embedded_corpus: Corpus) -> list[AnnData]:
    return embedded_corpus(2, 300, neighbors=0, layout="visium", n_genes=150)


@pytest.mark.parametrize(("name", "least"), [("mlp", 0.75), ("linear", 0.75), ("knn", 0.7)])
def test_the_mixture_of_simulated_spots_is_recovered(
    name: str, least: float, spots: list[AnnData], quick_mlp: MLPConfig
) -> None:
    first, second = spots
    head = quick_mlp if name == "mlp" else name
    within = deconvolve(first, use_rep="X_a", head=head, runs=1, **NO_BAR)
    cross = deconvolve([first], test=second, use_rep="X_a", head=head, runs=1, **NO_BAR)
    for done, split in ((within, "random"), (within, "blocked"), (cross, "cross")):
        assert done.score("pearson", split) > least
        assert done.score("rmse", split) < 0.75 * done.score("rmse_mean", split)
        assert done.score("mae", split) < 0.75 * done.score("mae_mean", split)
    answers = within.predictions[[c for c in within.predictions if c.startswith("blocked:")]]
    assert list(answers) == [f"blocked:type_{i}" for i in range(1, 5)]
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-4)
    assert answers.to_numpy().min() >= 0


def test_shuffled_proportions_are_no_better_than_their_mean(
    spots: list[AnnData], quick_mlp: MLPConfig
) -> None:
    first, _ = spots
    shuffled = np.random.default_rng(0).permutation(first.obsm["proportions"])
    for head in ("linear", quick_mlp):
        done = deconvolve(
            first,
            use_rep="X_a",
            proportions=shuffled,
            head=head,
            runs=1,
            splits=["blocked"],
            **NO_BAR,
        )
        assert abs(done.score("pearson")) < 0.15
        assert done.score("rmse_mean") * 0.97 < done.score("rmse") < done.score("rmse_mean") * 1.15


def test_every_type_has_its_scores(spots: list[AnnData]) -> None:
    done = deconvolve(spots[0], use_rep="X_a", head="knn", runs=2, splits=["random"], **NO_BAR)
    parts = done.metrics[done.metrics["part"] != ""]
    table = parts[parts["number"] == 0].set_index(["part", "metric"])["value"].unstack()
    assert list(table.index) == [f"type_{i}" for i in range(1, 5)]
    assert {"pearson", "rmse", "mae", "rmse_mean", "mae_mean"} <= set(table)
    whole = done.metrics[(done.metrics["part"] == "") & (done.metrics["number"] == 0)].set_index(
        "metric"
    )["value"]
    assert table["pearson"].mean() == pytest.approx(whole["pearson"])
    assert np.sqrt((table["rmse"] ** 2).mean()) == pytest.approx(whole["rmse"])
    assert np.sqrt((table["rmse_mean"] ** 2).mean()) == pytest.approx(whole["rmse_mean"])


def test_the_trivial_answer_is_the_training_cells_mean(spots: list[AnnData]) -> None:
    adata = spots[0]
    done = deconvolve(adata, use_rep="X_a", head="knn", runs=1, splits=["random"], **NO_BAR)
    tested = done.predictions["random:type_1"].notna().to_numpy()
    truth = np.asarray(adata.obsm["proportions"])
    error = truth[tested] - truth[~tested].mean(0)
    assert done.score("rmse_mean") == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert done.score("mae_mean") == pytest.approx(np.abs(error).mean(), rel=1e-4)


def test_different_types_are_scored_on_what_both_list(spots: list[AnnData]) -> None:
    first, second = spots
    names = [f"type_{i}" for i in range(1, 5)]
    second.obsm["proportions"] = pd.DataFrame(
        second.obsm["proportions"], columns=names, index=second.obs_names
    )
    second.obsm["proportions"] = second.obsm["proportions"].rename(columns={"type_2": "new"})[
        ["new", "type_4", "type_3", "type_1"]
    ]
    done = deconvolve(first, test=second, use_rep="X_a", head="linear", runs=1, **NO_BAR)
    assert done.config["scored"] == ["type_1", "type_3", "type_4"]
    assert any(
        "type_2 only in the training slices; new only in the test slices" in note
        for note in done.notes
    )
    assert done.score("pearson") > 0.7
    true = done.predictions[["true:type_1", "true:type_4"]].to_numpy()
    np.testing.assert_allclose(true, second.obsm["proportions"][["type_1", "type_4"]], atol=1e-6)
    second.obsm["proportions"].columns = list("abcd")
    with pytest.raises(InputError, match="no column in common"):
        deconvolve(first, test=second, use_rep="X_a", head="linear", **NO_BAR)


def test_training_slices_that_list_other_types(spots: list[AnnData]) -> None:
    first, second = spots
    second.uns["proportions_names"] = np.array(["type_1", "type_2", "type_3", "new"], dtype=object)
    fitted = fit_probe([first, second], use_rep="X_a", proportions="proportions", head="knn")
    assert fitted.names == ("type_1", "type_2", "type_3", "type_4", "new")
    assert any("type_4, new" in note for note in fitted.info["notes"])


def test_proportions_are_carried_to_a_slice_without_any(spots: list[AnnData]) -> None:
    first, second = spots
    truth = np.asarray(second.obsm.pop("proportions"))
    fitted = fit_probe(first, use_rep="X_a", proportions="proportions", head="linear")
    fitted.annotate(second)
    predicted = second.obsm["proportions_predicted"]
    assert list(second.uns["proportions_predicted_names"]) == list(first.uns["proportions_names"])
    np.testing.assert_allclose(predicted.sum(1), 1, atol=1e-5)
    assert np.corrcoef(predicted.ravel(), truth.ravel())[0, 1] > 0.7
    again = deconvolve(
        second,
        use_rep="X_a",
        proportions="proportions_predicted",
        head="linear",
        runs=1,
        splits=["random"],
        **NO_BAR,
    )
    assert again.score("pearson") > 0.95


def test_spots_without_proportions_are_predicted_and_not_scored(spots: list[AnnData]) -> None:
    adata = spots[0]
    adata.obsm["proportions"][:9] = np.nan
    done = deconvolve(adata, use_rep="X_a", head="linear", runs=1, **NO_BAR)
    assert done.config["n_labeled"] == 291
    assert done.predictions["true:type_1"].isna().sum() == 9
    assert done.predictions["blocked:type_1"].notna().all()
    assert any("9 cells have no values" in note for note in done.notes)


def with_rows(adata: AnnData, rows: dict[int, list[float]]) -> AnnData:
    for row, values in rows.items():
        adata.obsm["proportions"][row] = values
    return adata


def test_bad_proportions_are_refused(spots: list[AnnData]) -> None:
    good = spots[0].obsm["proportions"].copy()
    for rows, message in (
        (
            {3: [0.5, 0.2, 0.2, 0.2], 7: [0.9, 0.9, 0.0, 0.0]},
            "2 of 300 rows do not .worst: row 7, sum 1.8",
        ),
        ({5: [1.2, -0.2, 0.0, 0.0]}, "1 of 300 rows do not .worst: row 5, sum 1, least -0.2"),
        ({0: [0.0, 0.0, 0.0, 0.0]}, "worst: row 0, sum 0"),
        ({0: [np.inf, 0.0, 0.0, 0.0]}, "infinite values, in 1 cells"),
    ):
        spots[0].obsm["proportions"] = good.copy()
        with pytest.raises(InputError, match=message):
            deconvolve(with_rows(spots[0], rows), use_rep="X_a", **NO_BAR)
    spots[0].obsm["proportions"] = good * 1.0005  # within rounding
    assert (
        deconvolve(spots[0], use_rep="X_a", head="knn", runs=1, splits=["random"], **NO_BAR).score(
            "rmse"
        )
        < 0.3
    )
    with pytest.raises(InputError, match="slice 2 of 2: proportions must be"):
        fit_probe(
            [spots[0], with_rows(spots[1], {1: [2.0, 0, 0, 0]})],
            use_rep="X_a",
            proportions="proportions",
        )
    with pytest.raises(InputError, match="obsm has no 'shares'"):
        deconvolve(spots[0], use_rep="X_a", proportions="shares", **NO_BAR)
    spots[0].uns["proportions_names"] = ["a", "a", "b", "c"]
    with pytest.raises(InputError, match="4 columns and 3 different names"):
        deconvolve(spots[0], use_rep="X_a", **NO_BAR)
    with pytest.raises(ConfigError, match="2 slices; pass the slice to be scored as test="):
        deconvolve(spots, use_rep="X_a", proportions=[np.full((300, 2), 0.5)] * 2, **NO_BAR)
