"""Slices: what is read, what is refused, and that nothing is lost or altered on the way."""

from __future__ import annotations

import json
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.slices import Slice

GENES = ["TP53", "EGFR", "MYC", "GAPDH", "C2orf74"]


def make(
    n: int = 6, genes: list[str] | None = None, x: Any = None, coords: Any = None, **parts: Any
) -> AnnData:
    """Build a small AnnData with distinct counts."""
    genes = GENES if genes is None else genes
    if x is None:
        x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (n, len(genes))).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(
            x, pd.DataFrame(index=[f"c{i}" for i in range(n)]), pd.DataFrame(index=genes), **parts
        )
    if coords is None:
        coords = np.random.default_rng(1).uniform(0, 100, (n, 2))
    if coords is not False:
        adata.obsm["spatial"] = coords
    return adata


def same(a: Slice, b: Slice) -> bool:
    """Say whether two slices hold the same, dtypes included."""
    return (
        a.content_hash() == b.content_hash()
        and a.counts.dtype == b.counts.dtype
        and a.counts.indices.dtype == b.counts.indices.dtype
        and a.counts.shape == b.counts.shape
    )


def lattice_slice(
    kind: str, n_rows: int = 6, n_cols: int = 6, pixels: float = 1.37, **uns: Any
) -> AnnData:
    """Spots on an array whose pixel positions are rotated and shifted; 1 um is ``pixels`` pixels."""
    row, col = (axis.ravel() for axis in np.mgrid[:n_rows, :n_cols])
    um = np.stack([col * 200.0, row * 200.0], 1)
    if kind == "visium":
        col = 2 * col + row % 2
        um = np.stack([col * 50.0, row * 50.0 * 3**0.5], 1)
    elif kind == "st2k":
        col = 2 * col + row % 2
        um = np.stack([col * 100.0, row * 111.8], 1)
    elif kind == "hd":
        um = np.stack([col * 8.0, row * 8.0], 1)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    adata = make(len(row), coords=um @ turn * pixels + 500)
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    adata.uns.update(uns)
    return adata


# counts


def fake_dask(x: np.ndarray) -> Any:
    """Something lazy: sliceable, with shape, dtype and compute(), as a dask array."""

    class Lazy:
        shape, dtype = x.shape, x.dtype

        def __init__(self, part: np.ndarray = x) -> None:
            self.part = part

        def __getitem__(self, rows: slice) -> Lazy:
            return Lazy(self.part[rows])

        def compute(self) -> np.ndarray:
            return self.part

    return Lazy()


FORMATS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": lambda x: x,
    "fortran": np.asfortranarray,
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: sp.csr_matrix(x.astype(np.int64)),
    "uint8": lambda x: x.astype(np.uint8),
    "csc": sp.csc_matrix,
    "coo": lambda x: sp.csr_matrix(sp.coo_matrix(x)),
    "csr_array": sp.csr_array,
    "csc_array_int": lambda x: sp.csc_array(x.astype(np.int32)),
    "explicit_zeros": lambda x: sp.csr_matrix(
        (x.ravel(), np.tile(np.arange(x.shape[1]), len(x)), np.arange(0, x.size + 1, x.shape[1])),
        shape=x.shape,
    ),
}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_format_gives_the_same_slice(data: st.DataObject) -> None:
    n, g = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    values = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 255]), min_size=n * g, max_size=n * g))
    x = np.asarray(values, dtype=np.float32).reshape(n, g)
    expected = Slice.from_anndata(make(n, GENES[:g], sp.csr_matrix(x)))
    np.testing.assert_array_equal(expected.counts.toarray(), x)
    for name, convert in FORMATS.items():
        assert same(Slice.from_anndata(make(n, GENES[:g], convert(x))), expected), name


@pytest.mark.parametrize("kind", ["coo", "matrix", "lazy", "bsr"])
def test_formats_that_anndata_itself_refuses(kind: str) -> None:
    from terrazzo.slices.counts import to_csr

    x = np.random.default_rng(3).poisson(1.0, (40, 7)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(x)
    made = {
        "coo": sp.coo_matrix(x),
        "matrix": matrix,
        "lazy": fake_dask(x),
        "bsr": sp.bsr_matrix(x),
    }[kind]
    out = to_csr(made)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out.toarray(), x)


