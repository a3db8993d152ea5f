"""SpatialData stores on the command line: described, embedded with their own picture, given domains, shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from spatialdata.transformations import Identity
from spatialdata_stores import circles, image, make, scale, table

from terrazzo.files import hash_path

pytestmark = pytest.mark.usefixtures("quiet_figures")


@pytest.fixture
def slices(histology: Any, tmp_path: Path) -> tuple[Path, Path]:
    """Write a Visium slice as .h5ad, and as the store that spatialdata-io makes of it."""
    adata = histology()
    adata.write_h5ad(tmp_path / "plain.h5ad")
    entry = next(iter(adata.uns["spatial"].values()))
    pixels = entry["images"]["hires"]
    factor = float(entry["scalefactors"]["tissue_hires_scalef"])
    pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)
    annotated = table(
        "id", range(adata.n_obs), counts=adata, obsm=np.asarray(adata.obsm["spatial"])
    )
    annotated.obs[["array_row", "array_col"]] = adata.obs[["array_row", "array_col"]]
    hires = {"id": Identity(), "id_downscaled_hires": scale(factor)}
    back = {"id": scale(1 / factor), "id_downscaled_hires": Identity()}
    store = make(
        tmp_path / "in" / "mine.zarr",
        shapes={"id": circles(annotated.obsm["spatial"], **hires)},
        images={"id_hires_image": image(np.moveaxis(pixels, -1, 0), chunks=(3, 100, 100), **back)},
        tables={"table": annotated},
    )
    return tmp_path / "plain.h5ad", store


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
    for wrong, words in (
        (store, "no rows of the region 'x'"),
        (plain, "region= does not belong to"),
    ):
        code, out, err = call("info", wrong, "--region", "x")
        assert (code, err.count("\n")) == (2, 1)
        assert words in err


def test_without_the_package_one_line_names_the_extra(
    call: Any, slices: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, store = slices
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    code, out, err = call("info", store)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'terrazzo[spatialdata]'" in err
    assert call("info", plain)[0] == 0


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
    found = tmp_path / "domains" / "mine.zarr"
    code, _, err = call("report", found, "--projection", "pca", "--out", page)
    assert (code, err) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert "X_stalign_domain" in text
    assert 'class="histology"' in text
    assert "centers of shapes" in text
    assert hash_path(store) == before
