"""Grids: by hand, against the paper's algorithm, and lattices recovered from turned, scaled, shaken coordinates."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid, grid_of, lay_out
from terrazzo.systems.stimage.windows import window_sites

Array = np.ndarray


def visium(rows: int, columns: int, *, first_row: int = 0, parity: int = 0) -> Array:
    """Return (row, col) of a full Visium array: only sites whose row + col has this parity."""
    row, column = (a.ravel() for a in np.mgrid[first_row : first_row + rows, : 2 * columns + 1])
    return np.stack([row, column], axis=1)[(row + column) % 2 == parity]


def visium_places(lattice: Array) -> Array:
    """Return where the spots of a Visium array lie, in pitches: columns half a pitch apart."""
    return np.stack([lattice[:, 1] / 2, lattice[:, 0] * np.sqrt(3) / 2], axis=1)


def square(rows: int, columns: int) -> Array:
    return np.argwhere(np.ones((rows, columns)))


def laid(lattice: Array, **options: Any) -> Grid:
    return lay_out(lattice[:, ::-1].astype(float), lattice=lattice, **options)


def cells_of(grid: Grid) -> dict[tuple[int, int], list[int]]:
    """Return the cells at each (row, column), as a plain dict."""
    out: dict[tuple[int, int], list[int]] = {}
    for cell, site in enumerate(grid.site.tolist()):
        out.setdefault(divmod(site, grid.shape[1]), []).append(cell)
    return out


def same_shape(grid: Grid, places: Array, tolerance: float = 1e-9) -> bool:
    """Say whether the grid's sites lie to each other as the true places do: turned and mirrored at most."""
    return bool(
        np.abs(cdist(grid.places(grid.site), grid.places(grid.site)) - cdist(places, places)).max()
        < tolerance
    )


# Arrays with numbers of their own


def test_hex_by_hand() -> None:
    grid = laid(np.array([[0, 0], [0, 2], [1, 1], [1, 3], [2, 0]]), lattice_kind="visium")
    assert (grid.shape, grid.layout) == ((3, 2), "hex")
    assert grid.site.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(
        grid.places(np.array([0, 1, 2, 5])),
        [[0, 0], [1, 0], [0.5, np.sqrt(3) / 2], [1, np.sqrt(3)]],
    )


def test_hex_whose_first_row_is_the_shifted_one_by_hand() -> None:
    grid = laid(np.array([[1, 1], [1, 3], [2, 0], [2, 2]]), lattice_kind="visium")
    assert grid.shape == (3, 2)  # an empty row above keeps odd rows the shifted ones
    assert grid.site.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("first_row", [0, 1, 6, 7])
def test_hex_is_dense_and_true_neighbors_stay_neighbors(first_row: int, parity: int) -> None:
    lattice = visium(7, 9, first_row=first_row, parity=parity)
    grid = laid(lattice, lattice_kind="visium")
    assert grid.shape[0] in (7, 8)
    assert grid.shape[1] in (9, 10)
    assert len(grid.occupied) == len(lattice)
    true = visium_places(lattice)
    apart = cdist(grid.places(grid.site), grid.places(grid.site))
    neighbors = np.abs(cdist(true, true) - 1) < 1e-9
    assert neighbors.sum(axis=1).max() == 6
    np.testing.assert_array_equal(np.abs(apart - 1) < 1e-9, neighbors)
    assert same_shape(grid, true)
    row, column = np.divmod(grid.site, grid.shape[1])
    steps = np.abs(row[:, None] - row[None]) + np.abs(column[:, None] - column[None])
    assert steps[neighbors].max() == 2  # in the array they are next to each other, or diagonally so
    assert np.abs(row[:, None] - row[None])[neighbors].max() == 1
    assert np.abs(column[:, None] - column[None])[neighbors].max() == 1


