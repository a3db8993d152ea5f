"""Whole numbers with too many digits for float64, in columns that are read as numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.slices.lattices import numbers_of

HUGE = 10**400


@pytest.mark.parametrize("value", [HUGE, -HUGE])
def test_a_number_that_is_too_large_is_none(value: int) -> None:
    column = pd.Series([1, "2", None, value, True, "x"], dtype=object)
    np.testing.assert_array_equal(numbers_of(column), [1, 2, np.nan, np.nan, 1, np.nan])


@pytest.mark.parametrize(
    "value", ["", "x", None, 1, -1, True, 2**63, 2**64, 10**20, HUGE, b"4", 3j, (1, 2)]
)
@pytest.mark.parametrize("other", ["", "x", 1, -1, 2**63, 2**64, 10**30, -(10**30), "9" * 400])
def test_no_mixture_of_values_fails(value: object, other: object) -> None:
    column = pd.Series([value, other, 7], dtype=object)
    numbers = numbers_of(column)
    assert numbers.dtype == np.float64
    assert numbers[2] == 7


@pytest.mark.parametrize("name", ["array_row", "array_col"])
def test_huge_places_of_an_array_are_not_used(simulated: Callable[..., AnnData], name: str) -> None:
    adata = simulated(60, layout="visium")
    places = adata.obs[name].astype(object)
    places.iloc[0] = HUGE
    adata.obs[name] = places
    tissue = tz.Slice.from_anndata(adata)
    assert tissue.n_cells == 60


def test_a_column_of_huge_numbers_is_written_as_text(
    simulated: Callable[..., AnnData], tmp_path: Path
) -> None:
    adata = simulated(60)
    adata.obs["big"] = pd.Series([HUGE] * 60, index=adata.obs_names, dtype=object)
    source = tmp_path / "a.h5ad"
    simulated(60).write_h5ad(source)
    tz.Baseline("pca").embed(adata)
    from terrazzo.slices.writable import make_writable

    make_writable(adata)
    adata.write_h5ad(tmp_path / "out.h5ad")
    assert str(anndata.read_h5ad(tmp_path / "out.h5ad").obs["big"].iloc[0]) == str(HUGE)


@pytest.mark.parametrize(
    "values", [[2**63, -1], [10**20, -(10**20)], [10**20, 1.5], [2**64 - 1, None]]
)
def test_a_column_of_numbers_beyond_64_bits_is_written(
    values: list[object], simulated: Callable[..., AnnData], tmp_path: Path
) -> None:
    from terrazzo.slices.writable import make_writable

    adata = simulated(60)
    adata.obs["big"] = pd.Series(values * 30, index=adata.obs_names, dtype=object)
    make_writable(adata)
    adata.write_h5ad(tmp_path / "out.h5ad")
    read = anndata.read_h5ad(tmp_path / "out.h5ad").obs["big"]
    assert float(read.iloc[0]) == float(str(values[0]))
