"""AnnDatas as nobody should write them: each change is one that a file or a notebook could bring."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import strategies as st

NUMBERS = [0, 1, 2, 3.5, -1, 7, 2**24 + 1, 2**40, 1e-320, 1e30, 1e300, np.nan, np.inf, -np.inf]
TEXTS = [
    "",
    " ",
    "a",
    "TP53",
    "Tp53",
    "ENSG00000141510",
    "ENSG00000141510.17",
    "ENSMUSG00000059552",
    "\x00",
    "a/b",
]
TEXTS += [
    "../../x",
    "\udcff",
    "\u202e",
    "x" * 300,
    "_index",
    "NegPrb1",
    "GRCh38_TP53",
    "nan",
    "MT-CO1",
    "é",
    "\n",
]
ODD = [
    None,
    np.nan,
    pd.NA,
    pd.NaT,
    b"x",
    5,
    -1,
    2.5,
    True,
    (),
    [],
    {},
    object,
    10**400,
    1 + 2j,
    np.array([1, 2]),
]
ODD += [
    np.datetime64("2020-01-01"),
    np.ma.masked,
    range(3),
    [[1], [2, 3]],
    {"a": {"b": {}}},
    "x",
    np.float32(2),
]
DTYPES = [
    "f4",
    "f8",
    "f2",
    "i1",
    "i8",
    "u1",
    "u8",
    "?",
    "c8",
    "O",
    "U3",
    "S3",
    ">f4",
    ">i4",
    "m8[s]",
    "M8[s]",
]

numbers = st.sampled_from(NUMBERS)
texts = st.sampled_from(TEXTS)
odd = st.sampled_from(range(len(ODD))).map(lambda i: ODD[i])
seeds = st.integers(0, 2**16)


def plain(n_cells: int, n_genes: int, seed: int) -> AnnData:
    """Make a slice that is fine."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (n_cells, n_genes)).astype(np.float32)
    adata = AnnData(
        sp.csr_matrix(counts) if seed % 2 else counts,
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]),
    )
    adata.obsm["spatial"] = rng.uniform(0, 1000, (n_cells, 2))
    return adata


def _odd_values(adata: AnnData, draw: Any) -> None:
    """Put one odd number among the counts."""
    value = draw(numbers)
    dense = adata.X.toarray() if sp.issparse(adata.X) else np.array(adata.X)
    dense = dense.astype(np.float64)
    dense[draw(seeds) % dense.shape[0], draw(seeds) % dense.shape[1]] = value
    adata.X = sp.csc_matrix(dense) if draw(st.booleans()) else dense


def _odd_dtype(adata: AnnData, draw: Any) -> None:
    dense = adata.X.toarray() if sp.issparse(adata.X) else np.array(adata.X)
    adata.X = dense.astype(draw(st.sampled_from(DTYPES)))


def _sparse_format(adata: AnnData, draw: Any) -> None:
    """Store counts in another sparse format or type of indices."""
    matrix = sp.csr_matrix(adata.X)
    kind = draw(st.sampled_from(["csr", "csc", "i8", "u4", "coo", "room", "float16", "array"]))
    if kind in ("csr", "csc", "coo"):
        matrix = matrix.asformat(kind)
    elif kind == "room":
        matrix.data = np.append(matrix.data, np.float32([9, 9]))
        matrix.indices = np.append(matrix.indices, np.int32([-5, 10**6]))
    elif kind == "float16":
        matrix.data = matrix.data.astype(np.float16)
    elif kind == "array":
        matrix = sp.csr_array(matrix)
    else:
        matrix.indices = matrix.indices.astype(kind)
        matrix.indptr = matrix.indptr.astype(kind)
    adata.layers["counts"] = matrix


