"""Nothing from outside a file is read, and claims of size are looked at: HDF5, zarr, Parquet, CSV, folders."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from anndata import AnnData

import terrazzo as tz
from terrazzo import safe_files
from terrazzo.errors import CheckpointError, CorpusError, InputError
from terrazzo.safe_files import check_claim, check_inside, check_memory, check_name, is_plain_name
from terrazzo.safe_hdf5 import check_file
from terrazzo.safe_tables import check_parquet, first_line, read_csv, read_parquet
from terrazzo.safe_zarr import check_folder, refuse_sizes


def write_zarr(adata: AnnData, path: Path, version: int = 3) -> None:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")
        adata.write_zarr(path)


@pytest.fixture
def h5ad(simulated: Any, tmp_path: Path) -> Path:
    path = tmp_path / "a.h5ad"
    simulated(20, 10).write_h5ad(path)
    return path


def external_storage(file: h5py.File) -> None:
    del file["obsm/spatial"]
    file["obsm"].create_dataset(
        "spatial", shape=(20, 2), dtype="u1", external=[("/etc/passwd", 0, 40)]
    )


def external_link(file: h5py.File) -> None:
    file["uns/more"] = h5py.ExternalLink("/etc/hostname", "/")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(20, 2), dtype="f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(20, 2))
    del file["obsm/spatial"]
    file["obsm"].create_virtual_dataset("spatial", layout)


def external_attribute(file: h5py.File) -> None:
    external_storage(file)
    file["obsm/spatial"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


@pytest.mark.case(
    "K",
    given="An HDF5 file with external storage, external links or virtual datasets",
    gets="Refused, with the object and the file that it points to; nothing of that is read",
)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_storage, "keeps its values in another file, '/etc/passwd'"),
        (external_attribute, "keeps its values in another file"),
        (external_link, "a link to another file, '/etc/hostname'"),
        (virtual, "a virtual dataset"),
    ],
)
def test_hdf5_points_elsewhere(h5ad: Path, change: Callable[..., None], words: str) -> None:
    check_file(h5ad)
    with h5py.File(h5ad, "a") as file:
        change(file)
    with pytest.raises(InputError, match=words):
        tz.read(h5ad)


def test_hdf5_without_end(h5ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrazzo.safe_hdf5._MAX_OBJECTS", 500)
    with h5py.File(h5ad, "a") as file:
        file["uns/again"] = file["uns"]
    with pytest.raises(InputError, match="nested more than 64 deep"):
        tz.read(h5ad)
    with h5py.File(h5ad, "a") as file:
        del file["uns/again"]
        group = file.create_group("uns/g0")
        for i in range(1, 12):  # each holds the next twice
            inner = file.create_group(f"uns/g{i}")
            group["a"], group["b"] = inner, inner
            group = inner
    with pytest.raises(InputError, match="more than 500 objects"):
        tz.read(h5ad)


@pytest.mark.case(
    "L",
    given="An .h5ad or .zarr that claims terabytes, or gigabytes of which nothing is stored",
    gets="Refused before memory is taken, with the array and both sizes",
)
@pytest.mark.parametrize("shape", [(20, 2**33), (20, 2**25)])
def test_hdf5_claims(h5ad: Path, shape: tuple[int, int]) -> None:
    with h5py.File(h5ad, "a") as file:
        big = file["obsm"].create_dataset("X_big", shape=shape, dtype="f8", chunks=(20, 1024))
        big.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match=r"/obsm/X_big claims .* more than the 0 that are stored"):
        tz.read(h5ad)


def test_hdf5_claims_in_small_pieces(h5ad: Path) -> None:
    with h5py.File(h5ad, "a") as file:
        for i in range(40):
            one = file["obsm"].create_dataset(
                f"X_{i}", shape=(20, 2**18), dtype="f8", chunks=(20, 1024)
            )
            one.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(InputError, match="its datasets claim"):
        tz.read(h5ad)


def test_what_compresses_well_is_read(h5ad: Path) -> None:
    with h5py.File(h5ad, "a") as file:
        zeros = file["obsm"].create_dataset(
            "X_zeros", data=np.zeros((20, 2**19)), chunks=(20, 2**16), compression="gzip"
        )
        zeros.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    assert tz.read(h5ad).n_cells == 20


def test_more_than_the_machine_has(h5ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_files, "_memory", lambda: 1000)
    with pytest.raises(InputError, match="of memory as it is read, and this machine has"):
        tz.read(h5ad)
    monkeypatch.setattr(safe_files, "_memory", lambda: None)
    check_memory(2**60, "x")
    check_claim(2**26, 0, "x")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("where", ["array", "consolidated"])
def test_zarr_claims(simulated: Any, tmp_path: Path, version: int, where: str) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(simulated(20, 10), path, version)
    refuse_sizes(path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    big = group["obsm"].create_array("X_big", shape=(20, 2**33), dtype="f8", chunks=(20, 1024))
    big.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    if where == "consolidated":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata are no part of zarr 3 yet
            zarr.consolidate_metadata(path, zarr_format=version)
        for name in (".zarray", "zarr.json"):
            (path / "obsm" / "X_big" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"obsm/X_big claims"):
        tz.read(path)


def test_zarr_metadata_that_lead_outside(simulated: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(simulated(20, 10), path)
    root = json.loads((path / "zarr.json").read_text())
    array = {
        "node_type": "array",
        "shape": [1],
        "chunk_grid": {"configuration": {"chunk_shape": [1]}},
        "data_type": "int8",
    }
    root["consolidated_metadata"] = {"kind": "inline", "metadata": {"../../x": array}}
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match="names what is outside of its folder"):
        check_folder(path)


@pytest.mark.case(
    "K",
    given="A link out of a .zarr, a corpus, a checkpoint or a vendor's folder; codecs that unpickle behind it",
    gets="Refused, with the link and where it leads",
)
@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2", "numcodecs.pickle"])
def test_zarr_links_and_codecs(simulated: Any, tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(simulated(20, 10), path)
    outside = tmp_path / "outside"
    outside.mkdir()
    array = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "filters": [{"id": "vlen-utf8"}, {"id": codec}],
    }
    (outside / ".zarray").write_text(json.dumps(array))
    (path / "uns" / "evil").symlink_to(outside)
    with pytest.raises(InputError, match="uns/evil is a link to"):
        tz.read(path)
    (path / "uns" / "evil").unlink()
    outside.rename(path / "uns" / "evil")
    with pytest.raises(InputError, match="the array is stored as Python"):
        tz.read(path)


def test_parquet_claims(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": [1.0, 2.0]}).to_parquet(path)
    assert read_parquet(path)["a"].tolist() == [1.0, 2.0]
    column = pa.array(np.zeros(2**22, np.int8)).dictionary_encode()
    pq.write_table(pa.table({f"c{i}": column for i in range(20)}), path)
    with pytest.raises(CheckpointError, match="claims"):
        check_parquet(path, CheckpointError)
    with pytest.raises(InputError, match="that are stored can hold"):
        read_parquet(path)


@pytest.mark.case(
    "L",
    given="A .csv.gz with a line without end, or of a megabyte that inflates to gigabytes",
    gets="Refused after the first 16 MB of the line, or 200 times the file's size",
)
def test_csv_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n3,4\n"))
    assert first_line(path) == ["a", "b"]
    assert read_csv(path)["b"].tolist() == [2, 4]
    path.write_bytes(gzip.compress(b"a," * (2**23 + 9), 1))
    with pytest.raises(InputError, match="does not end within"):
        first_line(path)
    monkeypatch.setattr("terrazzo.safe_tables.SMALL", 2**16)
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 2**18))
    with pytest.raises(InputError, match="inflates to far more"):
        read_csv(path)
    plain = tmp_path / "a.csv"
    plain.write_text('\ufeff"a,1",b\n1,2\n', encoding="utf-8")
    assert first_line(plain) == ["a,1", "b"]


def test_a_vendor_folder_with_a_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "cell_metadata.csv").write_text("EntityID,center_x,center_y\n1,0,0\n")
    (tmp_path / "cell_by_gene.csv.gz").write_bytes(gzip.compress(b"a," * 2**24, 1))
    with pytest.raises(InputError, match=r"cell_by_gene.csv.gz: a line does not end"):
        tz.read(tmp_path)


def test_links_out_of_a_vendor_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    outside = tmp_path / "secret.csv"
    outside.write_text("EntityID,center_x,center_y\n1,0,0\n2,5,5\n")
    (folder / "cell_by_gene.csv").write_text("cell,Gad1\n1,3\n2,4\n")
    (folder / "cell_metadata.csv").symlink_to(outside)
    with pytest.raises(InputError, match=r"cell_metadata.csv is a link to .*secret.csv"):
        tz.read(folder)
    (folder / "cell_metadata.csv").unlink()
    outside.rename(folder / "places.csv")
    (folder / "cell_metadata.csv").symlink_to("places.csv")  # inside: as good as a copy
    assert tz.read(folder).n_cells == 2
    around = tmp_path / "around"
    around.symlink_to(folder)  # what the user calls the folder is the user's business
    assert tz.read(around).n_cells == 2


def test_links_out_of_a_checkpoint(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model().save_pretrained(tmp_path / "m")
    for name in ("config.json", "model.safetensors", "vocab.parquet"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name} is a link to"):
            tz.load(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    # the cache of the hub: files are links into the same repository
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    snapshot = folder.rename(repository / "snapshots" / "0123")
    (snapshot / "config.json").rename(repository / "blobs" / "c")
    (snapshot / "config.json").symlink_to("../../blobs/c")
    assert tz.load(snapshot).n_parameters > 0
    (snapshot / "x").symlink_to("../../../models--x")
    with pytest.raises(CorpusError, match="is a link to"):
        check_inside(snapshot / "x", snapshot, CorpusError)


@pytest.mark.case(
    "K",
    given="A name in a file that becomes a path (`name: ../../x` in a table, a slice's id, an image in JSON)",
    gets="Refused, with the name",
)
def test_names_that_are_paths() -> None:
    for name in ("a", "a.b", "é", "..a", "a b"):
        assert is_plain_name(name)
    for name in ("", " ", ".", "..", "a/b", "../x", "/x", "a\\b", "a\0", "a\n", "\udcff", None, 5):
        assert not is_plain_name(name)
        with pytest.raises(CorpusError, match="must be a plain name"):
            check_name(name, "an id", CorpusError)
