"""Figures, drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from terrazzo import plot
from terrazzo.errors import InputError, OutputError

pytestmark = pytest.mark.usefixtures("quiet_figures")


def test_categories_are_drawn_in_their_places(simulated: Any) -> None:
    adata = simulated()
    axes = plot.spatial(adata, color="region")
    drawn = {c.get_label(): c.get_offsets() for c in axes.collections}
    for region in adata.obs["region"].cat.categories:
        here = (adata.obs["region"] == region).to_numpy()
        np.testing.assert_allclose(drawn[region], adata.obsm["spatial"][here])
    colours = {tuple(c.get_facecolor()[0]) for c in axes.collections}
    assert len(colours) == len(axes.collections) == 5
    low, high = axes.get_ylim()
    assert low > high  # y downwards, as on a slide
    assert axes.get_title() == "region"
    assert len(axes.get_legend().get_texts()) == 5


@pytest.mark.parametrize("color", ["depth", "SIM3", "flag"])
def test_numbers_and_genes_have_a_colour_bar(simulated: Any, color: str) -> None:
    adata = simulated()
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.obs["flag"] = adata.obs["depth"] > 10
    axes = plot.spatial(adata, color=color, title="shown")
    expected = adata[:, color].X.toarray().ravel() if color == "SIM3" else adata.obs[color].to_numpy(dtype=float)
    np.testing.assert_allclose(axes.collections[0].get_array(), expected)
    assert len(axes.figure.axes) == 2
    assert axes.get_title() == "shown"


def test_dense_counts_strings_and_gaps(simulated: Any) -> None:
    adata = simulated()
    adata.X = adata.X.toarray()
    assert len(plot.spatial(adata, color="SIM1").collections) == 1
    adata.obs["text"] = ["a", "b"] * 100
    adata.obs["gaps"] = pd.Categorical(["a", None] * 100)
    assert len(plot.spatial(adata, color="text").collections) == 2
    assert sum(len(c.get_offsets()) for c in plot.spatial(adata, color="gaps").collections) == 100


def test_many_categories_have_no_legend(simulated: Any) -> None:
    adata = simulated()
    adata.obs["many"] = pd.Categorical([f"c{i % 30}" for i in range(200)])
    assert plot.spatial(adata, color="many").get_legend() is None
    assert plot.spatial(adata, color="region", legend=False).get_legend() is None


@pytest.mark.parametrize("layout", ["visium", "st"])
def test_on_given_axes(simulated: Any, layout: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, layout="constrained")
    assert plot.spatial(simulated(layout=layout), color="region", ax=axes[1]) is axes[1]
    assert not axes[0].collections
    assert len(figure.axes) == 2


def test_what_cannot_be_drawn_is_said(simulated: Any) -> None:
    with pytest.raises(InputError, match="neither a column of obs"):
        plot.spatial(simulated(), color="nothing")


def test_save(simulated: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    figure = plot.spatial(simulated(), color="region").figure
    path = plot.save(figure, tmp_path / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not plt.fignum_exists(figure.number)
    figure = plot.spatial(simulated(), color="region").figure
    with pytest.raises(OutputError, match="could not be written"):
        plot.save(figure, tmp_path / "nowhere" / "figure.png")
    assert not plt.fignum_exists(figure.number)
