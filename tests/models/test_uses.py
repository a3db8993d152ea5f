"""What each model can do with a slice, and what it lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import terrazzo as tz
from terrazzo.models.uses import LACKS, READY, uses

MODELS = ["SToFM", "ST as images", "ST-Align", "image to gene"]


def lines(adata: Any, **options: Any) -> dict[str, str]:
    found = uses(tz.Slice.from_anndata(adata, allow_normalized=True, **options))
    assert list(found) == MODELS
    assert all(line.startswith((READY, LACKS)) for line in found.values())
    return found


def test_an_array_with_histology(histology: Any) -> None:
    found = lines(histology(layout="visium"))
    assert all(line.startswith(READY) for line in found.values())
    assert "distances in micrometers" in found["SToFM"]
    assert "on its hex grid of " in found["ST as images"]
    assert "from histology and genes" in found["ST-Align"]
    assert "learned from, predicted and scored" in found["image to gene"]


def test_single_cells_without_histology(simulated: Any) -> None:
    adata = simulated(120)
    found = lines(adata)
    side = found["ST as images"].split()[-1]
    assert f"--bin-um {side}" in found["ST as images"]
    model = tz.STImage("tiny", tz.Vocabulary.from_slices([tz.Slice.from_anndata(adata)]))
    model.embed(adata.copy(), bin_um=float(side), progress=False)  # what is advised works
    assert "genes alone (--modality genes)" in found["ST-Align"]
    assert found["image to gene"].startswith(LACKS)
    assert "--image FILE" in found["image to gene"]


@pytest.mark.filterwarnings("ignore::terrazzo.errors.TerrazzoWarning")
def test_normalized_values(histology: Any) -> None:
    adata = histology(layout="visium").copy()
    adata.X = np.log1p(adata.X.toarray()) + 0.5
    found = lines(adata)
    for name in MODELS[:2]:
        assert found[name].startswith(LACKS)
        assert "--layer" in found[name]
    assert "histology alone (--modality image)" in found["ST-Align"]
    assert "not learned from" in found["image to gene"]


@pytest.mark.filterwarnings("ignore::terrazzo.errors.TerrazzoWarning")
def test_micrometers_that_are_not_known(simulated: Any) -> None:
    adata = simulated(120).copy()
    del adata.uns["technology"]
    found = lines(adata)
    assert "--microns-per-unit" in found["SToFM"]
    assert "units of the coordinates" in found["ST as images"]
    assert "micrometers" not in lines(adata, microns_per_unit=1.0)["ST as images"]
