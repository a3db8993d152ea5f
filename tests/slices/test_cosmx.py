"""CosMx: counts and positions by field of view and cell, the size of a pixel, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import terrazzo as tz
from terrazzo.errors import InputError
from terrazzo.slices import open_slice

GENES = ["AATK", "ABL1", "NegPrb1", "SystemControl3", "Negative04", "ACE2"]


def write(
    folder: Path, counts: np.ndarray, *, fovs: str = "mm", largest: float = 4000.0, **change: Any
) -> Path:
    """Write the flat files of two fields of view with three cells each; row 0 of each counts what is in no cell."""
    folder.mkdir(exist_ok=True)
    ids = pd.DataFrame({"fov": np.repeat([1, 2], 4), "cell_ID": np.tile([0, 1, 2, 3], 2)})
    pd.concat([ids, pd.DataFrame(counts, columns=GENES)], axis=1).to_csv(
        folder / "Run_exprMat_file.csv", index=False
    )
    cells = ids[ids["cell_ID"] > 0].iloc[::-1]
    local = cells["cell_ID"] * 100.0
    places = {
        "Area": 900,
        "CenterX_local_px": local,
        "CenterY_local_px": [largest, *local[1:]],
        "CenterX_global_px": local + cells["fov"] * 4256,
        "CenterY_global_px": 7000.0,
    }
    cells.assign(**places).rename(columns=change).to_csv(
        folder / "Run_metadata_file.csv", index=False
    )
    table = pd.DataFrame({"FOV": [1, 2], "x_global_px": [0.0, 4256.0], "y_global_px": [0.0, 0.0]})
    if fovs == "mm":
        table = table.assign(x_global_mm=table["x_global_px"] * 0.00012, y_global_mm=0.0)
    if fovs:
        table.to_csv(folder / "Run_fov_positions_file.csv", index=False)
    return folder


def test_cosmx(tmp_path: Path, counts: Any) -> None:
    drawn = counts(8, 6)
    folder = write(tmp_path / "run", drawn)
    opened = open_slice(folder)
    assert opened.format == "CosMx"
    assert opened.notes == (
        "a pixel is 0.12 um: Run_fov_positions_file.csv has both millimeters and pixels",
        "3 features that are not genes left out (3 control probes and codes)",
        "counts that are in no cell left out (2 fields of view)",
    )
    tissue = tz.read(folder)
    assert tissue.obs_names.tolist() == ["1_1", "1_2", "1_3", "2_1", "2_2", "2_3"]
    assert tissue.gene_symbols.tolist() == ["AATK", "ABL1", "ACE2"]
    np.testing.assert_array_equal(tissue.counts.toarray(), drawn[[1, 2, 3, 5, 6, 7]][:, [0, 1, 5]])
    assert (tissue.technology, tissue.unit) == ("CosMx", "um")
    np.testing.assert_allclose(tissue.coords[0], [4356 * 0.12, 7000 * 0.12])
    assert tissue.spacing == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("fovs", "largest", "pixel"),
    [("px", 4000.0, 0.12028), ("", 4000.0, 0.12028), ("px", 5400.0, 0.18), ("mm", 5400.0, 0.12)],
)
def test_size_of_a_pixel(
    tmp_path: Path, counts: Any, fovs: str, largest: float, pixel: float
) -> None:
    folder = write(tmp_path / "run", counts(8, 6), fovs=fovs, largest=largest)
    assert tz.read(folder).coord_scale == pytest.approx(pixel)
    assert tz.read(folder, microns_per_unit=0.2).coord_scale == 0.2
    saved = folder / "saved.h5ad"
    open_slice(folder).adata.write_h5ad(saved)
    assert tz.read(saved).coord_scale == pytest.approx(pixel)


def test_quoted_and_decimal_ids(tmp_path: Path, counts: Any) -> None:
    folder = write(tmp_path / "run", counts(8, 6))
    expected = tz.read(folder).content_hash()
    cells = pd.read_csv(folder / "Run_metadata_file.csv")
    cells.astype({"fov": float, "cell_ID": float}).to_csv(
        folder / "Run_metadata_file.csv", index=False, quoting=2
    )
    assert tz.read(folder).content_hash() == expected


def test_bad_input(tmp_path: Path, counts: Any) -> None:
    folder = write(tmp_path / "run", counts(8, 6), CenterX_global_px="x")
    with pytest.raises(InputError, match="column CenterX_global_px missing"):
        tz.read(folder)
    write(folder, counts(8, 6))
    table = pd.read_csv(folder / "Run_exprMat_file.csv")
    table.drop(columns="cell_ID").to_csv(folder / "Run_exprMat_file.csv", index=False)
    with pytest.raises(InputError, match="column cell_ID missing"):
        tz.read(folder)
    table.assign(cell_ID=table["cell_ID"].replace({1: 71, 2: 72, 3: 73})).to_csv(
        folder / "Run_exprMat_file.csv", index=False
    )
    with pytest.raises(InputError, match="do not belong together"):
        tz.read(folder)
    (folder / "Run_exprMat_file.csv").unlink()
    with pytest.raises(InputError, match="table of counts is missing"):
        tz.read(folder)
