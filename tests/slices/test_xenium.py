"""Xenium: both table formats, controls left out, the picture of the nuclei, and bad folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import Choices, open_slice

GENES = [
    "TP53",
    "EGFR",
    "MYC",
    "NegControlProbe_00042",
    "NegControlCodeword_0500",
    "UnassignedCodeword_0001",
]
TYPES = ["Gene Expression"] * 3 + [
    "Negative Control Probe",
    "Negative Control Codeword",
    "Unassigned Codeword",
]
PIXEL = 0.25  # um


def cells_of(n: int) -> pd.DataFrame:
    """Cells of a panel, 10 um apart along a diagonal."""
    return pd.DataFrame(
        {
            "cell_id": [f"aaa{chr(97 + i)}-1" for i in range(n)],
            "x_centroid": 10.0 * np.arange(n) * 0.6 + 3,
            "y_centroid": 10.0 * np.arange(n) * 0.8 + 5,
            "transcript_counts": np.arange(n),
            "cell_area": np.linspace(20, 60, n),
            "segmentation_method": ["boundary"] * n,
        }
    )


@pytest.fixture
def xenium(tmp_path: Path, write_tenx: Any, counts: Any) -> Path:
    """Write an output folder; the table's order is not that of the matrix."""
    folder = tmp_path / "output-XETG0001__0002__RegionA"
    cells = cells_of(8)
    write_tenx(
        folder / "cell_feature_matrix.h5",
        counts(8, 6),
        cells["cell_id"].tolist(),
        GENES,
        types=TYPES,
    )
    cells.iloc[::-1].to_parquet(folder / "cells.parquet", index=False)
    about = {
        "major_version": 5,
        "pixel_size": PIXEL,
        "panel_organism": "Human",
        "region_name": "RegionA",
    }
    (folder / "experiment.xenium").write_text(json.dumps(about))
    return folder


def test_counts_of_genes_and_micrometers(xenium: Path, counts: Any) -> None:
    tissue = tz.read(xenium)
    assert (tissue.n_cells, tissue.n_genes, tissue.technology, tissue.organism) == (
        8,
        3,
        "Xenium",
        "human",
    )
    assert (tissue.unit, tissue.coord_scale) == ("um", 1.0)
    assert tissue.spacing == pytest.approx(10.0)
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(8, 6)[:, :3])
    assert tissue.obs_names.tolist() == cells_of(8)["cell_id"].tolist()
    np.testing.assert_allclose(tissue.coords, cells_of(8)[["x_centroid", "y_centroid"]])
    assert tissue.image is None


def test_what_was_left_out_is_said(xenium: Path) -> None:
    opened = open_slice(xenium)
    assert opened.format == "Xenium"
    assert opened.notes == (
        "3 features that are not genes left out (1 Negative Control Codeword, 1 Negative Control Probe, "
        "1 Unassigned Codeword)",
    )
    assert opened.adata.obs.columns.tolist() == [
        "transcript_counts",
        "cell_area",
        "segmentation_method",
    ]
    opened.adata.write_h5ad(xenium / "out.h5ad")
    assert tz.read(xenium / "out.h5ad").content_hash() == tz.read(xenium).content_hash()


@pytest.mark.parametrize("form", ["csv.gz", "bytes", "whole numbers"])
def test_tables_of_other_versions(xenium: Path, write_tenx: Any, counts: Any, form: str) -> None:
    expected = tz.read(xenium).content_hash()
    cells = cells_of(8)
    if form == "whole numbers":
        cells["cell_id"] = np.arange(1, 9)
        names = cells["cell_id"].astype(str).tolist()
        write_tenx(xenium / "cell_feature_matrix.h5", counts(8, 6), names, GENES, types=TYPES)
        cells.to_parquet(xenium / "cells.parquet", index=False)
    elif form == "bytes":
        cells["cell_id"] = cells["cell_id"].str.encode("utf-8")
        cells.to_parquet(xenium / "cells.parquet", index=False)
    else:
        (xenium / "cells.parquet").unlink()
        cells.to_csv(xenium / "cells.csv.gz", index=False)
    assert tz.read(xenium).content_hash() == expected