@given(st.integers(0, 2**32 - 1), st.integers(0, 1), st.integers(0, 5), st.floats(0.02, 1.0))
@settings(max_examples=60, deadline=None)
def test_hex_with_holes_and_missing_rows(
    seed: int, parity: int, first_row: int, kept: float
) -> None:
    rng = np.random.default_rng(seed)
    lattice = visium(9, 7, first_row=first_row, parity=parity)
    lattice = lattice[np.isin(lattice[:, 0], first_row + np.flatnonzero(rng.random(9) < 0.7))]
    lattice = rng.permutation(lattice[rng.random(len(lattice)) < kept])
    if len(lattice) < 2:
        return
    grid = laid(lattice, lattice_kind="visium", layout="hex")
    assert len(grid.occupied) == len(lattice)
    assert same_shape(
        grid, visium_places(lattice)
    )  # rows that are missing stay missing: nothing moves together
    assert grid.shape[0] <= np.ptp(lattice[:, 0]) + 2
    assert grid.shape[1] <= np.ptp(lattice[:, 1]) // 2 + 2


def test_square_by_hand() -> None:
    grid = laid(np.array([[3, 5], [3, 6], [4, 5], [6, 7]]), lattice_kind="st")
    assert (grid.shape, grid.layout) == ((4, 3), "square")
    assert grid.site.tolist() == [0, 1, 3, 11]
    np.testing.assert_array_equal(grid.places(np.array([0, 5, 11])), [[0, 0], [2, 1], [2, 3]])


def test_a_staggered_st_array_is_a_square_lattice_on_its_tip() -> None:
    lattice = visium(6, 5)
    grid = laid(lattice, lattice_kind="st")
    assert grid.layout == "square"
    assert same_shape(grid, lattice / np.sqrt(2), tolerance=1e-9)  # neighbors are the diagonal ones
    assert len(grid.occupied) == len(lattice)


def test_hex_is_refused_where_the_array_is_not_staggered() -> None:
    with pytest.raises(
        InputError, match=r"brain: layout 'hex' is for staggered arrays.*Take layout 'square'"
    ):
        laid(square(4, 4), layout="hex", name="brain")


def test_square_can_be_asked_for_on_a_staggered_array() -> None:
    grid = laid(visium(6, 5), lattice_kind="visium", layout="square")
    assert grid.layout == "square"
    assert len(grid.occupied) == len(visium(6, 5))


@pytest.mark.parametrize("kind", ["visium", "st"])
@pytest.mark.parametrize("lattice", [[[5, 4]], [[5, 4], [5, 6]], [[2, 3], [4, 3]]])
def test_a_spot_or_two(lattice: list[list[int]], kind: str) -> None:
    grid = laid(np.array(lattice), lattice_kind=kind)
    assert len(grid.occupied) == len(lattice)
    assert grid.cells(grid.occupied)[0].tolist() == list(range(len(lattice)))


@pytest.mark.parametrize("line", ["row", "column"])
@pytest.mark.parametrize("kind", ["visium", "st"])
def test_one_row_or_one_column(line: str, kind: str) -> None:
    step = 2 if kind == "visium" else 1
    along = np.arange(9) * step
    lattice = np.stack(
        [np.full(9, 3), along + 1] if line == "row" else [along, np.full(9, 4)], axis=1
    )
    grid = laid(lattice, lattice_kind=kind)
    assert len(grid.occupied) == 9
    long = (
        9 if line == "row" or kind == "st" else 17
    )  # in a column every second row of Visium is shifted away
    assert sorted(grid.shape)[1] == long
    assert sorted(grid.shape)[0] <= 2


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_places_in_a_window_count_from_its_corner(layout: str) -> None:
    """Wherever it lies, and where a part of it stands over the edge, too."""
    grid = Grid((40, 50), np.arange(2000), layout)
    for row, column in [(0, 0), (4, 9), (38, 30), (39, 49)]:
        sites = window_sites(grid, np.array([row, column]), 3)
        found = grid.window_places(sites)
        inside = sites >= 0
        assert found.dtype == np.float32
        assert found[inside].min(axis=0).tolist() == [0, 0]
        assert not found[~inside].any()
        np.testing.assert_allclose(
            cdist(found[inside], found[inside]),
            cdist(grid.places(sites[inside]), grid.places(sites[inside])),
            atol=1e-5,
        )
    assert not grid.window_places(np.array([-1, -1])).any()


