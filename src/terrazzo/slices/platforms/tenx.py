"""Reader of the feature-barcode matrix of 10x Genomics (HDF5 or Matrix Market): its genes only."""

from __future__ import annotations

import glob
import gzip
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import InputError
from terrazzo.genes.features import GENE_EXPRESSION, find_features
from terrazzo.safe_hdf5 import open_file
from terrazzo.safe_tables import read_csv
from terrazzo.slices.hdf5 import require_filters
from terrazzo.slices.platforms.parts import (
    as_counts,
    compressed,
    dataset,
    first_match,
    reading,
    texts,
)

__all__ = ["FeatureMatrix", "locate_matrix", "read_matrix"]

_MAX_LINE = 2**12  # bytes of the first lines of a Matrix Market file
_MIN_ENTRY = 6  # bytes of a line "1 1 1"
_MAX_INFLATION = 1032  # bytes that deflate makes of one


@dataclass(frozen=True)
class FeatureMatrix:
    """Counts of the genes, one row a barcode, and a note on the features that are not genes ("" for none)."""

    barcodes: NDArray[np.str_]
    var: pd.DataFrame
    counts: sp.csr_matrix
    left_out: str

    def to_anndata(self, rows: Ints, obs: pd.DataFrame) -> AnnData:
        """Make an AnnData of some rows; ``obs`` has one row for each of them."""
        is_whole = len(rows) == self.counts.shape[0]
        counts = self.counts if is_whole else self.counts[rows]
        obs = obs.set_axis(self.barcodes[rows], axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # symbols may repeat: genes are distinguished by their ids
            return AnnData(counts, obs=obs, var=self.var)


def locate_matrix(folder: Path, name: str) -> dict[str, Path]:
    """Find a matrix: ``<name>.h5``, else three files (matrix, barcodes, features) in a folder of the name, or beside.

    All may have a prefix, as GEO gives them.
    """
    counts = first_match(
        folder,
        (
            (f"{name}.h5",),
            (f"*_{name}.h5",),
            (f"{name}/matrix.mtx", f"{name}/matrix.mtx.gz"),
            (f"{name}/*matrix.mtx", f"{name}/*matrix.mtx.gz"),
            ("*matrix.mtx", "*matrix.mtx.gz"),
        ),
        "the matrix of counts",
    )
    files = {"counts": counts}
    if counts.suffix != ".h5":
        place = counts.parent
        prefix = glob.escape(counts.name.removesuffix(".gz").removesuffix("matrix.mtx"))
        for role, names in (("barcodes", ("barcodes",)), ("features", ("features", "genes"))):
            patterns = [[f"{prefix}{one}.tsv", f"{prefix}{one}.tsv.gz"] for one in names]
            files[role] = first_match(place, patterns, f"the list of {role}")
    return files


def read_matrix(files: dict[str, Path]) -> FeatureMatrix:
    """Read a matrix that :func:`locate_matrix` found, without the features that are not genes.

    Raises
    ------
    InputError
        Damaged, of another layout, arrays that do not belong together, or no gene in it.
    """
    path = files["counts"]
    if path.suffix != ".h5":
        return _read_three_files(files)
    require_filters(path)
    with reading(path), open_file(path) as file:
        group = file.get("matrix")
        if not isinstance(group, h5py.Group):
            raise InputError(
                f"{path}: group /matrix is missing; this is not a feature-barcode matrix of version 3"
            )
        barcodes = texts(dataset(group, "barcodes", "SO", path))
        shape = dataset(group, "shape", "iu", path)
        names = texts(dataset(group, "features/name", "SO", path))
        ids = texts(dataset(group, "features/id", "SO", path))
        types = np.full(len(names), GENE_EXPRESSION)
        if "features/feature_type" in group:
            types = texts(dataset(group, "features/feature_type", "SO", path))
        data = dataset(group, "data", "iu", path)
        indices = dataset(group, "indices", "iu", path)
        indptr = dataset(group, "indptr", "iu", path)
    n_features = len(names)
    n_cells = len(barcodes)
    stated = shape.tolist()
    if stated != [n_features, n_cells] or len(ids) != n_features or len(types) != n_features:
        raise InputError(
            f"{path}: shape says {stated}, there are {n_features} features, {n_cells} cells"
        )
    # compressed columns of features x cells are compressed rows of cells x features
    counts = compressed(data, indices, indptr, (n_cells, n_features), str(path))
    return _genes_of(path, barcodes, counts, ids, names, types)


def _genes_of(
    path: Path,
    barcodes: NDArray[np.str_],
    counts: sp.csr_matrix,
    ids: NDArray[np.str_],
    names: NDArray[np.str_],
    types: NDArray[np.str_],
) -> FeatureMatrix:
    """Return the columns that are genes."""
    var = pd.DataFrame({"gene_ids": ids, "feature_types": types}, index=names.astype(object))
    features = find_features(var, of_10x=True)
    if not features.is_gene.any():
        raise InputError(
            f"{path}: no feature of the type {GENE_EXPRESSION!r}; types: {features.left_out}"
        )
    var = var[["gene_ids"]]
    if features.all_genes:
        return FeatureMatrix(barcodes, var, counts, "")
    genes = np.flatnonzero(features.is_gene)
    return FeatureMatrix(barcodes, var.iloc[genes], sp.csr_matrix(counts[:, genes]), features.note)


def _read_three_files(files: dict[str, Path]) -> FeatureMatrix:
    """Read ``matrix.mtx``, features x cells, with ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``)."""
    import scipy.io

    path = files["counts"]
    barcodes = _fields(files["barcodes"])[0]
    columns = _fields(files["features"])
    ids = columns[0]
    names = columns[1] if len(columns) > 1 else ids
    types = columns[2] if len(columns) > 2 else np.full(len(ids), GENE_EXPRESSION)
    shape = (len(ids), len(barcodes))
    with reading(path):
        _check_size(path, shape)
        matrix = scipy.io.mmread(path)
    if matrix.shape != shape:
        raise InputError(
            f"{path}: shape is {matrix.shape}, there are {shape[0]} features, {shape[1]} cells"
        )
    counts = as_counts(sp.csr_matrix(sp.csr_matrix(matrix).T))
    return _genes_of(path, barcodes, counts, ids, names, types)


def _check_size(path: Path, shape: tuple[int, int]) -> None:
    """Refuse a Matrix Market file that claims more than it can hold, or another shape than its lists have."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        line = stream.readline(_MAX_LINE)
        if not line.startswith(b"%%MatrixMarket matrix coordinate"):
            raise InputError(f"{path} is not a sparse matrix in the Matrix Market form")
        while line.startswith(b"%"):
            line = stream.readline(_MAX_LINE)
    sizes = [int(size) for size in line.split()]
    inflation = _MAX_INFLATION if path.suffix == ".gz" else 1
    if len(sizes) != 3 or sizes[2] * _MIN_ENTRY > path.stat().st_size * inflation:
        raise InputError(f"{path} is damaged: it claims more values than it can hold ({sizes})")
    if (sizes[0], sizes[1]) != shape:
        raise InputError(
            f"{path}: shape says {sizes[:2]}, there are {shape[0]} features, {shape[1]} cells"
        )


def _fields(path: Path) -> list[NDArray[np.str_]]:
    """Read the columns of a ``.tsv`` without a header."""
    with reading(path):
        table = read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)
    return [table[column].to_numpy(dtype=np.str_) for column in table.columns]