def test_dask_array_gives_the_same_slice() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    plain = make(10)
    x = plain.X.toarray()
    assert same(
        Slice.from_anndata(make(10, x=da.from_array(x, chunks=(3, 2)))), Slice.from_anndata(plain)
    )
    blocks = da.from_array(x, chunks=(3, x.shape[1])).map_blocks(sp.csr_matrix)
    assert same(Slice.from_anndata(make(10, x=blocks)), Slice.from_anndata(plain))


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_backed_gives_the_same_slice(tmp_path: Path, convert: Callable[[np.ndarray], Any]) -> None:
    plain = make(8)
    make(8, x=convert(plain.X.toarray())).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert same(Slice.from_anndata(backed), Slice.from_anndata(plain))
    backed.file.close()


def test_duplicate_entries_are_summed_and_large_counts_stay_exact() -> None:
    twice = sp.csr_matrix((np.array([200, 100], np.uint8), [0, 0], [0, 2]), shape=(1, 1))
    piece = Slice.from_anndata(make(1, ["TP53"], twice))
    assert piece.counts.nnz == 1
    assert piece.total_counts[0] == 300
    big = Slice.from_anndata(make(1, ["TP53"], np.array([[2**24 + 1]], dtype=np.int64)))
    assert big.counts.dtype == np.float64
    assert big.counts[0, 0] == 2**24 + 1


def test_order_in_which_counts_are_found() -> None:
    one, two, three = (sp.csr_matrix(np.full((6, 5), v, np.float32)) for v in (1, 2, 3))
    adata = make(x=one)
    assert Slice.from_anndata(adata).source == "X"
    adata.raw = make(genes=[*GENES, "ACTB"], x=sp.csr_matrix(np.full((6, 6), 2, np.float32)))
    piece = Slice.from_anndata(adata)
    assert (piece.source, piece.n_genes, piece.gene_symbols[-1]) == ("raw.X", 6, "ACTB")
    adata.layers["counts"] = three
    assert Slice.from_anndata(adata).counts[0, 0] == 3
    adata.layers["other"] = two
    assert Slice.from_anndata(adata, layer="other").counts[0, 0] == 2
    assert Slice.from_anndata(adata, layer="X").counts[0, 0] == 1
    assert Slice.from_anndata(adata, layer="raw").counts[0, 0] == 2
    with pytest.raises(InputError, match=r"no layer 'cuonts'; layers .*'counts', 'other'"):
        Slice.from_anndata(adata, layer="cuonts")


def test_of_raw_and_x_the_one_with_counts_is_taken() -> None:
    counts = make()
    logged = make(x=np.log1p(counts.X.toarray()))
    scaled = make(x=counts.X.toarray() - 1.5)
    logged.raw, x_holds = counts, Slice.from_anndata(counts)
    assert same(Slice.from_anndata(logged), x_holds)
    scaled.raw = counts
    assert same(Slice.from_anndata(scaled), x_holds)
    other = make(x=counts.X.copy())
    other.raw = logged
    piece = Slice.from_anndata(other)
    assert piece.source == "X"
    assert same(piece, x_holds)


def test_values_that_are_no_counts() -> None:
    logged = make(x=np.log1p(make().X.toarray()))
    logged.layers["umi"] = make().X
    with pytest.raises(
        InputError,
        match=r"X does not hold counts: values are not integers.*layer='umi'.*allow_norm",
    ):
        Slice.from_anndata(logged)
    assert Slice.from_anndata(logged, layer="umi").is_counts
    with pytest.warns(TerrazzoWarning, match="normalized values"):
        assert not Slice.from_anndata(logged, allow_normalized=True).is_counts
    for allow in (False, True):
        with pytest.raises(InputError, match=r"X holds \d+ negative values.*first cells: c0"):
            Slice.from_anndata(make(x=np.full((6, 5), -1.0)), allow_normalized=allow)
    for bad in (np.nan, np.inf):
        x = make().X.toarray()
        x[4, 2] = bad
        with pytest.raises(
            InputError, match=r"X holds 1 NaN or infinite values \(first cells: c4\)"
        ):
            Slice.from_anndata(make(x=x), allow_normalized=True)
    empty = make()
    empty.X = None
    with pytest.raises(InputError, match="no expression matrix"):
        Slice.from_anndata(empty)


# cells and coordinates


