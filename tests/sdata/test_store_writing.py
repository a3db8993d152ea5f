"""A table put back into its store, in place or in a copy: all else as it was, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import zarr
from anndata import AnnData
from spatialdata_stores import IDENTITY, Writer, point, table

import terrazzo as tz
from terrazzo.errors import InputError, OutputError
from terrazzo.files import hash_files
from terrazzo.sdata import writing
from terrazzo.sdata.opening import open_container

both = pytest.mark.parametrize("zarr_format", [2, 3])
N = 6


def make(path: Path, zarr_format: int = 3, consolidated: bool = True) -> Path:
    store = Writer(path, zarr_format).shapes(
        "cells", list(range(N)), [point(i, i) for i in range(N)], world=IDENTITY
    )
    store.image("he", np.ones((3, 20, 20), np.uint8), world=IDENTITY)
    store.table("table", table("cells", list(range(N)))).table(
        "other", table("cells", list(range(N)), seed=1)
    )
    return store.done() if consolidated else store.path


def changed(path: Path) -> AnnData:
    adata = open_container(path).tables["table"]()
    adata.obsm["X_new"] = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    adata.obs["domain"] = np.array(["a", "b"] * (N // 2))
    adata.uns["terrazzo"] = {"X_new": {"model": "none", "unit": "um"}}
    return adata


def others(path: Path) -> dict[str, str]:
    """Checksums of all but the table and what describes the whole."""
    kept = {
        name: digest
        for name, digest in hash_files(path).items()
        if not name.startswith("tables/table/")
    }
    return {
        name: digest for name, digest in kept.items() if name not in ("zarr.json", ".zmetadata")
    }


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
    assert (attributes["region"], attributes["region_key"], attributes["instance_key"]) == (
        "cells",
        "region",
        "instance",
    )
    assert attributes["spatialdata-encoding-type"] == "ngff:regions_table"
    assert attributes["version"] == {2: "0.1", 3: "0.2"}[zarr_format]
    assert attributes["encoding-type"] == "anndata"
    assert root.attrs["spatialdata_attrs"]["version"] == {2: "0.1", 3: "0.2"}[zarr_format]
    assert [one.name for one in path.rglob("*") if one.suffix in (".part", ".old")] == []


@both
@pytest.mark.parametrize("consolidated", [True, False])
def test_in_place(tmp_path: Path, zarr_format: int, consolidated: bool) -> None:
    path = make(tmp_path / "x.zarr", zarr_format, consolidated)
    before = others(path)
    assert tz.write_table(path, changed(path), table="table") == path / "tables" / "table"
    check(path, zarr_format, consolidated)
    assert others(path) == before


@both
def test_in_a_copy(tmp_path: Path, zarr_format: int) -> None:
    path, target = make(tmp_path / "x.zarr", zarr_format), tmp_path / "out.zarr"
    before = hash_files(path)
    for _ in range(2):  # the second takes the place of the first
        writing.copy_with_table(path, target, "table", changed(path))
        check(target, zarr_format)
        assert hash_files(path) == before
        assert others(target) == others(path)
        assert sorted(one.name for one in tmp_path.iterdir()) == ["out.zarr", "x.zarr"]
    inode = next(target.rglob("*.parquet")).stat().st_ino
    assert (
        inode != next(path.rglob("*.parquet")).stat().st_ino
    )  # what happens to the copy never reaches the input


def test_rows_that_are_not_the_tables_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "x.zarr")
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path, target = make(tmp_path / "x.zarr"), tmp_path / "out.zarr"
    adata = changed(path)
    shutil.copytree(path, target)
    before = hash_files(path)

    def full(*given: Any, **more: Any) -> Any:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "x.zarr")

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "_consolidate", stop)
    with pytest.raises(KeyboardInterrupt):
        writing.copy_with_table(path, tmp_path / "out.zarr", "table", changed(path))
    assert [one.name for one in tmp_path.iterdir()] == ["x.zarr"]


def test_files_are_copied_without_the_kernels_help_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(range(256)) * 9)
    for gone in (False, True):
        if gone:
            monkeypatch.delattr("os.copy_file_range", raising=False)
        writing._copy(str(source), str(tmp_path / "b"))
        assert (tmp_path / "b").read_bytes() == source.read_bytes()
        (tmp_path / "b").unlink()
