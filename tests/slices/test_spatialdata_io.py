"""The readers of vendors' folders against those of spatialdata-io: same cells, counts and micrometers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from test_cosmx import write as write_cosmx
from test_merscope_slideseq import merscope  # noqa: F401
from test_spaceranger import visium, visium_hd  # noqa: F401
from test_unusual_files import segmented
from test_xenium import GENES, PIXEL, TYPES, cells_of

import terrazzo as tz
from terrazzo.slices import Slice

CELLS = 8


def theirs(reader: str, path: Path, **options: Any) -> Any:
    """Read a folder by a reader of spatialdata-io."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("spatialdata_io") is None:
            pytest.skip("spatialdata-io is not installed")
        module = importlib.import_module("spatialdata_io")
        return getattr(module, reader)(path, **options)


def same_counts(tissue: Slice, table: AnnData) -> None:
    """Compare cells and counts with those of a table, which may hold controls too."""
    assert tissue.obs_names.tolist() == table.obs_names.astype(str).tolist()
    genes = [table.var_names.get_loc(name) for name in tissue.gene_symbols]
    values = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    np.testing.assert_array_equal(tissue.counts.toarray(), values[:, genes])


def same_slice(ours: Slice, other: Slice) -> None:
    """Compare all that models see."""
    np.testing.assert_array_equal(ours.counts.toarray(), other.counts.toarray())
    assert ours.gene_symbols.tolist() == other.gene_symbols.tolist()
    assert (ours.unit, other.unit) == ("um", "um")
    np.testing.assert_allclose(ours.coords, other.coords, rtol=1e-6)


@pytest.fixture
def xenium(tmp_path: Path, write_tenx: Callable[..., Path], counts: Any) -> Path:
    """Write an output folder with what spatialdata-io needs of it."""
    folder = tmp_path / "output-XETG0001__0002__RegionA"
    cells = cells_of(CELLS)
    cells["cell_id"] = [f"aaaaaaa{chr(97 + i)}-1" for i in range(CELLS)]
    ids = cells["cell_id"].tolist()
    write_tenx(folder / "cell_feature_matrix.h5", counts(CELLS, 6), ids, GENES, types=TYPES)
    cells.to_parquet(folder / "cells.parquet", index=False)
    about = {"pixel_size": PIXEL, "analysis_sw_version": "xenium-2.0.0.6"}
    (folder / "experiment.xenium").write_text(json.dumps(about))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
            group = zarr.open_group(store, mode="w")
            numbers = np.stack([np.arange(CELLS), np.ones(CELLS)], axis=1).astype(np.uint32)
            group.create_array("cell_id", data=numbers)
            summary = np.zeros((CELLS, 1))
            array = group.create_array("cell_summary", data=summary)
            array.attrs["column_names"] = ["z_level"]
            for mask in (0, 1):
                index = np.arange(CELLS, dtype=np.uint32)
                group.create_array(f"polygon_sets/{mask}/cell_index", data=index)
    return folder


def test_xenium(xenium: Path) -> None:
    names = ("cells_boundaries", "nucleus_boundaries", "cells_labels", "nucleus_labels")
    names += ("transcripts", "morphology_mip", "morphology_focus", "aligned_images")
    options = dict.fromkeys(names, False)
    sdata = theirs("xenium", xenium, cells_as_circles=True, **options)
    tissue = tz.read(xenium)
    same_counts(tissue, sdata["table"])
    np.testing.assert_allclose(tissue.coords, sdata["table"].obsm["spatial"])
    same_slice(tissue, tz.read(sdata, technology="Xenium"))


def test_visium(visium: Path) -> None:  # noqa: F811
    sdata = theirs("visium", visium, dataset_id="sampleA", gex_only=True)
    tissue = tz.read(visium)
    same_counts(tissue, sdata["table"])
    np.testing.assert_allclose(tissue.native_coords, sdata["table"].obsm["spatial"])
    other = tz.read(sdata, coordinate_system="sampleA", technology="Visium")
    same_slice(tissue, other)


