"""Reader of the feature-barcode matrix of 10x Genomics (HDF5, of Cell, Space and Xenium Ranger): its genes only."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import InputError
from terrazzo.safe_hdf5 import open_file
from terrazzo.slices.platforms.parts import compressed, dataset, reading, texts

__all__ = ["FeatureMatrix", "read_matrix"]

_GENES = "Gene Expression"  # type of the features that are genes


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


def read_matrix(path: Path) -> FeatureMatrix:
    """Read a matrix, without the features that are not genes.

    Raises
    ------
    InputError
        Damaged, of another layout, arrays that do not belong together, or no gene in it.
    """
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
        types = np.full(len(names), _GENES)
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
    is_gene = types == _GENES
    if not is_gene.any():
        listed = ", ".join(sorted(set(types)))
        raise InputError(f"{path}: no feature of the type {_GENES!r}; types: {listed}")
    var = pd.DataFrame({"gene_ids": ids[is_gene]}, index=names[is_gene].astype(object))
    if is_gene.all():
        return FeatureMatrix(barcodes, var, counts, "")
    others = Counter(types[~is_gene].tolist())
    listed = ", ".join(f"{number} {name}" for name, number in sorted(others.items()))
    n_others = sum(others.values())
    note = f"{n_others} features that are not genes left out ({listed})"
    genes = np.flatnonzero(is_gene)
    return FeatureMatrix(barcodes, var, sp.csr_matrix(counts[:, genes]), note)
