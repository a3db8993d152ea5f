"""A slice on its way to an image: every cell and site in its place in all four stages. Drawn without a display."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import terrazzo as tz
from terrazzo import plot
from terrazzo.errors import ConfigError, InputError
from terrazzo.plot.palettes import MISSING_COLOR, as_hex
from terrazzo.slices.grids import grid_of
from terrazzo.systems.stimage.windows import WindowConfig, corners

pytestmark = pytest.mark.usefixtures("quiet_figures")


def stages(figure: Any) -> dict[str, Any]:
    return {ax.get_title().split("\n")[0]: ax for ax in figure.axes if ax.get_title()}


def values_of(tissue: tz.Slice, gene: str, groups: np.ndarray) -> np.ndarray:
    """Sum cells over groups, scale to 10,000, take log1p: in plain dense numpy."""
    n = groups.max() + 1
    of_gene = tissue.counts.toarray()[:, tissue.gene_symbols.tolist().index(gene)]
    total = np.bincount(groups, tissue.counts.toarray().sum(axis=1), n)
    return np.log1p(
        1e4 * np.divide(np.bincount(groups, of_gene, n), total, out=np.zeros(n), where=total > 0)
    )


def frame_of(axes: Any) -> np.ndarray:
    (line,) = axes.lines
    return np.asarray(line.get_xydata())


def inside(frame: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Say which points lie in a parallelogram."""
    origin, across, down = frame[0], frame[1] - frame[0], frame[3] - frame[0]
    share = (xy - origin) @ np.linalg.inv(np.stack([across, down]))
    return ((share > 0) & (share < 1)).all(axis=1)


CASES = [("visium", {}), ("st", {}), ("cells", {"bin_um": 15.0}), ("visium", {"layout": "rank"})]


@pytest.mark.parametrize(("layout", "options"), CASES, ids=["hex", "square", "bin", "rank"])
def test_the_four_stages(simulated: Any, layout: str, options: dict[str, Any]) -> None:
    adata = simulated(300, layout=layout)
    tissue = tz.Slice.from_anndata(adata)
    laid = grid_of(tissue, **options)
    figure = plot.grid(adata, window=7, gene="SIM3", **options)
    found = stages(figure)
    assert list(found) == ["original", "compacted", "cropped", "normalized"]
    cells = found["original"].collections[0]
    np.testing.assert_allclose(cells.get_offsets(), tissue.coords)
    np.testing.assert_allclose(
        cells.get_array(), values_of(tissue, "SIM3", np.arange(300)), rtol=1e-5
    )
    pixels = found["compacted"].images[0].get_array()
    at = np.searchsorted(laid.occupied, laid.site)
    expected = np.full(laid.shape, np.nan)
    expected.flat[laid.occupied] = values_of(tissue, "SIM3", at)
    np.testing.assert_allclose(np.ma.filled(pixels, np.nan), expected, rtol=1e-5)

    # the window is one that training could draw, and the same cells are in it in every stage
    left, top = frame_of(found["compacted"]).min(axis=0) + 0.5
    corner = [int(top), int(left)]
    assert corner in corners(laid, WindowConfig(window=7)).tolist()
    row, column = np.divmod(laid.site, laid.shape[1])
    here = (row >= top) & (row < top + 7) & (column >= left) & (column < left + 7)
    shown = found["cropped"].collections[0].get_offsets()
    np.testing.assert_allclose(shown, tissue.coords[here])
    if (
        layout != "visium" or options
    ):  # of a staggered grid every other row stands out by half a site
        assert inside(frame_of(found["original"]), tissue.coords)[here].all()
    if layout != "visium":
        np.testing.assert_array_equal(inside(frame_of(found["original"]), tissue.coords), here)
    np.testing.assert_allclose(frame_of(found["cropped"]), frame_of(found["original"]))

    # what a model reads: mean 0 and sd 1 over the occupied sites of the slice
    values = values_of(tissue, "SIM3", at)
    standard = np.full(laid.shape, np.nan)
    standard.flat[laid.occupied] = (values - values.mean()) / values.std()
    window = standard[corner[0] : corner[0] + 7, corner[1] : corner[1] + 7]
    np.testing.assert_allclose(
        np.ma.filled(found["normalized"].images[0].get_array(), np.nan), window, atol=1e-4
    )
    figure.draw_without_rendering()


def test_hex_frames_hold_the_centers_of_their_spots(simulated: Any) -> None:
    figure = plot.grid(simulated(300, layout="visium"), window=5)
    found = stages(figure)
    shown = found["cropped"].collections[0].get_offsets()
    assert inside(frame_of(found["original"]), shown).all()


