"""Tissue domains from an embedding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.tasks.clustering import (
    cluster,
    cluster_runs,
    consensus,
    leiden_to_k,
    refine_labels,
)

METHODS = pytest.mark.parametrize("method", ["gmm", "kmeans", "leiden"])


def groups(n: int = 120, d: int = 6, k: int = 4, seed: int = 0) -> tuple[AnnData, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(k), np.array([50, 40, 20, 10]) * n // 120)
    adata = AnnData(np.zeros((n, 1), dtype=np.float32))
    adata.obsm["X_a"] = (rng.normal(size=(k, d))[truth] * 8 + rng.normal(size=(n, d))).astype(
        np.float32
    )
    return adata, truth


@METHODS
@pytest.mark.parametrize("d", [2, 6, 50])
def test_groups_are_found_and_named_by_size(method: Any, d: int) -> None:
    adata, truth = groups(d=d)
    out = tz.tasks.domains(adata, use_rep="X_a", n_domains=4, method=method)
    assert out is adata
    result = adata.obs["X_a_domain"]
    assert isinstance(result.dtype, pd.CategoricalDtype)
    assert list(result.cat.categories) == ["0", "1", "2", "3"]
    # a group of 10 cells has fewer than the 14 neighbors that Leiden's graph gives each
    assert adjusted_rand_score(truth, result) > (0.9 if method == "leiden" else 0.95)
    sizes = result.value_counts().reindex(list("0123")).to_numpy()
    assert (np.diff(sizes) <= 0).all()


@METHODS
def test_same_seed_same_domains(method: Any) -> None:
    adata, _ = groups(seed=1)
    first, second = (
        tz.tasks.domains(adata.copy(), use_rep="X_a", n_domains=6, method=method, seed=5).obs[
            "X_a_domain"
        ]
        for _ in range(2)
    )
    assert (first == second).all()


def test_another_column() -> None:
    adata, _ = groups()
    tz.tasks.domains(adata, use_rep="X_a", n_domains=2, key_added="mine")
    assert set(adata.obs) == {"mine"}


@METHODS
def test_dead_and_tiny_dimensions_do_not_matter(method: Any) -> None:
    adata, truth = groups()
    adata.obsm["X_a"] = np.hstack([adata.obsm["X_a"] * 1e-6, np.full((120, 3), 7.0)])
    tz.tasks.domains(adata, use_rep="X_a", n_domains=4, method=method)
    assert adjusted_rand_score(truth, adata.obs["X_a_domain"]) > 0.95


@METHODS
def test_one_domain_and_one_cell(method: Any) -> None:
    adata, _ = groups()
    assert set(
        tz.tasks.domains(adata, use_rep="X_a", n_domains=1, method=method).obs["X_a_domain"]
    ) == {"0"}
    one = adata[:1].copy()
    assert list(
        tz.tasks.domains(one, use_rep="X_a", n_domains=1, method=method).obs["X_a_domain"]
    ) == ["0"]


@METHODS
def test_vectors_that_are_all_equal(method: Any) -> None:
    adata, _ = groups()
    adata.obsm["X_a"] = np.ones((120, 6), dtype=np.float32)
    with pytest.warns(TerrazzoWarning, match="too few distinct vectors for 3 domains"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3, method=method)
    assert adata.obs["X_a_domain"].notna().all()


def test_what_cannot_be_clustered_is_refused() -> None:
    adata, _ = groups()
    with pytest.raises(InputError, match=r"no 'X_b'.*X_a"):
        tz.tasks.domains(adata, use_rep="X_b", n_domains=3)
    for k in (0, -1, 121):
        with pytest.raises(ConfigError, match="between 1 and the number of cells, 120"):
            tz.tasks.domains(adata, use_rep="X_a", n_domains=k)
    with pytest.raises(ConfigError, match="must be one of 'gmm', 'kmeans', 'leiden'"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3, method="magic")  # type: ignore[arg-type]
    adata.obsm["X_a"][5, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=3)
    assert "X_a_domain" not in adata.obs
    assert "terrazzo" not in adata.uns


def with_blocks(adata: AnnData) -> AnnData:
    """Make ``X_a`` an embedding of two blocks: own (noise) and niche (the groups)."""
    noise = np.random.default_rng(9).normal(size=(adata.n_obs, 4))
    adata.obsm["X_a"] = np.hstack([noise, adata.obsm["X_a"]]).astype(np.float32)
    adata.uns["terrazzo"] = {
        "X_a": {"details": json.dumps({"blocks": {"own": [0, 4], "niche": [4, 10]}})}
    }
    return adata


def test_of_two_blocks_the_niche_is_clustered_unless_another_is_named() -> None:
    adata, truth = groups()
    adata = with_blocks(adata)
    alone = adata.obsm["X_a"][:, 4:].copy()
    tz.tasks.domains(adata, use_rep="X_a", n_domains=4)
    tz.tasks.domains(adata, use_rep="X_a:niche", n_domains=4)
    tz.tasks.domains(adata, use_rep="X_a:own", n_domains=4)
    tz.tasks.domains(adata, use_rep=alone, n_domains=4, key_added="array")
    assert adjusted_rand_score(truth, adata.obs["X_a_domain"]) > 0.95
    assert (adata.obs["X_a_domain"] == adata.obs["X_a_niche_domain"]).all()
    assert (adata.obs["X_a_domain"] == adata.obs["array"]).all()
    assert adjusted_rand_score(truth, adata.obs["X_a_own_domain"]) < 0.2
    record = adata.uns["terrazzo"]
    assert record["array"]["use_rep"] == "array"
    assert "details" in record["X_a"]  # the embedding's own stays


def test_what_was_done_is_recorded_and_survives_a_file(tmp_path: Path) -> None:
    adata, _ = groups()
    adata.obsm["spatial"] = np.random.default_rng(0).random((120, 2))
    tz.tasks.domains(
        adata, use_rep="X_a", n_domains=3, method="kmeans", seed=4, n_seeds=2, refine=5
    )
    record = adata.uns["terrazzo"]["X_a_domain"]
    json.dumps(record)
    settings = {
        "use_rep": "X_a",
        "method": "kmeans",
        "n_domains": 3,
        "seed": 4,
        "n_seeds": 2,
        "refine": 5,
    }
    assert {name: record[name] for name in settings} == settings
    assert record["terrazzo_version"] == tz.__version__
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert {name: back.uns["terrazzo"]["X_a_domain"][name] for name in settings} == settings
    assert (back.obs["X_a_domain"].astype(str) == adata.obs["X_a_domain"].astype(str)).all()


def test_several_slices_are_clustered_each_by_itself() -> None:
    slices = [groups(seed=0)[0], groups(seed=1)[0]]
    expected = [
        tz.tasks.domains(one.copy(), use_rep="X_a", n_domains=4).obs["X_a_domain"] for one in slices
    ]
    out = tz.tasks.domains(slices, use_rep="X_a", n_domains=4)
    assert out == slices
    for one, domains in zip(slices, expected, strict=True):
        assert (one.obs["X_a_domain"] == domains).all()
        assert one.uns["terrazzo"]["X_a_domain"]["n_found"] == 4
    arrays = [one.obsm["X_a"] for one in slices]
    tz.tasks.domains(slices, use_rep=arrays, n_domains=4, key_added="mine")
    assert all((one.obs["mine"] == one.obs["X_a_domain"]).all() for one in slices)


def test_of_several_slices_all_are_written_or_none() -> None:
    slices = [groups(seed=0)[0], groups(seed=1)[0]]
    slices[1].obsm["X_a"][3, 1] = np.inf
    with pytest.raises(InputError, match=r"slice 2 of 2: .*not finite"):
        tz.tasks.domains(slices, use_rep="X_a", n_domains=4)
    assert not any(len(one.obs.columns) for one in slices)
    with pytest.raises(InputError, match="a list with one for each of the 2 slices"):
        tz.tasks.domains(slices, use_rep=[np.zeros((120, 2))], n_domains=4, key_added="mine")
    with pytest.raises(InputError, match="not an empty list"):
        tz.tasks.domains([], use_rep="X_a", n_domains=4)


@METHODS
def test_rows_in_rows_out_and_known_answer(simulated: Any, method: Any) -> None:
    adata = simulated(1200, 300, layout="visium", seed=1)
    tz.Baseline("pca-nb1", n_components=20).embed(adata, key_added="X_pca_nb")
    before = list(adata.obs_names)
    tz.tasks.domains(adata, use_rep="X_pca_nb", n_domains=5, method=method)
    assert list(adata.obs_names) == before
    assert adata.obs["X_pca_nb_domain"].notna().all()
    truth = adata.obs["region"].to_numpy()
    assert adjusted_rand_score(truth, adata.obs["X_pca_nb_domain"]) > 0.6
    assert (
        abs(
            adjusted_rand_score(
                np.random.default_rng(0).permutation(truth), adata.obs["X_pca_nb_domain"]
            )
        )
        < 0.02
    )


# Leiden searched to K


@pytest.mark.parametrize("k", [2, 3, 5, 8, 13, 20])
def test_leiden_finds_k_where_there_are_no_groups_either(k: int) -> None:
    vectors = np.random.default_rng(k).normal(size=(600, 3))
    for run in leiden_to_k(vectors, k, [0, 1]):
        assert sorted(set(run)) == list(range(k))


def test_leiden_runs_do_not_depend_on_each_other_or_on_the_global_generator() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 5))
    random.seed(1)
    state = random.getstate()
    several = cluster_runs(vectors, 6, "leiden", [0, 1, 2])
    assert random.getstate() == state
    random.seed(2)
    np.testing.assert_array_equal(several[2], cluster(vectors, 6, "leiden", 2))


def test_leiden_warns_where_k_cannot_be_met() -> None:
    rng = np.random.default_rng(0)
    apart = np.repeat(np.arange(5) * 1e3, 40)[:, None] + rng.normal(size=(200, 2))
    adata = AnnData(np.zeros((200, 1), dtype=np.float32), obsm={"X_a": apart})
    with pytest.warns(TerrazzoWarning, match="no resolution with 2 domains: 5 were found"):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=2, method="leiden")
    assert list(adata.obs["X_a_domain"].cat.categories) == list("01234")
    assert adata.uns["terrazzo"]["X_a_domain"]["n_found"] == 5


def test_leiden_takes_equal_vectors_as_one() -> None:
    rng = np.random.default_rng(0)
    vectors = np.vstack(
        [np.zeros((200, 3)), rng.normal(size=(100, 3)) + 20, rng.normal(size=(100, 3)) - 20]
    )
    labels = cluster(vectors, 3, "leiden", 0)
    assert len(set(labels[:200])) == 1
    assert len(set(labels)) == 3


# Consensus


def test_consensus_of_renamed_runs_is_the_run() -> None:
    rng = np.random.default_rng(0)
    run = rng.integers(5, size=300)
    result = consensus([rng.permutation(5)[run] for _ in range(4)])
    assert adjusted_rand_score(run, result) == 1
    np.testing.assert_array_equal(consensus([run]), run)


def test_consensus_outvotes_the_errors_of_each_run() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=1000)
    runs = [
        rng.permutation(4)[np.where(rng.random(1000) < 0.2, rng.integers(4, size=1000), truth)]
        for _ in range(7)
    ]
    assert (
        adjusted_rand_score(truth, consensus(runs))
        > 0.95
        > max(adjusted_rand_score(truth, run) for run in runs)
    )


def test_consensus_with_a_run_of_more_clusters() -> None:
    coarse = np.repeat([0, 1], [60, 40])
    fine = np.repeat([2, 0, 1], [50, 10, 40])
    np.testing.assert_array_equal(consensus([coarse, coarse, fine]), coarse)


def test_consensus_over_seeds(simulated: Any) -> None:
    adata = simulated(1200, 300, layout="visium", seed=1)
    tz.Baseline("pca", n_components=20).embed(adata, key_added="X_pca_nb")
    vectors = adata.obsm["X_pca_nb"].astype(np.float64)
    tz.tasks.domains(adata, use_rep="X_pca_nb", n_domains=5, method="kmeans", seed=3, n_seeds=3)
    expected = consensus([cluster(vectors, 5, "kmeans", seed) for seed in (3, 4, 5)])
    assert adjusted_rand_score(expected, adata.obs["X_pca_nb_domain"]) == 1


@pytest.mark.parametrize(
    "runs", [[], [[]], [0, 1], [[0, 1], [0]], [[0, -1]], [[0.0, 1.0]], [["a", "b"]]]
)
def test_consensus_refuses(runs: Any) -> None:
    with pytest.raises(InputError, match=r"whole numbers from 0|differ in length"):
        consensus(runs)


# Refinement in space


def test_refining_takes_the_commonest_label_around() -> None:
    line = np.column_stack([np.arange(8.0) ** 1.01, np.zeros(8)])
    np.testing.assert_array_equal(refine_labels(list("aabaabbb"), line, 2), list("aaaaabbb"))
    np.testing.assert_array_equal(refine_labels([0, 1, 0, 1], line[:4], 0), [0, 1, 0, 1])
    # of equally common labels its own, else the nearest one's
    assert refine_labels(np.array([5, 7, 9]), np.array([[0.0], [1.0], [2.1]]), 2).tolist() == [
        7,
        5,
        7,
    ]
    with pytest.raises(ConfigError, match="between 0 and the number of other cells, 7"):
        refine_labels([0] * 8, line, 8)
    with pytest.raises(InputError, match="8 positions and 7 labels"):
        refine_labels([0] * 7, line, 2)


def test_refining_against_a_slow_vote() -> None:
    rng = np.random.default_rng(0)
    coords, labels = rng.random((200, 2)), rng.integers(4, size=200)
    result = refine_labels(labels, coords, 7)
    for i in range(200):
        order = np.argsort(np.linalg.norm(coords - coords[i], axis=1))[1:8]
        votes = labels[order].tolist()
        most = max(votes.count(v) for v in votes)
        assert result[i] == next(v for v in (labels[i], *votes) if votes.count(v) == most)


def test_refining_fixes_scattered_errors(simulated: Any) -> None:
    adata = simulated(1200, 300, layout="visium", seed=1)
    tz.Baseline("pca", n_components=20).embed(adata, key_added="X_pca_nb")
    truth = adata.obs["region"]
    tz.tasks.domains(adata, use_rep="X_pca_nb", n_domains=5, key_added="plain")
    tz.tasks.domains(adata, use_rep="X_pca_nb", n_domains=5, key_added="smooth", refine=6)
    assert (
        adjusted_rand_score(truth, adata.obs["smooth"])
        > adjusted_rand_score(truth, adata.obs["plain"]) + 0.05
    )


def test_a_domain_that_refining_dissolves_is_warned_of() -> None:
    adata, _ = groups(d=2)
    adata.obsm["spatial"] = np.random.default_rng(0).random((120, 2))
    with pytest.warns(
        TerrazzoWarning, match=r"refining over 100 neighbors dissolved \d of 4 domains"
    ):
        tz.tasks.domains(adata, use_rep="X_a", n_domains=4, refine=100)
    assert list(adata.obs["X_a_domain"].cat.categories) == list("0123")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_seeds": 0}, ConfigError, "number of seeds is 0"),
        ({"refine": -1}, ConfigError, "refine is -1"),
        ({"refine": 120}, ConfigError, "number of other cells, 119"),
        ({"refine": 6}, InputError, "no spatial coordinates"),
        ({"use_rep": np.zeros((120, 2))}, ConfigError, "pass key_added="),
        ({"use_rep": np.zeros((7, 2)), "key_added": "x"}, InputError, r"shape \(7, 2\)"),
        ({"use_rep": "X_a:niche"}, InputError, "not written by terrazzo"),
        ({"key_added": "X_a"}, ConfigError, "which is an embedding too"),
    ],
)
def test_settings_that_do_not_fit(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    adata, _ = groups()
    with pytest.raises(error, match=message):
        tz.tasks.domains(adata, **{"use_rep": "X_a", "n_domains": 3, **options})
    assert not len(adata.obs.columns)
