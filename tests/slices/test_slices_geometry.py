"""Slices: units, lattices, images, files, and the real slices."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from anndata import AnnData
from test_slices import lattice_slice, make, same

from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.images import TissueImage
from terrazzo.slices import Slice, read, read_anndata

# units


@pytest.mark.parametrize(
    ("kind", "lattice_kind", "spacing", "technology"),
    [("visium", "visium", 100.0, "Visium"), ("st2k", "st", 150.0, "ST")],
)
def test_lattice_gives_micrometers(
    kind: str, lattice_kind: str, spacing: float, technology: str
) -> None:
    adata = lattice_slice(kind)
    piece = Slice.from_anndata(adata)
    assert (piece.unit, piece.lattice_kind, piece.technology) == ("um", lattice_kind, technology)
    assert piece.spacing == pytest.approx(spacing, rel=1e-3)
    assert piece.coord_scale == pytest.approx(1 / 1.37, rel=1e-3)
    np.testing.assert_allclose(piece.native_coords, adata.obsm["spatial"])
    assert piece.lattice is not None
    np.testing.assert_array_equal(piece.lattice, adata.obs[["array_row", "array_col"]].to_numpy())
    assert piece.lattice.dtype == np.int64


def test_lattice_with_gaps_and_shuffled_uses_true_neighbors_only() -> None:
    adata = lattice_slice("visium", 12, 12)
    some = np.random.default_rng(0).permutation(adata.n_obs)[:60]
    assert Slice.from_anndata(adata[some]).coord_scale == pytest.approx(1 / 1.37, rel=1e-6)


def test_visium_hd_bins_are_not_taken_for_st() -> None:
    adata = lattice_slice("hd")
    adata.obs_names = [
        f"s_008um_{r:05d}_{c:05d}-1" for r, c in adata.obs[["array_row", "array_col"]].to_numpy()
    ]
    piece = Slice.from_anndata(adata)
    assert (piece.technology, piece.unit, piece.lattice_kind) == ("Visium HD", "um", None)
    assert piece.spacing == pytest.approx(8.0)
    with pytest.warns(TerrazzoWarning, match="the array is square"):
        wide = Slice.from_anndata(lattice_slice("hd", 2, 100))
    assert (wide.unit, wide.lattice_kind) == ("unknown", None)


def test_odd_lattices_are_ignored() -> None:
    adata = lattice_slice("st")
    adata.obs["array_row"] = adata.obs["array_row"] + 0.3
    assert Slice.from_anndata(adata).lattice is None
    adata.obs["array_row"] = "here"
    assert Slice.from_anndata(adata).unit == "unknown"
    single = Slice.from_anndata(lattice_slice("st", 1, 1))
    assert (single.unit, single.lattice_kind) == ("unknown", None)
    array = lattice_slice("visium")
    array.obsm["spatial"] = array.obs[["array_col", "array_row"]].to_numpy()
    piece = Slice.from_anndata(array)
    assert (piece.unit, piece.coord_scale) == ("array", 1.0)


@pytest.mark.parametrize(
    ("technology", "factor"),
    [
        ("Xenium", 1),
        ("vizgen MERSCOPE", 1),
        ("merfish", 1),
        ("CosMx", 0.12028),
        ("stereo-seq", 0.5),
        ("Slide-seqV2", 0.65),
    ],
)
def test_platforms(technology: str, factor: float) -> None:
    adata = make()
    adata.uns["technology"] = technology
    for piece in (Slice.from_anndata(adata), Slice.from_anndata(make(), technology=technology)):
        assert (piece.unit, piece.coord_scale, piece.technology) == ("um", factor, technology)


@pytest.mark.parametrize(
    ("technology", "kind", "spacing"), [("visium", "visium", 100.0), ("ST", "st", 200.0)]
)
def test_array_platform_without_lattice_columns(technology: str, kind: str, spacing: float) -> None:
    adata = lattice_slice(kind, 10, 10)
    del adata.obs["array_row"]
    assert Slice.from_anndata(adata).unit == "unknown"
    assert Slice.from_anndata(adata, technology=technology).spacing == pytest.approx(
        spacing, rel=1e-6
    )
    adata.obsm["spatial"] = np.random.default_rng(0).exponential(50, (100, 2)).cumsum(0) ** 2
    assert Slice.from_anndata(adata, technology=technology).unit == "unknown"


def test_stated_units_win() -> None:
    adata = lattice_slice("visium")
    with pytest.warns(TerrazzoWarning, match=r"68\.5 um apart; those of Visium are 100"):
        stated = Slice.from_anndata(adata, microns_per_unit=0.5)
    assert (stated.unit, stated.coord_scale) == ("um", 0.5)
    with pytest.warns(TerrazzoWarning, match="137 um apart"):
        assert Slice.from_anndata(adata, unit="\u00b5m").coord_scale == 1.0
    assert Slice.from_anndata(adata, unit="pixel").unit == "pixel"
    with pytest.warns(TerrazzoWarning, match="274 um apart"):
        assert Slice.from_anndata(adata, unit="pixel", microns_per_unit=2).unit == "um"
    with pytest.raises(ConfigError, match="unit 'mile'"):
        Slice.from_anndata(adata, unit="mile")
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(ConfigError, match="positive"):
            Slice.from_anndata(adata, microns_per_unit=bad)


def spatial_uns(**scale_factors: Any) -> dict[str, Any]:
    pixels = np.random.default_rng(0).uniform(0, 1, (8, 9, 3)).astype(np.float32)
    return {"lib": {"images": {"hires": pixels}, "scalefactors": scale_factors}}


def test_spot_diameter_and_image() -> None:
    adata = lattice_slice("visium", pixels=2.0)
    del adata.obs["array_row"]
    adata.uns["spatial"] = spatial_uns(spot_diameter_fullres=130.0, tissue_hires_scalef=0.25)
    piece = Slice.from_anndata(adata)
    assert (piece.unit, piece.coord_scale) == ("um", 0.5)
    assert piece.image is not None
    assert (piece.image.scale, piece.image.microns_per_pixel) == (0.25, 2.0)
    assert piece.describe()["image"] == [8, 9]
    adata.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] = (
        5000.0  # would put spots 1 um apart
    )
    assert Slice.from_anndata(adata).unit == "pixel"
    mine = TissueImage(np.zeros((4, 4, 3), np.uint8), scale=0.1)
    used = Slice.from_anndata(lattice_slice("visium", pixels=2.0), image=mine).image
    assert used is not None
    assert used.microns_per_pixel == pytest.approx(5.0)


@pytest.mark.parametrize(
    "odd",
    [
        "text",
        [],
        {},
        {"lib": 3},
        {"lib": {}},
        {"lib": {"images": None, "scalefactors": "x"}},
        {"a": {}, "b": {}},
        {"lib": {"images": {"hires": None}, "scalefactors": {"tissue_hires_scalef": None}}},
        {"lib": {"scalefactors": {"spot_diameter_fullres": [1, 2]}}},
        {"lib": {"scalefactors": {"spot_diameter_fullres": -3}}},
    ],
)
def test_odd_uns_is_tolerated(odd: Any) -> None:
    adata = make()
    adata.uns["spatial"] = odd
    piece = Slice.from_anndata(adata)
    assert piece.unit in ("unknown", "pixel")
    assert piece.image is None


def test_unusable_image_is_said_and_left_out() -> None:
    adata = make()
    adata.uns["spatial"] = spatial_uns(tissue_hires_scalef=1.0)
    adata.uns["spatial"]["lib"]["images"]["hires"] = np.full((3, 3, 3), 7.0)
    with pytest.warns(TerrazzoWarning, match=r"hires image .* not used"):
        assert Slice.from_anndata(adata).image is None


def test_library_is_chosen_by_obs() -> None:
    adata = make()
    adata.uns["spatial"] = {**spatial_uns(tissue_hires_scalef=1.0), "other": {}}
    with pytest.warns(TerrazzoWarning, match="which library"):
        assert Slice.from_anndata(adata).image is None
    adata.obs["library_id"] = "lib"
    assert Slice.from_anndata(adata).image is not None


# hash


def test_content_hash() -> None:
    adata = make()
    base = Slice.from_anndata(adata)
    assert base.content_hash() == Slice.from_anndata(adata, name="other").content_hash()
    assert len(base.content_hash()) == 64
    moved, recounted, renamed = adata.copy(), adata.copy(), adata.copy()
    moved.obsm["spatial"][0, 0] += 1e-9
    recounted.X[0, 0] += 1
    renamed.var_names = [*renamed.var_names[1:], "NEW1"]
    hashes = {Slice.from_anndata(one).content_hash() for one in (adata, moved, recounted, renamed)}
    assert len(hashes) == 4


# files


def write_zarr(adata: AnnData, path: Path) -> None:
    """Write without anndata's word on the zarr format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


