"""Embedding a SpatialData: in memory into its table, and from store to store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import zarr
from anndata import AnnData
from spatialdata_stores import circles, make, scale, set_unit, table

import terrazzo as tz
from terrazzo.errors import InputError, OutputError
from terrazzo.files import hash_path
from terrazzo.models.embed_files import embed_files, read_record
from terrazzo.slices import Choices, open_slice


@pytest.fixture
def plain(simulated: Any) -> AnnData:
    """What the store holds, as an AnnData in micrometers."""
    adata = table(None, range(60), counts=simulated(60))
    adata.obsm["spatial"] = np.asarray(simulated(60).obsm["spatial"], dtype=float)
    return adata


@pytest.fixture
def store(tmp_path: Path, plain: AnnData) -> Path:
    """A store whose table knows of its cells' places only which circle each is."""
    order = np.random.default_rng(0).permutation(60)
    path = make(
        tmp_path / "in" / "mine.zarr",
        shapes={"cells": circles(plain.obsm["spatial"][order], order)},
        tables={"table": table("cells", range(60), counts=plain)},
    )
    set_unit(path, "shapes", "cells")
    return path


def embedded(model: Any, plain: AnnData) -> np.ndarray:
    return model.embed(plain.copy(), unit="um", progress=False).obsm["X_stofm"]


def test_from_store_to_store(tiny_model: Any, plain: AnnData, store: Path, tmp_path: Path) -> None:
    model, out, before = tiny_model(), tmp_path / "out", hash_path(store)
    (done,) = embed_files(model, [store], out, progress=False)
    assert (done.target, done.status, done.cells) == (out / "mine.zarr", "embedded", 60)
    assert hash_path(store) == before
    found = open_slice(done.target)
    np.testing.assert_allclose(found.adata.obsm["X_stofm"], embedded(model, plain), atol=1e-5)
    assert (
        "spatial" not in anndata.read_zarr(done.target / "tables" / "table").obsm
    )  # the table keeps its own
    record = read_record(done.target, "X_stofm")
    assert record is not None
    assert record["unit"] == "um"
    (again,) = embed_files(model, [store], out, progress=False)
    assert (again.status, again.cells) == ("unchanged", 60)
    (other,) = embed_files(model, [store], out, progress=False, seed=1)
    assert other.status == "embedded"
    assert sorted(one.name for one in out.iterdir()) == ["mine.zarr"]
    with pytest.raises(InputError, match="its own input"):
        list(embed_files(model, [store], store.parent, progress=False))
    with pytest.raises(InputError, match="its own input"):
        list(embed_files(model, [store / "tables" / "table"], store.parent, progress=False))


def test_what_changed_in_the_store_is_done_again(
    tiny_model: Any, plain: AnnData, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(embed_files(tiny_model(), [store], out, progress=False))
    (store / "points").mkdir()
    (store / "points" / "more").write_text("nothing of the slice")
    assert [d.status for d in embed_files(tiny_model(), [store], out, progress=False)] == [
        "unchanged"
    ]
    group = zarr.open_group(store / "shapes" / "cells", mode="r+", use_consolidated=False)
    records = group.attrs["coordinateTransformations"]
    group.attrs["coordinateTransformations"] = [
        {**records[0], "type": "scale", "scale": [2.0, 2.0]}
    ]
    assert [d.status for d in embed_files(tiny_model(), [store], out, progress=False)] == [
        "embedded"
    ]


def test_links_out_of_the_store_are_refused(tiny_model: Any, store: Path, tmp_path: Path) -> None:
    (store / "images").mkdir()
    (store / "images" / "he").symlink_to(tmp_path)
    with pytest.raises(InputError, match="images/he is a link to"):
        list(embed_files(tiny_model(), [store], tmp_path / "out", progress=False))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_foreign_store_is_not_replaced(tiny_model: Any, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    foreign = make(out / "mine.zarr")
    with pytest.raises(OutputError, match="not written by terrazzo"):
        list(embed_files(tiny_model(), [store], out, progress=False))
    assert not (foreign / "tables").exists()
    (done,) = embed_files(tiny_model(), [store], out, progress=False, overwrite=True)
    assert read_record(done.target, "X_stofm") is not None


def test_one_table_of_a_store_by_its_folder(
    tiny_model: Any, plain: AnnData, store: Path, tmp_path: Path
) -> None:
    (done,) = embed_files(
        tiny_model(), [store / "tables" / "table"], tmp_path / "out", progress=False
    )
    assert done.target == tmp_path / "out" / "mine.zarr"
    found = tz.read(done.target / "tables" / "table")
    np.testing.assert_allclose(found.coords, plain.obsm["spatial"])


def test_one_region_after_the_other(tiny_model: Any, plain: AnnData, tmp_path: Path) -> None:
    regions = ["left"] * 25 + ["right"] * 35
    systems = {"microns": scale(1)}
    path = make(
        tmp_path / "in.zarr",
        shapes={name: circles(plain.obsm["spatial"], **systems) for name in ("left", "right")},
        tables={"table": table(regions, range(60), counts=plain)},
    )
    model, seen = tiny_model(), []
    for name, source, out in (
        ("left", path, "one"),
        ("right", tmp_path / "one" / "in.zarr", "two"),
    ):
        list(embed_files(model, [source], tmp_path / out, progress=False, region=name))
        whole = anndata.read_zarr(tmp_path / out / "in.zarr" / "tables" / "table")
        seen.append(np.isfinite(whole.obsm["X_stofm"]).all(axis=1))
        assert whole.obs["terrazzo_empty"].dtype == bool
    assert seen[0].tolist() == [True] * 25 + [False] * 35
    assert seen[1].all()
    np.testing.assert_allclose(whole.obsm["X_stofm"][:25], embedded(model, plain[:25]), atol=1e-5)
    np.testing.assert_allclose(whole.obsm["X_stofm"][25:], embedded(model, plain[25:]), atol=1e-5)
    only = open_slice(tmp_path / "one" / "in.zarr", Choices(region="left")).adata
    assert only.n_obs == 25  # what tasks see
    assert np.isfinite(only.obsm["X_stofm"]).all()


def test_an_object_gets_the_result_in_its_table(tiny_model: Any, plain: AnnData) -> None:
    sdata = make(
        shapes={"cells": circles(plain.obsm["spatial"] / 2, microns=scale(2))},
        tables={"table": table("cells", range(60), counts=plain)},
    )
    model = tiny_model()
    assert model.embed(sdata, progress=False) is sdata
    written = sdata.tables["table"]
    np.testing.assert_allclose(written.obsm["X_stofm"], embedded(model, plain), atol=1e-5)
    assert written.uns["terrazzo"]["X_stofm"]["unit"] == "um"
    assert list(written.obs) == ["region", "instance", "terrazzo_empty"]
    assert list(written.obsm) == ["X_stofm"]


def test_a_path_gives_its_table(tiny_model: Any, plain: AnnData, store: Path) -> None:
    before = hash_path(store)
    written = tiny_model().embed(store, progress=False)
    assert isinstance(written, AnnData)
    assert list(written.obs) == ["region", "instance", "terrazzo_empty"]
    assert hash_path(store) == before
    tz.write_table(store, written)
    np.testing.assert_allclose(
        open_slice(store).adata.obsm["X_stofm"], embedded(tiny_model(), plain), atol=1e-5
    )