def test_all_panels_of_a_gene_share_one_scale(simulated: Any) -> None:
    found = stages(plot.grid(simulated(layout="visium"), gene="SIM3"))
    scales = {
        (a.norm.vmin, a.norm.vmax)
        for a in (found["original"].collections[0], found["compacted"].images[0])
    }
    assert scales == {
        (found["cropped"].collections[0].norm.vmin, found["cropped"].collections[0].norm.vmax)
    }


def test_the_gene_is_the_one_that_varies_most_in_the_window(simulated: Any) -> None:
    adata = simulated(300, layout="visium")
    tissue = tz.Slice.from_anndata(adata)
    found = stages(plot.grid(tissue, window=6, seed=2))
    left, top = frame_of(found["compacted"]).min(axis=0) + 0.5
    laid = grid_of(tissue)
    row, column = np.divmod(laid.site, laid.shape[1])
    here = (row >= top) & (row < top + 6) & (column >= left) & (column < left + 6)
    counts = tissue.counts.toarray()[here]
    spread = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).var(axis=0)
    gene = tissue.gene_symbols[spread.argmax()]
    assert gene in found["normalized"].get_title()
    assert gene in found["cropped"].get_title()


def test_the_title_is_the_grid_in_a_line(simulated: Any) -> None:
    assert plot.grid(simulated(300), bin_um=15, window=4).get_suptitle().startswith("bin, ")


def test_same_seed_same_window(simulated: Any) -> None:
    adata = simulated(300, layout="st")
    one, again, other = (
        frame_of(stages(plot.grid(adata, window=4, seed=s))["compacted"]) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_empty_sites_are_gray_and_nothing_lies_beyond_the_edge(simulated: Any) -> None:
    adata = simulated(30, layout="st")[:-3].copy()
    adata = adata[
        adata.obs["array_row"] != adata.obs["array_row"].iloc[13]
    ].copy()  # a row that is missing
    found = stages(plot.grid(adata, window=9))
    rows, columns = grid_of(tz.Slice.from_anndata(adata)).shape
    assert max(rows, columns) <= 9
    assert as_hex(found["compacted"].images[0].cmap.get_bad()) == MISSING_COLOR
    assert np.ma.getmaskarray(found["compacted"].images[0].get_array()).any()
    beyond = ~np.ma.getmaskarray(found["normalized"].images[1].get_array())
    expected = np.ones((9, 9), bool)
    expected[:rows, :columns] = False
    np.testing.assert_array_equal(beyond, expected)
    assert frame_of(found["compacted"]).max(axis=0).tolist() == [
        columns - 0.5,
        rows - 0.5,
    ]  # within the picture


@pytest.mark.parametrize("n", [1, 2])
def test_a_few_spots(simulated: Any, n: int) -> None:
    adata = simulated(layout="visium")[:n].copy()
    plot.grid(adata, window=4).figure.draw_without_rendering()


def test_one_row_and_cells_in_one_place(simulated: Any) -> None:
    adata = simulated(layout="visium")
    row = adata[adata.obs["array_row"] == adata.obs["array_row"].mode()[0]].copy()
    plot.grid(row, window=4).draw_without_rendering()
    cells = simulated()
    cells.obsm["spatial"][:] = 5.0
    plot.grid(cells, bin_um=10).draw_without_rendering()


def test_a_window_without_counts(simulated: Any) -> None:
    adata = simulated(layout="st")
    adata.X = adata.X * 0
    plot.grid(adata, window=4).draw_without_rendering()


def test_the_anndata_is_left_alone(simulated: Any) -> None:
    adata = simulated(layout="visium")
    before = adata.copy()
    plot.grid(adata)
    assert (adata.X != before.X).nnz == 0
    assert list(adata.uns) == list(before.uns)
    assert list(adata.obs) == list(before.obs)


def test_what_cannot_be_drawn_is_said(simulated: Any) -> None:
    with pytest.raises(InputError, match="--bin-um"):
        plot.grid(simulated())
    with pytest.raises(InputError, match=r"no gene 'SIM03'.*Did you mean 'SIM3"):
        plot.grid(simulated(layout="st"), gene="SIM03")
    for wrong in ({"window": 0}, {"layout": "round"}, {"bin_um": -2}, {"layout": "bin"}):
        with pytest.raises(ConfigError):
            plot.grid(simulated(layout="st"), **wrong)
