"""Hidden squares: what a predictor sees, which cells and genes are scored, and answers that are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys, tasks
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import TaskResult, reconstruct
from terrazzo.tasks import reconstruction as hidden_regions
from terrazzo.tasks.reconstruction import BASELINES, Tissue, trivial

NO_BAR = {"progress": False}


def lattice(
    rows: int = 12, columns: int = 10, n_genes: int = 8, seed: int = 0, counts: Any = None
) -> AnnData:
    """Make a square array with counts drawn at random, or given, ``(rows * columns, genes)``."""
    places = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
    if counts is None:
        counts = np.random.default_rng(seed).poisson(3, (rows * columns, n_genes)) + 1
    obs = pd.DataFrame(
        places, columns=["array_row", "array_col"], index=[f"c{i}" for i in range(len(places))]
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(np.shape(counts)[1])])
    adata = AnnData(sp.csr_matrix(np.asarray(counts, dtype=np.float32)), obs=obs, var=var)
    adata.obsm["spatial"] = places[:, ::-1] * 200.0
    adata.uns["technology"] = "ST"
    return adata


def logs(adata: AnnData) -> np.ndarray:
    counts = adata.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def spy(seen: list[Any]) -> Any:
    """Return a predictor that remembers what it was given, and says zero."""

    def predict(adata: AnnData, hidden: np.ndarray, genes: list[str]) -> np.ndarray:
        seen.append((adata, hidden, genes))
        return np.zeros((hidden.sum(), len(genes)))

    return predict


def tissue_of(adata: AnnData) -> Tissue:
    return Tissue.read(adata, None, "auto", 0.0)


# What is scored


def test_scores_are_of_the_hidden_cells_by_hand() -> None:
    adata, seen = lattice(), []
    found = reconstruct(adata, {"zero": spy(seen)}, size=3, repeats=4, n_genes=5, **NO_BAR)
    assert len(seen) == 4
    true = pd.DataFrame(logs(adata), columns=adata.var_names)
    for number, (_, hidden, genes) in enumerate(seen):
        assert hidden.sum() == 9
        spread = true[~hidden].var(ddof=0).sort_values(ascending=False, kind="stable")
        assert genes == list(spread.index[:5])
        values = true.loc[hidden, genes].to_numpy()
        rows = found.metrics[found.metrics["number"] == number].set_index(["system", "metric"])[
            "value"
        ]
        assert rows["zero", "mse"] == pytest.approx((values**2).mean(), rel=1e-5)
        assert rows["zero", "mae"] == pytest.approx(np.abs(values).mean(), rel=1e-5)
        mean = true.loc[~hidden, genes].mean().to_numpy()
        assert rows["gene mean", "mse"] == pytest.approx(((values - mean) ** 2).mean(), rel=1e-5)
    assert set(found.metrics["system"]) == {*BASELINES, "zero"}
    assert (found.summary()["n"] == 4).all()
    assert found.score("mse", system="zero") > found.score("mse", system="gene mean")
    with pytest.raises(
        InputError, match=r"no single score 'mse'; there are: mse \(3 x 3, gene mean\)"
    ):
        found.score("mse")


def test_regions_are_squares_of_the_grid_and_differ() -> None:
    adata = lattice()
    found = reconstruct(adata, size=[1, 3], repeats=5, **NO_BAR)
    assert found.config["sizes"] == [1, 3]
    assert set(found.metrics["split"]) == {"1 x 1", "3 x 3"}
    assert found.metrics.groupby("split")["size"].first().to_dict() == {"1 x 1": 1, "3 x 3": 3}
    corners = found.config["corners"]
    assert len({tuple(c) for c in corners["3"]}) == 5
    assert (
        corners == reconstruct(adata, size=[3, 1], repeats=5, **NO_BAR).config["corners"]
    )  # not of the other sizes
    assert corners != reconstruct(adata, size=[1, 3], repeats=5, seed=1, **NO_BAR).config["corners"]
    tissue = tissue_of(adata)
    region = tissue.hide(3, np.array([4, 2]), 5, None)
    expected = adata.obs["array_row"].between(4, 6) & adata.obs["array_col"].between(2, 4)
    np.testing.assert_array_equal(region.hidden, expected)


def test_regions_are_full_enough_and_leave_something_visible() -> None:
    adata = lattice(8, 8)
    adata = adata[
        (adata.obs["array_col"] < 4).to_numpy() | (adata.obs["array_row"] == 0).to_numpy()
    ].copy()
    found = reconstruct(adata, size=4, repeats=50, **NO_BAR)
    assert {c for _, c in found.config["corners"]["4"]} <= {0, 1, 2}
    assert any("only" in note and "not 50" in note for note in found.notes)
    assert (found.summary()["n"] < 50).all()
    whole = lattice(4, 4)
    with pytest.raises(InputError, match="leaves others visible"):
        reconstruct(whole, size=4, **NO_BAR)


def test_cells_without_counts_are_neither_scored_nor_learned_from() -> None:
    counts = np.random.default_rng(0).poisson(3, (120, 8)) + 1
    counts[[55, 3]] = 0
    adata, seen = lattice(counts=counts), []
    tissue = tissue_of(adata)
    region = tissue.hide(4, np.array([4, 3]), 5, None)
    assert region.hidden[55]
    answers = trivial(tissue, region)
    shown = ~region.hidden & (np.arange(120) != 3)
    np.testing.assert_allclose(
        answers["gene mean"][0], tissue.values.toarray()[shown][:, region.genes].mean(0), rtol=1e-5
    )
    found = reconstruct(adata, {"zero": spy(seen)}, size=4, repeats=1, genes=["GENE1"], **NO_BAR)
    hidden = seen[0][1]
    measured = hidden & (counts.sum(1) > 0)
    with np.errstate(invalid="ignore"):
        values = logs(adata)[measured, 1]
    assert found.score("mse", system="zero") == pytest.approx((values**2).mean(), rel=1e-5)
    assert any(note.startswith("2 cells without counts") for note in found.notes)


# Answers that are known


def smooth(rows: int, columns: int) -> tuple[Tissue, np.ndarray]:
    """Return a lattice whose values are two planes over the coordinates, and a constant."""
    tissue = tissue_of(lattice(rows, columns, 3))
    x, y = tissue.coords.T / 200
    values = np.stack([1 + 0.5 * x + 0.25 * y, 9 - 0.3 * x, np.full(len(x), 2.0)], axis=1)
    vars(tissue)["values"] = sp.csr_matrix(values.astype(np.float32))
    return tissue, values


def test_linear_interpolation_is_exact_on_a_plane() -> None:
    tissue, values = smooth(14, 14)
    region = tissue.hide(4, np.array([5, 6]), 3, np.arange(3))
    answers = trivial(tissue, region)
    np.testing.assert_allclose(answers["linear interpolation"], values[region.hidden], atol=1e-5)
    assert np.abs(answers["mean of 6 nearest"] - values[region.hidden])[:, 0].max() > 0.1
    for name in BASELINES:
        np.testing.assert_allclose(
            answers[name][:, 2], 2.0, atol=1e-6
        )  # what is the same everywhere


def test_beyond_the_hull_interpolation_is_the_nearest_cell() -> None:
    tissue, values = smooth(9, 9)
    region = tissue.hide(2, np.array([0, 0]), 3, np.arange(3))  # a corner of the slice
    found = trivial(tissue, region)["linear interpolation"]
    first = values[[2, 18]]  # at equal distance from the corner
    assert np.abs(found[0] - first).max(axis=1).min() < 1e-5
    line, flat = smooth(1, 9)
    region = line.hide(1, np.array([0, 4]), 3, np.arange(3))
    near = trivial(line, region)["linear interpolation"][0]
    assert np.abs(near - flat[[3, 5]]).max(axis=1).min() < 1e-5  # no triangle on a line


def test_nearest_cells_by_hand() -> None:
    tissue, values = smooth(14, 14)
    region = tissue.hide(2, np.array([6, 6]), 3, np.arange(3))
    answers = trivial(tissue, region)
    shown = np.flatnonzero(~region.hidden)
    for row, cell in enumerate(np.flatnonzero(region.hidden)):
        distance = np.linalg.norm(tissue.coords[shown] - tissue.coords[cell], axis=1)
        for k in (16, 6):
            edge = np.sort(distance)[k - 1]
            inner, rim = shown[distance < edge - 1e-6], shown[np.abs(distance - edge) < 1e-6]
            low = np.r_[values[inner], np.sort(values[rim], axis=0)[: k - len(inner)]].mean(axis=0)
            high = np.r_[values[inner], -np.sort(-values[rim], axis=0)[: k - len(inner)]].mean(
                axis=0
            )
            found = answers[f"mean of {k} nearest"][row]
            assert (
                (found > low - 1e-5) & (found < high + 1e-5)
            ).all()  # whichever of equally near ones were taken


def test_fewer_cells_than_neighbors() -> None:
    tissue, values = smooth(3, 3)
    region = tissue.hide(1, np.array([1, 1]), 3, np.arange(3))
    answers = trivial(tissue, region)
    np.testing.assert_allclose(
        answers["mean of 16 nearest"][0], values[~region.hidden].mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(answers["mean of 16 nearest"], answers["gene mean"], rtol=1e-5)


def test_neighbors_know_more_than_the_mean_where_tissue_has_regions() -> None:
    half = np.arange(400) % 20 < 10
    mean = np.where(
        half[:, None], np.arange(1, 21), np.arange(20, 0, -1)
    )  # two domains, gene for gene opposite
    adata = lattice(20, 20, counts=np.random.default_rng(0).poisson(mean))
    found = reconstruct(adata, size=4, repeats=8, **NO_BAR)
    best = found.score("mse", system="mean of 16 nearest")
    assert best < 0.8 * found.score("mse", system="gene mean")
    assert (
        best
        < found.score("mse", system="mean of 6 nearest")
        < found.score("mse", system="linear interpolation")
    )


def test_dispersion_is_scanpys(simulated: Any) -> None:
    import scanpy as sc

    adata = simulated(300, 60)
    tissue = Tissue.read(adata, None, "bin", 20.0)
    logged = AnnData(tissue.values.astype(np.float64), var=tissue.bare.var)
    expected = sc.pp.highly_variable_genes(logged, flavor="seurat", n_top_genes=20, inplace=False)
    found = hidden_regions.dispersion(tissue.values)
    np.testing.assert_allclose(
        found, expected["dispersions_norm"].fillna(-np.inf), rtol=1e-4, atol=1e-5
    )
    region = tissue.hide(3, np.array([2, 2]), 20, None, "dispersion")
    shown = hidden_regions.dispersion(tissue.values[~region.hidden & tissue.measured])
    assert set(region.genes) == set(np.argsort(-shown)[:20])


# What reaches whom


def loaded(adata: AnnData) -> AnnData:
    """Put counts, and what was computed from them, wherever an AnnData has room."""
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.obs["total"], adata.obs["region"] = np.asarray(adata.X.sum(1)).ravel(), "a"
    adata.var["mean"], adata.var["gene_symbol"] = (
        np.asarray(adata.X.mean(0)).ravel(),
        [f"S{i}" for i in range(8)],
    )
    adata.obsm["X_pca"], adata.varm["PCs"] = adata.X.toarray(), np.ones((8, 2))
    adata.obsp["near"] = sp.eye(adata.n_obs).tocsr()
    adata.uns |= {"pca": {"variance": np.ones(3)}, "organism": "human", "counts": adata.X.toarray()}
    return adata


def test_a_predictor_sees_nothing_of_the_hidden_cells() -> None:
    adata, seen = loaded(lattice()), []
    before = adata.copy()
    reconstruct(adata, {"spy": spy(seen)}, size=3, repeats=3, n_genes=5, **NO_BAR)
    for shown, hidden, genes in seen:
        assert shown.X[hidden].nnz == 0
        np.testing.assert_array_equal(
            shown.X[~hidden].toarray(), before.layers["counts"][~hidden].toarray()
        )
        assert shown.shape == before.shape
        assert list(shown.obs_names) == list(before.obs_names)
        assert (list(shown.obs), list(shown.var)) == (["array_row", "array_col"], ["gene_symbol"])
        assert (list(shown.obsm), list(shown.varm), list(shown.obsp), list(shown.layers)) == (
            ["spatial"],
            [],
            [],
            [],
        )
        assert shown.raw is None
        assert dict(shown.uns) == {"technology": "ST", "organism": "human"}
        np.testing.assert_array_equal(shown.obsm["spatial"], before.obsm["spatial"])
        assert set(genes) <= set(shown.var_names)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert set(adata.obsm) == set(before.obsm)


@pytest.mark.parametrize("how", ["variance", "dispersion"])
def test_what_the_hidden_cells_held_changes_no_answer(how: Any) -> None:
    """Poison: other counts where it is hidden, and every answer, gene and input is the same to the bit."""
    for corner in ([4, 3], [0, 0], [9, 7]):
        tissue = tissue_of(lattice())
        region = tissue.hide(3, np.array(corner), 5, None, how)
        counts = tissue.counts.toarray()
        counts[region.hidden] = np.random.default_rng(9).integers(1, 1000, (9, 8))
        poisoned = tissue_of(lattice(counts=counts))
        same = poisoned.hide(3, np.array(corner), 5, None, how)
        np.testing.assert_array_equal(same.genes, region.genes)
        for name, answer in trivial(tissue, region).items():
            np.testing.assert_array_equal(answer, trivial(poisoned, same)[name], err_msg=name)
        first, second = tissue.seen(region.hidden), poisoned.seen(same.hidden)
        np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
        assert not np.array_equal(tissue.counts.toarray(), poisoned.counts.toarray())


def test_predictors_cannot_spoil_each_other() -> None:
    def vandal(adata: AnnData, hidden: np.ndarray, genes: list[str]) -> np.ndarray:
        adata.X.data[:] = 7
        adata.obsm["spatial"][:] = 0
        adata.obs["array_row"] = 0
        out = np.zeros((hidden.sum(), len(genes)))
        hidden[:] = True
        genes.clear()
        return out

    seen: list[Any] = []
    adata = lattice()
    found = reconstruct(adata, {"vandal": vandal, "spy": spy(seen)}, size=3, repeats=2, **NO_BAR)
    alone = reconstruct(adata, {"spy": spy([])}, size=3, repeats=2, **NO_BAR)
    for name in (*BASELINES, "spy"):
        assert found.score("mse", system=name) == alone.score("mse", system=name)
    assert all(hidden.sum() == 9 and len(genes) == 8 for _, hidden, genes in seen)


def test_genes_that_stand_in_two_columns_are_one() -> None:
    adata, seen = lattice(), []
    adata.var["gene_symbol"] = ["A", "B", "A", "C", "D", "E", "F", "G"]
    with pytest.warns(UserWarning, match="1 genes are in more than one column"):
        found = reconstruct(adata, {"spy": spy(seen)}, size=3, repeats=1, genes=["GENE2"], **NO_BAR)
    shown, hidden, genes = seen[0]
    assert genes == ["GENE0"]
    assert shown.n_vars == 7
    counts = adata.X.toarray()
    true = np.log1p(counts[:, [0, 2]].sum(1) / counts.sum(1) * 1e4)[hidden]
    assert found.score("mse", system="spy") == pytest.approx((true**2).mean(), rel=1e-5)
    with (
        pytest.raises(ConfigError, match="one gene twice, under two"),
        pytest.warns(UserWarning, match="1 genes"),
    ):
        reconstruct(adata, genes=["GENE0", "GENE2"], **NO_BAR)


def test_names_that_repeat(recwarn: Any) -> None:
    adata, seen = lattice(), []
    adata.var["ensembl_id"] = [f"ENSG0000000000{i}" for i in range(8)]
    adata.var_names = ["A", "A", *adata.var_names[2:]]
    adata.obs_names = ["c", "c", *adata.obs_names[2:]]
    recwarn.clear()
    reconstruct(adata, {"spy": spy(seen)}, size=3, repeats=1, **NO_BAR)
    assert [str(w.message) for w in recwarn if "1 cell names repeat" not in str(w.message)] == []
    assert {"A", "A-1"} <= set(seen[0][2])
    assert seen[0][0].var_names.is_unique


# Results


def test_what_is_kept_of_the_first_region_of_each_size() -> None:
    adata = lattice(14, 14, 20)
    found = reconstruct(adata, {"zero": spy([])}, size=[2, 3], repeats=2, **NO_BAR)
    kept = found.predictions
    assert kept.groupby("size")["hidden"].sum().to_dict() == {2: 4, 3: 9}
    genes = [c.removeprefix("true:") for c in kept if c.startswith("true:")]
    assert len(genes) >= hidden_regions.LEAST_AROUND
    true = pd.DataFrame(logs(adata), index=adata.obs_names, columns=adata.var_names)
    here = kept[kept["size"] == 3]
    shared = [g for g in genes if here[f"true:{g}"].notna().all()]
    np.testing.assert_allclose(
        here[[f"true:{g}" for g in shared]], true.loc[here.index, shared], rtol=1e-5
    )
    assert list(adata.obs_names[here["cell"]]) == list(here.index)
    np.testing.assert_allclose(here[["x", "y"]], adata.obsm["spatial"][here["cell"]])
    predicted = here[f"zero:{shared[0]}"]
    assert (predicted[here["hidden"]] == 0).all()
    assert predicted[~here["hidden"]].isna().all()
    corner = found.config["corners"]["3"][0]
    assert adata.obs.loc[here.index, "array_row"].min() == max(corner[0] - 3, 0)


def test_to_files_and_back(tmp_path: Path) -> None:
    found = reconstruct(lattice(), {"zero": spy([])}, size=3, repeats=2, **NO_BAR)
    again = TaskResult.load(found.save(tmp_path / "scores"))
    pd.testing.assert_frame_equal(again.metrics, found.metrics)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)
    assert again.config == found.config
    assert again.score("mae", system="zero") == found.score("mae", system="zero")


def test_it_is_public() -> None:
    assert tasks.reconstruct is reconstruct
    assert "reconstruct" in tasks.__all__


# Bad input


def test_fewer_genes_than_asked_are_all_used_and_said() -> None:
    counts = np.random.default_rng(0).poisson(3, (120, 8)) + 1
    counts[:, 7] = 0
    found = reconstruct(lattice(counts=counts), size=3, repeats=2, **NO_BAR)
    assert any("7 genes are predicted, not 512" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 11}, r"11 x 11 sites does not fit into the slice, whose grid has 12 x 10"),
        ({"size": 0}, "size is 0"),
        ({"size": []}, "size is"),
        ({"size": 2.5}, "size is 2.5"),
        ({"size": [4, -1]}, "at least 1"),
        ({"repeats": 0}, "repeats 0"),
        ({"n_genes": 0}, "n_genes is 0"),
        ({"occupancy": 0}, "occupancy is 0"),
        ({"occupancy": 1.5}, "occupancy is 1.5"),
        ({"bin_um": -1}, "bin_um is -1"),
        ({"choose": "hvg"}, "choose is 'hvg'; it must be one of 'variance', 'dispersion'"),
        ({"layout": "bin"}, "bin_um=20"),
        ({"genes": ["GEN3"]}, "'GEN3' is not in the slice; the nearest name is 'GENE3'"),
        ({"genes": []}, "at least one gene"),
        ({"genes": ["GENE1", "GENE1"]}, "each of them once"),
        ({"layer": "gone"}, "no layer 'gone'"),
        ({"predictors": {"gene mean": spy([])}}, "name of a baseline"),
    ],
)
def test_impossible_wishes(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, InputError), match=words):
        reconstruct(lattice(), **options, **NO_BAR)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda n, g: np.zeros((n, g - 1)),
            r"shape \(9, 7\); it must be \(hidden cells, genes\), \(9, 8\)",
        ),
        (lambda n, g: np.zeros((120, g)), r"shape \(120, 8\)"),
        (
            lambda n, g: np.full((n, g), np.nan),
            "72 values that are not finite .first: hidden cell 0, gene",
        ),
        (lambda n, g: "nothing", "mine returned no numbers"),
        (lambda n, g: None, "mine returned"),
    ],
)
def test_predictors_that_return_something_else(answer: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        reconstruct(
            lattice(),
            {"mine": lambda a, h, g: answer(h.sum(), len(g))},
            size=3,
            repeats=1,
            **NO_BAR,
        )


def test_slices_that_cannot_be_used(simulated: Any) -> None:
    with pytest.raises(InputError, match="bin_um=20"):  # no lattice and no bin size
        reconstruct(simulated(100, 30), **NO_BAR)
    adata = lattice()
    adata.X = np.log1p(adata.X.toarray())
    with pytest.raises(InputError, match="does not hold counts"):
        reconstruct(adata, **NO_BAR)
    adata = lattice()
    del adata.obsm["spatial"]
    with pytest.raises(InputError, match="no spatial coordinates"):
        reconstruct(adata, **NO_BAR)
    with pytest.raises(InputError, match="holds cells with counts in 50% of its sites"):
        reconstruct(lattice(counts=np.zeros((120, 8))), **NO_BAR)
    counts = np.ones((120, 8))
    with pytest.raises(InputError, match="no gene varies among the visible cells"):
        reconstruct(lattice(counts=counts), size=3, repeats=1, **NO_BAR)


def test_sparse_answers_and_bins_of_cells(simulated: Any) -> None:
    seen: list[Any] = []

    def predict(adata: AnnData, hidden: np.ndarray, genes: list[str]) -> Any:
        seen.append(hidden.sum())
        assert keys.SPATIAL in adata.obsm
        return sp.csr_matrix((hidden.sum(), len(genes)))

    adata = simulated(400, 60)
    found = reconstruct(
        adata, {"zero": predict}, size=3, repeats=3, bin_um=40, occupancy=0.4, **NO_BAR
    )
    assert np.isfinite(found.metrics["value"]).all()
    assert max(seen) > 9  # several cells lie in a bin, and all of them are hidden
