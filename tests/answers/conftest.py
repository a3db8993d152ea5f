"""Slices and answers that the tests of this folder share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from anndata import AnnData

from terrazzo.errors import TerrazzoWarning

QUICK = {"n_seeds": 2, "bootstraps": 0, "progress": False}


@pytest.fixture(scope="session")
def spots(simulated: Callable[..., AnnData]) -> Callable[..., AnnData]:
    """Make a small Visium slice with four regions."""

    def make(seed: int = 1, n_cells: int = 300, **options: Any) -> AnnData:
        return simulated(n_cells, 120, layout="visium", n_regions=4, seed=seed, **options)

    return make


@pytest.fixture(scope="session")
def answer(spots: Callable[..., AnnData]) -> Any:
    """Find the regions of a slice, their number too; with two draws of genes."""
    import terrazzo as tz

    return tz.regions(spots(n_cells=400), **{**QUICK, "bootstraps": 2})


@pytest.fixture(scope="session")
def joint(spots: Callable[..., AnnData]) -> Any:
    """Find four regions in two slices of two donors."""
    import terrazzo as tz

    first = spots(1, n_cells=500, name="first")
    second = spots(2, n_cells=500, name="second", batch=0.2, donor="donor_2")
    slices = [first, second]
    for adata, name in zip(slices, ("first", "second"), strict=True):
        adata.uns["group"] = name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerrazzoWarning)  # two seeds of small slices disagree
        return tz.regions(slices, k=4, group="group", **QUICK)
