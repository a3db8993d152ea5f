"""SpatialData stores on the command line: said, embedded with their own picture, asked for domains, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata_stores import IDENTITY, Writer, point

from terrazzo.files import hash_path

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def slices(histology: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Write a Visium slice as .h5ad, and as the store that spatialdata-io makes of it."""
    adata = histology()
    adata.write_h5ad(tmp_path / "plain.h5ad")
    entry = next(iter(adata.uns["spatial"].values()))
    pixels, scale = entry["images"]["hires"], float(entry["scalefactors"]["tissue_hires_scalef"])
    pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
    table = AnnData(adata.X, obs=adata.obs[["array_row", "array_col"]].copy(), var=adata.var)
    table.obs["region"], table.obs["spot_id"] = (
        pd.Categorical(["id"] * adata.n_obs),
        np.arange(adata.n_obs),
    )
    table.obsm["spatial"] = np.asarray(adata.obsm["spatial"], dtype=float)
    table.uns["spatialdata_attrs"] = {
        "region": "id",
        "region_key": "region",
        "instance_key": "spot_id",
    }
    store = Writer(tmp_path / "in" / "mine.zarr")
    hires = {"type": "scale", "scale": [scale, scale]}
    store.shapes(
        "id",
        np.arange(adata.n_obs),
        [point(*xy) for xy in table.obsm["spatial"]],
        id=IDENTITY,
        id_downscaled_hires=hires,
    )
    back = {"type": "scale", "scale": [1.0, 1 / scale, 1 / scale]}
    store.image(
        "id_hires_image",
        np.moveaxis(pixels, -1, 0),
        chunks=(3, 100, 100),
        id=back,
        id_downscaled_hires=IDENTITY,
    )
    return tmp_path / "plain.h5ad", store.table("table", table).done()


def test_info_says_what_was_recognized(call: Any, slices: Any) -> None:
    plain, store = slices
    code, out, err = call("info", store)
    assert (code, err) == (0, "")
    said = {line[2:24].strip(): line[24:] for line in out.splitlines()[1:]}
    assert said["recognized as"] == (
        "SpatialData; table table, region id; coordinates: centers of shapes 'id' in 'id'; image id_hires_image"
    )
    usual = {line[2:24].strip(): line[24:] for line in call("info", plain)[1].splitlines()[1:]}
    assert usual["recognized as"] == "AnnData"
    assert said["unit"] == usual["unit"] == "um"
    assert said["spacing"] == usual["spacing"] == "100 um"
    assert said["image"] == usual["image"] != "None"
    moved = call("info", store, "--coordinate-system", "id_downscaled_hires")[1]
    spacing = next(line[24:] for line in moved.splitlines() if line.startswith("  spacing"))
    assert spacing == usual["spacing"]  # in micrometers, whatever the system's unit
    table = call("info", store / "tables" / "table")
    assert table == (0, out.replace(str(store), str(store / "tables" / "table"), 1), "")
    for wrong, words in ((store, "no rows of the region 'x'"), (plain, "region= means nothing")):
        code, out, err = call("info", wrong, "--region", "x")
        assert (code, err.count("\n")) == (2, 1)
        assert words in err


def test_embed_domains_and_report(call: Any, slices: Any, align_model: Any, tmp_path: Path) -> None:
    plain, store = slices
    model, before = align_model().save_pretrained(tmp_path / "model"), hash_path(store)
    words = ["--model", model, "--out", tmp_path / "out"]
    code, _, err = call("embed", store, plain, *words)
    assert (code, err) == (0, "")
    target = tmp_path / "out" / "mine.zarr"
    found = anndata.read_zarr(target / "tables" / "table")
    expected = anndata.read_h5ad(tmp_path / "out" / "plain.h5ad")
    np.testing.assert_allclose(
        found.obsm["X_stalign"], expected.obsm["X_stalign"], atol=1e-4
    )  # by its own picture
    assert "left alone" in call("embed", store, *words)[1]
    named = call("embed", store, *words, "--image", "id_hires_image")
    assert (named[0], named[2]) == (0, "")
    code, _, err = call("embed", store, *words, "--image", "none_such")
    assert code == 2
    assert "no image 'none_such'; images: id_hires_image" in err

    code, out, err = call(
        "domains", target, "--use-rep", "X_stalign", "-k", 3, "--out", tmp_path / "domains"
    )
    assert code == 0
    assert f"{target}: table table, region id" in err
    assert f"{tmp_path / 'domains' / 'mine.zarr'} and .png" in out
    again = anndata.read_zarr(tmp_path / "domains" / "mine.zarr" / "tables" / "table")
    assert again.obs["X_stalign_domain"].nunique() == 3
    np.testing.assert_array_equal(again.obsm["spatial"], found.obsm["spatial"])
    assert (tmp_path / "domains" / "mine.png").is_file()

    page = tmp_path / "report.html"
    code, _, err = call("report", tmp_path / "domains" / "mine.zarr", "--out", page)
    assert (code, err) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert "X_stalign_domain" in text
    assert 'class="histology"' in text
    assert "centers of shapes" in text
    assert hash_path(store) == before
