"""A table put back into its store, in place or in a copy: all else as it was, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import spatialdata
import zarr
from anndata import AnnData
from spatialdata_stores import circles, image, make, table

import terrazzo as tz
from terrazzo.errors import InputError, OutputError
from terrazzo.files import hash_files
from terrazzo.sdata import read_table
from terrazzo.slices import spatialdata_writing as writing

N = 6


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Copy a store of a zarr format that is written once."""
    folder = tmp_path_factory.mktemp("stores")

    def copy(path: Path, zarr_format: int = 3, consolidated: bool = True) -> Path:
        source = folder / f"{zarr_format}{consolidated}.zarr"
        if not source.exists():
            make(
                source,
                zarr_format=zarr_format,
                consolidated=consolidated,
                shapes={"cells": circles([[i, i] for i in range(N)])},
                images={"he": image(np.ones((3, 20, 20), np.uint8))},
                tables={
                    "table": table("cells", list(range(N))),
                    "other": table("cells", list(range(N)), seed=1),
                },
            )
        return Path(shutil.copytree(source, path))

    return copy


def changed(path: Path) -> AnnData:
    adata = read_table(path, "table")
    adata.obsm["X_new"] = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    adata.obs["domain"] = np.array(["a", "b"] * (N // 2))
    adata.uns["terrazzo"] = {"X_new": {"model": "none", "unit": "um"}}
    return adata


def others(path: Path) -> dict[str, str]:
    """Checksums of all but the table and what describes the whole."""
    sums = hash_files(path)
    for name in list(sums):
        if name.startswith("tables/table/") or name in ("zarr.json", ".zmetadata"):
            del sums[name]
    return sums


def check(path: Path, zarr_format: int, consolidated: bool = True) -> None:
    found = anndata.read_zarr(path / "tables" / "table")
    np.testing.assert_array_equal(found.obsm["X_new"], np.arange(2 * N).reshape(N, 2))
    assert found.obs["domain"].tolist() == ["a", "b"] * (N // 2)
    assert found.uns["terrazzo"]["X_new"]["unit"] == "um"
    root = zarr.open_group(path, mode="r")
    assert (root.metadata.consolidated_metadata is not None) is consolidated
    assert "X_new" in root["tables/table/obsm"]
    group = zarr.open_group(path / "tables" / "table", mode="r", use_consolidated=False)
    assert group.metadata.zarr_format == zarr_format
    attributes = group.attrs.asdict()
    assert attributes == {
        "encoding-type": "anndata",
        "encoding-version": "0.1.0",
        "spatialdata-encoding-type": "ngff:regions_table",
        "region": "cells",
        "region_key": "region",
        "instance_key": "instance",
        "version": {2: "0.1", 3: "0.2"}[zarr_format],
    }
    assert [one.name for one in path.rglob("*") if one.suffix in (".part", ".old")] == []


@pytest.mark.parametrize(("zarr_format", "consolidated"), [(2, True), (3, True), (3, False)])
def test_in_place(stores: Any, tmp_path: Path, zarr_format: int, consolidated: bool) -> None:
    path = stores(tmp_path / "x.zarr", zarr_format, consolidated)
    before = others(path)
    assert tz.write_table(path, changed(path), table="table") == path / "tables" / "table"
    check(path, zarr_format, consolidated)
    assert others(path) == before


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_in_a_copy(stores: Any, tmp_path: Path, zarr_format: int) -> None:
    path, target = stores(tmp_path / "x.zarr", zarr_format), tmp_path / "out.zarr"
    before = hash_files(path)
    for _ in range(2):  # the second takes the place of the first
        writing.copy_with_table(path, target, "table", changed(path))
        check(target, zarr_format)
        assert hash_files(path) == before
        assert others(target) == others(path)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["out.zarr", "x.zarr"]
    copied, source = next(target.rglob("*.parquet")), next(path.rglob("*.parquet"))
    assert copied.stat().st_ino != source.stat().st_ino  # a change of the copy never reaches it


@pytest.mark.filterwarnings("ignore:SpatialData is not stored in the most current format")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_package_reads_what_was_written(stores: Any, tmp_path: Path, zarr_format: int) -> None:
    path, target = stores(tmp_path / "x.zarr", zarr_format), tmp_path / "out.zarr"
    writing.copy_with_table(path, target, "table", changed(path))
    before, after = spatialdata.read_zarr(path), spatialdata.read_zarr(target)
    np.testing.assert_array_equal(after["table"].obsm["X_new"], changed(path).obsm["X_new"])
    assert after["cells"].equals(before["cells"])
    assert after["he"].equals(before["he"])
    np.testing.assert_array_equal(after["other"].X.toarray(), before["other"].X.toarray())
    assert after["table"].uns["spatialdata_attrs"] == before["table"].uns["spatialdata_attrs"]


def test_other_rows_than_the_tables_are_refused(stores: Any, tmp_path: Path) -> None:
    path = stores(tmp_path / "x.zarr")
    before, adata = hash_files(path), changed(path)
    for wrong in (adata[:3].copy(), adata[::-1].copy()):
        with pytest.raises(InputError, match="rows that are not the 6"):
            tz.write_table(path, wrong, table="table")
    with pytest.raises(InputError, match="2 tables: pass table="):
        tz.write_table(path, adata)
    with pytest.raises(InputError, match="does not exist"):
        tz.write_table(tmp_path / "none.zarr", adata)
    assert hash_files(path) == before


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_full_disk_leaves_what_was_there(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path, target = stores(tmp_path / "x.zarr"), tmp_path / "out.zarr"
    adata = changed(path)
    shutil.copytree(path, target)
    before = hash_files(path)

    def full(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr("anndata.io.write_elem", full)
    else:
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda a, b: full() if ".part" in str(a) else rename(a, b)
        )
    with pytest.raises(OutputError, match="the disk is full"):
        tz.write_table(path, adata, table="table")
    with pytest.raises(OutputError, match=r"out.zarr could not be written: the disk is full"):
        writing.copy_with_table(path, target, "table", adata)
    assert hash_files(path) == hash_files(target) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.zarr", "x.zarr"]


def test_an_interrupted_copy_leaves_nothing(
    stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stores(tmp_path / "x.zarr")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_consolidate", stop)
    with pytest.raises(KeyboardInterrupt):
        writing.copy_with_table(path, tmp_path / "out.zarr", "table", changed(path))
    assert [one.name for one in tmp_path.iterdir()] == ["x.zarr"]


def test_nothing_outside_of_a_store_is_copied(stores: Any, tmp_path: Path) -> None:
    path = stores(tmp_path / "in" / "x.zarr")
    adata = changed(path)
    (tmp_path / "secret").write_text("not of the store")
    (path / "images" / "he" / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link to"):
        writing.copy_with_table(path, tmp_path / "out.zarr", "table", adata)
    assert not (tmp_path / "out.zarr").exists()
    (path / "images" / "he" / "more").unlink()
    (path / "images" / "he" / "more").symlink_to(path / "zarr.json")  # inside: its content
    writing.copy_with_table(path, tmp_path / "out.zarr", "table", adata)
    copied = tmp_path / "out.zarr" / "images" / "he" / "more"
    assert not copied.is_symlink()
    assert copied.read_bytes() == (path / "zarr.json").read_bytes()


def test_a_store_that_may_only_be_read_is_copied(stores: Any, tmp_path: Path) -> None:
    path = stores(tmp_path / "in" / "x.zarr")
    adata = changed(path)
    for one in path.rglob("*"):
        if one.is_file():
            one.chmod(0o444)
    writing.copy_with_table(path, tmp_path / "out.zarr", "table", adata)
    check(tmp_path / "out.zarr", 3)
    assert os.access(tmp_path / "out.zarr" / "zarr.json", os.W_OK)


def test_files_are_copied_without_the_kernels_help_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(range(256)) * 9)
    for lacking in (False, True):
        if lacking:
            monkeypatch.delattr("os.copy_file_range", raising=False)
        writing._copy_file(str(source), str(tmp_path / "b"))
        assert (tmp_path / "b").read_bytes() == source.read_bytes()
        (tmp_path / "b").unlink()
