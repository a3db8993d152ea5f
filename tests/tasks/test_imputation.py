"""Hidden genes: removed from what is embedded, and predicted from the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import Slice
from terrazzo.errors import ConfigError, InputError
from terrazzo.tasks import Hidden, hide_genes, impute
from terrazzo.tasks.heads import MLPConfig

NO_BAR: dict[str, Any] = {"progress": False}
Corpus = Callable[..., list[AnnData]]


@pytest.fixture
def hidden(embedded_corpus: Corpus, embedding: Callable[..., list[AnnData]]) -> list[Hidden]:
    """Two slices with 8 of 80 genes hidden, markers of types, and an embedding of the others."""
    slices = embedded_corpus(2, 500, depth=2000.0)
    markers = slices[0].var_names[slices[0].var["marker_of"] != "none"]
    result = hide_genes(slices, genes=list(markers[:8]))
    embedding([one.visible for one in result], neighbors=8)
    return result


def panel(n: int = 30, d: int = 12, seed: int = 0) -> AnnData:
    counts = np.random.default_rng(seed).poisson(2.0, size=(n, d)).astype(np.float32)
    adata = AnnData(sp.csr_matrix(counts))
    adata.var_names = [f"GENE{i}" for i in range(d)]
    adata.var["ensembl_id"] = [f"ENSG{i:011d}" for i in range(1, d + 1)]
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(size=(n, 2))
    adata.uns["organism"] = "human"
    return adata


# Known answers


@pytest.mark.parametrize("name", ["mlp", "linear", "knn"])
def test_hidden_genes_of_simulated_tissue_are_recovered(
    name: str, hidden: list[Hidden], quick_mlp: MLPConfig
) -> None:
    """Counts are drawn around a mean that type and region decide: nothing predicts better than this mean."""
    first, second = hidden
    head = quick_mlp if name == "mlp" else name
    truth = {"random": first, "blocked": first, "cross": second}
    within = impute(first, use_rep="X_a", head=head, runs=1, **NO_BAR)
    cross = impute([first], test=second, use_rep="X_a", head=head, runs=1, **NO_BAR)
    for done, split in ((within, "random"), (within, "blocked"), (cross, "cross")):
        obs, values = truth[split].visible.obs, truth[split].targets
        best = values - values.groupby([obs["cell_type"], obs["region"]], observed=True).transform(
            "mean"
        )
        assert done.score("rmse", split) < 1.1 * np.sqrt((best**2).to_numpy().mean())
        assert done.score("rmse", split) < 0.94 * done.score("rmse_mean", split)
        assert done.score("pearson", split) > 0.35
        assert done.score("pearson_overall", split) > 0.7
    parts = within.metrics[within.metrics["part"] != ""]
    assert set(parts["part"]) == set(first.genes)
    assert list(within.predictions)[:8] == [f"true:{gene}" for gene in first.genes]


def test_shuffled_targets_are_no_better_than_their_mean(
    hidden: list[Hidden], quick_mlp: MLPConfig
) -> None:
    first = hidden[0]
    order = np.random.default_rng(0).permutation(500)
    shuffled = pd.DataFrame(
        first.targets.to_numpy()[order], index=first.targets.index, columns=first.targets.columns
    )
    done = impute(
        Hidden(first.visible, shuffled),
        use_rep="X_a",
        head=quick_mlp,
        runs=1,
        splits=["blocked"],
        **NO_BAR,
    )
    assert abs(done.score("pearson")) < 0.1
    assert done.score("rmse") > 0.97 * done.score("rmse_mean")


# What is hidden


def test_targets_are_counts_at_the_scale_of_visible_genes() -> None:
    adata = panel()
    result = hide_genes(adata, genes=["GENE7", "GENE2"])
    counts = adata.X.toarray()
    total = np.delete(counts, [2, 7], axis=1).sum(1)
    expected = np.log1p(counts[:, [7, 2]] * np.median(total) / total[:, None])
    assert result.genes == ("GENE7", "GENE2")
    np.testing.assert_allclose(result.targets.to_numpy(), expected, rtol=1e-6)
    assert list(result.targets.index) == list(adata.obs_names)
    np.testing.assert_array_equal(result.visible.X.toarray(), np.delete(counts, [2, 7], axis=1))
    assert list(result.visible.var_names) == [f"GENE{i}" for i in range(12) if i not in (2, 7)]


def everything(value: Any) -> str:
    """All text that is anywhere in a container."""
    if isinstance(value, AnnData):
        parts: list[Any] = [
            value.obs,
            value.var,
            dict(value.uns),
            dict(value.obsm),
            dict(value.varm),
        ]
        return " ".join(everything(part) for part in parts)
    if isinstance(value, dict):
        return " ".join(f"{key} {everything(item)}" for key, item in value.items())
    if isinstance(value, pd.DataFrame):
        cats = [
            list(value[c].cat.categories)
            for c in value
            if isinstance(value[c].dtype, pd.CategoricalDtype)
        ]
        return f"{value.to_csv()} {cats}"
    if isinstance(value, np.ndarray):
        return " ".join(map(str, value.ravel().tolist())) + str(value.dtype.names)
    return str(value)


def test_nothing_of_a_hidden_gene_is_left() -> None:
    adata = panel()
    adata.obsm["spatial"] = adata.obsm["spatial"] * 100  # micrometers, as of Xenium
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata
    adata.layers["log"] = np.log1p(adata.X.toarray())
    adata.obs["GENE3"], adata.obs["region"] = adata.X[:, 3].toarray().ravel(), "a"
    adata.var["family"] = pd.Categorical([f"family of {name}" for name in adata.var_names])
    adata.varm["PCs"], adata.obsm["X_pca"] = np.ones((12, 3)), np.ones((30, 3))
    adata.obsp["distances"] = sp.eye(30).tocsr()
    ranked = np.array([("GENE3", 1.0)], dtype=[("a", "U9"), ("score", "f8")])
    adata.uns |= {
        "terrazzo": {"X_pca": {"model": "PCA"}},
        "rank_genes_groups": {"params": {"method": "t-test"}, "names": ranked},
        "hvg": {"genes": ["GENE1", "GENE3"]},
        "markers": pd.DataFrame({"gene": ["GENE3"]}),
        "by_id": ("ENSG00000000004",),
        "GENE3": 5,
        "series": pd.Series([1.0], index=["GENE3"]),
        "technology": "Xenium",
        "pca": {"variance": np.ones(3)},
        "other": np.array(["GENE1"], dtype=object),
    }
    before = everything(adata)
    result = hide_genes(adata, genes=["GENE3"])
    text = everything(result.visible)
    assert "GENE3" not in text
    assert "ENSG00000000004" not in text
    assert result.visible.raw is None
    assert [list(result.visible.layers), list(result.visible.varm), list(result.visible.obsp)] == [
        [],
        [],
        [],
    ]
    assert list(result.visible.obsm) == ["spatial"]
    assert list(result.visible.obs) == ["region"]
    assert set(result.visible.uns) == {"organism", "technology", "pca", "other"}
    assert everything(adata) == before
    assert Slice.from_anndata(result.visible).n_genes == 11


def test_every_column_of_a_hidden_gene_goes() -> None:
    adata = panel()
    adata.var["ensembl_id"] = [
        *adata.var["ensembl_id"][:5],
        "ENSG00000000001",
        *adata.var["ensembl_id"][6:],
    ]
    result = hide_genes(adata, genes=["GENE0"])
    assert not {"GENE0", "GENE5"} & set(result.visible.var_names)
    counts = adata.X.toarray()
    total = np.delete(counts, [0, 5], axis=1).sum(1)
    both = counts[:, 0] + counts[:, 5]
    np.testing.assert_allclose(
        result.targets["GENE0"], np.log1p(both * np.median(total) / total), rtol=1e-6
    )
    with pytest.raises(ConfigError, match="one gene twice"):
        hide_genes(adata, genes=["GENE0", "GENE5"])


def test_the_embedding_cannot_know_hidden_genes() -> None:
    """Whatever the hidden genes count, what is visible is the same, bit by bit; and so is the scale of the targets."""
    adata = panel()
    other = adata.copy()
    other.X = other.X.toarray()
    other.X[:, 4] = 50
    other.X = sp.csr_matrix(other.X)
    first, second = (
        hide_genes(adata, genes=["GENE4", "GENE6"]),
        hide_genes(other, genes=["GENE4", "GENE6"]),
    )
    assert (first.visible.X != second.visible.X).nnz == 0
    np.testing.assert_array_equal(first.targets["GENE6"], second.targets["GENE6"])


def test_counts_may_be_in_raw_or_a_layer() -> None:
    adata = panel()
    plain = hide_genes(adata, genes=["GENE1"])
    adata.raw = adata
    adata.X = np.log1p(adata.X.toarray())
    from_raw = hide_genes(adata, genes=["GENE1"])
    adata.layers["mine"] = adata.raw.X.copy()
    from_layer = hide_genes(adata, genes=["GENE1"], layer="mine")
    for other in (from_raw, from_layer):
        assert (other.visible.X != plain.visible.X).nnz == 0
        pd.testing.assert_frame_equal(other.targets, plain.targets)


def test_slices_hide_the_same_genes_and_only_those_with_counts() -> None:
    slices = [panel(seed=1), panel(seed=2)[:, 2:].copy()]
    slices[1].X = slices[1].X.toarray() * (
        np.arange(10) != 3
    )  # GENE5 is never counted in the second
    slices[1].X = sp.csr_matrix(slices[1].X)
    able = {f"GENE{i}" for i in range(2, 12)} - {"GENE5"}
    drawn = [tuple(h.genes for h in hide_genes(slices, 4, seed=seed)) for seed in range(20)]
    assert all(first == second for first, second in drawn)
    assert {gene for first, _ in drawn for gene in first} == able
    assert len(set(drawn)) > 10
    assert drawn[0] == tuple(h.genes for h in hide_genes(slices, 4, seed=0))


def test_a_cell_without_visible_counts_is_predicted_and_not_scored() -> None:
    adata = panel(60)
    counts = adata.X.toarray()
    counts[5, :10] = 0
    adata.X = sp.csr_matrix(counts)
    result = hide_genes(adata, genes=["GENE10", "GENE11"])
    assert result.targets.iloc[5].isna().all()
    result.visible.obsm["X_a"] = np.random.default_rng(0).normal(size=(60, 3))
    done = impute(result, use_rep="X_a", head="linear", runs=1, **NO_BAR)
    assert done.config["n_labeled"] == 59
    assert done.predictions["blocked:GENE10"].notna().all()


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"genes": ["GENE99"]},
            InputError,
            "gene 'GENE99' is not in the panel; the nearest name is 'GENE9'",
        ),
        ({"genes": ["gene3"]}, InputError, "not in the panel; the nearest name is 'GENE3'"),
        ({"genes": [f"GENE{i}" for i in range(12)]}, InputError, "all 12 genes"),
        ({"genes": []}, ConfigError, "at least one gene"),
        ({"genes": ["GENE1", "GENE1"]}, ConfigError, "each of them once"),
        ({"n": 12}, InputError, "12 genes cannot be hidden: the panel has 12"),
        ({"n": 0}, ConfigError, "n is 0"),
        ({"layer": "x"}, InputError, "no layer 'x'"),
    ],
)
def test_bad_genes_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hide_genes(panel(), **options)


def test_bad_input_is_refused(hidden: list[Hidden]) -> None:
    with pytest.raises(InputError, match="slice 2 of 2: gene 'GENE1' is not in the panel"):
        hide_genes([panel(), panel()[:, 2:].copy()], genes=["GENE1"])
    with pytest.raises(InputError, match="given as an AnnData"):
        hide_genes("file.h5ad")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="what hide_genes returned"):
        impute(panel(), use_rep="X_a")  # type: ignore[arg-type]
    other = hide_genes(panel(), genes=["GENE1"])
    with pytest.raises(InputError, match="hides other genes than the first"):
        impute(hidden[0], test=other, use_rep="X_a")
    with pytest.raises(InputError, match="Embed first"):
        impute(other, use_rep="X_a")
    with pytest.raises(ConfigError, match="2 slices; pass the slice to be scored as test="):
        impute(hidden, use_rep="X_a")
    hidden[0].visible.obsm["X_a"][3, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        impute(hidden[0], use_rep="X_a")
