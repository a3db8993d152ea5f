"""Stereo-seq: bins as they are stored or summed, cells, folders of SAW, Stereopy's AnnData, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData

import terrazzo as tz
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices import Choices, Slice, open_slice
from terrazzo.slices.platforms import stereoseq

NAMES, IDS = (
    ["Actb", "Gapdh", "Mbp"],
    ["ENSMUSG00000029580", "ENSMUSG00000057666", "ENSMUSG00000041607"],
)
EXPRESSION = np.dtype([("x", "<i4"), ("y", "<i4"), ("count", "u1")])


def records(seed: int = 0, spots: int = 300) -> list[np.ndarray]:
    """Draw spots with counts, gene by gene, as they lie on the chip; no spot twice for a gene."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in NAMES:
        place = rng.choice(200 * 160, spots, replace=False)
        out.append(
            np.array(
                list(zip(place % 200, place // 200, rng.integers(1, 5, spots), strict=True)),
                EXPRESSION,
            )
        )
    return out


def write_bins(
    path: Path,
    by_gene: list[np.ndarray],
    *,
    size: int = 1,
    numbered: bool = False,
    old: bool = False,
) -> Path:
    """Write one group of bins: ``size`` spots along a side, at their first spot or numbered."""
    parts = []
    for one in by_gene:
        code = (one["y"].astype(int) // size) * 1000 + one["x"].astype(int) // size
        codes, at = np.unique(code, return_inverse=True)
        piece = np.zeros(len(codes), EXPRESSION)
        step = 1 if numbered else size
        piece["x"], piece["y"] = codes % 1000 * step, codes // 1000 * step
        piece["count"] = np.bincount(at, weights=one["count"])
        parts.append(piece)
    lengths = np.array([len(one) for one in parts])
    kind = [("gene", "S64")] if old else [("geneID", "S64"), ("geneName", "S64")]
    table = np.zeros(len(parts), [*kind, ("offset", "<u4"), ("count", "<u4")])
    for field, texts in (("gene", NAMES), ("geneID", IDS), ("geneName", NAMES)):
        if field in table.dtype.names:
            table[field] = np.array(texts, "S")
    table["count"], table["offset"] = lengths, np.cumsum(lengths) - lengths
    with h5py.File(path, "a") as file:
        file.attrs["version"], file.attrs["bin_type"] = np.uint32(4), b"bin"
        group = file.require_group(f"geneExp/bin{size}")
        group["gene"], group["expression"] = table, np.concatenate(parts)
        group["expression"].attrs["resolution"] = np.array([500], np.uint32)
    return path


def dense(by_gene: list[np.ndarray], size: int) -> dict[str, list[int]]:
    """Sum by bin the slow way."""
    out: dict[str, list[int]] = {}
    for gene, one in enumerate(by_gene):
        for x, y, count in one.tolist():
            out.setdefault(f"{x // size * size}_{y // size * size}", [0] * len(by_gene))[gene] += (
                count
            )
    return out


@pytest.mark.parametrize("form", ["bin1", "first spot", "numbered", "old"])
def test_bins(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stereoseq, "_CHUNK", 128
    )  # a gene's records, and a bin's, fall into several readings
    by_gene = records()
    stored = 20 if form in ("first spot", "numbered") else 1
    path = write_bins(
        tmp_path / "S1.tissue.gef",
        by_gene,
        size=stored,
        numbered=form == "numbered",
        old=form == "old",
    )
    tissue = tz.read(path, bins="bin20")
    expected = dense(by_gene, 20)
    assert sorted(tissue.obs_names) == sorted(expected)
    np.testing.assert_array_equal(
        tissue.counts.toarray(), [expected[name] for name in tissue.obs_names]
    )
    assert tissue.gene_symbols.tolist() == NAMES
    assert tissue.gene_ids.tolist() == (["", "", ""] if form == "old" else IDS)
    assert (tissue.technology, tissue.unit, tissue.coord_scale) == ("Stereo-seq", "um", 0.5)
    assert tissue.spacing == pytest.approx(10.0)  # 20 spots of half a micrometer
    first = [int(part) for part in tissue.obs_names[0].split("_")]
    np.testing.assert_allclose(tissue.coords[0], [(first[0] + 10) * 0.5, (first[1] + 10) * 0.5])
    np.testing.assert_array_equal(tissue.lattice[0], [first[1] // 20, first[0] // 20])


def test_the_usual_bin_and_what_it_is_called(tmp_path: Path) -> None:
    path = write_bins(tmp_path / "S1.tissue.gef", records())
    opened = open_slice(path)
    assert (opened.format, opened.name) == ("Stereo-seq, bins of 50 x 50 spots, 25 um", "S1.tissue")
    assert Slice.from_opened(opened).spacing == pytest.approx(25.0)


def test_another_distance_of_spots(tmp_path: Path) -> None:
    path = write_bins(tmp_path / "S1.tissue.gef", records())
    with h5py.File(path, "r+") as file:
        file["geneExp/bin1/expression"].attrs["resolution"] = np.array([715], np.uint32)
    assert tz.read(path, bins="20").spacing == pytest.approx(20 * 0.715)
    with h5py.File(path, "r+") as file:
        file["geneExp/bin1/expression"].attrs["resolution"] = 3
    with pytest.raises(InputError, match="resolution is 3"):
        tz.read(path)


def write_cells(path: Path, counts: np.ndarray, **change: Any) -> Path:
    """Write cells x genes as a cell bin GEF."""
    csr = sp.csr_matrix(counts)
    fields = [
        "id",
        "x",
        "y",
        "offset",
        "geneCount",
        "expCount",
        "dnbCount",
        "area",
        "cellTypeID",
        "clusterID",
    ]
    cell = np.zeros(len(counts), [(one, "<i4") for one in fields])
    cell["id"], cell["x"], cell["y"] = (
        np.arange(1, len(counts) + 1),
        np.arange(len(counts)) * 30,
        40,
    )
    cell["offset"], cell["geneCount"], cell["area"] = csr.indptr[:-1], np.diff(csr.indptr), 300
    held = np.zeros(csr.nnz, [("geneID", "<u4"), ("count", "<u2")])
    held["geneID"], held["count"] = csr.indices, csr.data
    gene = np.zeros(
        len(NAMES),
        [("geneID", "S64"), ("geneName", "S64"), ("offset", "<u4"), ("cellCount", "<u4")],
    )
    gene["geneID"], gene["geneName"] = np.array(IDS, "S"), np.array(NAMES, "S")
    with h5py.File(path, "w") as file:
        file.attrs["resolution"] = np.array([500], np.uint32)
        group = file.create_group("cellBin")
        parts = {"cell": cell, "cellExp": held, "gene": gene} | change
        for name, value in parts.items():
            if value is not None:
                group[name] = value
    return path


def test_cells(tmp_path: Path, counts: Any) -> None:
    drawn = counts(9, 3)
    path = write_cells(tmp_path / "S1.cellbin.gef", drawn)
    tissue = tz.read(path)
    np.testing.assert_array_equal(tissue.counts.toarray(), drawn)
    assert (tissue.spacing, tissue.unit, tissue.technology) == (
        pytest.approx(15.0),
        "um",
        "Stereo-seq",
    )
    assert open_slice(path).format == "Stereo-seq, cells"
    assert open_slice(path).adata.obs["area"].tolist() == [300] * 9
    assert tissue.obs_names.tolist() == [str(i) for i in range(1, 10)]
    assert tissue.organism == "mouse"
    with pytest.raises(ConfigError, match="holds cells, not bins"):
        tz.read(path, bins="50")


def test_folder_of_saw(tmp_path: Path, counts: Any) -> None:
    place = tmp_path / "sample" / "outs" / "feature_expression"
    place.mkdir(parents=True)
    write_cells(place / "S1.cellbin.gef", counts(9, 3))
    assert open_slice(tmp_path / "sample").format == "Stereo-seq, cells"
    write_bins(place / "S1.tissue.gef", records())
    write_bins(place / "S1.raw.gef", records(1))
    write_bins(place / "S1.gef", records(2))
    write_cells(place / "S1.adjusted.cellbin.gef", counts(7, 3))
    opened = open_slice(tmp_path / "sample", Choices(bins="20"))
    assert opened.name == "sample"
    assert opened.format == "Stereo-seq, bins of 20 x 20 spots, 10 um"
    assert opened.adata.X.sum() == sum(int(one["count"].sum()) for one in records())
    assert open_slice(tmp_path / "sample", Choices(bins="cell")).adata.n_obs == 7


def test_bins_that_cannot_be(tmp_path: Path) -> None:
    path = write_bins(tmp_path / "S1.gef", records(), size=20)
    with pytest.raises(ConfigError, match="no bins of 50 spots; it has: 20"):
        tz.read(path)
    with pytest.raises(ConfigError, match="takes a number of spots"):
        tz.read(path, bins="wide")
    with pytest.raises(ConfigError, match="holds bins, not cells"):
        tz.read(path, bins="cell")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cell": None}, "cellBin/cell is missing"),
        ({"cellExp": np.zeros(2, [("gene", "<u4")])}, "no field geneID, count"),
        (
            {"cellExp": np.zeros(2, [("geneID", "<u4"), ("count", "<u2")])},
            "do not fit the 2 records",
        ),
        ({"gene": np.zeros(1, [("geneName", "S8")])}, "indices reach from"),
        ({"gene": np.zeros(3, [("name", "S8")])}, "no field geneName"),
    ],
)
def test_spoilt_cells(tmp_path: Path, counts: Any, change: dict[str, Any], said: str) -> None:
    path = write_cells(tmp_path / "S1.cellbin.gef", counts(9, 3), **change)
    with pytest.raises(InputError, match=said):
        tz.read(path)


def test_spoilt_bins(tmp_path: Path) -> None:
    path = write_bins(tmp_path / "a.gef", records())
    with h5py.File(path, "r+") as file:
        file["geneExp/bin1/expression"][0, "x"] = -1
    with pytest.raises(InputError, match="beyond any chip"):
        tz.read(path)
    with h5py.File(path, "r+") as file:
        table = file["geneExp/bin1/gene"][:]
        table["offset"][1] += 1
        file["geneExp/bin1/gene"][:] = table
    with pytest.raises(InputError, match="offsets and counts do not fit"):
        tz.read(path)
    with h5py.File(path, "r+") as file:
        del file["geneExp/bin1/expression"]
    with pytest.raises(InputError, match="expression with x, y and count is missing"):
        tz.read(path)
    path.write_bytes(b"no")
    with pytest.raises(InputError, match=r"a.gef cannot be read"):
        tz.read(path)
    h5py.File(path, "w").close()
    with pytest.raises(InputError, match="this is not a GEF"):
        tz.read(path)


def test_anndata_of_stereopy(tmp_path: Path, counts: Any) -> None:
    adata = AnnData(sp.csr_matrix(counts(6, 3).astype(np.float32)))
    adata.var_names = NAMES
    adata.obsm["spatial"] = np.stack([np.arange(6) * 50, np.zeros(6)], axis=1)
    adata.uns |= {"bin_type": "bins", "bin_size": 50, "resolution": 500}
    adata.write_h5ad(tmp_path / "a.h5ad")
    tissue = tz.read(tmp_path / "a.h5ad")
    assert (tissue.technology, tissue.unit, tissue.spacing) == (
        "Stereo-seq",
        "um",
        pytest.approx(25.0),
    )
