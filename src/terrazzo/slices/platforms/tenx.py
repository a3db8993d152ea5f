"""The feature-barcode matrix of 10x Genomics (HDF5, as Cell, Space and Xenium Ranger write it): genes of it only."""

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

from terrazzo.errors import InputError
from terrazzo.slices.platforms.parts import compressed, dataset, reading, texts

GENES = "Gene Expression"


@dataclass(frozen=True)
class Counted:
    """Counts of the genes, one row a barcode, and a line about the features that are no genes ("" for none)."""

    barcodes: NDArray[np.str_]
    var: pd.DataFrame
    counts: sp.csr_matrix
    left_out: str

    def to_anndata(self, rows: NDArray[np.int64], obs: pd.DataFrame) -> AnnData:
        """Make an AnnData of some rows; ``obs`` has one row for each of them."""
        counts = self.counts if len(rows) == self.counts.shape[0] else self.counts[rows]
        with warnings.catch_warnings():  # symbols may repeat: genes are told apart by their ids
            warnings.simplefilter("ignore")
            return AnnData(counts, obs=obs.set_axis(self.barcodes[rows], axis=0), var=self.var)


def read_matrix(path: Path) -> Counted:
    """Read a matrix, without the features that are no genes.

    Raises
    ------
    InputError
        Damaged, of another layout, arrays that do not belong together, or no gene in it.
    """
    with reading(path), h5py.File(path, "r") as file:
        group = file.get("matrix")
        if not isinstance(group, h5py.Group):
            raise InputError(
                f"{path}: group /matrix is missing; this is no feature-barcode matrix of version 3"
            )
        barcodes = texts(dataset(group, "barcodes", "SO", path))
        shape = dataset(group, "shape", "iu", path)
        names, ids = (
            texts(dataset(group, f"features/{part}", "SO", path)) for part in ("name", "id")
        )
        typed = "features/feature_type" in group
        types = (
            texts(dataset(group, "features/feature_type", "SO", path))
            if typed
            else np.full(len(names), GENES)
        )
        data, indices, indptr = (
            dataset(group, part, "iu", path) for part in ("data", "indices", "indptr")
        )
    if shape.tolist() != [len(names), len(barcodes)] or not len(names) == len(ids) == len(types):
        raise InputError(
            f"{path}: shape says {shape.tolist()}, there are {len(names)} features, {len(barcodes)} cells"
        )
    csr = compressed(
        data, indices, indptr, (len(barcodes), len(names)), str(path)
    )  # features by column: cells by row
    genes = np.flatnonzero(types == GENES)
    if not len(genes):
        raise InputError(
            f"{path}: no feature of the type {GENES!r}; types: {', '.join(sorted(set(types)))}"
        )
    others = Counter(types[types != GENES].tolist())
    said = (
        f"{sum(others.values())} features that are no genes left out ({_listed(others)})"
        if others
        else ""
    )
    var = pd.DataFrame({"gene_ids": ids[genes]}, index=names[genes].astype(object))
    return Counted(barcodes, var, csr if not others else sp.csr_matrix(csr[:, genes]), said)


def _listed(others: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(others.items()))