# Rank


def algorithm_1(points: list[tuple[float, float]]) -> dict[tuple[int, int], list[int]]:
    """Lines 5 to 13 of the paper's Algorithm 1: which spots lie at (c_x, c_y) of the compact grid."""
    xs, ys = sorted({x for x, _ in points}), sorted({y for _, y in points})
    out: dict[tuple[int, int], list[int]] = {}
    for spot, (x, y) in enumerate(points):
        out.setdefault((xs.index(x), ys.index(y)), []).append(spot)
    return out


def transposed(found: dict[tuple[int, int], list[int]]) -> dict[tuple[int, int], list[int]]:
    return {(row, column): cells for (column, row), cells in found.items()}


def test_rank_by_hand() -> None:
    coords = np.array([[10.0, 5.0], [30.0, 5.0], [20.0, 9.0], [30.0, 100.0]])
    grid = lay_out(coords, layout="rank")
    assert (grid.shape, grid.layout) == ((3, 3), "rank")
    assert grid.site.tolist() == [0, 2, 4, 8]


@given(st.integers(0, 2**32 - 1), st.integers(0, 1), st.floats(0.05, 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rank_equals_algorithm_1(seed: int, parity: int, kept: float, from_lattice: bool) -> None:
    """On the paper's kind of input: a staggered array with holes, rows and columns that are missing."""
    rng = np.random.default_rng(seed)
    lattice = visium(8, 6, parity=parity)
    lattice = lattice[
        np.isin(lattice[:, 1], np.flatnonzero(rng.random(13) < 0.8))
        & (rng.random(len(lattice)) < kept)
    ]
    if not len(lattice):
        return
    lattice = rng.permutation(lattice)
    xy = lattice[:, ::-1].astype(float)
    coords = (
        rng.normal(size=xy.shape) if from_lattice else 137.25 * xy
    )  # with an array, coordinates are not looked at
    grid = lay_out(coords, lattice=lattice if from_lattice else None, layout="rank")
    expected = algorithm_1([tuple(p) for p in xy.tolist()])
    assert transposed(cells_of(grid)) == expected
    assert grid.shape == (len(set(lattice[:, 0])), len(set(lattice[:, 1])))


# Bins and the map between cells and sites


def test_bins_by_hand() -> None:
    coords = np.array([[100.0, 50.0], [109.0, 50.0], [110.0, 50.0], [100.0, 79.9], [135.0, 60.0]])
    grid = lay_out(coords, layout="bin", bin_size=10)
    assert (grid.shape, grid.layout) == ((3, 4), "bin")
    assert grid.site.tolist() == [0, 0, 1, 8, 7]
    assert grid.layer.tolist() == [0, 1, 0, 0, 0]
    cells, which = grid.cells(np.array([8, 0, -1, 3]))
    assert (cells.tolist(), which.tolist()) == ([3, 0, 1], [0, 1, 1])
    assert grid.occupied.tolist() == [0, 1, 7, 8]


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.floats(0.5, 50))
@settings(max_examples=60, deadline=None)
def test_cells_and_sites_are_a_bijection(seed: int, n: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    coords = rng.normal(scale=20, size=(n, 2))
    grid = lay_out(coords, bin_size=size)
    assert grid.layout == "bin"
    row, column = np.divmod(grid.site, grid.shape[1])
    inside = coords - coords.min(axis=0) - size * np.stack([column, row], axis=1)
    assert inside.min() >= -1e-9  # every cell lies in its bin
    assert inside.max() < size + 1e-9
    pairs = set(zip(grid.site.tolist(), grid.layer.tolist(), strict=True))
    assert len(pairs) == n  # no two cells are one (site, layer)
    by_site = cells_of(grid)
    for (
        place,
        cells,
    ) in by_site.items():  # layers of a site are 0, 1, 2, ... in the order of the cells
        assert [grid.layer[c] for c in cells] == list(range(len(cells))), place
    asked = rng.permutation(
        np.append(rng.integers(0, np.prod(grid.shape), 30), [-1, -1, *grid.occupied])
    )
    cells, which = grid.cells(asked)
    expected = [
        (c, i)
        for i, s in enumerate(asked)
        for c in by_site.get(divmod(s, grid.shape[1]), [])
        if s >= 0
    ]
    assert list(zip(cells.tolist(), which.tolist(), strict=True)) == expected
    everyone, _ = grid.cells(grid.occupied)
    assert sorted(everyone.tolist()) == list(range(n))
    np.testing.assert_array_equal(
        grid.site[everyone], np.repeat(grid.occupied, np.bincount(grid.site)[grid.occupied])
    )


def test_cells_of_no_site() -> None:
    grid = lay_out(np.zeros((1, 2)), layout="bin", bin_size=1)
    assert grid.shape == (1, 1)
    for none in (np.array([], dtype=np.int64), np.array([-1, -1])):
        cells, which = grid.cells(none)
        assert (len(cells), len(which)) == (0, 0)


def test_an_array_goes_before_bins_unless_they_are_asked_for() -> (
    None
):  # so that a corpus may hold both platforms
    lattice = visium(6, 5)
    coords = visium_places(lattice) * 100
    assert lay_out(coords, lattice=lattice, lattice_kind="visium", bin_size=250).layout == "hex"
    assert (
        lay_out(coords, lattice=lattice, lattice_kind="visium", layout="bin", bin_size=250).layout
        == "bin"
    )
    assert (
        lay_out(coords, lattice=lattice, bin_size=250).layout == "bin"
    )  # Visium HD: a lattice of 2 um, no spots


# Lattices recovered from coordinates


def moved(places: Array, degrees: float, *, pitch: float = 137.0, mirrored: bool = False) -> Array:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (places * [-1 if mirrored else 1, 1]) @ turn * pitch + [5123.0, -871.0]


def shaken(places: Array, rng: np.random.Generator, share: float) -> Array:
    return places + rng.uniform(-share, share, places.shape)


FULL = {"hex": visium_places(visium(30, 24)), "square": square(28, 25).astype(float)}


@pytest.mark.parametrize("layout", ["hex", "square"])
@pytest.mark.parametrize(
    "degrees", [0, 1.5, 3, 5, 15, 29.9, 30, 31, 44.9, 45, 60, 77, 90, 131, 180, 271]
)
def test_a_turned_lattice_is_recovered(layout: str, degrees: float) -> None:
    grid = lay_out(moved(FULL[layout], degrees))
    assert grid.layout == layout
    assert len(grid.occupied) == len(FULL[layout])
    assert same_shape(grid, FULL[layout])


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_a_small_turn_leaves_rows_as_rows(layout: str) -> None:
    straight, turned = (lay_out(moved(FULL[layout], d)) for d in (0, 4))
    assert straight.shape == turned.shape
    np.testing.assert_array_equal(straight.site, turned.site)
    row, column = np.divmod(straight.site, straight.shape[1])
    if layout == "square":
        np.testing.assert_array_equal(np.stack([column, row], axis=1), FULL["square"])
    else:
        np.testing.assert_array_equal(row - row[0], visium(30, 24)[:, 0])
        assert straight.shape[0] - 30 in (0, 1)


@given(
    st.sampled_from(["hex", "square"]),
    st.floats(0, 360),
    st.floats(0.01, 1e4),
    st.booleans(),
    st.floats(0, 0.08),
    st.floats(0.6, 1.0),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_turn_scale_mirror_and_slight_jitter(
    layout: str, degrees: float, pitch: float, mirrored: bool, jitter: float, kept: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    places = FULL[layout][rng.random(len(FULL[layout])) < kept]
    grid = lay_out(moved(shaken(places, rng, jitter), degrees, pitch=pitch, mirrored=mirrored))
    assert grid.layout == layout
    assert same_shape(grid, places)


def test_a_large_slice_does_not_drift() -> None:
    """Rounded pixels and a guess of the pitch from nearest neighbors: over 150 columns that would be many steps."""
    rng = np.random.default_rng(0)
    places = square(150, 60).astype(float)
    coords = np.rint(moved(shaken(places, rng, 0.05), 2.5, pitch=21.3))
    grid = lay_out(coords)
    row, column = np.divmod(grid.site, grid.shape[1])
    np.testing.assert_array_equal(np.stack([column, row], axis=1), places)


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_two_pieces_of_tissue_and_missing_rows(layout: str) -> None:
    places = FULL[layout]
    x, y = places.T
    places = places[(np.abs(x - 12) > 4) & (np.abs(y - 9) > 1.6)]
    grid = lay_out(moved(places, 3))
    assert grid.layout == layout
    assert same_shape(grid, places)
    rows = np.divmod(grid.occupied, grid.shape[1])[0]
    assert len(np.unique(rows)) < grid.shape[0]  # missing rows are there, and empty


def test_one_row_of_spots_without_an_array() -> None:
    grid = lay_out(np.stack([np.arange(12) * 100.0, np.full(12, 7.0)], axis=1))
    assert sorted(grid.shape)[1] == 12
    assert len(grid.occupied) == 12


def test_a_layout_can_be_asked_for() -> None:
    assert lay_out(moved(FULL["hex"], 3), layout="hex").layout == "hex"
    with pytest.raises(InputError, match="are not on a square lattice"):
        lay_out(moved(FULL["hex"], 3), layout="square")
    with pytest.raises(InputError, match="are not on a hex lattice"):
        lay_out(moved(FULL["square"], 3), layout="hex")


# Bad input


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 20, 50, 400])
)  # a handful may lie on one by chance
@settings(max_examples=40, deadline=None)
def test_cells_without_a_lattice_need_a_bin(seed: int, n: int) -> None:
    coords = np.random.default_rng(seed).uniform(0, 30, (n, 2))
    with pytest.raises(InputError, match=r"^tumour: .*bin_um=20 \(--bin-um 20\)") as caught:
        lay_out(coords, name="tumour")
    assert "array_row" in str(caught.value)
    assert len(lay_out(coords, bin_size=1.0).site) == n


def test_a_wildly_shaken_lattice_is_none() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="are not on a lattice"):
        lay_out(shaken(FULL["square"], rng, 0.6))


