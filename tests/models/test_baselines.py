"""The trivial baselines: what each is made of, that nothing of a new slice is fitted, few cells, no variation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import terrazzo as tz
from terrazzo import Slice, expression, simulate
from terrazzo.answers.space import between_slices
from terrazzo.errors import ConfigError, InputError
from terrazzo.models import projections
from terrazzo.models.baselines import (
    KINDS,
    WITHIN_3_HOPS,
    Baseline,
    fit_baselines,
    neighbor_mean,
)
from terrazzo.models.states import RINGS, States, nearest_in_rings, ring_means
from terrazzo.splitting import thin_counts

CELLS, GENES = 300, 70


@pytest.fixture(scope="module")
def slices() -> list[Slice]:
    """Make three slices of 300 cells and 70 genes."""
    made = simulate.corpus(3, CELLS, n_genes=GENES, seed=4, n_donors=3)
    return [Slice.from_anndata(adata) for adata in made]


@pytest.fixture(scope="module")
def fitted(slices: list[Slice]) -> dict[str, Baseline]:
    """Fit all on the first two."""
    return fit_baselines(list(KINDS), slices[:2])


def fewer_genes(tissue: Slice, kept: Any) -> Slice:
    return replace(
        tissue,
        counts=tissue.counts[:, kept],
        gene_ids=tissue.gene_ids[kept],
        gene_symbols=tissue.gene_symbols[kept],
    )


def test_shapes(fitted: dict[str, Baseline], slices: list[Slice]) -> None:
    out = {name: one.transform(slices[2]) for name, one in fitted.items()}
    widths = {"expression": GENES, "pca-concat": 150, "t2": 70, "t4": 6 * 60}
    for name in KINDS:
        if name.startswith("t1"):
            widths[name] = 20
        if name.startswith("t3"):
            widths[name] = 6 * 20
        if name.startswith("t4-clean"):
            widths[name] = 3 * 6 * 30
    assert {name: values.shape for name, values in out.items()} == {
        n: (CELLS, widths.get(n, 50)) for n in KINDS
    }
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in out.values())


def test_pca_against_plain_code(simulated: Any) -> None:
    adata = simulated(250)
    counts = adata.X.toarray().astype(np.float64)
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    logged = np.log1p(counts / total * np.median(total))
    logged = logged[:, logged.std(axis=0) > 0]
    scaled = (logged - logged.mean(axis=0)) / logged.std(axis=0)
    expected = PCA(10, random_state=0, svd_solver="full").fit_transform(scaled)
    found = Baseline("pca", n_components=10).embed(adata).obsm["X_pca"]
    for k in range(5):
        assert abs(np.corrcoef(found[:, k], expected[:, k])[0, 1]) > 0.999


def test_pearson_residuals_against_scanpy(simulated: Any) -> None:
    import scanpy as sc

    adata = simulated(250)
    counted = [np.asarray(adata.X.sum(axis=axis)).ravel() > 0 for axis in (1, 0)]
    adata = adata[
        counted[0], counted[1]
    ].copy()  # theirs divides by zero where a gene or cell has none
    theirs = sc.experimental.pp.normalize_pearson_residuals(adata, theta=100, inplace=False)["X"]
    tissue = Slice.from_anndata(adata)
    ours = projections._values(tissue, list(projections.gene_columns(tissue)), pearson=True)
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=2e-4)


def test_what_each_is_made_of(fitted: dict[str, Baseline], slices: list[Slice]) -> None:
    tissue = slices[2]
    out = {name: one.transform(tissue) for name, one in fitted.items()}
    short = out["z50"][:, :20]
    np.testing.assert_allclose(
        out["t1"], neighbor_mean(short, tissue.coords, WITHIN_3_HOPS), rtol=1e-5
    )
    for block in (out["t2"][:, :50], out["t2"][:, 50:]):  # equal in mean norm
        assert np.linalg.norm(block, axis=1).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(out["t3"][:, :20], short)
    np.testing.assert_allclose(
        out["pca-concat"], np.hstack([out["pca"], out["pca-nb1"], out["pca-nb3"]]), rtol=1e-5
    )
    np.testing.assert_allclose(
        out["pca-nb1"], neighbor_mean(out["pca"], tissue.coords, 6), rtol=1e-5
    )
    distance = np.linalg.norm(tissue.coords[:, None] - tissue.coords[None], axis=-1)
    order = np.argsort(distance, axis=1, kind="stable")
    for number, (inner, outer) in enumerate(pairwise(RINGS)):
        mean = short[order[:, inner + 1 : outer + 1]].mean(axis=1)
        np.testing.assert_allclose(
            out["t3"][:, 20 * (number + 1) : 20 * (number + 2)], mean, rtol=1e-4, atol=1e-4
        )


def test_the_bag_of_states_against_plain_code(
    fitted: dict[str, Baseline], slices: list[Slice]
) -> None:
    learned = [fitted["z50"].transform(tissue)[:, :20] for tissue in slices[:2]]
    states = States.fit(np.concatenate(learned))
    tissue = slices[2]
    own = fitted["z50"].transform(tissue)[:, :20]
    squared = ((own[:, None] - states.centers[None]) ** 2).sum(axis=-1)
    weight = np.exp(-2 * (squared - squared.min(axis=1, keepdims=True)) / states.width)
    shares = weight / weight.sum(axis=1, keepdims=True)
    distance = np.linalg.norm(tissue.coords[:, None] - tissue.coords[None], axis=-1)
    order = np.argsort(distance, axis=1, kind="stable")
    rings = [shares]
    for inner, outer in pairwise(RINGS):
        rings.append(shares[order[:, inner + 1 : outer + 1]].mean(axis=1))
    expected = np.sqrt(np.hstack(rings))
    np.testing.assert_allclose(fitted["t4"].transform(tissue), expected, atol=2e-3)


def test_clean_loadings_are_those_of_z50(fitted: dict[str, Baseline], slices: list[Slice]) -> None:
    tissue = slices[2]
    for name in ("t1", "t3"):
        plain = fitted[name].transform(tissue)
        clean = fitted[f"{name}-clean"].transform(tissue)
        for column in range(clean.shape[1]):  # all genes are there: each component on its own scale
            assert np.corrcoef(plain[:, column], clean[:, column])[0, 1] > 0.999
        scored = fitted[f"{name}-clean-z"].transform(tissue)
        np.testing.assert_allclose(scored.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(scored.std(axis=0), 1, atol=1e-3)
        expected = (clean - clean.mean(axis=0)) / clean.std(axis=0)
        np.testing.assert_allclose(scored, expected, atol=1e-3)


def test_a_missing_gene_is_missing_and_not_average() -> None:
    made = simulate.corpus(3, 500, n_genes=400, seed=4)
    slices = [Slice.from_anndata(adata) for adata in made]
    tissue = slices[2]
    half = fewer_genes(tissue, np.random.default_rng(1).permutation(400)[:200])
    lost = {}
    slope = {}
    for name, one in fit_baselines(["t1", "t1-clean"], slices[:2]).items():
        whole = one.transform(tissue)[:, 0]  # the strongest component
        poor = one.transform(half)[:, 0]
        lost[name] = ((whole - poor) ** 2).mean() / whole.var()
        slope[name] = float(np.polyfit(whole, poor, 1)[0])
    assert 0.4 < slope["t1"] < 0.65  # zeros in place of the missing half halve every vector
    assert 0.8 < slope["t1-clean"] < 1.2
    assert lost["t1-clean"] < 0.6 * lost["t1"]


@pytest.mark.parametrize("name", ["t1-clean", "t3-clean", "t1-clean-z", "t3-clean-z", "t4-clean"])
def test_too_few_genes_for_a_least_squares_estimate(
    name: str, fitted: dict[str, Baseline], slices: list[Slice]
) -> None:
    enough = fewer_genes(slices[2], np.arange(20))
    assert np.isfinite(fitted[name].transform(enough)).all()
    few = fewer_genes(slices[2], np.arange(19))
    with pytest.raises(InputError, match=r"19 of the 70 genes .* fewer than 20") as refused:
        fitted[name].transform(few)
    assert "\n" not in str(refused.value)


def test_states_at_three_scales_have_t4s_form(
    fitted: dict[str, Baseline], slices: list[Slice]
) -> None:
    """Shares of each ring and scale add up to one; the depth of a slice does not move them far."""
    vectors = fitted["t4-clean"].transform(slices[2])
    shares = (vectors**2).reshape(CELLS, 6, 3, 30)
    np.testing.assert_allclose(shares.sum(axis=3), 1, atol=1e-4)
    thinned, _ = thin_counts(slices[2].counts, 0.3, np.random.default_rng(0))
    shallow = replace(slices[2], counts=thinned)
    moved = {}
    for name in ("t4", "t4-clean"):
        before = fitted[name].transform(slices[2])
        after = fitted[name].transform(shallow)
        moved[name] = ((after - before) ** 2).mean() / before.var(axis=0).mean()
    assert moved["t4-clean"] < 0.8 * moved["t4"]


def test_half_shrunk_means_leave_less_between_shifted_slices() -> None:
    made = simulate.corpus(3, CELLS, n_genes=GENES, seed=4, n_donors=3, batch=0.8)
    shifted = [Slice.from_anndata(adata) for adata in made]

    def between(parts: list[Any]) -> float:
        """Return variance between slices over variance within."""
        share = between_slices(parts)
        return share / (1 - share)

    one_mean = projections.Expression.fit(shifted, 0.0)
    smoothed = [neighbor_mean(one_mean(t), t.coords, WITHIN_3_HOPS) for t in shifted]
    left = {}
    for name in ("t1", "t1-half"):
        baseline = Baseline(name).fit(shifted)
        left[name] = between([baseline.transform(tissue) for tissue in shifted])
    assert 0.1 * between(smoothed) < left["t1-half"] < 0.4 * between(smoothed)  # half, squared
    assert left["t1"] < 0.1 * left["t1-half"]  # each slice by itself leaves next to none


def test_each_fit_has_a_fingerprint_of_its_own(
    fitted: dict[str, Baseline], slices: list[Slice]
) -> None:
    assert len({one.fingerprint() for one in fitted.values()}) == len(KINDS)
    for name in ("t4", "t1-half", "t3-clean"):
        assert Baseline(name).fit(slices[:2]).fingerprint() == fitted[name].fingerprint()
        assert Baseline(name).fit(slices).fingerprint() != fitted[name].fingerprint()


def test_sharing_a_projection_changes_nothing(
    fitted: dict[str, Baseline], slices: list[Slice]
) -> None:
    for name in ("t3", "t4", "t1-half", "t1-clean", "pca-nb1", "pearson", "expression"):
        alone = Baseline(name).fit(slices[:2])
        np.testing.assert_array_equal(alone.transform(slices[2]), fitted[name].transform(slices[2]))


def test_the_components_are_of_the_training_slices_only(slices: list[Slice]) -> None:
    one = Baseline("z50").fit(slices[:2])
    before = one.transform(slices[2])
    one.transform(slices[0])
    np.testing.assert_array_equal(one.transform(slices[2]), before)
    assert not np.allclose(Baseline("z50").fit(slices).transform(slices[2]), before)
    assert one.fitted_on == (slices[0].name, slices[1].name)


def test_neighbor_mean_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    values, coords = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(50, 2))
    order = np.argsort(np.linalg.norm(coords[:, None] - coords[None], axis=-1), axis=1)
    np.testing.assert_allclose(
        neighbor_mean(values, coords, 6), values[order[:, :7]].mean(axis=1), atol=1e-6
    )
    assert neighbor_mean(values, coords, 0) is values
    np.testing.assert_allclose(
        neighbor_mean(values, coords, 500)[0], values.mean(axis=0), atol=1e-5
    )


def test_a_slice_smaller_than_its_rings() -> None:
    values = np.arange(8, dtype=np.float32)[:, None]
    coords = np.arange(8.0)[:, None] * [[1.0, 0.0]]
    _, index = next(nearest_in_rings(coords))
    means = ring_means(values, index)
    assert means.shape == (8, 6)
    np.testing.assert_array_equal(means.any(axis=0), [True, True, True, False, False, False])


@pytest.mark.parametrize("layout", ["cells", "visium"])
def test_neighbors_help_regions(simulated: Any, layout: str) -> None:
    adata = simulated(1200, 300, layout=layout, seed=1)
    scores = {}
    for name in ("pca", "pca-nb3"):
        Baseline(name, n_components=20).embed(adata, key_added="x")
        assert adata.obsm["x"].shape == (1200, 20)
        tz.tasks.domains(adata, use_rep="x", n_domains=5)
        scores[name] = adjusted_rand_score(adata.obs["region"], adata.obs["x_domain"])
    assert scores["pca-nb3"] > max(0.5, scores["pca"])


def test_same_seed_same_vectors_and_the_usual_key(simulated: Any) -> None:
    adata = Baseline("pca-nb1", n_components=7).embed(simulated())
    assert adata.uns["terrazzo"]["X_pca_nb1"]["model"] == "PCA + neighbor mean, 1 hop"
    again = Baseline("pca-nb1", n_components=7).embed(simulated())
    np.testing.assert_array_equal(adata.obsm["X_pca_nb1"], again.obsm["X_pca_nb1"])
    assert adata.obsm["X_pca_nb1"].shape == (200, 7)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_cells(simulated: Any, name: str, n: int) -> None:
    found = Baseline(name).embed(simulated()[:n].copy(), key_added="x").obsm["x"]
    assert len(found) == n
    if name == "t4":
        assert found.shape[1] == 360  # whatever the number of states that there are
    assert np.isfinite(found).all()


@pytest.mark.parametrize("value", [0, 1])
def test_slices_without_variation(simulated: Any, value: int) -> None:
    adata = simulated()
    adata.X = sparse.csr_matrix(np.full(adata.shape, value, dtype=np.float32))
    for name in KINDS:
        found = Baseline(name).embed(adata, key_added="x").obsm["x"]
        np.testing.assert_allclose(found, found[:1].repeat(len(found), 0), atol=1e-6)


def test_a_slice_with_missing_genes(fitted: dict[str, Baseline], slices: list[Slice]) -> None:
    tissue, order = slices[2], np.random.default_rng(0).permutation(GENES)  # genes go by name
    for one in fitted.values():
        whole, poor = (
            one.transform(tissue),
            one.transform(fewer_genes(tissue, np.arange(0, GENES, 2))),
        )
        assert poor.shape == whole.shape
        assert np.isfinite(poor).all()
        np.testing.assert_allclose(one.transform(fewer_genes(tissue, order)), whole, atol=1e-4)
    half = fitted["z50"].transform(fewer_genes(tissue, np.arange(0, GENES, 2)))
    assert (
        np.corrcoef(half[:, 0], fitted["z50"].transform(tissue)[:, 0])[0, 1] > 0.5
    )  # less, but the same


def test_nothing_in_common_is_refused(fitted: dict[str, Baseline], slices: list[Slice]) -> None:
    foreign = replace(slices[2], gene_ids=np.array([f"ENSG9{i:010d}" for i in range(GENES)]))
    for one in fitted.values():
        with pytest.raises(InputError, match="none of the 70 genes"):
            one.transform(foreign)
    with pytest.raises(InputError, match="fewer than two genes in common"):
        Baseline("z50").fit([slices[0], foreign])
    with pytest.raises(InputError, match="at least one slice"):
        Baseline("z50").fit([])


def test_of_many_genes_the_spatial_ones_are_taken(
    slices: list[Slice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expression, "GENOME_WIDE", 40)
    monkeypatch.setattr(expression, "AUTOCORRELATED", 20)
    rng, tissue = np.random.default_rng(0), slices[0]
    left = tissue.coords[:, :1] < np.median(tissue.coords[:, 0])
    mean = np.hstack(
        [np.full((CELLS, 50), 5), np.repeat(np.where(left, [2, 8], [8, 2]), 10, axis=1)]
    )
    counts = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    chosen = expression.chosen_genes([replace(tissue, counts=counts)], "autocorrelation")
    assert chosen == list(tissue.gene_ids[50:])


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pca-nb3'"):
        Baseline("pca-nb33")
