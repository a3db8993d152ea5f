"""Small files of every kind that is read, and damage to them: bytes, arrays, attributes, links, claims."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from PIL import Image

import terrazzo as tz

HDF5 = (".h5ad", ".h5", ".gef")
TEXT = (".json", ".csv", ".xenium", ".yaml", ".zattrs", ".zgroup", ".zarray", ".zmetadata")


# ---- what is written


def slice_to_write(seed: int = 0) -> ad.AnnData:
    """Make a slice that has some of everything an AnnData file can hold."""
    adata = tz.simulate.tissue(14, n_genes=8, layout="visium", seed=seed)
    adata.X = sp.csr_matrix(adata.X)
    adata.layers["counts"] = sp.csc_matrix(adata.X)
    adata.raw = adata.copy()
    adata.obs["library_id"] = pd.Categorical(["A"] * 14)
    adata.obs["flag"] = pd.array([True, None] * 7, dtype="boolean")
    adata.obsm["X_pca"] = np.ones((14, 2), np.float32)
    adata.uns["spatial"] = {
        "A": {
            "images": {"hires": np.ones((6, 5, 3), np.float32)},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 65.0},
        }
    }
    adata.uns["terrazzo"] = {"X_pca": {"model": "m", "coverage": "{}", "details": "{}"}}
    return adata


def write_all(folder: Path) -> list[Path]:
    """Write one slice of each kind; return the paths that a user would pass."""
    adata = slice_to_write()
    made = [
        folder / "sparse.h5ad",
        folder / "dense.h5ad",
        folder / "three.zarr",
        folder / "two.zarr",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(made[0])
        dense = adata.copy()
        dense.X = dense.X.toarray()
        del dense.raw, dense.layers["counts"]
        dense.write_h5ad(made[1])
        for path, version in ((made[2], 3), (made[3], 2)):
            with ad.settings.override(zarr_write_format=version):
                adata.write_zarr(path)
    made.append(_visium(folder / "visium"))
    made.append(_xenium(folder / "xenium"))
    made.append(_merscope(folder / "merscope"))
    made.append(_cosmx(folder / "cosmx"))
    made.append(_slideseq(folder / "slideseq"))
    made.append(_cells(folder / "S1.cellbin.gef"))
    made.append(_bins(folder / "S2.gef"))
    return made


def _counts(n: int, g: int) -> np.ndarray:
    return np.random.default_rng(0).poisson(2.0, (n, g)).astype(np.int32)


def _tenx(path: Path, n: int, g: int) -> list[str]:
    csr = sp.csr_matrix(_counts(n, g))
    names = [f"cell{i}-1" for i in range(n)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, dtype="S")
        group["data"] = csr.data
        group["indices"] = csr.indices.astype(np.int64)
        group["indptr"] = csr.indptr.astype(np.int64)
        group["shape"] = np.array([g, n], dtype=np.int32)
        features = group.create_group("features")
        features["name"] = np.array([f"GENE{i}" for i in range(g)], dtype="S")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(g)], dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * g, dtype="S")
    return names


def _visium(folder: Path) -> Path:
    (folder / "spatial").mkdir(parents=True)
    n = 12
    names = _tenx(folder / "filtered_feature_bc_matrix.h5", n, 5)
    row, column = np.divmod(np.arange(n), 4)
    table = pd.DataFrame(
        {
            "barcode": names,
            "in_tissue": 1,
            "array_row": row,
            "array_col": 2 * column + row % 2,
            "pxl_row_in_fullres": row * 173 + 50,
            "pxl_col_in_fullres": (2 * column + row % 2) * 100 + 50,
        }
    )
    table.to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    factors = {
        "tissue_hires_scalef": 0.1,
        "tissue_lowres_scalef": 0.05,
        "spot_diameter_fullres": 130.0,
    }
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    picture = np.full((60, 90, 3), 200, dtype=np.uint8)
    Image.fromarray(picture).save(folder / "spatial" / "tissue_hires_image.png")
    return folder


def _xenium(folder: Path) -> Path:
    folder.mkdir()
    names = _tenx(folder / "cell_feature_matrix.h5", 9, 5)
    table = pd.DataFrame(
        {
            "cell_id": names,
            "x_centroid": np.arange(9) * 9.0,
            "y_centroid": np.arange(9) * 4.0,
            "area": 1,
        }
    )
    table.to_parquet(folder / "cells.parquet", index=False)
    about = {"pixel_size": 0.25, "panel_organism": "Human"}
    (folder / "experiment.xenium").write_text(json.dumps(about))
    return folder


def _merscope(folder: Path) -> Path:
    folder.mkdir()
    index = pd.Index([str(10**18 + i) for i in range(7)], name="cell")
    counts = pd.DataFrame(_counts(7, 4), index=index, columns=["Gad1", "Pvalb", "Sst", "Blank-1"])
    (folder / "cell_by_gene.csv.gz").write_bytes(gzip.compress(counts.to_csv().encode()))
    places = {"center_x": np.arange(7) * 12.0, "center_y": np.arange(7) * 5.0}
    pd.DataFrame(places, index=index).to_csv(folder / "cell_metadata.csv")
    return folder


def _cosmx(folder: Path) -> Path:
    folder.mkdir()
    ids = pd.DataFrame({"fov": np.repeat([1, 2], 4), "cell_ID": np.tile([0, 1, 2, 3], 2)})
    genes = pd.DataFrame(_counts(8, 3), columns=["ABL1", "ACE2", "NegPrb1"])
    pd.concat([ids, genes], axis=1).to_csv(folder / "Run_exprMat_file.csv", index=False)
    places = {"CenterX_global_px": np.arange(8) * 100.0, "CenterY_global_px": np.arange(8) * 70.0}
    ids.assign(CenterX_local_px=5.0, CenterY_local_px=6.0, **places).to_csv(
        folder / "Run_metadata_file.csv", index=False
    )
    return folder


def _slideseq(folder: Path) -> Path:
    folder.mkdir()
    names = [f"ACGT{i}" for i in range(6)]
    counts = pd.DataFrame(_counts(4, 6), index=["Gad1", "Sst", "Mbp", "Plp1"], columns=names)
    counts.to_csv(folder / "MappedDGEForR.csv", index_label="GENE")
    places = {"barcodes": names, "xcoord": np.arange(6) * 20.0, "ycoord": np.arange(6) * 11.0}
    pd.DataFrame(places).to_csv(folder / "BeadLocationsForR.csv", index=False)
    return folder


def _cells(path: Path) -> Path:
    csr = sp.csr_matrix(_counts(6, 3))
    kind = [("id", "<u4"), ("x", "<i4"), ("y", "<i4"), ("offset", "<u4"), ("geneCount", "<u2")]
    cells = np.zeros(6, kind)
    cells["id"] = cells["x"] = np.arange(6) * 30
    cells["y"] = np.arange(6) * 17
    cells["offset"], cells["geneCount"] = csr.indptr[:-1], np.diff(csr.indptr)
    counts = np.zeros(csr.nnz, [("geneID", "<u4"), ("count", "<u2")])
    counts["geneID"], counts["count"] = csr.indices, csr.data
    genes = np.zeros(3, [("geneName", "S8")])
    genes["geneName"] = [b"Actb", b"Mbp", b"Plp1"]
    with h5py.File(path, "w") as file:
        group = file.create_group("cellBin")
        group["cell"], group["cellExp"], group["gene"] = cells, counts, genes
    return path


def _bins(path: Path) -> Path:
    n = 40
    spots = np.zeros(2 * n, [("x", "<i4"), ("y", "<i4"), ("count", "u1")])
    spots["x"], spots["y"], spots["count"] = (
        np.arange(2 * n) * 13 % 400,
        np.arange(2 * n) * 29 % 300,
        1,
    )
    genes = np.zeros(2, [("geneName", "S8"), ("offset", "<u4"), ("count", "<u4")])
    genes["geneName"], genes["offset"], genes["count"] = [b"Actb", b"Mbp"], [0, n], n
    with h5py.File(path, "w") as file:
        group = file.create_group("geneExp/bin1")
        group["expression"], group["gene"] = spots, genes
        group["expression"].attrs["resolution"] = np.array([500], np.uint32)
    return path


# ---- what is damaged


def damage(path: Path, rng: random.Random) -> str:
    """Damage a slice on disk in some places; return what was done."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = (
            [path] if path.is_file() else [one for one in sorted(path.rglob("*")) if one.is_file()]
        )
        if not files:
            break
        file = rng.choice(files)
        if file.suffix in HDF5:
            try:
                done.append(f"{file.name}: {damage_hdf5(file, rng)}")
            except (OSError, ValueError, TypeError, KeyError, RuntimeError):
                continue  # h5py itself does not do that
        else:
            done.append(f"{file.name}: {damage_bytes(file, rng)}")
    return "; ".join(done)


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Damage a file as bytes, a text sometimes as a text."""
    content = bytearray(path.read_bytes())
    is_text = path.suffix in TEXT or path.name in (".zarray", ".zattrs", ".zgroup", "zarr.json")
    how = rng.choice(["flip", "flip", "cut", "empty", "junk", "gone", "link", "folder", "swap"])
    if is_text:
        how = rng.choice([how, "words", "words", "words"])
    if how == "flip":
        for _ in range(rng.choice([1, 3, 20])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif how == "empty":
        content = bytearray()
    elif how == "junk":
        content = bytearray(rng.randbytes(200))
    elif how == "words":
        content = bytearray(_other_words(bytes(content), rng))
    elif how == "swap":
        others = [one for one in sorted(path.parent.iterdir()) if one.is_file()]
        content = bytearray(rng.choice(others).read_bytes())
    path.unlink()
    if how == "link":
        path.symlink_to(rng.choice(["/etc/passwd", "..", path.name, "nowhere"]))
    elif how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes(content)
    return how


WORDS = [
    b"NaN",
    b"1e999",
    b"-1",
    b"0",
    b'""',
    b"null",
    b"[]",
    b"{}",
    b"true",
    b"99999999999999999999",
    b"\xff",
    b"\x00",
]
WORDS += [
    b'"../../x"',
    b"1e308",
    b"-5e-324",
    b"[" * 3000,
    b'"pickle"',
    b"abc",
    b"18446744073709551615",
    b",",
    b"\n",
    b"",
]


def _other_words(content: bytes, rng: random.Random) -> bytes:
    """Put something else in place of a word of a text."""
    for _ in range(rng.choice([1, 2])):
        cuts = [i for i, byte in enumerate(content) if byte in b',:[]{}\n "']
        if len(cuts) < 2:
            break
        at = rng.randrange(len(cuts) - 1)
        content = content[: cuts[at] + 1] + rng.choice(WORDS) + content[cuts[at + 1] :]
    return content


def damage_hdf5(path: Path, rng: random.Random) -> str:
    """Change an object of an HDF5 file, or cut the file."""
    how = rng.choice(["cut", *["object"] * 12])
    if how == "cut":
        size = path.stat().st_size
        os.truncate(path, rng.randrange(size))
        return "cut"
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        if not names:
            return "nothing"
        name = rng.choice(names)
        change: Callable[..., str] = rng.choice(
            [_delete, _replace, _replace, _values, _values, _attribute, _attribute, _link, _claim]
        )
        return f"{name}: {change(file, name, rng)}"


def _delete(file: h5py.File, name: str, rng: random.Random) -> str:
    del file[name]
    return "deleted"


def _replace(file: h5py.File, name: str, rng: random.Random) -> str:
    """Put another kind of dataset, or a group, in the place of an object, with its attributes."""
    attributes = dict(file[name].attrs)
    shape = getattr(file[name], "shape", None) or (3,)
    shape = tuple(min(side, 1000) for side in shape)
    del file[name]
    dtype = rng.choice(
        [
            "f4",
            "f8",
            "i1",
            "i8",
            "u8",
            "S4",
            "c8",
            "?",
            "text",
            "group",
            "scalar",
            "records",
            "empty",
            "short",
        ]
    )
    if dtype == "group":
        file.create_group(name)
    elif dtype == "scalar":
        file[name] = rng.choice([3, 2.5, "text", np.nan])
    elif dtype == "text":
        file.create_dataset(name, data=np.full(shape, "é", dtype=object), dtype=h5py.string_dtype())
    elif dtype == "records":
        file[name] = np.zeros(shape, [("a", "<i4"), ("b", "S3")])
    elif dtype == "empty":
        file[name] = h5py.Empty("f4")
    elif dtype == "short":
        file[name] = np.ones((1,) * len(shape))
    else:
        file[name] = np.ones(shape).astype(dtype)
    if rng.random() < 0.7:
        file[name].attrs.update(attributes)
    return f"replaced by {dtype}"


def _values(file: h5py.File, name: str, rng: random.Random) -> str:
    """Change values of a dataset."""
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.shape in ((), None) or not 0 < item.size < 10**6:
        return "left"
    values = item[()]
    if values.dtype.kind in "iuf":
        value = rng.choice([-1, -400, 10**8, 2**31 - 1, 2**62, 0, np.nan, np.inf, 1e300, 0.5])
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flat = values.reshape(-1)
            flat[rng.randrange(flat.size)] = np.array(value).astype(values.dtype)
            if rng.random() < 0.2:
                flat[:] = flat[::-1].copy()
            item[...] = values
        return f"a value is {value}"
    if values.dtype.kind == "O":
        values.reshape(-1)[rng.randrange(values.size)] = rng.choice(["", "x" * 3000, "a/b", "é"])
        item[...] = values
        return "a text"
    return "left"


def _attribute(file: h5py.File, name: str, rng: random.Random) -> str:
    """Change or delete an attribute."""
    attributes = file[name].attrs if rng.random() < 0.8 else file.attrs
    keys = list(attributes)
    if not keys:
        return "left"
    key = rng.choice(keys)
    value = rng.choice(
        [
            "",
            "array",
            "csr_matrix",
            "csc_matrix",
            "dataframe",
            "dict",
            "nullable-integer",
            "categorical",
            "rec-array",
            "9.9.9",
            5,
            -1,
            "gone",
        ]
    )
    if key == "shape" and rng.random() < 0.7:
        value = np.array(
            rng.choice([[14, -8], [14, 2**62], [2**62, 8], [14], [13, 8], [14, 7], [0, 0]])
        )
    if isinstance(value, str) and value == "gone":
        del attributes[key]
    else:
        attributes[key] = value
    return f"attribute {key} is {value}"


def _link(file: h5py.File, name: str, rng: random.Random) -> str:
    """Put a link in the place of an object."""
    kind = rng.choice(["external", "soft", "loop", "root", "virtual", "storage"])
    del file[name]
    if kind == "external":
        file[name] = h5py.ExternalLink("/etc/passwd", "/x")
    elif kind == "soft":
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == "loop":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "root":
        file[name] = file["/"]
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape=(14, 2), dtype="f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=(14, 2))
        file.create_virtual_dataset(name, layout)
    else:
        file.create_dataset(name, shape=(14, 2), dtype="u1", external=[("/etc/passwd", 0, 28)])
    return kind


def _claim(file: h5py.File, name: str, rng: random.Random) -> str:
    """Claim a huge array."""
    attributes = dict(file[name].attrs)
    shape = getattr(file[name], "shape", None)
    rest = shape[1:] if shape else ()
    del file[name]
    size = rng.choice([2**33, 2**40, 2**27])
    file.create_dataset(
        name, shape=(size, *rest), dtype="f8", chunks=(2**10, *rest), compression="gzip"
    )
    file[name].attrs.update(attributes)
    return f"claims {size}"


def copy_of(source: Path, folder: Path) -> Path:
    """Copy a slice into an empty folder."""
    target = folder / source.name
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target
