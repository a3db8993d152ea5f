"""Z50, T1, T2, T3: shapes, what each is made of, and that nothing of a new slice is fitted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from terrazzo import Slice, simulate
from terrazzo.errors import InputError
from terrazzo.models import strong_baselines
from terrazzo.models.baselines import neighbour_mean
from terrazzo.models.strong_baselines import RINGS, WITHIN_3_HOPS, StrongBaselines, rings

CELLS, GENES = 300, 70


@pytest.fixture(scope="module")
def slices() -> list[Slice]:
    """Make three slices of 300 cells and 70 genes."""
    made = simulate.corpus(3, CELLS, n_genes=GENES, seed=4, n_donors=3)
    return [Slice.from_anndata(adata) for adata in made]


@pytest.fixture(scope="module")
def fitted(slices: list[Slice]) -> StrongBaselines:
    """Fit on the first two."""
    return StrongBaselines.fit(slices[:2])


def fewer_genes(tissue: Slice, kept: Any) -> Slice:
    return replace(
        tissue,
        counts=tissue.counts[:, kept],
        gene_ids=tissue.gene_ids[kept],
        gene_symbols=tissue.gene_symbols[kept],
    )


def test_shapes(fitted: StrongBaselines, slices: list[Slice]) -> None:
    out = fitted.embed(slices[2])
    assert {name: values.shape for name, values in out.items()} == {
        "Z50": (CELLS, 50),
        "T1": (CELLS, 20),
        "T2": (CELLS, 70),
        "T3": (CELLS, 20 + 5 * 20),
    }
    assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in out.values())


def test_what_each_is_made_of(fitted: StrongBaselines, slices: list[Slice]) -> None:
    tissue = slices[2]
    out = fitted.embed(tissue)
    short = out["Z50"][:, :20]
    np.testing.assert_allclose(out["T1"], neighbour_mean(short, tissue.coords, WITHIN_3_HOPS), rtol=1e-5)
    for block in (out["T2"][:, :50], out["T2"][:, 50:]):  # equal in mean norm
        assert np.linalg.norm(block, axis=1).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(out["T2"][:, :50] * np.linalg.norm(out["Z50"], axis=1).mean(), out["Z50"], rtol=1e-4)
    np.testing.assert_array_equal(out["T3"][:, :20], short)
    distance = np.linalg.norm(tissue.coords[:, None] - tissue.coords[None], axis=-1)
    order = np.argsort(distance, axis=1, kind="stable")
    for number, (inner, outer) in enumerate(pairwise(RINGS)):
        mean = short[order[:, inner + 1 : outer + 1]].mean(axis=1)
        np.testing.assert_allclose(out["T3"][:, 20 * (number + 1) : 20 * (number + 2)], mean, rtol=1e-4, atol=1e-4)


def test_a_slice_smaller_than_its_rings() -> None:
    values = np.arange(8, dtype=np.float32)[:, None]
    found = rings(values, np.arange(8.0)[:, None] * [[1.0, 0.0]])
    assert [block.shape for block in found] == [(8, 1)] * 5
    assert [bool(block.any()) for block in found] == [True, True, False, False, False]


def test_the_components_are_of_the_training_slices_only(fitted: StrongBaselines, slices: list[Slice]) -> None:
    before = fitted.loadings.copy()
    one = fitted.embed(slices[2])["Z50"]
    np.testing.assert_array_equal(fitted.loadings, before)
    again = StrongBaselines.fit(slices[:2])
    np.testing.assert_array_equal(again.loadings, before)
    np.testing.assert_array_equal(again.embed(slices[2])["Z50"], one)
    assert not np.allclose(StrongBaselines.fit(slices).loadings, before)
    np.testing.assert_allclose(before.T @ before, np.eye(50), atol=1e-5)


def test_a_slice_with_missing_genes(fitted: StrongBaselines, slices: list[Slice]) -> None:
    tissue = slices[2]
    poor = fewer_genes(tissue, np.arange(0, GENES, 2))
    out = fitted.embed(poor)
    assert out["Z50"].shape == (CELLS, 50)
    assert np.isfinite(out["T3"]).all()
    assert np.corrcoef(out["Z50"][:, 0], fitted.embed(tissue)["Z50"][:, 0])[0, 1] > 0.5  # less, but the same
    order = np.random.default_rng(0).permutation(GENES)  # genes go by name
    np.testing.assert_allclose(fitted.embed(fewer_genes(tissue, order))["Z50"], fitted.embed(tissue)["Z50"], atol=1e-4)


def test_nothing_in_common_is_refused(fitted: StrongBaselines, slices: list[Slice]) -> None:
    foreign = replace(slices[2], gene_ids=np.array([f"ENSG9{i:010d}" for i in range(GENES)]))
    with pytest.raises(InputError, match="none of the 70 genes"):
        fitted.embed(foreign)
    with pytest.raises(InputError, match="fewer than two genes in common"):
        StrongBaselines.fit([slices[0], foreign])


def test_of_many_genes_the_spatial_ones_are_taken(slices: list[Slice], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strong_baselines, "GENOME_WIDE", 40)
    monkeypatch.setattr(strong_baselines, "N_GENES", 20)
    rng, tissue = np.random.default_rng(0), slices[0]
    left = tissue.coords[:, :1] < np.median(tissue.coords[:, 0])
    mean = np.hstack([np.full((CELLS, 50), 5), np.repeat(np.where(left, [2, 8], [8, 2]), 10, axis=1)])
    counts = sparse.csr_matrix(rng.poisson(mean).astype(np.float32))
    chosen = StrongBaselines.fit([replace(tissue, counts=counts)])
    assert chosen.genes == tuple(tissue.gene_ids[50:])
