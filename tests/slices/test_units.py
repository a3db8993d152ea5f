"""The unit of coordinates: weak evidence is not believed, and what a platform cannot be is refused or asked for."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from test_slices import lattice_slice, make

from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.slices import Slice

ASKS = r"--microns-per-unit"


def cells(unit_um: float = 1.0, n_side: int = 12, spacing: float = 9.0, **uns: Any) -> AnnData:
    """Cells as far apart as in tissue, in units of so many micrometers."""
    rng = np.random.default_rng(0)
    xy = np.indices((n_side, n_side)).reshape(2, -1).T * spacing * 1.15
    xy = xy + rng.normal(0.0, 0.2 * spacing, xy.shape)
    adata = make(len(xy), coords=xy / unit_um)
    adata.uns.update(uns)
    return adata


def square(
    n_rows: int = 12, n_cols: int = 12, pitch: float = 20.0, numbers: bool = True, **uns: Any
) -> AnnData:
    """Spots on a computed square lattice, as bins, pseudo-spots and DBiT-seq are."""
    row, col = (axis.ravel() for axis in np.mgrid[:n_rows, :n_cols])
    adata = make(len(row), coords=np.stack([500 + col * pitch, 700 + row * pitch], 1))
    if numbers:
        adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns.update(uns)
    return adata


def library(**factors: float) -> dict[str, Any]:
    """Return ``uns["spatial"]`` with these scale factors."""
    return {"lib": {"images": {}, "scalefactors": factors}}


def hexagonal(pitch: float = 138.0, numbers: bool = True, **uns: Any) -> AnnData:
    """Spots of Visium, the pitch in pixels."""
    adata = lattice_slice("visium", 10, 10, pixels=pitch / 100, **uns)
    if not numbers:
        del adata.obs["array_row"]
    return adata


# square arrays


@pytest.mark.case(
    "B",
    given="A square array (`array_row`, `array_col`) of which nothing tells the pitch: DBiT-seq, pseudo-spots, bins",
    gets="Not ST: coordinates stay in their unit, with a warning that asks for `microns_per_unit=` and gives the pitch",
)
@pytest.mark.parametrize(
    ("adata", "unit"),
    [
        (square(50, 50, 20.0), "unknown"),
        (square(20, 20, 100.0), "unknown"),
        (square(30, 40, 365.2, spatial=library(spot_diameter_fullres=200.9)), "pixel"),
        (square(3, 100, 7.0), "unknown"),
        (square(numbers=False, spatial=library(spot_diameter_fullres=10.0)), "pixel"),
        (square(numbers=False, technology="Visium"), "unknown"),
        (square(technology="Visium", spatial=library(spot_diameter_fullres=10.0)), "pixel"),
    ],
)
def test_a_square_array_alone_has_no_pitch(adata: AnnData, unit: str) -> None:
    with pytest.warns(TerrazzoWarning, match=f"square .*units apart.*{ASKS}"):
        piece = Slice.from_anndata(adata)
    assert (piece.unit, piece.coord_scale, piece.technology) == (unit, 1.0, "unknown")
    assert piece.lattice_kind is None
    assert piece.unit_evidence.startswith("unknown: ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Slice.from_anndata(adata, microns_per_unit=2.5).unit == "um"


def test_coordinates_that_are_numbers_of_a_square_array() -> None:
    adata = square()
    adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy(dtype=float)
    with pytest.warns(TerrazzoWarning, match=ASKS):
        assert Slice.from_anndata(adata).unit == "array"
    with pytest.raises(InputError, match="are the numbers of the array"):
        Slice.from_anndata(adata, unit="um")
    assert Slice.from_anndata(adata, microns_per_unit=50).spacing == 50


def test_st_is_known_by_spots_that_were_found_on_a_picture() -> None:
    adata = lattice_slice("st", 12, 12)
    rng = np.random.default_rng(0)
    adata.obsm["spatial"] = adata.obsm["spatial"] + rng.normal(0, 12, (144, 2))
    piece = Slice.from_anndata(adata)
    assert (piece.unit, piece.lattice_kind, piece.technology) == ("um", "st", "ST")
    assert piece.unit_evidence.startswith("likely: ")
    large = lattice_slice("st", 50, 12)
    large.obsm["spatial"] = large.obsm["spatial"] + rng.normal(0, 12, (600, 2))
    with pytest.warns(TerrazzoWarning, match="array is square"):
        assert Slice.from_anndata(large).technology == "unknown"


def test_named_st_is_checked() -> None:
    named = Slice.from_anndata(lattice_slice("st", technology="ST"))
    assert named.spacing == pytest.approx(200.0)
    assert named.unit_evidence.startswith("sure: ")
    with pytest.warns(TerrazzoWarning, match="hexagonal, as Visium's"):
        assert Slice.from_anndata(hexagonal(technology="ST")).unit == "unknown"
    with pytest.warns(TerrazzoWarning, match="at most 33 x 35"):
        Slice.from_anndata(square(50, 50, technology="ST"))
    with pytest.warns(TerrazzoWarning, match="larger than any"):
        assert Slice.from_anndata(square(2, 100, technology="ST")).unit == "unknown"


@pytest.mark.case(
    "B",
    given="DBiT-seq or Visium HD is named, the side of a channel or bin is not",
    gets="Coordinates stay in their unit, with a warning that asks for `microns_per_unit=`; what is stated is checked",
)
def test_platforms_of_several_pitches() -> None:
    for technology in ("DBiT-seq", "Visium HD"):
        with pytest.warns(TerrazzoWarning, match=f"differs.*{ASKS}"):
            piece = Slice.from_anndata(square(technology=technology))
        assert (piece.unit, piece.technology) == ("unknown", technology)
    dbit = square(technology="DBiT-seq")
    assert Slice.from_anndata(dbit, microns_per_unit=2.5).spacing == 50
    with pytest.raises(InputError, match="200 um apart; those of DBiT-seq are 10 to 50"):
        Slice.from_anndata(dbit, microns_per_unit=10)
    with pytest.raises(InputError, match=r"4\.4 um apart.*multiples of 2"):
        Slice.from_anndata(square(technology="Visium HD"), microns_per_unit=0.22)


def test_bins_of_visium_hd() -> None:
    adata = square(numbers=False, pitch=29.2)
    adata.obs_names = [f"s_016um_{i:05d}_{i:05d}-1" for i in range(adata.n_obs)]
    assert Slice.from_anndata(adata).spacing == pytest.approx(16.0)
    with pytest.raises(InputError, match=r"29\.2 um apart, and they have 16 um.*0\.5479 fits"):
        Slice.from_anndata(adata, unit="um")
    right = square(pitch=29.2, technology="Visium HD", spatial=library(microns_per_pixel=0.274))
    assert Slice.from_anndata(right).spacing == pytest.approx(8.0, rel=1e-2)
    wrong = square(pitch=29.2, technology="Visium HD", spatial=library(microns_per_pixel=0.1))
    with pytest.warns(TerrazzoWarning, match="multiples of 2"):
        assert Slice.from_anndata(wrong).unit == "pixel"


# Visium


def test_visium_is_as_sure_as_its_evidence() -> None:
    assert Slice.from_anndata(hexagonal()).unit_evidence.startswith("likely: ")
    named = hexagonal()
    barcodes = np.random.default_rng(0).choice(list("ACGT"), (named.n_obs, 16))
    named.obs_names = ["".join(letters) + "-1" for letters in barcodes]
    assert Slice.from_anndata(named).unit_evidence.startswith("sure: ")
    agrees = Slice.from_anndata(hexagonal(spatial=library(spot_diameter_fullres=89.7)))
    assert agrees.unit_evidence.startswith("sure: ")
    for factors in ({"spot_diameter_fullres": 300.0}, {"microns_per_pixel": 0.1}):
        with pytest.warns(TerrazzoWarning, match="taken for Visium's"):
            doubtful = Slice.from_anndata(hexagonal(spatial=library(**factors)))
        assert doubtful.spacing == pytest.approx(100.0)


@pytest.mark.parametrize(
    "factors",
    [{"microns_per_pixel": 2.0}, {"spot_diameter_fullres": 9.0}, {"microns_per_pixel": 7}],
)
def test_factors_that_visium_cannot_have_give_way_to_its_pitch(factors: dict[str, float]) -> None:
    adata = hexagonal(numbers=False, technology="Visium", spatial=library(**factors))
    piece = Slice.from_anndata(adata)
    assert piece.spacing == pytest.approx(100.0)


@pytest.mark.case(
    "B",
    given="`unit=` or `microns_per_unit=` that the platform cannot have",
    gets="Refused, with the distance that it gives and the number that fits; a warning where it is only not likely",
)
def test_what_is_stated_is_checked_too() -> None:
    named = hexagonal(technology="Visium")
    with pytest.raises(InputError, match=r"69 um apart; those of Visium are 100.*0\.7246 fits"):
        Slice.from_anndata(named, microns_per_unit=0.5)
    with pytest.warns(TerrazzoWarning, match=r"84\.62 um apart"):  # spots of 55 um, not 65
        assert Slice.from_anndata(named, microns_per_unit=55 / 89.7).unit == "um"
    for adata in (cells(1000.0), cells(1000.0, technology="seqFISH")):
        with pytest.raises(InputError, match=r"cannot be.* 1000 if they are millimeters"):
            Slice.from_anndata(adata, unit="um")
        assert Slice.from_anndata(adata, unit="mm").coord_scale == 1000.0
        assert Slice.from_anndata(adata, unit="unknown").unit == "unknown"
    with pytest.raises(InputError, match="mm long"):
        Slice.from_anndata(cells(), microns_per_unit=1e6)


# platforms of single cells


@pytest.mark.case(
    "B",
    given="Xenium, MERFISH, CosMx ... is named, and its unit puts cells where none can be: millimeters, bins, pixels",
    gets="Refused, with the distance and `microns_per_unit=` that is likely; a warning where cells are too far apart",
)
@pytest.mark.parametrize(
    ("technology", "unit_um", "says"),
    [
        ("MERFISH", 1000.0, "1000 if they are millimeters"),
        ("Xenium", 1000.0, "1000 if they are millimeters"),
        ("Xenium", 0.001, "0.001 if they are nanometers"),
        ("CosMx", 1000.0, "1000 if they are millimeters"),
        ("CosMx", 1.0, "1 if they are micrometers"),
        ("Slide-seqV2", 1.0, "1 if they are micrometers"),
        ("Slide-seqV2", 1000.0, "1000 if they are millimeters"),
        ("Stereo-seq", 1000.0, "1000 if they are millimeters"),
    ],
)
def test_units_that_a_platform_cannot_have(technology: str, unit_um: float, says: str) -> None:
    adata = cells(unit_um, technology=technology)
    with pytest.raises(InputError, match=f"um apart; that cannot be.*{ASKS}.*{says}"):
        Slice.from_anndata(adata)
    right = Slice.from_anndata(adata, microns_per_unit=unit_um)
    assert (right.unit, right.technology) == ("um", technology)
    assert right.unit_evidence.startswith("stated: ")
    assert Slice.from_anndata(adata, unit="unknown").unit == "unknown"


def test_bins_of_cells_are_no_micrometers() -> None:
    with pytest.raises(InputError, match="numbers of bins"):
        Slice.from_anndata(square(pitch=1.0, numbers=False, technology="MERFISH"))


def test_pixels_taken_for_micrometers() -> None:
    pixels = cells(0.2125, technology="Xenium")
    with pytest.warns(TerrazzoWarning, match=r"farther than in tissue.*0\.2125 if they are pixels"):
        assert Slice.from_anndata(pixels).unit_evidence.startswith("guess: ")
    pixels.uns["spatial"] = library(microns_per_pixel=0.2125)
    assert Slice.from_anndata(pixels).coord_scale == 0.2125
    some = cells(technology="Xenium", n_side=40)[::9]  # every ninth cell of a section
    assert Slice.from_anndata(some).unit_evidence.startswith("sure: ")


def test_a_file_that_states_pixels_is_checked_too() -> None:
    adata = cells(0.5, spatial=library(microns_per_pixel=0.5))
    assert Slice.from_anndata(adata).unit_evidence.startswith("likely: ")
    adata = cells(1000.0, spatial=library(microns_per_pixel=0.5))
    with pytest.warns(TerrazzoWarning, match="um apart.* 1000 if they are millimeters"):
        assert Slice.from_anndata(adata).unit == "pixel"


@pytest.mark.case(
    "B",
    given="Stereo-seq in numbers of bins, 1 apart as single spots are",
    gets="Coordinates stay in their unit, with a warning that asks for `microns_per_unit=`: 0.5, 10, 25 or 50",
)
@pytest.mark.parametrize("uns", [{}, {"bin_type": "bins", "bin_size": 50, "resolution": 500}])
def test_numbers_of_bins_of_stereo_seq(uns: dict[str, Any]) -> None:
    adata = square(pitch=1.0, numbers=False, technology="Stereo-seq", **uns)
    with pytest.warns(TerrazzoWarning, match=rf"0\.5 um apart.*{ASKS}.*25 if"):
        piece = Slice.from_anndata(adata)
    assert (piece.unit, piece.technology) == ("unknown", "Stereo-seq")
    assert Slice.from_anndata(adata, microns_per_unit=25).spacing == 25
    assert Slice.from_anndata(adata, microns_per_unit=0.5).spacing == 0.5


def test_bins_of_stereo_seq_in_spots() -> None:
    stated = square(pitch=50.0, bin_type="bins", bin_size=50, resolution=500)
    piece = Slice.from_anndata(stated)
    assert (piece.spacing, piece.technology, piece.unit) == (25.0, "Stereo-seq", "um")
    assert Slice.from_anndata(square(pitch=100.0, technology="Stereo-seq")).spacing == 50.0
    with pytest.warns(TerrazzoWarning, match="25 spots, which is not a usual size"):
        Slice.from_anndata(square(pitch=25.0, technology="Stereo-seq"))


# what says nothing


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_cells_say_little(n: int) -> None:
    adata = make(n, coords=np.arange(2.0 * n).reshape(n, 2) * 2)
    adata.uns["technology"] = "Xenium"
    assert Slice.from_anndata(adata).unit == "um"
    adata.obsm["spatial"] = np.ones((n, 2))
    assert Slice.from_anndata(adata).unit == "um"


def test_a_slice_of_which_nothing_is_known_is_not_asked_for() -> None:
    piece = Slice.from_anndata(cells())
    assert (piece.unit, piece.coord_scale) == ("unknown", 1.0)
    assert "--microns-per-unit" in piece.unit_evidence
    assert piece.describe()["unit_evidence"] == piece.unit_evidence


def test_many_cells_are_sampled() -> None:
    adata = cells(n_side=160, technology="MERFISH")  # more than are looked at
    assert Slice.from_anndata(adata).unit_evidence.startswith("sure: ")
    adata.obsm["spatial"] = adata.obsm["spatial"] / 1000
    with pytest.raises(InputError, match="millimeters"):
        Slice.from_anndata(adata)
