"""Any AnnData: a Slice that keeps its rows, their order and their sums, or one line that says what is wrong."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hostile_anndata import anndatas, arguments
from hypothesis import HealthCheck, given, settings

import terrazzo as tz
from terrazzo.errors import TerrazzoError, TerrazzoWarning
from terrazzo.genes.features import find_features

FUZZ: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def check(adata: AnnData, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)
        try:
            tissue = tz.Slice.from_anndata(adata, **options)
        except TerrazzoError as error:
            text = str(error)
            assert text
            assert "\n" not in text.strip()
            assert len(text) < 2000
            return
        tissue.describe()
        tissue.content_hash()
    names = [str(name) for name in adata.obs_names]
    assert tissue.obs_names.tolist() == np.asarray(names, dtype=np.str_).tolist()
    assert tissue.coords.shape == (adata.n_obs, 2)
    assert np.isfinite(tissue.coords).all()
    assert np.isfinite(tissue.spacing)
    assert tissue.spacing > 0
    counts = tissue.counts
    counts.check_format(full_check=True)
    assert counts.has_sorted_indices
    assert (counts.data > 0).all()
    assert counts.shape[0] == adata.n_obs
    assert len(tissue.gene_ids) == len(tissue.gene_symbols) == counts.shape[1]
    source = matrix_of(adata, tissue.source)
    expected = np.asarray(sums(source), dtype=np.float64)
    var = adata.raw.var if tissue.source == "raw.X" else adata.var
    if find_features(var).all_genes:
        np.testing.assert_allclose(tissue.total_counts, expected, rtol=1e-6, atol=1e-30)
    else:  # controls are no genes
        assert (tissue.total_counts <= expected * (1 + 1e-6)).all()


def matrix_of(adata: AnnData, source: str) -> Any:
    if source == "X":
        return adata.X
    if source == "raw.X":
        return adata.raw.X
    return adata.layers[source.removeprefix("layers['").removesuffix("']")]


def sums(matrix: Any) -> Any:
    """Sum rows without compiled code, which trusts its input."""
    if not sp.issparse(matrix):
        return np.asarray(matrix, dtype=np.float64).sum(axis=1)
    totals = np.zeros(matrix.shape[0])
    if matrix.format == "coo":
        np.add.at(totals, matrix.row, matrix.data.astype(np.float64))
        return totals
    for major in range(len(matrix.indptr) - 1):
        start, stop = int(matrix.indptr[major]), int(matrix.indptr[major + 1])
        values = matrix.data[start:stop].astype(np.float64)
        if matrix.format == "csr":
            totals[major] = values.sum()
        else:
            np.add.at(totals, matrix.indices[start:stop].astype(np.int64), values)
    return totals


@pytest.mark.case(
    "M",
    given="Any AnnData in memory: names, tables, coordinates, matrices and `uns` of other types and shapes",
    gets="A slice with the same rows, order and sums and finite coordinates, or one line that says what is wrong",
)
@given(anndatas(), arguments)
@settings(max_examples=400, **FUZZ)
def test_any_anndata(adata: AnnData, options: dict[str, Any]) -> None:
    check(adata, options)


@pytest.mark.slow
@given(anndatas(), arguments)
@settings(max_examples=10_000, **FUZZ)
def test_ten_thousand_anndatas(adata: AnnData, options: dict[str, Any]) -> None:
    check(adata, options)
