"""Space Ranger: Visium of both versions, Visium HD by bin, and folders that are not whole."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import Choices, Slice, open_slice

PIXELS = 2.0  # pixels of the scan a micrometer
GENES = ["TP53", "EGFR", "MYC", "GAPDH", "CD3"]
TYPES = ["Gene Expression"] * 4 + ["Antibody Capture"]
COLUMNS = [
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
]


def visium_spots(rows: int = 4, columns: int = 5) -> pd.DataFrame:
    """Spots of the hexagonal array, 100 um apart; the whole array, of which the counts hold some."""
    row, column = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    column = 2 * column + row % 2
    x, y = column * 50.0 * PIXELS + 300, row * 50.0 * 3**0.5 * PIXELS + 700
    names = [f"{'ACGT'[r % 4]}{'ACGT'[c % 4]}{r}{c}-1" for r, c in zip(row, column, strict=True)]
    return pd.DataFrame(
        dict(
            zip(
                COLUMNS, [names, 1, row, column, np.rint(y).astype(int), x.astype(int)], strict=True
            )
        )
    )


def write_spatial(
    folder: Path, spots: pd.DataFrame, positions: str = "tissue_positions.csv", **scales: float
) -> None:
    """Write the folder ``spatial/``."""
    (folder / "spatial").mkdir(parents=True, exist_ok=True)
    if positions.endswith(".parquet"):
        spots.to_parquet(folder / "spatial" / positions, index=False)
    else:
        spots.to_csv(
            folder / "spatial" / positions, index=False, header=positions == "tissue_positions.csv"
        )
    factors = {
        "tissue_hires_scalef": 0.1,
        "tissue_lowres_scalef": 0.05,
        "spot_diameter_fullres": 130.0,
        **scales,
    }
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    picture = np.random.default_rng(0).integers(0, 255, (150, 120, 3), dtype=np.uint8)
    for name, side in (("hires", 1), ("lowres", 2)):
        Image.fromarray(picture[::side, ::side]).save(
            folder / "spatial" / f"tissue_{name}_image.png"
        )


@pytest.fixture
def visium(tmp_path: Path, write_tenx: Any, counts: Any) -> Path:
    """Write the output folder of one Visium sample; two spots of the array hold no tissue."""
    spots = visium_spots()
    folder = tmp_path / "sampleA" / "outs"
    held = spots["barcode"].iloc[::-1].tolist()[2:]
    write_tenx(
        folder / "filtered_feature_bc_matrix.h5", counts(len(held), 5), held, GENES, types=TYPES
    )
    write_spatial(folder, spots)
    return folder


def test_visium_counts_places_units_and_picture(visium: Path, counts: Any) -> None:
    opened = open_slice(visium)
    assert (opened.format, opened.name) == ("Visium (Space Ranger)", "sampleA")
    assert opened.notes == ("1 features that are not genes left out (1 Antibody Capture)",)
    tissue = tz.read(visium)
    assert (tissue.n_cells, tissue.n_genes) == (18, 4)
    assert (tissue.name, tissue.technology, tissue.unit, tissue.lattice_kind) == (
        "sampleA",
        "Visium",
        "um",
        "visium",
    )
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(18, 5)[:, :4])
    assert tissue.gene_symbols.tolist() == GENES[:4]
    assert tissue.gene_ids[1] == "ENSG00000000001"
    spots = visium_spots().set_index("barcode").loc[tissue.obs_names]
    np.testing.assert_allclose(
        tissue.native_coords, spots[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    )
    np.testing.assert_array_equal(tissue.lattice, spots[["array_row", "array_col"]])
    assert tissue.spacing == pytest.approx(100.0, rel=1e-3)
    assert tissue.coord_scale == pytest.approx(1 / PIXELS, rel=1e-3)
    assert tissue.image is not None
    assert tissue.image.pixels.shape == (150, 120, 3)
    assert tissue.image.microns_per_pixel == pytest.approx(
        5.0, rel=1e-3
    )  # ten pixels of the scan, two to a um
    np.testing.assert_allclose(
        tissue.image.to_pixels(tissue.native_coords[:1]), tissue.native_coords[:1] * 0.1
    )


@pytest.mark.case(
    "B",
    given="Space Ranger's layout with spots on a square array (DBiT-seq is put into it)",
    gets="Not Visium: pixels, with a warning that asks for `microns_per_unit=`",
)
@pytest.mark.parametrize("positions", ["tissue_positions_list.csv", "tissue_positions.csv"])
def test_a_square_array_in_this_layout_is_not_visium(
    tmp_path: Path, write_tenx: Any, counts: Any, positions: str
) -> None:
    row, column = (axis.ravel() for axis in np.mgrid[:6, :6])
    names = [f"ACGT{number}-1" for number in range(36)]
    values = [names, 1, row, column, row * 100 + 300, column * 100 + 300]
    folder = tmp_path / "dbit"
    write_tenx(folder / "filtered_feature_bc_matrix.h5", counts(36, 4), names, GENES[:4])
    spots = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
    write_spatial(folder, spots, positions, spot_diameter_fullres=50.0)
    with pytest.warns(tz.errors.TerrazzoWarning, match=r"square.*--microns-per-unit"):
        tissue = tz.read(folder)
    assert (tissue.technology, tissue.unit, tissue.lattice_kind) == ("unknown", "pixel", None)
    assert "not Visium's" in tissue.origin
    assert tz.read(folder, microns_per_unit=0.5).spacing == 50.0


def test_the_folder_above_and_earlier_names(visium: Path, write_tenx: Any, tmp_path: Path) -> None:
    expected = tz.read(visium)
    assert tz.read(visium.parent).content_hash() == expected.content_hash()
    (visium / "spatial" / "tissue_positions.csv").unlink()
    write_spatial(visium, visium_spots(), "tissue_positions_list.csv")
    (visium / "filtered_feature_bc_matrix.h5").rename(
        visium / "V1_Heart_filtered_feature_bc_matrix.h5"
    )
    assert tz.read(visium).content_hash() == expected.content_hash()


def test_what_is_read_is_what_scanpy_reads(visium: Path) -> None:
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sc.read_visium(visium, library_id="sampleA")
    ours = open_slice(visium).adata
    assert (ours.obs_names == theirs.obs_names).all()
    np.testing.assert_array_equal(ours.obsm["spatial"], theirs.obsm["spatial"])
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    np.testing.assert_array_equal(ours.var["gene_ids"], theirs.var["gene_ids"])


@pytest.fixture
def visium_hd(tmp_path: Path, write_tenx: Any, counts: Any) -> Path:
    """Write the output folder of Visium HD with bins of 8 and 16 um."""
    folder = tmp_path / "hd"
    for side in (8, 16):
        place = folder / "binned_outputs" / f"square_{side:03d}um"
        row, column = (axis.ravel() for axis in np.mgrid[:5, :6])
        names = [f"s_{side:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
        parts = [names, 1, row, column, (row + 0.5) * side * PIXELS, (column + 0.5) * side * PIXELS]
        write_tenx(place / "filtered_feature_bc_matrix.h5", counts(30, 4, side), names, GENES[:4])
        spots = pd.DataFrame(dict(zip(COLUMNS, parts, strict=True)))
        scales = {"bin_size_um": side, "microns_per_pixel": 1 / PIXELS}
        write_spatial(place, spots, "tissue_positions.parquet", **scales)
    return folder


@pytest.mark.parametrize(
    ("bins", "side"), [(None, 8), ("8", 8), ("016", 16), ("square_016um", 16), ("16um", 16)]
)
def test_visium_hd_bins(visium_hd: Path, counts: Any, bins: str | None, side: int) -> None:
    tissue = tz.read(visium_hd, bins=bins)
    assert (tissue.name, tissue.technology, tissue.unit) == ("hd", "Visium HD", "um")
    assert tissue.spacing == pytest.approx(side)
    assert tissue.coord_scale == pytest.approx(1 / PIXELS)
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(30, 4, side))
    assert (
        open_slice(visium_hd, Choices(bins=bins)).format
        == f"Visium HD, {side} um bins (Space Ranger)"
    )


def test_one_bin_of_visium_hd_as_a_folder(visium_hd: Path) -> None:
    tissue = tz.read(visium_hd / "binned_outputs" / "square_016um")
    assert tissue.spacing == pytest.approx(16)


def test_bins_that_are_not_there(visium_hd: Path, visium: Path) -> None:
    with pytest.raises(ConfigError, match=r"no bins of 2; there are .*: 8, 16"):
        tz.read(visium_hd, bins="2")
    with pytest.raises(ConfigError, match="no bins of many"):
        tz.read(visium_hd, bins="many")
    with pytest.raises(ConfigError, match="no bins to choose from"):
        tz.read(visium, bins="8")
    with pytest.raises(ConfigError, match=r"table= does not belong to .* which is Space Ranger"):
        tz.read(visium, table="x")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("filtered_feature_bc_matrix.h5", "the matrix of counts is missing"),
        ("spatial/tissue_positions.csv", "the table of positions is missing"),
        ("spatial/scalefactors_json.json", "the file of scale factors is missing"),
    ],
)
def test_a_missing_file_is_named(visium: Path, missing: str, said: str) -> None:
    (visium / missing).unlink()
    with pytest.raises(InputError, match=said) as caught:
        tz.read(visium)
    assert missing.split("/")[-1] in str(caught.value)


def test_without_pictures_the_rest_is_read(visium: Path) -> None:
    for name in ("hires", "lowres"):
        (visium / "spatial" / f"tissue_{name}_image.png").unlink()
    opened = open_slice(visium)
    assert "no image" in opened.notes[-1]
    assert Slice.from_opened(opened).image is None


def test_a_missing_column_is_named(visium: Path) -> None:
    spots = visium_spots().rename(columns={"array_col": "column"})
    spots.to_csv(visium / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(InputError, match="column array_col missing"):
        tz.read(visium)


def test_positions_of_another_sample_are_refused(visium: Path) -> None:
    spots = visium_spots()
    spots["barcode"] = spots["barcode"].str.replace("-1", "-2")
    spots.to_csv(visium / "spatial" / "tissue_positions.csv", index=False)
    with pytest.raises(InputError, match="do not belong together"):
        tz.read(visium)


def _spoil(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("matrix/indices", None, "matrix/indices is missing"),
        ("matrix/data", np.array([0.5, 1.0]), "not what belongs there"),
        ("matrix/data", np.array([1, 2]), "indptr ends at"),
        ("matrix/indptr", np.arange(19) * 10**6, "indptr ends at"),
        ("matrix/shape", np.array([7, 18]), "shape says"),
        ("matrix/barcodes", np.array(["a", "b"], dtype="S"), "shape says"),
        (
            "matrix/features/feature_type",
            np.array(["Other"] * 5, dtype="S"),
            "no feature of the type",
        ),
        ("matrix", None, "group /matrix is missing"),
    ],
)
def test_a_spoilt_matrix_is_refused(visium: Path, name: str, value: Any, said: str) -> None:
    _spoil(visium / "filtered_feature_bc_matrix.h5", name, value)
    with pytest.raises(InputError, match=said):
        tz.read(visium)


def test_an_index_out_of_the_matrix_is_refused(visium: Path) -> None:
    path = visium / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][0] = 10**9
    with pytest.raises(InputError, match="indices reach from"):
        tz.read(visium)


def test_a_claimed_size_that_the_file_cannot_hold_is_refused(visium: Path) -> None:
    path = visium / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r+") as file:
        del file["matrix/data"]
        file.create_dataset(
            "matrix/data", shape=(2**36,), dtype=np.int32, chunks=(2**16,), compression="gzip"
        )
    with pytest.raises(InputError, match="that are stored can hold"):
        tz.read(visium)


@pytest.mark.parametrize(
    "name", ["filtered_feature_bc_matrix.h5", "spatial/scalefactors_json.json"]
)
def test_a_damaged_file_is_named(visium: Path, name: str) -> None:
    (visium / name).write_bytes(b"\x89HDF no")
    with pytest.raises(InputError, match=f"{name.split('/')[-1]} cannot be read"):
        tz.read(visium)


def test_a_folder_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a kind of slice .*Space Ranger.*Stereo-seq"):
        tz.read(tmp_path)