def _damaged_sparse(adata: AnnData, draw: Any, clean: np.ndarray) -> None:
    """Damage the arrays of a compressed matrix, as flipped bits or another program would."""
    matrix = (sp.csr_matrix if draw(st.booleans()) else sp.csc_matrix)(clean)
    how = draw(st.sampled_from(range(12)))
    if not matrix.nnz:
        return
    _ = matrix.has_canonical_format  # cached, and wrong from here on
    at = draw(seeds) % matrix.nnz
    if how == 0:
        matrix.indices[at] = -draw(st.integers(1, 10**6))
    elif how == 1:
        matrix.indices[at] = draw(st.integers(10**3, 2**31 - 1))
    elif how == 2:
        matrix.indptr[draw(seeds) % len(matrix.indptr)] = draw(st.integers(-(2**31), 2**31 - 1))
    elif how == 3:
        matrix.indptr = matrix.indptr[:-1]
    elif how == 4:
        matrix.indptr = np.append(matrix.indptr, matrix.indptr[-1])
    elif how == 5:
        matrix.data = matrix.data[:-1]
    elif how == 6:
        matrix.indices = matrix.indices[:-1]
    elif how == 7:
        matrix.indices = matrix.indices.astype(np.float64)
    elif how == 8:
        matrix.indices = matrix.indices[::-1].copy()
    elif how == 9:
        matrix.indices[:] = matrix.indices[0]  # all of one row are one column's
    elif how == 10:
        matrix.indptr = matrix.indptr[::-1].copy()
    else:
        matrix.indptr = matrix.indptr.astype(np.int64) + 2**33
    place = draw(st.sampled_from(["X", "layers", "raw", "obsm"]))
    if place == "X":
        adata.X = matrix
    elif place == "layers":
        adata.layers["counts"] = matrix
    elif place == "obsm":
        adata.obsm["spatial"] = matrix
    else:
        adata.raw = AnnData(clean, var=adata.var)
        adata.raw._X = matrix


def _raw(adata: AnnData, draw: Any) -> None:
    kind = draw(st.sampled_from(["zeros", "no genes", "other genes", "scaled", "nan"]))
    n = adata.n_obs
    if kind == "no genes":
        adata.raw = AnnData(np.zeros((n, 0), np.float32), obs=adata.obs)
        return
    values = np.zeros((n, 3), np.float32)
    if kind == "other genes":
        values += 2
    elif kind == "scaled":
        values -= 0.5
    elif kind == "nan":
        values += np.nan
    var = pd.DataFrame(index=["A1", "A1", draw(texts)])
    adata.raw = AnnData(values, obs=adata.obs, var=var)


def _odd_coordinates(adata: AnnData, draw: Any) -> None:
    """Store coordinates of another shape, type or size."""
    n = adata.n_obs
    xy = np.array(adata.obsm["spatial"], dtype=np.float64)
    kind = draw(st.sampled_from(range(14)))
    if kind == 0:
        xy[draw(seeds) % n, 0] = draw(numbers)
    elif kind == 1:
        xy = xy.astype(draw(st.sampled_from(DTYPES)))
    elif kind == 2:
        xy = np.ma.masked_array(xy, mask=draw(st.booleans()))
    elif kind == 3:
        xy = xy + 1j
    elif kind == 4:
        xy = xy[:, :1]
    elif kind == 5:
        xy = np.column_stack([xy, xy, xy])
    elif kind == 6:
        xy = np.zeros((n, 0))
    elif kind == 7:
        xy = pd.DataFrame(
            {"x": ["a"] * n, "y": draw(st.sampled_from([1.5, "2", None]))}, index=adata.obs_names
        )
    elif kind == 8:
        xy = sp.csr_matrix(xy)
    elif kind == 9:
        xy = xy * draw(st.sampled_from([0.0, 1e-300, 1e-160, 1e150, 1e300, -1.0]))
    elif kind == 10:
        xy = np.round(xy / 500) * 500
    elif kind == 11:
        xy = xy.astype(object)
        xy[0, 0] = draw(odd)
    elif kind == 12:
        xy = xy[:, :, None]
    else:
        del adata.obsm["spatial"]
        adata.obsm["X_spatial"] = xy
        return
    adata.obsm["spatial"] = xy


