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
