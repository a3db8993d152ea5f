"""Values on the tissue: who is drawn where, in which color, and over which image. Drawn without a display."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo import plot
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.palettes import MISSING, MISSING_COLOR, as_hex

pytestmark = pytest.mark.usefixtures("quiet_figures")


def drawn(axes: Any) -> dict[str, Any]:
    return {c.get_label(): c for c in axes.collections}


def color_of(cells: Any) -> str:
    return as_hex(cells.get_facecolor()[0])


def test_categories_are_drawn_in_their_places(simulated: Any) -> None:
    adata = simulated()
    axes = plot.spatial(adata, color="region")
    cells = drawn(axes)
    for region in adata.obs["region"].cat.categories:
        in_region = (adata.obs["region"] == region).to_numpy()
        np.testing.assert_allclose(cells[region].get_offsets(), adata.obsm["spatial"][in_region])
    assert len({color_of(c) for c in axes.collections}) == len(axes.collections) == 5
    low, high = axes.get_ylim()
    assert low > high  # y downwards, as on a slide
    assert axes.get_title() == "region"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(
        adata.obs["region"].cat.categories
    )


def test_drawing_twice_leaves_y_downwards(simulated: Any) -> None:
    axes = plot.spatial(simulated(), color="region")
    before = axes.get_ylim()
    plot.spatial(simulated(), color="cell_type", ax=axes)
    assert axes.get_ylim() == before


@pytest.mark.parametrize("color", ["depth", "SIM3", "ENSG99000000003"])
def test_numbers_and_genes_have_a_color_bar(simulated: Any, color: str) -> None:
    adata = simulated()
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    axes = plot.spatial(adata, color=color, title="shown")
    expected = (
        adata.obs["depth"].to_numpy(dtype=float)
        if color == "depth"
        else adata[:, "SIM3"].X.toarray().ravel()
    )
    np.testing.assert_allclose(axes.collections[0].get_array(), expected)
    assert len(axes.child_axes) == 1
    assert not plot.spatial(adata, color=color, legend=False).child_axes
    assert axes.get_title() == "shown"


def test_one_bright_cell_does_not_leave_the_others_dark(simulated: Any) -> None:
    adata = simulated(n_cells=500)
    adata.obs["n"] = np.arange(500.0)
    adata.obs.iloc[7, adata.obs.columns.get_loc("n")] = 1e9
    cells = plot.spatial(adata, color="n").collections[0]
    assert cells.norm.vmax < 600
    adata.obs["rare"] = np.eye(500)[0]  # all that varies is in one cell
    assert plot.spatial(adata, color="rare").collections[0].norm.vmax == 1


def test_repeated_genes_are_summed(simulated: Any) -> None:
    adata = simulated()
    expected = adata[:, ["SIM1", "SIM2"]].X.toarray().sum(axis=1)
    adata.var_names = ["SIM1", "SIM1", *adata.var_names[2:]]
    np.testing.assert_allclose(
        plot.spatial(adata, color="SIM1").collections[0].get_array(), expected
    )


def test_dense_counts_strings_and_flags(simulated: Any) -> None:
    adata = simulated()
    adata.X = adata.X.toarray()
    assert len(plot.spatial(adata, color="SIM1").collections) == 1
    adata.obs["text"] = ["a", "b"] * 100
    assert set(drawn(plot.spatial(adata, color="text"))) == {"a", "b"}
    adata.obs["flag"] = [True, False] * 100
    assert set(drawn(plot.spatial(adata, color="flag"))) == {"True", "False"}


@pytest.mark.parametrize("gap", [None, np.nan, "", "nan"])
def test_missing_labels_are_gray_and_named(simulated: Any, gap: Any) -> None:
    adata = simulated()
    adata.obs["gaps"] = pd.Series(["a", gap] * 100, dtype=object).to_numpy()
    axes = plot.spatial(adata, color="gaps")
    cells = drawn(axes)
    assert {name: len(c.get_offsets()) for name, c in cells.items()} == {"a": 100, MISSING: 100}
    assert color_of(cells[MISSING]) == MISSING_COLOR
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", MISSING]


def test_missing_numbers_are_gray(simulated: Any) -> None:
    adata = simulated()
    adata.obs["n"] = [1.0, np.nan, np.inf, 2.0] * 50
    cells = drawn(plot.spatial(adata, color="n"))
    assert len(cells[MISSING].get_offsets()) == 100
    assert sorted(len(c.get_offsets()) for c in cells.values()) == [100, 100]
    adata.obs["n"] = np.nan
    assert set(drawn(plot.spatial(adata, color="n"))) == {MISSING}


def test_many_categories_have_no_legend(simulated: Any) -> None:
    adata = simulated()
    adata.obs["many"] = pd.Categorical([f"c{i % 50}" for i in range(200)])
    axes = plot.spatial(adata, color="many")
    assert axes.get_legend() is None
    assert len({color_of(c) for c in axes.collections}) == 50
    assert plot.spatial(adata, color="region", legend=False).get_legend() is None


def test_dots_of_a_legend_have_one_size(simulated: Any) -> None:
    sizes = {
        handle.get_markersize()
        for n in (20, 400)
        for handle in plot.spatial(simulated(n_cells=n), color="region").get_legend().legend_handles
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("layout", ["visium", "st"])
def test_spots_of_a_lattice_touch(simulated: Any, layout: str) -> None:
    adata = simulated(layout=layout)
    spacing = tz.Slice.from_anndata(adata).spacing
    cells = plot.spatial(adata, color="region").collections[0]
    assert cells._widths[0] * 2 == pytest.approx(spacing, rel=0.02)  # matplotlib keeps half of it
    half = plot.spatial(adata, color="region", size=0.5).collections[0]
    assert half._widths[0] == pytest.approx(cells._widths[0] / 2)


@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_few_cells(simulated: Any, n_cells: int) -> None:
    adata = simulated()[:n_cells].copy()
    axes = plot.spatial(adata, color="region")
    assert sum(len(c.get_offsets()) for c in axes.collections) == n_cells
    axes.figure.draw_without_rendering()


def test_cells_in_one_place(simulated: Any) -> None:
    adata = simulated()
    adata.obsm["spatial"][:] = 3.0
    plot.spatial(adata, color="region").figure.draw_without_rendering()


@pytest.mark.parametrize("layout", ["visium", "st"])
def test_on_given_axes(simulated: Any, layout: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, layout="constrained")
    assert plot.spatial(simulated(layout=layout), color="region", ax=axes[1]) is axes[1]
    assert not axes[0].collections
    assert len(figure.axes) == 2


@pytest.mark.parametrize("layout", ["cells", "visium"])
def test_the_image_is_where_the_cells_are(simulated: Any, layout: str) -> None:
    adata = simulated(layout=layout, image=True, image_px=400)
    tissue = tz.Slice.from_anndata(adata)
    axes = plot.spatial(adata, color="region", image=True)
    picture = axes.images[0]
    left, right, bottom, top = picture.get_extent()
    assert left < tissue.coords[:, 0].min() < tissue.coords[:, 0].max() < right
    assert top < tissue.coords[:, 1].min() < tissue.coords[:, 1].max() < bottom
    pixels = picture.get_array()
    assert (right - left) / pixels.shape[1] == pytest.approx(tissue.image.microns_per_pixel)
    for (x, y), (u, v) in zip(tissue.coords[:20], tissue.native_coords[:20], strict=True):
        column = int((x - left) / (right - left) * pixels.shape[1])
        row = int((y - top) / (bottom - top) * pixels.shape[0])
        cropped = tissue.image.crop(u, v, size_px=3)
        assert (cropped.reshape(-1, 3) == pixels[row, column]).all(axis=1).any()


@pytest.mark.parametrize("shift", [0.0, 37.0])
def test_a_large_image_is_shrunk_in_its_place(
    simulated: Any, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terrazzo.plot.tissue.MAX_SIDE_PX", 100)
    adata = simulated()
    adata.obsm["spatial"] += shift - adata.obsm["spatial"].min(axis=0) + 30
    u, v = adata.obsm["spatial"][11]
    ink = np.full((900, 1100, 3), 255, np.uint8)
    scale = 1.3
    row, column = int(v * scale), int(u * scale)
    ink[row - 6 : row + 7, column - 6 : column + 7] = 0  # a dark square around one cell
    axes = plot.spatial(adata, color="region", image=tz.TissueImage(ink, scale=scale))
    picture = axes.images[0]
    left, right, bottom, top = picture.get_extent()
    pixels = np.asarray(picture.get_array(), dtype=float)
    assert max(pixels.shape) <= 100
    dark = np.argwhere(pixels[..., 0] < 200).mean(axis=0) + 0.5
    x, y = (
        left + dark[1] / pixels.shape[1] * (right - left),
        top + dark[0] / pixels.shape[0] * (bottom - top),
    )
    assert abs(x - u) < (right - left) / pixels.shape[1]
    assert abs(y - v) < (bottom - top) / pixels.shape[0]


def test_a_gray_image(simulated: Any) -> None:
    adata = simulated(image=True, image_px=300)
    library = adata.uns["spatial"]["tissue"]["images"]
    library["hires"] = library["hires"].mean(axis=2).astype(np.uint8)
    pixels = plot.spatial(adata, color="region", image=True).images[0].get_array()
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_no_image(simulated: Any) -> None:
    assert not plot.spatial(simulated(), color="region", image="auto").images
    assert not plot.spatial(simulated(image=True, image_px=300), color="region").images
    assert plot.spatial(simulated(image=True, image_px=300), color="region", image="auto").images
    with pytest.raises(InputError, match="there is no image"):
        plot.spatial(simulated(), color="region", image=True)
    with pytest.raises(InputError, match="no cell is on the image"):
        plot.spatial(
            simulated(),
            color="region",
            image=tz.TissueImage(np.zeros((9, 9, 3), np.uint8), scale=1e6),
        )


def test_the_anndata_is_left_alone(simulated: Any) -> None:
    adata = simulated(image=True, image_px=300)
    adata.obs["text"] = ["a", "b"] * 100
    before = adata.copy()
    plot.spatial(adata, color="text", image=True)
    plot.spatial(adata, color=["region", "SIM2"])
    assert list(adata.uns) == list(before.uns)
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_what_cannot_be_drawn_is_refused(simulated: Any) -> None:
    with pytest.raises(InputError, match="neither a column of obs"):
        plot.spatial(simulated(), color="nothing")
    with pytest.raises(InputError, match="Did you mean 'region'"):
        plot.spatial(simulated(), color="regions")
    adata = simulated()
    adata.layers["counts"], adata.X = adata.X, None
    with pytest.raises(InputError, match="has no X"):
        plot.spatial(adata, color="SIM1")
    del adata.obsm["spatial"]
    with pytest.raises(InputError, match="no spatial coordinates"):
        plot.spatial(adata, color="region")


@pytest.mark.parametrize(
    "option",
    [
        {"alpha": 2},
        {"size": 0},
        {"image": "yes"},
        {"palette": ["red"]},
        {"palette": "jett"},
        {"image": 1},
    ],
)
def test_impossible_options(simulated: Any, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        plot.spatial(simulated(), color="region", **option)


def titled(figure: Any) -> list[Any]:
    """Return the panels of a figure, without scales."""
    return [axes for axes in figure.axes if axes.get_title()]


def colors_of(axes: Any) -> dict[str, str]:
    return {name: color_of(cells) for name, cells in drawn(axes).items()}


def test_several_colors_have_a_panel_each(simulated: Any) -> None:
    adata = simulated(image=True, image_px=300)
    colors = ["region", "SIM3", "cell_type", "donor"]
    figure = plot.spatial(adata, color=colors, title=["a", "b", "c", "d"], image=True)
    panels = titled(figure)
    assert [axes.get_title() for axes in panels] == ["a", "b", "c", "d"]
    assert len(figure.axes) == 6  # 3 and 1, and what is left of the second row
    for axes in panels:
        assert sum(len(cells.get_offsets()) for cells in axes.collections) == adata.n_obs
        assert axes.images
    assert colors_of(panels[0]) == colors_of(plot.spatial(adata, color="region"))
    assert panels[0].get_legend() is not None
    assert panels[1].child_axes
    assert len(plot.spatial(adata, color=["region"]).axes) == 1


def test_panels_in_a_row(simulated: Any) -> None:
    figure = plot.spatial(simulated(), color=["region", "SIM3", "donor"], ncols=2)
    assert [axes.get_title() for axes in titled(figure)] == ["region", "SIM3", "donor"]
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (2, 2)


def test_several_slices_have_a_row_each(simulated: Any) -> None:
    slices = [simulated(n_cells=200, seed=1), simulated(n_cells=120, layout="visium", seed=2)]
    figure = plot.spatial(slices, color=["region", "SIM3"])
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (2, 2)
    panels = titled(figure)
    assert [axes.get_title() for axes in panels] == ["region", "SIM3"] * 2
    for row, adata in enumerate(slices):
        expected = tz.Slice.from_anndata(adata).coords
        labels, numbers = panels[2 * row : 2 * row + 2]
        assert sum(len(cells.get_offsets()) for cells in labels.collections) == adata.n_obs
        np.testing.assert_allclose(numbers.collections[0].get_offsets(), expected)
    one = plot.spatial(slices[:1], color="region")
    assert len(titled(one)) == 1


def test_slices_share_the_colors_of_labels_and_the_scale_of_numbers(simulated: Any) -> None:
    first, second = simulated(seed=1), simulated(seed=2)
    first.obs["who"] = ["a", "b"] * 100
    second.obs["who"] = ["b", "c"] * 99 + [None] * 2
    first.obs["n"], second.obs["n"] = np.arange(200.0), np.arange(200.0) + 1000
    first.uns["who_colors"] = ["#ff0000", "#00ff00"]
    second.uns["who_colors"] = ["#0000ff", "#ff0000"]  # not what the first has for b
    labels = titled(plot.spatial([first, second], color="who"))
    assert colors_of(labels[0]) == {"a": "#ff0000", "b": "#00ff00"}
    assert colors_of(labels[1])["b"] == "#00ff00"
    legends = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in labels]
    assert legends == [["a", "b"], ["b", "c", MISSING]]
    numbers = titled(plot.spatial([first, second], color="n"))
    scales = {(axes.collections[0].norm.vmin, axes.collections[0].norm.vmax) for axes in numbers}
    assert len(scales) == 1
    by_palette = titled(
        plot.spatial([first, second], color="who", palette=["red", "blue", "black"])
    )
    assert colors_of(by_palette[1]) == {"b": "#0000ff", "c": "#000000", MISSING: MISSING_COLOR}


def test_labels_in_one_slice_and_numbers_in_another(simulated: Any) -> None:
    first, second = simulated(), simulated()
    first.obs["mixed"], second.obs["mixed"] = "a", 1.0
    with pytest.raises(InputError, match="labels in 1 of 2 slices"):
        plot.spatial([first, second], color="mixed")
    with pytest.raises(InputError, match="list of them, not str"):
        plot.spatial([first, "b.h5ad"], color="mixed")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"color": []}, "0 colors"),
        ({"title": ["one"]}, "2 colors and 1 titles"),
        ({"title": "one"}, "2 colors and 1 titles"),
        ({"ncols": 0}, "ncols is 0"),
        ({"ax": "axes"}, "one slice and one color"),
    ],
)
def test_impossible_panels(simulated: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plot.spatial(simulated(), **{"color": ["region", "donor"], **wrong})


def test_impossible_options_of_several_slices(simulated: Any) -> None:
    slices = [simulated(), simulated()]
    with pytest.raises(ConfigError, match="a row each"):
        plot.spatial(slices, color="region", ncols=2)
    image = tz.TissueImage(np.zeros((900, 900, 3), np.uint8))
    with pytest.raises(ConfigError, match="one TissueImage for several slices"):
        plot.spatial(slices, color="region", image=image)
    with pytest.raises(ConfigError, match="0 slices"):
        plot.spatial([], color="region")