def _column(draw: Any, n: int) -> Any:
    """Return a column of a table, of any type."""
    kind = draw(st.sampled_from(range(9)))
    values = draw(st.lists(st.one_of(texts, numbers, odd), min_size=n, max_size=n))
    if kind == 0:
        return pd.Categorical([str(value) for value in values])
    if kind == 1:
        return pd.array([1, None] * n, dtype="Int64")[:n]
    if kind == 2:
        return pd.array([draw(st.sampled_from(TEXTS[:8]))] * n, dtype="string")
    if kind == 3:
        return np.arange(n) * draw(st.sampled_from([1, -1, 2**31, 0.5]))
    if kind == 4:
        return pd.date_range("2020", periods=n)
    if kind == 5:
        return [draw(texts)] * n
    column = np.empty(n, dtype=object)
    column[:] = values
    return column


OBS = [
    "array_row",
    "array_col",
    "library_id",
    "organism",
    "sample",
    "in_tissue",
    "batch",
    "terrazzo_empty",
    "x",
    "y",
]
VAR = [
    "gene_ids",
    "gene_symbols",
    "feature_types",
    "gene_name",
    "symbol",
    "ensembl_id",
    "_index",
    "feature_name",
]


def _obs_columns(adata: AnnData, draw: Any) -> None:
    for name in draw(st.lists(st.sampled_from(OBS), min_size=1, max_size=3)):
        adata.obs[name] = _column(draw, adata.n_obs)


def _var_columns(adata: AnnData, draw: Any) -> None:
    for name in draw(st.lists(st.sampled_from(VAR), min_size=1, max_size=3)):
        adata.var[name] = _column(draw, adata.n_vars)


def _lattice(adata: AnnData, draw: Any) -> None:
    """Give every cell a place on an array, some of them twice."""
    n = adata.n_obs
    step = draw(st.sampled_from([1, 2, -3, 0, 2**30, 0.5]))
    adata.obs["array_row"] = np.arange(n) // 3 * step
    adata.obs["array_col"] = np.arange(n) % 3 * draw(st.sampled_from([1, 2, 2**30]))


def _twice(adata: AnnData, draw: Any) -> None:
    """Give a table the same column twice."""
    which = draw(st.sampled_from(["obs", "var"]))
    names = OBS if which == "obs" else VAR
    table = getattr(adata, which)
    name = draw(st.sampled_from(names))
    column = pd.DataFrame({name: _column(draw, len(table))}, index=table.index)
    setattr(adata, which, pd.concat([table, column, column], axis=1))


def _odd_names(adata: AnnData, draw: Any) -> None:
    which = draw(st.sampled_from(["obs_names", "var_names"]))
    n = len(getattr(adata, which))
    kind = draw(st.sampled_from(range(5)))
    if kind == 0:
        names: Any = pd.MultiIndex.from_tuples([("a", i) for i in range(n)])
    elif kind == 1:
        names = [draw(texts)] * n
    elif kind == 2:
        names = pd.Index([draw(texts) for _ in range(n)], dtype=object)
    elif kind == 3:
        names = pd.CategoricalIndex([f"g{i % 2}" for i in range(n)])
    else:
        names = pd.Index(range(n))
    table = getattr(adata, which[:3])
    table.index = names
    if draw(st.booleans()):
        setattr(adata, f"_{which[:3]}", table)


def _technology(adata: AnnData, draw: Any) -> None:
    known = [
        "Visium",
        "visium hd",
        "Xenium",
        "ST",
        "st2k",
        "CosMx",
        "Slide-seq",
        "Stereo-seq",
        "MERFISH",
        "?",
    ]
    adata.uns["technology"] = draw(st.one_of(st.sampled_from(known), odd))


