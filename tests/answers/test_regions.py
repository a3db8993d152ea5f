"""Regions in one call: number, labels, certainty, markers, joint slices, names, and input that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import terrazzo as tz
from terrazzo.answers.projection import Projection
from terrazzo.answers.result import names_from_csv
from terrazzo.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    TerrazzoWarning,
)

QUICK: dict[str, Any] = {"n_seeds": 2, "bootstraps": 0, "progress": False}
KEY = "terrazzo_region"
Spots = Callable[..., AnnData]


def ari(adata: AnnData, key: str = KEY) -> float:
    return float(adjusted_rand_score(adata.obs["region"], adata.obs[key]))


# ---- what is found


def test_the_number_and_the_regions_of_a_slice(answer: Any) -> None:
    adata = answer.slices[0]
    assert 3 <= answer.k <= 5
    assert ari(adata) > 0.6
    assert list(answer.found.curve["k"]) == list(range(2, 16))
    assert "also plausible" in answer.notes[0]
    assert adata.uns[f"{KEY}_colors"]
    assert adata.uns["terrazzo"][KEY]["task"] == "regions"
    assert "uns" not in answer.headline
    assert "no weights were named" in answer.headline


def test_reproducibility_is_lower_where_the_label_is_wrong(answer: Any) -> None:
    adata = answer.slices[0]
    table = pd.crosstab(adata.obs[KEY], adata.obs["region"])
    right = adata.obs[KEY].map(table.idxmax(axis=1)).astype(str) == adata.obs["region"].astype(str)
    certainty = adata.obs[f"{KEY}_agreement"]
    assert certainty.between(0, 1).all()
    assert 0 < right.mean() < 1
    assert roc_auc_score(right, certainty) > 0.6


def test_table_and_looks(answer: Any, quiet_figures: None) -> None:
    table = answer.table
    assert list(table.columns[:2]) == ["region", "n_cells"]
    assert table["n_cells"].sum() == 400
    assert table["share"].sum() == pytest.approx(1)
    assert table["gene_agreement"].between(0, 1).all()
    assert f"{answer.k} regions of 400 cells" in repr(answer)
    assert "<table" in answer._repr_html_()
    assert answer.plot() is not None
    assert answer.shares["share"].sum() == pytest.approx(1)
    assert not len(answer.comparison)


def test_levels_split_one_region_at_a_time(answer: Any) -> None:
    levels = answer.levels[0]
    assert (answer.cut(answer.k)[0] == answer.found.labels[0]).all()
    for k in range(1, levels.shape[1] + 1):
        assert len(np.unique(answer.cut(k)[0])) == k
    for k in range(1, levels.shape[1]):
        pairs = {
            (coarse, fine) for coarse, fine in zip(levels[:, k - 1], levels[:, k], strict=True)
        }
        assert len(pairs) == k + 1
    with pytest.raises(ConfigError, match="levels of 1 to"):
        answer.cut(99)


def test_markers_are_those_of_the_simulation(answer: Any) -> None:
    adata = answer.slices[0]
    truth = adata.var["program_of"].astype(str).to_numpy()
    symbol = dict(zip(adata.var_names, truth, strict=True))
    table = pd.crosstab(adata.obs[KEY], adata.obs["region"])
    first = answer.markers[answer.markers["against"] == "rest"]
    assert first["p_adjusted"].max() <= 0.05
    right = []
    for number, name in enumerate(answer.names):
        own = first[(first["region"] == number) & (first["rank"] <= 3)]
        right += [symbol[gene] == table.loc[name].idxmax() for gene in own["gene"]]
    of_any = np.mean(truth != "none")
    assert np.mean(right) > 2 * of_any / 4  # a gene of the right one of four programs


def test_other_seeds_find_the_same_with_the_same_numbers(spots: Spots) -> None:
    one = spots(n_cells=400)
    other = spots(n_cells=400)
    tz.regions(one, k=4, **QUICK)
    answer = tz.regions(other, k=4, seed=5, **QUICK)
    same = one.obs[KEY].cat.codes.to_numpy() == other.obs[KEY].cat.codes.to_numpy()
    assert same.mean() > 0.8
    assert list(one.uns[f"{KEY}_colors"]) == list(other.uns[f"{KEY}_colors"])
    assert answer.k == 4


def test_the_same_call_gives_the_same(spots: Spots) -> None:
    one = spots()
    other = spots()
    for adata in (one, other):
        tz.regions(adata, k=3, n_seeds=1, bootstraps=0, progress=False)
    pd.testing.assert_frame_equal(one.obs, other.obs)


@pytest.mark.parametrize("model", ["t2", "t4", "X_own"])
def test_named_vectors(spots: Spots, model: str) -> None:
    adata = spots()
    rng = np.random.default_rng(0)
    one_hot = pd.get_dummies(adata.obs["region"]).to_numpy(dtype=np.float32)
    adata.obsm["X_own"] = one_hot + 0.05 * rng.normal(size=one_hot.shape)
    answer = tz.regions(adata, k=4, model=model, **QUICK)
    assert ari(adata) > 0.5
    assert answer.projection is None
    with pytest.raises(ConfigError, match="made of a model's vectors"):
        tz.regions(spots(), to=answer, **QUICK)


# ---- several slices


def test_joint_regions(joint: Any) -> None:
    first, second = joint.slices
    assert list(first.obs[KEY].cat.categories) == list(second.obs[KEY].cat.categories)
    assert list(first.uns[f"{KEY}_colors"]) == list(second.uns[f"{KEY}_colors"])
    both = concat([first, second])
    assert ari(both) > 0.5
    assert any("variance between slices" in note for note in joint.notes)
    assert joint.donors == ["donor_1", "donor_2"]
    assert set(joint.shares["slice"]) == set(joint.slice_names)
    assert joint.markers["p_adjusted"].isna().all()  # two donors: no test
    assert (joint.markers["n"] == 2).mean() > 0.5


@pytest.mark.case(
    "N",
    given="`group=` where a group has one donor",
    gets="Shares and their means, no p-values, and a note that one donor is too few; of one group: refused",
)
def test_groups_with_one_donor_are_not_tested(joint: Any) -> None:
    assert set(joint.comparison["group"]) == {"first", "second"}
    assert joint.comparison["p_value"].isna().all()
    assert any("one donor is too few" in note for note in joint.notes)


def test_a_region_of_one_slice_only_is_named(spots: Spots) -> None:
    adata = spots(n_cells=400)
    other = spots(2, n_cells=400)
    without = other[other.obs["region"] != "region_4"].copy()
    answer = tz.regions([adata, without], k=4, **QUICK)
    only = [note for note in answer.notes if note.endswith("only.")]
    assert len(only) == 1
    assert only[0].startswith("R")


def test_sections_of_one_anndata(spots: Spots) -> None:
    parts = {"a": spots(1), "b": spots(2)}
    both = concat(parts, label="section", index_unique="-")
    both.uns["technology"] = "Visium"
    answer = tz.regions(both, k=4, slice_key="section", **QUICK)
    assert len(answer.slices) == 2
    assert both.obs[KEY].notna().all()
    again = np.concatenate([adata.obs[KEY].astype(str) for adata in answer.slices])
    assert (both.obs[KEY].astype(str).to_numpy() == again).all()


@pytest.mark.filterwarnings("ignore:the seeds disagree")
def test_groups_of_donors_are_compared(spots: Spots) -> None:
    slices = []
    for seed in range(4):
        adata = spots(seed, n_cells=150, donor=f"d{seed}")
        adata.obs["arm"] = "old" if seed < 2 else "young"
        slices.append(adata)
    answer = tz.types(slices, k=3, group="arm", n_seeds=1, bootstraps=0, progress=False)
    assert list(answer.comparison.columns[:2]) == ["type", "group"]
    assert answer.comparison["p_value"].notna().all()
    assert (answer.comparison["n_donors"] == 2).all()
    renamed = answer.renamed({"T1": "mine"})
    assert "mine" in set(renamed.comparison["type"])


# ---- later slices, names


def test_an_earlier_answer_is_found_again(answer: Any, spots: Spots, tmp_path: Path) -> None:
    later = spots(3)
    again = tz.regions(later, to=answer, progress=False)
    assert again.names == answer.names
    assert ari(later) > 0.4
    answer.projection.save(tmp_path)
    from_files = spots(3)
    tz.regions(from_files, to=tmp_path, progress=False)
    assert (from_files.obs[KEY] == later.obs[KEY]).all()
    same = spots(n_cells=400)
    tz.regions(same, to=answer, progress=False)
    assert (same.obs[KEY].astype(str) == answer.slices[0].obs[KEY].astype(str)).mean() > 0.95


def test_names_go_everywhere(spots: Spots, tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_text("region,name\nR1,cortex\nR3,\n")
    adata = spots()
    answer = tz.regions(adata, k=3, names=path, n_seeds=1, bootstraps=0, progress=False)
    assert answer.names[0] == "cortex"
    assert answer.names[2].startswith("R3")
    assert "cortex" in set(adata.obs[KEY])
    assert "cortex" in set(answer.shares["region"])
    later = tz.regions(spots(2), to=answer, progress=False)
    assert later.names[0] == "cortex"


def test_names_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    path.write_bytes("\ufeffregion;name\r\nR1; white matter \r\n".encode())
    assert names_from_csv(path) == {"R1": "white matter"}
    with pytest.raises(InputError, match="not readable"):
        names_from_csv(tmp_path / "missing.csv")


def test_a_damaged_or_missing_result(answer: Any, spots: Spots, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks projection\.json"):
        tz.regions(spots(), to=tmp_path, progress=False)
    answer.projection.save(tmp_path)
    arrays = tmp_path / "projection.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        Projection.load(tmp_path)
    (tmp_path / "projection.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        Projection.load(tmp_path)


# ---- types


def test_types(simulated: Callable[..., AnnData]) -> None:
    slices = [simulated(300, 150, n_types=4, n_regions=2, seed=seed) for seed in (1, 2)]
    answer = tz.types(slices, k=4, **QUICK)
    found = adjusted_rand_score(slices[0].obs["cell_type"], slices[0].obs["terrazzo_type"])
    assert found > 0.3
    assert answer.kind == "type"
    assert answer.names[0].startswith("T1")
    assert {"type", "slice"} <= set(answer.shares.columns)
    agreement = slices[0].obs["terrazzo_type_agreement"].to_numpy()
    assert agreement == pytest.approx(answer.found.agreement[0])  # neighbors do not count


# ---- input that cannot be used


@pytest.mark.parametrize("k", [0, -2, 2.5, "many", True])
def test_a_number_that_is_none(spots: Spots, k: Any) -> None:
    with pytest.raises(ConfigError, match="whole number from 1"):
        tz.regions(spots(), k=k, **QUICK)


def test_a_column_of_the_users_own(spots: Spots) -> None:
    adata = spots()
    adata.obs[KEY] = "mine"
    with pytest.raises(InputError, match="key_added="):
        tz.regions(adata, k=3, **QUICK)
    assert (adata.obs[KEY] == "mine").all()
    with pytest.raises(InputError, match="did not write"):
        tz.regions(adata, k=3, key_added="region", **QUICK)
    tz.regions(adata, k=3, key_added="found", n_seeds=1, bootstraps=0, progress=False)
    tz.regions(adata, k=2, key_added="found", n_seeds=1, bootstraps=0, progress=False)
    assert adata.obs["found"].nunique() == 2
    assert (adata.obs[KEY] == "mine").all()
    agreement = spots()
    agreement.obs["found_agreement"] = 1.0
    with pytest.raises(InputError, match="found_agreement"):
        tz.regions(agreement, k=3, key_added="found", **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "arm"}, "must have one value of 'arm', and has: none"),
        ({"group": "region"}, "must have one value of 'region'"),
        ({"group": "donor"}, "nothing to compare"),
        ({"donor": "animal"}, "'animal' with its donor"),
    ],
)
def test_groups_and_donors_that_are_not_there(
    spots: Spots, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tz.regions([spots(1), spots(2)], k=3, **change, **QUICK)


def test_a_donor_of_two_groups(spots: Spots) -> None:
    slices = [spots(1), spots(2)]
    for number, adata in enumerate(slices):
        adata.obs["arm"] = f"arm_{number}"
    with pytest.raises(InputError, match="a donor must be of one"):
        tz.regions(slices, k=3, group="arm", **QUICK)


def test_nothing_and_something_else(spots: Spots) -> None:
    with pytest.raises(InputError, match="there is no slice"):
        tz.regions([])
    with pytest.raises(InputError, match=r"slice 2: .*not int"):
        tz.regions([spots(), 3])
    with pytest.raises(ConfigError, match="n_seeds"):
        tz.regions(spots(), n_seeds=0)
    with pytest.raises(ConfigError, match="model must be"):
        tz.regions(spots(), model=3, k=2)


def test_seeds_that_disagree_are_said(spots: Spots) -> None:
    adata = spots()
    rng = np.random.default_rng(0)
    adata.obsm["X_noise"] = rng.normal(size=(adata.n_obs, 10)).astype(np.float32)
    with pytest.warns(TerrazzoWarning, match="the seeds disagree"):
        answer = tz.regions(adata, k=6, model="X_noise", **QUICK)
    assert any("the seeds disagree" in note for note in answer.notes)
