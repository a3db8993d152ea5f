"""Zero-shot domains: clustered without labels, scored with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.tasks import metrics
from terrazzo.tasks.clustering import cluster, refine_labels
from terrazzo.tasks.results import TaskResult
from terrazzo.tasks.zero_shot import evaluate_domains

METHODS = pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])


@pytest.fixture
def embedded(simulated: Any) -> AnnData:
    adata: AnnData = simulated(800, 200, layout="visium", seed=1)
    return tz.Baseline("pca-nb1", n_components=20).embed(adata, key_added="X_pca_nb")


@METHODS
def test_known_answer_and_shuffled_labels(embedded: AnnData, method: Any) -> None:
    result = evaluate_domains(embedded, use_rep="X_pca_nb", label="region", method=method, seeds=2)
    assert result.score("ari") > 0.6
    shuffled = np.random.default_rng(0).permutation(embedded.obs["region"].to_numpy())
    chance = evaluate_domains(embedded, use_rep="X_pca_nb", label=shuffled, method=method, seeds=2)
    assert abs(chance.score("ari")) < 0.02
    assert chance.score("nmi") < 0.03
    assert chance.score("pas") == result.score("pas")  # labels play no part in the clusters


def test_scores_are_those_of_the_clusters(embedded: AnnData) -> None:
    columns = set(embedded.obs)
    result = evaluate_domains(embedded, use_rep="X_pca_nb", label="region", seeds=3, refine=6)
    assert set(embedded.obs) == columns
    vectors, coords = embedded.obsm["X_pca_nb"].astype(np.float64), embedded.obsm["spatial"]
    table = result.metrics.set_index(["split", "number", "metric"])["value"].sort_index()
    assert len(table) == 2 * 3 * 4
    assert (result.metrics["part"] == "").all()
    for seed in range(3):
        run = cluster(vectors, 5, "gmm", seed)
        for split, labels in (("whole", run), ("refined", refine_labels(run, coords, 6))):
            expected = metrics.clustering(embedded.obs["region"], labels)
            expected |= {"chaos": metrics.chaos(coords, labels), "pas": metrics.pas(coords, labels)}
            assert table[split, seed].to_dict() == pytest.approx(expected)
    assert result.score("pas", "refined") < result.score("pas", "whole")
    assert result.config["seeds"] == [0, 1, 2]
    assert result.config["n_domains"] == 5


def test_cells_without_a_label_are_clustered_and_not_scored(embedded: AnnData) -> None:
    label = embedded.obs["region"].astype(object)
    label.iloc[::4] = np.nan
    label.iloc[1:400:100] = "tiny"
    embedded.obs["some"] = label
    result = evaluate_domains(embedded, use_rep="X_pca_nb", label="some", seeds=1)
    assert list(result.predictions.index) == list(embedded.obs_names)
    assert result.predictions["domain"].notna().all()
    unscored = label.isna() | (label == "tiny")
    assert (result.predictions["label"].isna() == unscored).all()
    run = cluster(embedded.obsm["X_pca_nb"].astype(np.float64), 5, "gmm", 0)
    assert result.score("ari") == pytest.approx(
        metrics.clustering(label[~unscored], run[~unscored])["ari"]
    )
    assert result.score("pas") == pytest.approx(metrics.pas(embedded.obsm["spatial"], run))
    assert result.notes[0].startswith("200 cells without a label")
    assert result.notes[1].endswith("tiny (4)")
    assert result.config["n_scored"] == 596


def test_same_labels_same_result_and_files(embedded: AnnData, tmp_path: Path) -> None:
    runs = [
        evaluate_domains(embedded, use_rep="X_pca_nb", label="region", seeds=2, method="leiden")
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(runs[0].metrics, runs[1].metrics)
    back = TaskResult.load(runs[0].save(tmp_path / "result"))
    pd.testing.assert_frame_equal(back.metrics, runs[0].metrics)
    assert back.config == runs[0].config
    assert (back.predictions["domain"] == runs[0].predictions["domain"]).all()
    array = evaluate_domains(
        embedded,
        use_rep=embedded.obsm["X_pca_nb"],
        label=embedded.obs["region"].to_numpy(),
        seeds=2,
        method="leiden",
    )
    pd.testing.assert_frame_equal(array.metrics, runs[0].metrics)
    assert (array.config["use_rep"], array.config["label"]) == ("array", "array")


def test_notes_name_runs_with_missing_domains(embedded: AnnData) -> None:
    few = np.repeat(np.eye(3), [400, 300, 100], axis=0)
    result = evaluate_domains(
        embedded, use_rep=few, label="region", seeds=2, method="kmeans", refine=700
    )
    assert (
        "seed 1: the embedding has too few distinct vectors for 5 domains: 3 were found."
        in result.notes
    )
    assert "seed 0: refining dissolved 2 of 3 domains" in result.notes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": "regoin"}, InputError, "Did you mean 'region'"),
        ({"label": np.zeros(3)}, InputError, "3 labels for 800 cells"),
        ({"label": np.full(800, np.nan)}, InputError, "holds no label"),
        ({"label": ["a"] * 800}, InputError, "one class, 'a'"),
        ({"use_rep": "X_pca"}, InputError, "no 'X_pca'"),
        ({"use_rep": np.full((800, 2), np.nan)}, InputError, "not finite"),
        ({"n_domains": 801}, ConfigError, "between 1 and the number of cells, 800"),
        ({"n_domains": 0}, ConfigError, "n_domains is 0"),
        ({"seeds": 0}, ConfigError, "number of seeds is 0"),
        ({"refine": 800}, ConfigError, "refine is 800"),
        ({"method": "magic"}, ConfigError, "'gmm', 'kmeans', 'leiden'"),
        ({"spatial_key": "nowhere"}, InputError, "no spatial coordinates"),
    ],
)
def test_bad_input(
    embedded: AnnData, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_domains(embedded, **{"use_rep": "X_pca_nb", "label": "region", **options})


def test_a_class_with_one_cell_is_warned_of(embedded: AnnData) -> None:
    label = embedded.obs["region"].astype(str)
    label.iloc[0] = "alone"
    with pytest.warns(TerrazzoWarning, match="alone has a single cell"):
        result = evaluate_domains(embedded, use_rep="X_pca_nb", label=label.to_numpy(), seeds=1)
    assert any("alone (1)" in note for note in result.notes)