def test_cells_in_one_place() -> None:
    with pytest.raises(InputError, match="bin_um"):
        lay_out(np.ones((50, 2)))
    grid = lay_out(np.ones((50, 2)), bin_size=20)
    assert grid.shape == (1, 1)
    assert grid.layer.tolist() == list(range(50))


def test_bins_without_a_size() -> None:
    for size in (0.0, -3.0):
        with pytest.raises(ConfigError, match="--bin-um"):
            lay_out(np.zeros((3, 2)), layout="bin", bin_size=size)


@pytest.mark.parametrize("from_lattice", [True, False])
def test_duplicate_positions_are_told_and_nothing_is_lost(from_lattice: bool) -> None:
    lattice = np.concatenate([visium(12, 9), visium(12, 9)[[5, 5, 20]]])
    coords = visium_places(lattice) * 100
    with pytest.warns(
        TerrazzoWarning, match=r"brain: 3 cells share their lattice position.*summed"
    ):
        grid = lay_out(
            coords,
            lattice=lattice if from_lattice else None,
            name="brain",
            lattice_kind="visium" if from_lattice else None,
        )
    assert grid.layout == "hex"
    assert len(grid.site) == len(lattice)
    n = len(visium(12, 9))
    assert grid.layer[[5, 20, n, n + 1, n + 2]].tolist() == [0, 0, 1, 2, 1]
    cells, _ = grid.cells(grid.occupied)
    assert sorted(cells.tolist()) == list(range(len(lattice)))
    assert set(grid.cells(grid.site[[5]])[0].tolist()) == {5, n, n + 1}