def write_layout(folder: Path) -> None:
    """Write the file by which spatialdata-io recognizes Visium HD."""
    layout = json.dumps({"file_format": "1.0", "transform": np.eye(3).ravel().tolist()})
    names = ("cytassist_colrow_to_spot_colrow", "spot_colrow_to_cytassist_colrow")
    names += ("microscope_colrow_to_spot_colrow", "spot_colrow_to_microscope_colrow")
    matrices = {name: np.eye(3).tolist() for name in names}
    about = {"hd_layout_json": layout, "transform_matrices": matrices}
    with h5py.File(folder / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(about)
    for path in folder.rglob("scalefactors_json.json"):
        factors = json.loads(path.read_text())
        factors.setdefault("tissue_lowres_scalef", 0.05)
        if "bin_size_um" in factors:
            factors["spot_diameter_fullres"] = factors["bin_size_um"] / factors["microns_per_pixel"]
        path.write_text(json.dumps(factors))


def test_visium_hd(visium_hd: Path, write_tenx: Any, counts: Any) -> None:  # noqa: F811
    cells = segmented(visium_hd / "segmented_outputs", write_tenx, counts(3, 5))
    path = cells / "cell_segmentations.geojson"
    content = json.loads(path.read_text())
    for feature in content["features"]:
        if feature["geometry"]["type"] == "MultiPolygon":  # they read outlines only
            (outline, *_), *_ = feature["geometry"]["coordinates"]
            feature["geometry"] = {"type": "Polygon", "coordinates": [outline]}
        del feature["geometry"]["coordinates"][1:]
    path.write_text(json.dumps(content))
    write_layout(visium_hd)
    options = {"load_all_images": False, "fullres_image_file": None}
    sdata = theirs(
        "visium_hd", visium_hd, dataset_id="hd", load_segmentations_only=False, **options
    )
    for side in (8, 16):
        tissue = tz.read(visium_hd, bins=str(side))
        table = sdata[f"square_{side:03d}um"]
        same_counts(tissue, table)
        np.testing.assert_allclose(tissue.native_coords, table.obsm["spatial"])
    tissue = tz.read(visium_hd, bins="cell")
    table = sdata["cell_segmentations"]
    same_counts(tissue, table)
    centers = sdata["hd_cell_segmentations"].geometry.centroid
    centers = centers.loc[tissue.obs_names]
    np.testing.assert_allclose(tissue.native_coords, np.c_[centers.x, centers.y])


def test_merscope(merscope: Path) -> None:  # noqa: F811
    (merscope / "images").mkdir()
    (merscope / "cell_boundaries.parquet").touch()
    np.savetxt(merscope / "images" / "micron_to_mosaic_pixel_transform.csv", np.diag([9.2, 9.2, 1]))
    cells = pd.read_csv(merscope / "cell_metadata.csv", index_col=0, dtype={"Unnamed: 0": str})
    cells.index = cells.index.astype(str)
    order = pd.read_csv(merscope / "cell_by_gene.csv", dtype={"cell": str})["cell"]
    cells.loc[order].rename_axis("EntityID").to_csv(merscope / "cell_metadata.csv")
    options = {"transcripts": False, "cells_boundaries": False, "mosaic_images": False}
    sdata = theirs("merscope", merscope, z_layers=None, **options)
    tissue = tz.read(merscope)
    same_counts(tissue, sdata["table"])
    np.testing.assert_allclose(tissue.coords, sdata["table"].obsm["spatial"])
    table = sdata["table"]
    table.uns["technology"] = "MERSCOPE"
    same_slice(tissue, tz.read(sdata))


def test_cosmx(tmp_path: Path, counts: Any) -> None:
    folder = write_cosmx(tmp_path / "run", counts(8, 6))
    for name in ("CellComposite", "CellLabels"):
        (folder / name).mkdir()
    sdata = theirs("cosmx", folder, transcripts=False)
    table = sdata["table"]
    fov_and_cell = table.obs["fov"].astype(str) + "_" + table.obs["cell_ID"].astype(str)
    table = table.copy()
    table.obs_names = fov_and_cell.to_numpy()  # theirs begin with the cell
    tissue = tz.read(folder)
    same_counts(tissue, table[tissue.obs_names.tolist()])
    places = table[tissue.obs_names.tolist()].obsm["global"]
    np.testing.assert_allclose(tissue.native_coords, places)
    np.testing.assert_allclose(tissue.coords, places * 0.12, rtol=1e-6)
    assert table.n_vars - tissue.n_genes == 3  # they keep the controls