def test_read_h5ad_zarr_and_lists(tmp_path: Path) -> None:
    adata = make()
    adata.write_h5ad(tmp_path / "one.h5ad")
    write_zarr(adata, tmp_path / "two.zarr")
    expected = Slice.from_anndata(adata)
    one, two = read([tmp_path / "one.h5ad", str(tmp_path / "two.zarr")])
    assert (one.name, two.name) == ("one", "two")
    assert same(one, expected)
    assert same(two, expected)
    assert read(tmp_path / "one.h5ad", name="mine", organism="mouse").organism == "mouse"
    with pytest.raises(InputError, match=r"one\.h5ad: there is no layer 'x'"):
        read(tmp_path / "one.h5ad", layer="x")
    with pytest.raises(InputError, match="not AnnData"):
        read(adata)  # type: ignore[call-overload]


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; terrazzo reads \.h5ad"):
        read(tmp_path / "no.h5ad")
    (tmp_path / "t.csv").write_text("a,b")
    (tmp_path / "folder").mkdir()
    for odd in ("t.csv", "folder"):
        with pytest.raises(InputError, match=r"not a kind of slice.*\.h5ad"):
            read(tmp_path / odd)
    (tmp_path / "text.h5ad").write_text("no hdf5")
    make().write_h5ad(tmp_path / "whole.h5ad")
    content = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(content[: len(content) // 2])
    with h5py.File(tmp_path / "foreign.h5ad", "w") as file:
        file["something"] = np.arange(3)
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{ half")
    for bad in ("text.h5ad", "cut.h5ad", "bad.zarr"):
        with pytest.raises(InputError, match="damaged, truncated or not an AnnData"):
            read_anndata(tmp_path / bad)
    with pytest.raises(InputError, match=r"foreign\.h5ad"):
        read(tmp_path / "foreign.h5ad")


# real slices


def test_real_slices(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data").rglob("*.h5ad"))
    assert paths
    expected = {"dlpfc": ("um", "visium"), "her2st": ("um", "st"), "st_mouse_liver": ("um", "st")}
    for path in paths:
        with h5py.File(path, "r") as file:
            n_cells = len(file["obsm/spatial"])
        piece = read(path)
        study = path.parent.name
        assert piece.n_cells == n_cells == len(piece.obs_names), path
        assert np.isfinite(piece.coords).all(), path
        assert piece.is_counts, path
        assert piece.organism in ("human", "mouse"), path
        json.dumps(piece.describe())
        if study in expected:
            assert (piece.unit, piece.lattice_kind) == expected[study], path
        if study == "dlpfc":
            assert 95 < piece.spacing < 105, path
        if study in ("her2st", "st_mouse_liver"):
            assert 130 < piece.spacing < 210, path