def test_bins_share_their_site_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lay_out(np.array([[0.0, 0], [1, 1], [50, 50]]), bin_size=10).layer.tolist() == [
            0,
            1,
            0,
        ]


@pytest.mark.parametrize(
    ("coords", "options", "mend"),
    [
        ([[0, 0], [1e6, 1e6]], {"bin_size": 1.0}, "larger bins"),
        ([[0, 0], [1e300, 1.0]], {"bin_size": 1e-3}, "outliers"),  # more bins than an integer holds
        (np.random.default_rng(0).random((20_000, 2)), {"layout": "rank"}, "layout 'bin'"),
    ],
)
def test_too_large_a_grid(coords: Any, options: dict[str, Any], mend: str) -> None:
    with pytest.raises(InputError, match=r"brain: a grid of .* is too large") as caught:
        lay_out(np.asarray(coords, dtype=float), name="brain", **options)
    assert mend in str(caught.value)


def test_too_large_an_array() -> None:
    with pytest.raises(InputError, match="too large"):
        laid(np.array([[0, 0], [10**6, 10**6 + 1]]), lattice_kind="st")


# Slices


@pytest.mark.parametrize(("layout", "kind"), [("visium", "hex"), ("st", "square")])
@pytest.mark.parametrize("with_array", [True, False])
def test_simulated_slices(simulated: Any, layout: str, kind: str, with_array: bool) -> None:
    adata = simulated(layout=layout)
    expected = grid_of(Slice.from_anndata(adata))
    if not with_array:
        del adata.obs["array_row"], adata.obs["array_col"]
    tissue = Slice.from_anndata(adata)
    grid = grid_of(tissue)
    assert grid.layout == kind
    assert len(grid.occupied) == tissue.n_cells
    assert same_shape(grid, expected.places(expected.site))
    np.testing.assert_allclose(  # and as the tissue itself lies, in pitches
        cdist(grid.places(grid.site), grid.places(grid.site)),
        cdist(tissue.coords, tissue.coords) / tissue.spacing,
        atol=0.2,
    )