def test_the_picture_of_the_nuclei_is_taken_if_named(xenium: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65535, (300, 200), dtype=np.uint16)
    (xenium / "morphology_focus").mkdir()
    tifffile.imwrite(
        xenium / "morphology_focus" / "morphology_focus_0000.ome.tif", pixels, tile=(64, 64)
    )
    assert tz.read(xenium).image is None
    assert "morphology_focus" in open_slice(xenium).notes[-1]
    image = tz.read(xenium, image="morphology_focus").image
    assert image is not None
    assert image.microns_per_pixel == PIXEL
    np.testing.assert_allclose(
        image.to_pixels([[10.0, 20.0]]), [[40.0, 80.0]]
    )  # a quarter of a um each
    np.testing.assert_array_equal(image.pixels[80:82, 40:42, 0], pixels[80:82, 40:42] // 257)
    with pytest.raises(InputError, match="no image 'he'; there are: morphology_focus"):
        tz.read(xenium, image="he")
    (xenium / "experiment.xenium").write_text("{}")
    with pytest.raises(InputError, match="pixel_size"):
        tz.read(xenium, image="morphology_focus")


def test_the_first_picture_by_version(xenium: Path) -> None:
    (xenium / "morphology_focus").mkdir()
    old, new = np.full((10, 10), 20, np.uint8), np.full((10, 10), 40, np.uint8)
    tifffile.imwrite(xenium / "morphology_focus.ome.tif", old)
    tifffile.imwrite(xenium / "morphology_focus" / "ch0000_dapi.ome.tif", new)
    image = open_slice(xenium, Choices(image="morphology_focus")).image
    assert image is not None
    assert int(image.pixels[0:1, 0:1, 0][0, 0]) == 40


def test_bins_mean_nothing_here(xenium: Path) -> None:
    with pytest.raises(ConfigError, match="bins= does not belong to"):
        tz.read(xenium, bins="8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "cell_feature_matrix.h5",
            "the matrix of counts is missing; it should be cell_feature_matrix.h5",
        ),
        (
            "cells.parquet",
            "the table of cells is missing; it should be cells.parquet or cells.csv.gz",
        ),
    ],
)
def test_missing_files(xenium: Path, name: str, said: str) -> None:
    (xenium / name).unlink()
    with pytest.raises(InputError, match=said):
        tz.read(xenium)


def test_bad_tables(xenium: Path) -> None:
    cells_of(8).drop(columns="y_centroid").to_parquet(xenium / "cells.parquet")
    with pytest.raises(InputError, match="column y_centroid missing"):
        tz.read(xenium)
    cells_of(8).assign(x_centroid="here").to_parquet(xenium / "cells.parquet")
    with pytest.raises(InputError, match="column x_centroid does not hold numbers"):
        tz.read(xenium)
    twice = cells_of(8)
    twice.loc[1, "cell_id"] = twice.loc[0, "cell_id"]
    twice.to_parquet(xenium / "cells.parquet")
    with pytest.raises(InputError, match="cell ids of the positions repeat"):
        tz.read(xenium)
    (xenium / "cells.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"cells.parquet cannot be read"):
        tz.read(xenium)


def test_a_cell_without_position_is_left_out_and_said(xenium: Path) -> None:
    cells_of(8).iloc[1:].to_parquet(xenium / "cells.parquet")
    opened = open_slice(xenium)
    assert opened.adata.n_obs == 7
    assert "1 of 8 cells have counts but no position; left out" in opened.notes
    cells_of(8).iloc[5:].to_parquet(xenium / "cells.parquet")
    with pytest.raises(InputError, match="only 3 of 8 cells"):
        open_slice(xenium)