def test_zero_cells_zero_genes_and_wrong_types() -> None:
    with pytest.raises(InputError, match="zero cells"):
        Slice.from_anndata(make(0, coords=np.zeros((0, 2))))
    with pytest.raises(InputError, match="zero genes"):
        Slice.from_anndata(make(3, [], np.zeros((3, 0))))
    with pytest.raises(InputError, match="takes an AnnData, not str"):
        Slice.from_anndata("x.h5ad")  # type: ignore[arg-type]


def test_missing_coordinates_say_how_to_add_them() -> None:
    adata = make(coords=False)
    with pytest.raises(InputError, match=r"no spatial coordinates.*obsm has: nothing"):
        Slice.from_anndata(adata)
    adata.obsm["X_umap"] = np.zeros((6, 2))
    adata.obs["x_centroid"] = adata.obs["y_centroid"] = 1.0
    with pytest.raises(
        InputError, match=r"obsm has: \['X_umap'\].*spatial_key.*\[\"x_centroid\", \"y_centroid\"\]"
    ):
        Slice.from_anndata(adata)
    assert Slice.from_anndata(adata, spatial_key="X_umap").n_cells == 6


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (np.zeros((6, 1)), r"shape \(6, 1\)"),
        (np.array([["a", "b"]] * 6), "does not hold numbers"),
        (
            np.array([[0.0, 1]] * 4 + [[np.nan, 1], [1, np.inf]]),
            r"NaN or infinite for 2 of 6 cells \(first: c4, c5\)",
        ),
    ],
)
def test_unusable_coordinates(coords: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Slice.from_anndata(make(coords=coords))


def test_coordinates_with_too_few_rows() -> None:
    from terrazzo.slices.geometry import read_coords

    fake = types.SimpleNamespace(
        obsm={"spatial": np.zeros((3, 2))}, n_obs=5, obs_names=list("abcde")
    )
    with pytest.raises(InputError, match=r"one row a cell \(5\)"):
        read_coords(fake, "spatial")  # type: ignore[arg-type]


def test_three_dimensional_coordinates() -> None:
    xyz = np.arange(18.0).reshape(6, 3)
    with pytest.warns(TerrazzoWarning, match="3 columns; the first two"):
        piece = Slice.from_anndata(make(coords=xyz))
    np.testing.assert_array_equal(piece.coords, xyz[:, :2])


def test_duplicate_cell_names_are_kept() -> None:
    adata = make()
    adata.obs_names = ["a", "b", "a", "c", "a", "d"]
    with pytest.warns(TerrazzoWarning, match="2 cell names repeat"):
        piece = Slice.from_anndata(adata)
    assert piece.obs_names.tolist() == ["a", "b", "a", "c", "a", "d"]


def test_degenerate_slices_are_kept_whole() -> None:
    one = Slice.from_anndata(make(1))
    assert (one.n_cells, one.spacing) == (1, 1.0)
    point = Slice.from_anndata(make(coords=np.ones((6, 2))))
    assert (point.n_cells, point.spacing) == (6, 1.0)
    pairs = Slice.from_anndata(
        make(coords=np.array([[0, 0], [0, 0], [3, 0], [3, 0], [6, 0], [6, 0]]))
    )
    assert pairs.spacing == 3.0
    x = make().X.toarray()
    x[[1, 4]] = 0
    piece = Slice.from_anndata(make(x=x))
    assert piece.empty.tolist() == [False, True, False, False, True, False]
    for made in (one, point, pairs, piece):
        json.dumps(made.describe())
    assert piece.describe()["n_empty_cells"] == 2


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_order_is_kept_and_nothing_is_dropped(order: list[int]) -> None:
    adata = make()
    base, piece = Slice.from_anndata(adata), Slice.from_anndata(adata[order])
    assert piece.obs_names.tolist() == [f"c{i}" for i in order]
    np.testing.assert_array_equal(piece.counts.toarray(), base.counts.toarray()[order])
    np.testing.assert_array_equal(piece.coords, base.coords[order])


def test_the_input_is_neither_modified_nor_shared() -> None:
    messy = sp.csr_matrix(
        (np.array([1, 0, 2, 3], np.float32), [3, 1, 0, 0], [0, 2, 4]), shape=(2, 5)
    )
    adata = make(2, x=messy)
    before = (adata.X.data.copy(), adata.X.indices.copy(), adata.obsm["spatial"].copy())
    piece = Slice.from_anndata(adata)
    for was, now in zip(
        before, (adata.X.data, adata.X.indices, adata.obsm["spatial"]), strict=True
    ):
        np.testing.assert_array_equal(was, now)
    adata.X.data[:] = 99
    adata.obsm["spatial"][:] = 99
    assert piece.counts.data.tolist() == [1.0, 5.0]
    assert not (piece.coords == 99).any()


# genes and organism


def test_ensembl_ids_versions_and_prefixes() -> None:
    adata = make(genes=["GRCh38_TP53", "b", "c", "d", "e"])
    adata.var["gene_ids"] = [
        "GRCh38_ENSG00000141510.17",
        "ENSG00000146648",
        None,
        "NegControl",
        "ENSG00000111640.15",
    ]
    piece = Slice.from_anndata(adata)
    assert piece.gene_ids.tolist() == [
        "ENSG00000141510",
        "ENSG00000146648",
        "",
        "",
        "ENSG00000111640",
    ]
    assert piece.gene_symbols.tolist() == ["TP53", "b", "c", "d", "e"]
    assert piece.organism == "human"
    index = make(genes=["ENSMUSG00000059552.14", "mm10___ENSMUSG00000020122", "x", "y", "z"])
    index.var["feature_name"] = pd.Categorical(["Trp53", "Egfr", None, "y", "z"])
    piece = Slice.from_anndata(index)
    assert piece.gene_ids.tolist()[:3] == ["ENSMUSG00000059552", "ENSMUSG00000020122", ""]
    assert piece.gene_symbols.tolist() == ["Trp53", "Egfr", "x", "y", "z"]
    assert piece.organism == "mouse"


def test_duplicate_genes_are_summed() -> None:
    x = np.arange(30, dtype=np.float32).reshape(6, 5)
    adata = make(genes=list("abcde"), x=x)
    adata.var["ensembl_id"] = [f"ENSG0000000000{i}" for i in ("1.1", "2", "1.2", "3", "2")]
    with pytest.warns(TerrazzoWarning, match="2 genes are in more than one column.*summed: a, b"):
        piece = Slice.from_anndata(adata)
    assert piece.gene_symbols.tolist() == ["a", "b", "d"]
    np.testing.assert_array_equal(
        piece.counts.toarray(), np.c_[x[:, 0] + x[:, 2], x[:, 1] + x[:, 4], x[:, 3]]
    )
    with pytest.warns(TerrazzoWarning, match="1 genes are in"):
        assert Slice.from_anndata(make(genes=["A1", "B1", "A1", "C1", "D1"])).n_genes == 4
    distinct = make(genes=["A1", "A1", "B1", "C1", "D1"])
    distinct.var["ensembl_id"] = [f"ENSG0000000000{i}" for i in range(5)]
    assert Slice.from_anndata(distinct).n_genes == 5


@pytest.mark.parametrize(
    ("genes", "organism"),
    [
        (["Ace2", "Trp53", "Gapdh", "mt-Nd1", "0610005C13Rik"], "mouse"),
        (GENES, "human"),
        (["a1", "b2", "c3", "d4", "e5"], "unknown"),
        ([f"ENSRNOG0000000000{i}" for i in range(5)], "unknown"),
    ],
)
def test_organism_from_genes(genes: list[str], organism: str) -> None:
    assert Slice.from_anndata(make(genes=genes)).organism == organism


def test_organism_mixed_or_stated() -> None:
    adata = make(genes=["ENSG00000141510", "ENSG00000146648", "ENSMUSG00000059552", "x", "y"])
    with pytest.warns(TerrazzoWarning, match=r"human \(67%\) and mouse \(33%\)"):
        assert Slice.from_anndata(adata).organism == "mixed"
    assert Slice.from_anndata(adata, organism="Homo sapiens").organism == "human"
    with pytest.raises(ConfigError, match="organism 'yeti'"):
        Slice.from_anndata(adata, organism="yeti")
    adata.obs["organism"] = pd.Categorical(["Mus musculus"] * 6)
    assert Slice.from_anndata(adata).organism == "mouse"
    adata.uns["organism"] = "human"
    assert Slice.from_anndata(adata).organism == "human"