def test_a_bin_in_unknown_units_is_told(simulated: Any) -> None:
    adata = simulated()
    tissue = Slice.from_anndata(adata)
    assert tissue.unit == "um"
    assert grid_of(tissue, bin_um=20).layout == "bin"
    del adata.uns["technology"]
    with pytest.warns(TerrazzoWarning, match="--microns-per-unit"):
        grid_of(Slice.from_anndata(adata), bin_um=20)
    array = dataclasses.replace(Slice.from_anndata(simulated(layout="visium")), unit="pixel")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            grid_of(array, bin_um=20).layout == "hex"
        )  # nothing is put into bins: nothing to say of their unit
    with pytest.warns(TerrazzoWarning, match="--microns-per-unit"):
        assert grid_of(array, layout="bin", bin_um=20).layout == "bin"


@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("dlpfc/151673", "hex"),
        ("her2st/H1", "square"),
        ("st_mob/MOB", "square"),
        ("st_breast_cancer_4layers/layer1", "square"),
        ("starmap_mpfc/BZ9", None),
        ("osmfish_ssctx/SScortex", None),
        ("xenium_breast_idc/IDC_subregion", None),
        ("slideseq_cerebellum/Puck_180819_11", None),
    ],
)
def test_real_coordinates(shared_dir: Any, file: str, layout: str | None) -> None:
    """Coordinates alone, without the array's numbers: the lattice is found, and none is seen where there is none."""
    import h5py

    path = shared_dir / "data" / f"{file}.h5ad"
    if not path.exists():
        pytest.skip(f"no {file} in the shared data")
    with h5py.File(path) as f:
        coords = f["obsm/spatial"][:].astype(float)[:, :2]
        columns = [
            f["obs"][c][:].astype(np.int64) for c in ("array_row", "array_col") if c in f["obs"]
        ]
    if layout is None:
        with pytest.raises(InputError, match="--bin-um"):
            lay_out(coords)
        return
    grid = lay_out(coords)
    assert grid.layout == layout
    assert len(grid.occupied) == len(coords)
    if len(columns) == 2:
        expected = laid(np.stack(columns, axis=1))
        assert same_shape(grid, expected.places(expected.site))
