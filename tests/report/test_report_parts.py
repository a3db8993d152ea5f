"""Genes that a page holds, embeddings in two dimensions, and numbers in few bytes."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.report import expression, layouts
from terrazzo.report.packing import Blocks, jpeg, smallest


def unpacked(blocks: Blocks, field: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(
        zlib.decompress(base64.b64decode(blocks.encoded[field["block"]])), f"<{field['kind']}"
    )


def slice_of(counts: np.ndarray, names: list[str], coords: np.ndarray) -> tz.Slice:
    ids = np.array(["" for _ in names])
    cells = np.array([f"c{i}" for i in range(len(counts))])
    return tz.Slice(
        sparse.csr_matrix(counts.astype(np.float32)), ids, np.array(names), coords, cells, unit="um"
    )


@pytest.fixture
def striped() -> tz.Slice:
    """A gene that follows the tissue, one that varies as much at random, one that is flat, and twenty quiet ones."""
    rng = np.random.default_rng(0)
    coords = np.stack(np.meshgrid(np.arange(30.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    follows = np.where(coords[:, 0] < 15, 40, 0)
    counts = [follows, rng.permutation(follows), np.full(600, 20), *(rng.poisson(0.02, (20, 600)))]
    filler = np.full(600, 1000)  # so that the totals hardly differ
    names = ["follows", "random", "flat", *(f"quiet{i}" for i in range(20)), "filler"]
    return slice_of(np.stack([*counts, filler], axis=1), names, coords)


def test_the_gene_that_follows_the_tissue_comes_first(striped: tz.Slice) -> None:
    chosen = expression.choose(striped, 2, [])
    assert striped.gene_symbols[chosen.columns[0]] == "follows"
    assert len(chosen.columns) == 2
    assert "most variable" in chosen.how


def test_genes_asked_for_come_whatever_they_are(striped: tz.Slice) -> None:
    asked, lost = expression.find(striped, ["flat", "none"])
    assert lost == ["none"]
    chosen = expression.choose(striped, 2, asked)
    assert [striped.gene_symbols[c] for c in chosen.columns] == ["flat", "follows"]
    assert expression.choose(striped, 0, asked).columns == asked
    everything = expression.choose(striped, 100, asked)
    assert sorted(everything.columns) == list(range(24))
    assert everything.how == "all 24 genes"
    assert "Did you mean 'follows'" in expression.hint(striped, "follow")


def test_fewer_genes_of_many_cells(striped: tz.Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expression, "VALUES", 600 * 12)
    assert len(expression.choose(striped, 20, []).columns) == 12
    monkeypatch.setattr(expression, "VALUES", 1)
    assert len(expression.choose(striped, 20, []).columns) == expression.LEAST


def test_a_symbol_that_repeats_is_told_apart() -> None:
    tissue = tz.Slice(
        sparse.csr_matrix(np.eye(3, dtype=np.float32)),
        np.array(["ENSG1", "ENSG2", "ENSG3"]),
        np.array(["A", "A", ""]),
        np.eye(3, 2),
        np.array(["a", "b", "c"]),
    )
    assert expression.names_of(tissue) == ["A (ENSG1)", "A (ENSG2)", "ENSG3"]
    assert expression.find(tissue, ["A", "ENSG2", "A (ENSG2)"]) == ([0, 1, 1], [])


def test_counts_are_kept_exactly_and_others_finely() -> None:
    counts = np.array([[0, 300, 70_000], [1, 2, 0], [0, 0, 3]])
    tissue = slice_of(counts, ["a", "b", "c"], np.eye(3, 2))
    blocks = Blocks()
    packed = expression.pack(tissue, [0, 1, 2], blocks)
    assert [gene["kind"] for gene in packed] == ["u1", "u2", "u4"]
    for column, gene in enumerate(packed):
        np.testing.assert_array_equal(unpacked(blocks, gene) * gene["unit"], counts[:, column])
    total = counts.sum(axis=1)
    assert packed[1]["high"] == pytest.approx(
        np.percentile(np.log1p(counts[:, 1] / total * 1e4), 99.5), rel=1e-5
    )
    half = slice_of(counts / 2, ["a", "b", "c"], np.eye(3, 2))
    packed = expression.pack(half, [0], blocks)
    np.testing.assert_allclose(
        unpacked(blocks, packed[0]) * packed[0]["unit"], counts[:, 0] / 2, atol=1e-4
    )


def test_places_in_two_bytes() -> None:
    blocks, values = Blocks(), np.array([-5.0, 0.25, 6000.0])
    field = blocks.places(values)
    assert field["kind"] == "u2"
    np.testing.assert_allclose(
        field["low"] + field["step"] * unpacked(blocks, field), values, atol=0.1
    )
    one = blocks.places(np.full(3, 7.0))
    np.testing.assert_array_equal(one["low"] + one["step"] * unpacked(blocks, one), [7, 7, 7])
    assert [smallest(np.array([n])) for n in (0, 255, 256, 70_000)] == ["u1", "u1", "u2", "u4"]
    assert jpeg(np.zeros((4, 4, 3), np.uint8)).startswith("data:image/jpeg;base64,")


def test_components_are_those_of_a_full_decomposition(simulated: Any) -> None:
    adata = simulated(40, 40)
    vectors = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    adata.obsm["X_mine"] = vectors
    (drawn,), notes = layouts.draw(adata, ["X_mine"], "pca", "spatial", 0)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    for axis in range(2):
        expected = u[:, axis] * s[axis]
        sign = np.sign(expected @ drawn.places[:, axis])
        np.testing.assert_allclose(drawn.places[:, axis], sign * expected, atol=1e-8)
    shares = s**2 / (s**2).sum()
    assert f"{shares[0]:.0%} and {shares[1]:.0%} of the variance" in drawn.method
    assert notes == []


def test_which_embeddings_are_drawn(simulated: Any) -> None:
    adata = simulated(30, 40)
    rng = np.random.default_rng(0)
    adata.obsm["X_foreign"] = rng.normal(size=(30, 4))
    adata.obsm["X_umap"] = rng.normal(size=(30, 2))
    drawn, _ = layouts.draw(adata, None, "pca", "spatial", 0)
    assert [(one.key, one.method) for one in drawn][1] == ("X_umap", "as it is")
    np.testing.assert_array_equal(drawn[1].places, adata.obsm["X_umap"])
    for name in ("pca", "t1", "t3", "z50"):
        tz.Baseline(name, n_components=4).embed(adata)
    drawn, notes = layouts.draw(adata, None, "pca", "spatial", 0)
    assert [one.key for one in drawn] == [
        "X_pca",
        "X_t1",
        "X_t3",
        "X_umap",
    ]  # terrazzo's own come first
    assert "not drawn: X_z50" in notes[0]
    adata.obsm["X_pca"][3, 0] = np.nan
    drawn, notes = layouts.draw(adata, None, "pca", "spatial", 0)
    assert "X_pca is not drawn" in notes[1]
    with pytest.raises(InputError, match="not finite"):
        layouts.draw(adata, ["X_pca"], "pca", "spatial", 0)
    with pytest.raises(ConfigError, match="projection is 'x'"):
        layouts.draw(adata, None, "x", "spatial", 0)  # type: ignore[arg-type]


def test_umap_where_it_is_quick_and_components_where_not(
    simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = simulated(30, 40)
    adata.obsm["X_mine"] = np.random.default_rng(0).normal(size=(30, 4))
    monkeypatch.setattr(layouts, "umap_layout", lambda vectors, seed: vectors[:, :2] + seed)
    (drawn,), _ = layouts.draw(adata, ["X_mine"], "auto", "spatial", 5)
    assert drawn.method.startswith("UMAP")
    np.testing.assert_array_equal(drawn.places, adata.obsm["X_mine"][:, :2] + 5)
    monkeypatch.setattr(layouts, "UMAP_CELLS", 29)
    (drawn,), _ = layouts.draw(adata, ["X_mine"], "auto", "spatial", 0)
    assert "principal components" in drawn.method
    assert "UMAP of 30 cells would take long" in drawn.method


def test_all_genes_of_a_small_slice(striped: tz.Slice, monkeypatch: pytest.MonkeyPatch) -> None:
    assert expression.default_number(striped) == 24
    monkeypatch.setattr(expression, "ALL_VALUES", 600 * 24 - 1)
    assert expression.default_number(striped) == expression.DEFAULT
