"""Labels carried over from annotated slices and dissociated cells, and references that do not bear it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.splitting import thin_counts

KEY = "terrazzo_label"
Cells = Callable[..., AnnData]


@pytest.fixture(scope="session")
def cells(simulated: Callable[..., AnnData]) -> Cells:
    """Make a slice of single cells of four types."""

    def make(seed: int = 1, n_cells: int = 300, **options: Any) -> AnnData:
        return simulated(n_cells, 120, n_types=4, n_regions=3, seed=seed, **options)

    return make


def dissociated(adata: AnnData) -> AnnData:
    """Return the cells without their places."""
    del adata.obsm["spatial"]
    adata.uns = {}
    return adata


def accuracy(adata: AnnData, label: str = "cell_type") -> float:
    known = adata.obs[KEY].astype(str) != "unknown"
    right = adata.obs[KEY].astype(str) == adata.obs[label].astype(str)
    return float(right[known].mean())


def test_types_of_dissociated_cells(cells: Cells, quiet_figures: None) -> None:
    adata = cells(2)
    result = tz.annotate(adata, dissociated(cells(1)), "cell_type")
    assert accuracy(adata) > 0.8
    assert result.used == "the cell alone"
    assert adata.obs[f"{KEY}_probability"].between(0, 1).all()
    assert adata.uns["terrazzo"][KEY]["task"] == "annotate"
    assert set(result.confused.columns) == {"true", "predicted", "n_cells", "share"}
    assert result.shares["share"].sum() == pytest.approx(1)
    assert 0 < result.held_out["kept"] <= 1
    assert "held-out accuracy" in repr(result)
    assert "<table" in result._repr_html_()
    assert result.plot() is not None


def test_regions_of_annotated_slices(cells: Cells) -> None:
    slices = [cells(3), cells(4, donor="other")]
    result = tz.annotate(slices, [cells(1, n_cells=500), cells(2, n_cells=500)], "region")
    assert result.used == "the cell and its surroundings"
    assert min(accuracy(adata, "region") for adata in slices) > 0.8
    assert result.shares["slice"].nunique() == 2


def test_cells_of_files(cells: Cells, tmp_path: Path) -> None:
    reference = tmp_path / "atlas.h5ad"
    dissociated(cells(1)).write_h5ad(reference)
    cells(2).write_h5ad(tmp_path / "slice.h5ad")
    result = tz.annotate(tmp_path / "slice.h5ad", reference, "cell_type")
    in_memory = cells(2)
    tz.annotate(in_memory, dissociated(cells(1)), "cell_type")
    assert (result.slices[0].obs[KEY] == in_memory.obs[KEY]).all()


def shallow(adata: AnnData, n_genes: int = 60, rate: float = 0.1) -> AnnData:
    """Return the slice with some of its genes, every other one, and a part of its counts."""
    out = adata[:, : 2 * n_genes : 2].copy()
    out.X, _ = thin_counts(out.X, rate, np.random.default_rng(0))
    return out


def test_fewer_genes_and_counts(cells: Cells) -> None:
    right = {}
    for way in ({"common_genes": False, "copies": False}, {}):
        adata = shallow(cells(2, n_cells=500, depth=600))
        with pytest.warns(TerrazzoWarning, match=r"120 genes that are used and the target 60; 60"):
            result = tz.annotate(
                adata, cells(1, n_cells=500, depth=600), "cell_type", threshold=0, **way
            )
        right[len(way)] = (accuracy(adata), result.held_out["accuracy"])
    assert right[0][0] >= right[2][0] - 0.02  # copies and the choice of genes against neither
    assert abs(right[0][1] - right[0][0]) < 0.15  # held-out cells are degraded alike
    record = json.loads(adata.uns["terrazzo"][KEY]["transfer"])
    assert record["n_genes_shared"] == 60
    assert set(record["held_out_scores"]) == {"common_genes", "all_genes"}
    assert "thinned to the target's depth" in " ".join(record["copies"])
    assert any("embedded from" in note for note in result.notes)


def test_equal_panels_say_nothing(cells: Cells) -> None:
    adata = cells(2)
    result = tz.annotate(adata, cells(1), "cell_type")
    assert not any("panels" in note for note in result.notes)
    assert json.loads(adata.uns["terrazzo"][KEY]["transfer"])["copies"] == []


def test_rare_and_missing_labels_are_not_learned(cells: Cells) -> None:
    reference = cells(1)
    words = reference.obs["cell_type"].astype(object)
    words.iloc[0] = "once"
    words.iloc[1] = "Unknown"
    words.iloc[2] = "unknown"
    words.iloc[3] = np.nan
    reference.obs["word"] = words
    adata = cells(2)
    result = tz.annotate(adata, reference, "word")
    assert result.labels == [f"type_{number}" for number in range(1, 5)]
    assert any("once" in note for note in result.notes)
    assert list(adata.obs[KEY].cat.categories) == [*result.labels, "unknown"]


def test_a_threshold_of_ones_own(cells: Cells) -> None:
    everything = cells(2)
    tz.annotate(everything, cells(1), "cell_type", threshold=0)
    assert "unknown" not in set(everything.obs[KEY])
    nothing = cells(2)
    tz.annotate(nothing, cells(1), "cell_type", threshold=1)
    assert (nothing.obs[KEY] == "unknown").mean() > 0.9
    with pytest.raises(ConfigError, match="between 0 and 1"):
        tz.annotate(nothing, cells(1), "cell_type", threshold=1.5)


def test_genes_that_do_not_bear_it(cells: Cells) -> None:
    few = cells(1)[:, :5].copy()
    with pytest.raises(InputError, match="5 genes in common"):
        tz.annotate(cells(2), few, "cell_type")
    with pytest.raises(ConfigError, match="common_genes is 'perhaps'"):
        tz.annotate(cells(2), cells(1), "cell_type", common_genes="perhaps")
    reference = cells(1)
    rng = np.random.default_rng(0)
    reference.obs["noise"] = rng.permutation(reference.obs["cell_type"].astype(str).to_numpy())
    adata = cells(2)
    with pytest.raises(InputError, match="do not tell the labels apart"):
        tz.annotate(adata, reference, "noise")
    assert KEY not in adata.obs


@pytest.mark.parametrize("label", ["once", "one", "empty"])
def test_labels_that_cannot_be_learned(cells: Cells, label: str) -> None:
    reference = cells(1)
    reference.obs["once"] = [f"label {number}" for number in range(reference.n_obs)]
    reference.obs["one"] = "the same"
    reference.obs["empty"] = np.nan
    with pytest.raises(InputError, match="labels with at least 10 cells"):
        tz.annotate(cells(2), reference, label)


def test_columns(cells: Cells) -> None:
    with pytest.raises(InputError, match=r"no obs column 'cell_typ'.*Did you mean 'cell_type'"):
        tz.annotate(cells(2), cells(1), "cell_typ")
    adata = cells(2)
    adata.obs[KEY] = "mine"
    with pytest.raises(InputError, match="key_added="):
        tz.annotate(adata, cells(1), "cell_type")
    assert (adata.obs[KEY] == "mine").all()
    with pytest.raises(InputError, match="there is no reference"):
        tz.annotate(cells(2), [], "cell_type")