def _uns(adata: AnnData, draw: Any) -> None:
    for key in draw(
        st.lists(
            st.sampled_from(["organism", "terrazzo", "spatial", "bin_type", "resolution"]),
            max_size=3,
        )
    ):
        adata.uns[key] = draw(st.one_of(odd, texts, numbers))


def _library(adata: AnnData, draw: Any) -> None:
    """Describe the slice as Space Ranger does, nearly."""
    factors: Any = {}
    for name in (
        "tissue_hires_scalef",
        "tissue_lowres_scalef",
        "spot_diameter_fullres",
        "microns_per_pixel",
        "bin_size_um",
    ):
        if draw(st.booleans()):
            factors[name] = draw(
                st.one_of(st.sampled_from([0.1, 1.0, 65.0, "2", 1e308, 1e-308]), numbers, odd)
            )
    images: Any = {}
    for name in ("hires", "lowres"):
        if draw(st.booleans()):
            images[name] = _picture(draw)
    entry: Any = {"images": images, "scalefactors": factors}
    for name in draw(st.lists(st.sampled_from(["images", "scalefactors"]), max_size=1)):
        entry[name] = draw(odd)
    names = draw(st.lists(st.one_of(texts, st.just(5)), min_size=1, max_size=2))
    adata.uns["spatial"] = dict.fromkeys(names, entry)


def _picture(draw: Any) -> Any:
    shapes = [(4, 5, 3), (4, 5), (4, 5, 4), (4, 5, 2), (0, 5, 3), (4, 5, 3, 1), (5,), ()]
    shape = draw(st.sampled_from(shapes))
    kind = draw(st.sampled_from(["u1", "f4", "u2", "i8", "?", "c8", "O", "nan", "ragged", "odd"]))
    if kind == "ragged":
        return [[1, 2], [3]]
    if kind == "odd":
        return draw(odd)
    if kind == "nan":
        return np.full(shape, np.nan)
    return np.ones(shape).astype(kind)


CHANGES = [
    _odd_values,
    _odd_dtype,
    _sparse_format,
    _raw,
    _odd_coordinates,
    _odd_coordinates,
    _obs_columns,
]
CHANGES += [_var_columns, _lattice, _twice, _odd_names, _technology, _uns, _library]
REFUSED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
REFUSED += (RuntimeError, AssertionError)


@st.composite
def anndatas(draw: Any) -> AnnData:
    """Draw an AnnData with some faults, or none."""
    adata = plain(draw(st.integers(1, 12)), draw(st.integers(1, 6)), draw(seeds))
    clean = adata.X.toarray() if sp.issparse(adata.X) else np.array(adata.X)
    changes = draw(st.lists(st.sampled_from(CHANGES), max_size=4))
    is_damaged = draw(st.sampled_from([False, False, True]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for change in changes:
            with suppress(*REFUSED):  # what anndata, pandas or scipy refuse cannot come
                change(adata, draw)
        if is_damaged:  # last: making it into something else would crash compiled code
            with suppress(*REFUSED):
                _damaged_sparse(adata, draw, clean)
    return adata


arguments = st.fixed_dictionaries(
    {},
    optional={
        "unit": st.one_of(st.sampled_from(["um", "pixel", "array", "unknown", "µm", "miles"]), odd),
        "microns_per_unit": st.one_of(st.sampled_from([0.5, 1, 1e-9, 1e308, 0, -1]), odd),
        "technology": st.one_of(st.sampled_from(["Visium", "Xenium", "ST", "Visium HD"]), odd),
        "organism": st.one_of(st.sampled_from(["human", "mouse", "fish"]), odd),
        "layer": st.one_of(st.sampled_from(["X", "raw", "counts", "no"]), odd),
        "spatial_key": st.one_of(st.sampled_from(["spatial", "X_spatial", "no"]), odd),
        "name": st.one_of(texts, odd),
        "image": odd,
        "allow_normalized": st.booleans(),
    },
)
