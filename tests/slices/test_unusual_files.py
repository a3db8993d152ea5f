"""Files that look damaged and are not: filters, names of GEO and portals, doubled cells, slides, cells of HD."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from test_cosmx import write as write_cosmx
from test_merscope_slideseq import merscope, slideseq  # noqa: F401
from test_spaceranger import GENES, TYPES, visium, visium_hd  # noqa: F401
from test_xenium import xenium  # noqa: F401

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import open_slice

# filters of HDF5


def compressed_h5ad(path: Path, number: int) -> Path:
    """Write an AnnData, and its counts again by a filter that h5py does not have."""
    adata = AnnData(
        np.random.default_rng(0).poisson(2, (50, 8)).astype(np.float32),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(50)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(8)]),
    )
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 300, (50, 2))
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values = file["X"][:]
        attributes = dict(file["X"].attrs)
        del file["X"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(values.shape)
        settings.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(values.shape)
        counts = h5py.h5d.create(file.id, b"X", h5py.h5t.IEEE_F32LE, space, dcpl=settings)
        counts.write_direct_chunk((0, 0), numcodecs.Zstd(level=3).encode(values.tobytes()), 0)
        file["X"].attrs.update(attributes)
    return path


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python anew: filters stay registered in a process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.case(
    "files",
    given="An `.h5ad` or `.h5` compressed with zstd, blosc, lz4, bitshuffle ...",
    gets="Read where `hdf5plugin` can be imported; else: which filter it is, and `pip install hdf5plugin`",
)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (32015, "is not damaged: it is compressed with zstd.*pip install hdf5plugin"),
        (32001, "compressed with blosc.*pip install hdf5plugin"),
        (32008, "compressed with bitshuffle.*pip install hdf5plugin"),
        (32004, "compressed with lz4.*pip install hdf5plugin"),
        (32099, "the HDF5 filter 32099.*compression='gzip'"),
    ],
)
def test_a_filter_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    path = compressed_h5ad(tmp_path / "a.h5ad", number)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # as if it were not installed
    if h5py.h5z.filter_avail(number):
        pytest.skip("the filter is registered in this process")
    with pytest.raises(InputError, match=said):
        tz.read(path)


def test_filters_are_registered_where_hdf5plugin_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    path = compressed_h5ad(tmp_path / "a.h5ad", 32015)
    done = python(f"import terrazzo as tz; print(tz.read({str(path)!r}).counts.sum())")
    expected = np.random.default_rng(0).poisson(2, (50, 8)).sum()
    assert float(done.stdout) == expected, done.stderr


def test_an_importable_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compressed_h5ad(tmp_path / "a.h5ad", 32099)
    (tmp_path / "hdf5plugin.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hdf5plugin", raising=False)
    with pytest.raises(InputError, match="no package that terrazzo knows"):
        tz.read(path)
    assert "hdf5plugin" in sys.modules
    monkeypatch.delitem(sys.modules, "hdf5plugin")


# matrices of three files, and the names of GEO


def three_files(folder: Path, prefix: str, matrix: sp.spmatrix, barcodes: Any, **options: Any):
    """Write counts, cells x features, as 10x Genomics does: three gzipped files."""
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.mmwrite(folder / "m.mtx", sp.coo_matrix(matrix.T).astype(int), field="integer")
    text = (folder / "m.mtx").read_bytes()
    (folder / "m.mtx").unlink()
    (folder / f"{prefix}matrix.mtx.gz").write_bytes(gzip.compress(text))
    lines = "\n".join(barcodes) + "\n"
    (folder / f"{prefix}barcodes.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    rows = zip([f"ENSG{i:011d}" for i in range(len(GENES))], GENES, options["types"], strict=True)
    lines = "".join("\t".join(row) + "\n" for row in rows)
    (folder / f"{prefix}features.tsv.gz").write_bytes(gzip.compress(lines.encode()))


def as_three_files(folder: Path, target: Path, prefix: str) -> None:
    """Replace the matrix of a folder by three files."""
    path = folder / "filtered_feature_bc_matrix.h5"
    with h5py.File(path, "r") as file:
        group = file["matrix"]
        arrays = (group["data"][:], group["indices"][:], group["indptr"][:])
        barcodes = [name.decode() for name in group["barcodes"][:]]
    matrix = sp.csr_matrix(arrays, shape=(len(barcodes), len(GENES)))
    three_files(target, prefix, matrix, barcodes, types=TYPES)
    path.unlink()


def flatten(folder: Path, prefix: str) -> None:
    """Put what is in ``spatial/`` beside the counts, as GEO does."""
    for path in list((folder / "spatial").iterdir()):
        if path.suffix in (".csv", ".json"):
            target = folder / f"{prefix}{path.name}.gz"
            target.write_bytes(gzip.compress(path.read_bytes()))
        else:
            shutil.copy(path, folder / f"{prefix}{path.name}")
    shutil.rmtree(folder / "spatial")


@pytest.mark.case(
    "files",
    given="A Visium folder with the matrix as `.mtx` and `.tsv` files, or with GEO's prefixes (`GSM1_...`), gzipped",
    gets="Read as any other",
)
@pytest.mark.parametrize("kind", ["folder", "beside", "prefix", "flat", "flat h5"])
def test_visium_under_other_names(visium: Path, kind: str) -> None:  # noqa: F811
    expected = tz.read(visium)
    prefix = "GSM123_sampleA_" if "flat" in kind or kind == "prefix" else ""
    if kind == "folder":
        as_three_files(visium, visium / "filtered_feature_bc_matrix", "")
    elif kind == "flat h5":
        path = visium / "filtered_feature_bc_matrix.h5"
        path.rename(visium / f"{prefix}{path.name}")
    else:
        as_three_files(visium, visium, prefix)
    if "flat" in kind:
        flatten(visium, prefix)
    tissue = tz.read(visium)
    assert tissue.content_hash() == expected.content_hash()
    assert (tissue.unit, tissue.lattice_kind) == ("um", "visium")
    assert tissue.image is not None
    assert "1 Antibody Capture" in tissue.origin


def test_a_matrix_alone_says_what_is_missing(visium: Path) -> None:  # noqa: F811
    as_three_files(visium, visium / "filtered_feature_bc_matrix", "")
    with pytest.raises(InputError, match=r"the matrix alone.*give the folder above"):
        tz.read(visium / "filtered_feature_bc_matrix")
    shutil.rmtree(visium / "spatial")
    with pytest.raises(InputError, match="table of positions is missing"):
        tz.read(visium)


def test_files_of_two_samples(visium: Path) -> None:  # noqa: F811
    as_three_files(visium, visium, "GSM1_")
    flatten(visium, "GSM2_")
    with pytest.raises(InputError, match=r"more than one sample \(GSM1, GSM2\)"):
        tz.read(visium)
    for path in list(visium.glob("GSM1_*")):
        shutil.copy(path, visium / path.name.replace("GSM1", "GSM2"))
    with pytest.raises(InputError, match="more than one file could be"):
        tz.read(visium)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("%%MatrixMarket matrix coordinate integer general\n5 18 99999999999\n1 1 1\n", "claims"),
        ("%%MatrixMarket matrix coordinate integer general\n5 17 1\n1 1 1\n", "shape says"),
        ("%%MatrixMarket matrix array integer general\n5 18\n1\n", "not a sparse matrix"),
        ("%%MatrixMarket matrix coordinate integer general\n5 18 1\n9 1 1\n", "cannot be read"),
        ("", "not a sparse matrix"),
    ],
)
def test_bad_matrix_files(visium: Path, text: str, said: str) -> None:  # noqa: F811
    as_three_files(visium, visium, "")
    (visium / "matrix.mtx.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(InputError, match=said):
        tz.read(visium)


# Xenium


@pytest.mark.case(
    "files",
    given="A Xenium folder in which some centroids are NaN",
    gets="These cells are left out, and how many is noted",
)
def test_xenium_nan_centroids(xenium: Path) -> None:  # noqa: F811
    whole = tz.read(xenium)
    path = xenium / "cells.parquet"
    cells = pd.read_parquet(path)
    cells.loc[cells.index[1], ["x_centroid", "y_centroid"]] = np.nan
    cells.to_parquet(path)
    tissue = tz.read(xenium)
    lost = cells["cell_id"].iloc[1]
    lost = lost.decode() if isinstance(lost, bytes) else lost
    expected = [name for name in whole.obs_names.tolist() if name != lost]
    assert tissue.obs_names.tolist() == expected
    assert f"1 of {whole.n_cells} cells have counts but no position; left out" in tissue.origin


def test_xenium_with_prefixes_of_geo(xenium: Path) -> None:  # noqa: F811
    expected = tz.read(xenium)
    for path in list(xenium.iterdir()):
        if path.is_file():
            path.rename(xenium / f"GSM77_s1_{path.name}")
    assert tz.read(xenium).content_hash() == expected.content_hash()


# MERSCOPE and Slide-seq


@pytest.mark.case(
    "files",
    given="MERSCOPE tables with a prefix or suffix (`cell_by_gene_S1R1.csv`, `GSM1_cell_by_gene.csv.gz`)",
    gets="Read; with more than one pair in a folder, an error that lists them",
)
@pytest.mark.parametrize(
    "name", ["brain_map_S1R1_{}_S1R1", "GSM1_{}", "{}_region_0", "cellpose_{}"]
)
def test_merscope_names(merscope: Path, name: str) -> None:  # noqa: F811
    expected = tz.read(merscope)
    for part in ("cell_by_gene", "cell_metadata"):
        (merscope / f"{part}.csv").rename(merscope / f"{name.format(part)}.csv")
    assert tz.read(merscope).content_hash() == expected.content_hash()
    for path in list(merscope.iterdir()):
        shutil.copy(path, merscope / f"other_{path.name}")
    with pytest.raises(InputError, match="more than one file could be the table of counts"):
        tz.read(merscope)


@pytest.mark.case(
    "files",
    given="Slide-seq under the names of the Single Cell Portal (`*.digital_expression.txt.gz`, `*_bead_locations.csv`)",
    gets="Read",
)
@pytest.mark.parametrize("header", ["barcodes,xcoord,ycoord", "barcode,xcoord,ycoord", ""])
def test_slide_seq_of_the_portal(slideseq: Path, header: str) -> None:  # noqa: F811
    expected = tz.read(slideseq)
    counts = slideseq / "Puck_1.MappedDGEForR.csv"
    text = "#DGE VERSION:1.0\n" + counts.read_text().replace(",", "\t")
    portal = slideseq / "Puck_1.digital_expression.txt.gz"
    portal.write_bytes(gzip.compress(text.encode()))
    counts.unlink()
    beads = slideseq / "Puck_1.BeadLocationsForR.csv"
    lines = beads.read_text().splitlines()
    lines = [header, *lines[1:]] if header else lines[1:]
    (slideseq / "Puck_1_bead_locations.csv").write_text("\n".join(lines))
    beads.unlink()
    tissue = tz.read(slideseq)
    assert tissue.content_hash() == expected.content_hash()
    assert (tissue.technology, tissue.unit) == ("Slide-seq", "um")


# CosMx


@pytest.mark.case(
    "files",
    given="CosMx flat files in which cells are there twice (again with the same counts, or with NA)",
    gets="Each cell once, and how many rows were left out is noted; different counts: an error",
)
def test_cosmx_doubled_cells(tmp_path: Path, counts: Any) -> None:
    folder = write_cosmx(tmp_path / "run", counts(8, 6))
    expected = tz.read(folder).content_hash()
    path = folder / "Run_exprMat_file.csv"
    table = pd.read_csv(path)
    empty = table.iloc[2:4].astype(object)
    empty.iloc[:, 2:] = np.nan
    pd.concat([table, table.iloc[[1]], empty]).to_csv(path, index=False, na_rep="NA")
    metadata = folder / "Run_metadata_file.csv"
    cells = pd.read_csv(metadata)
    pd.concat([cells, cells.iloc[[0]]]).to_csv(metadata, index=False)
    tissue = tz.read(folder)
    assert tissue.content_hash() == expected
    assert "1 rows of counts that repeat another left out" in tissue.origin
    assert "2 rows of counts that hold only NA left out" in tissue.origin
    other = table.iloc[[1]].copy()
    other.iloc[0, 2] += 1
    pd.concat([table, other]).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"cell ids repeat with different counts \(e.g. 1_1\)"):
        tz.read(folder)
    table.to_csv(path, index=False)
    moved = cells.iloc[[0]].assign(CenterX_global_px=1.0)
    pd.concat([cells, moved]).to_csv(metadata, index=False)
    with pytest.raises(InputError, match="1 cells are there more than once with different pos"):
        tz.read(folder)


def two_slides(folder: Path, counts: Any, *, tell: bool) -> Path:
    """Write flat files of two slides, whose fields of view and cells have the same numbers."""
    write_cosmx(folder, counts(8, 6))
    for name in ("exprMat", "metadata"):
        path = folder / f"Run_{name}_file.csv"
        table = pd.read_csv(path)
        parts = []
        for slide in (1, 2):
            part = table.copy()
            if name == "metadata":
                part["slide_ID"] = slide
                part["CenterX_global_px"] += slide
            elif tell:
                numbers = zip(part["fov"], part["cell_ID"], strict=True)
                part.insert(2, "cell", [f"c_{slide}_{fov}_{cell}" for fov, cell in numbers])
                part["ACE2"] += 10 * (slide - 1)
            else:
                part["ACE2"] += 10 * (slide - 1)
            parts.append(part)
        pd.concat(parts).to_csv(path, index=False)
    return folder


@pytest.mark.case(
    "files",
    given="CosMx flat files of two slides in one export",
    gets="Both, with `obs['slide']` (where they overlap: `slice_key=`); if the counts do not tell them apart: an error",
)
def test_cosmx_two_slides(tmp_path: Path, counts: Any) -> None:
    opened = open_slice(two_slides(tmp_path / "run", counts, tell=True))
    adata = opened.adata
    assert adata.obs["slide"].tolist() == ["1"] * 6 + ["2"] * 6
    assert adata.obs_names[0] == "1_1_1"
    assert any("2 slides in one export, 1, 2" in note for note in opened.notes)
    drawn = counts(8, 6)[[1, 2, 3, 5, 6, 7]][:, [0, 1, 5]]
    np.testing.assert_array_equal(adata.X[:6].toarray(), drawn)
    np.testing.assert_array_equal(adata.X[6:].toarray(), drawn + np.array([0, 0, 10]))
    x = adata.obsm["spatial"][:, 0]
    np.testing.assert_array_equal(x[6:] - x[:6], 1.0)
    with pytest.raises(InputError, match=r"holds 2 slides \(1, 2\).*export each slide by itself"):
        open_slice(two_slides(tmp_path / "other", counts, tell=False))


# cells of Visium HD


def square(x: float, y: float, side: float) -> list[list[float]]:
    """Return the closed outline of a square."""
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def segmented(folder: Path, write_tenx: Any, counts: np.ndarray) -> Path:
    """Write ``segmented_outputs`` of three cells, one of two parts and one with a hole."""
    cells = [f"cellid_{number:09d}-1" for number in (1, 2, 7)]
    write_tenx(folder / "filtered_feature_cell_matrix.h5", counts, cells, GENES, types=TYPES)
    shapes = {
        7: {"type": "Polygon", "coordinates": [square(100, 300, 20), square(100, 300, 10)]},
        1: {"type": "Polygon", "coordinates": [square(10, 20, 10)]},
        2: {
            "type": "MultiPolygon",
            "coordinates": [[square(200, 0, 10)], [square(240, 0, 10)[::-1]]],
        },
        9: {"type": "Polygon", "coordinates": [square(0, 0, 1)]},
    }
    features = []
    for number, shape in shapes.items():
        properties = {"cell_id": number}
        features.append({"type": "Feature", "geometry": shape, "properties": properties})
    content = {"type": "FeatureCollection", "features": features}
    (folder / "cell_segmentations.geojson").write_text(json.dumps(content))
    (folder / "spatial").mkdir()
    factors = {"microns_per_pixel": 0.25, "tissue_hires_scalef": 0.1}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    return folder


@pytest.mark.case(
    "files",
    given="Space Ranger 4's `segmented_outputs`, or `outs/` with `bins='cell'`",
    gets="Its cells, at the centers of their polygons, in micrometers",
)
def test_segmented_outputs(
    visium_hd: Path,  # noqa: F811
    write_tenx: Any,
    counts: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from terrazzo.slices.platforms import spaceranger_cells

    binned = tz.read(visium_hd)
    folder = segmented(visium_hd / "segmented_outputs", write_tenx, counts(3, 5))
    tissue = tz.read(folder)
    assert tissue.obs_names.tolist() == [f"cellid_{number:09d}-1" for number in (1, 2, 7)]
    np.testing.assert_array_equal(tissue.counts.toarray(), counts(3, 5)[:, :4])
    hole = (400 * np.array([110, 310]) - 100 * np.array([105, 305])) / 300
    np.testing.assert_allclose(tissue.native_coords, [[15, 25], [225, 5], hole])
    assert (tissue.unit, tissue.coord_scale, tissue.technology) == ("um", 0.25, "Visium HD")
    assert "Visium HD, cells" in tissue.origin
    assert tz.read(visium_hd, bins="cell").content_hash() == tissue.content_hash()
    again = tz.read(visium_hd)  # bins, where there are both
    assert again.content_hash() == binned.content_hash()
    assert "read if named (bins='cell')" in again.origin
    monkeypatch.setattr(spaceranger_cells, "_PIECE", 7)  # characters at a time
    assert tz.read(folder).content_hash() == tissue.content_hash()
    with pytest.raises(ConfigError, match="holds cells, not bins"):
        tz.read(folder, bins="8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not a GeoJSON file of features"),
        ('{"features": [', "cannot be read"),
        ('{"features": [{"properties": {}, "geometry": {}}]}', "cannot be read"),
        ('{"features": []}', "only 0 of 3 cells"),
        (
            '{"features": [{"properties": {"cell_id": 1}, "geometry": {"type": "Point"}}]}',
            "Point, not a polygon",
        ),
    ],
)
def test_bad_segmented_outputs(tmp_path: Path, write_tenx: Any, counts: Any, text: str, said: str):
    folder = segmented(tmp_path / "segmented_outputs", write_tenx, counts(3, 5))
    (folder / "cell_segmentations.geojson").write_text(text)
    with pytest.raises(InputError, match=said):
        tz.read(folder)
    (folder / "cell_segmentations.geojson").unlink()
    with pytest.raises(InputError, match=r"polygons is missing; it should be cell_segmentations"):
        tz.read(folder)


@pytest.mark.case(
    "files",
    given="A packed file, one matrix of a folder, an R object, a folder of `.h5ad` files",
    gets="An error that says what to do: unpack, give the folder, convert, choose",
)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.h5ad.gz", "unpack it first"),
        ("a.tar", "unpack it first"),
        ("filtered_feature_bc_matrix.h5", "give the folder"),
        ("a.rds", "convert it to .h5ad first"),
        ("a.loom", "convert it to .h5ad first"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=said):
        tz.read(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.h5ad").write_bytes(b"x")
    with pytest.raises(InputError, match=r"it holds 1 \.h5ad files: give one of these"):
        tz.read(tmp_path / "folder")
