"""Small files in the layouts that vendors write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

GENE = "Gene Expression"


def tenx(
    path: Path,
    counts: np.ndarray,
    barcodes: Sequence[str],
    names: Sequence[str],
    ids: Sequence[str] | None = None,
    types: Sequence[str] | None = None,
) -> Path:
    """Write cells x features as 10x Genomics does: a compressed column matrix of features x barcodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    csr = sp.csr_matrix(np.asarray(counts, dtype=np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"] = csr.data, csr.indices.astype(np.int64)
        group["indptr"] = csr.indptr.astype(np.int64)
        group["shape"] = np.array([counts.shape[1], counts.shape[0]], dtype=np.int32)
        features = group.create_group("features")
        features["name"] = np.array(names, dtype="S")
        features["id"] = np.array(ids or [f"ENSG{i:011d}" for i in range(len(names))], dtype="S")
        features["feature_type"] = np.array(types or [GENE] * len(names), dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
    return path


@pytest.fixture
def write_tenx() -> Callable[..., Path]:
    """Return :func:`tenx`."""
    return tenx


@pytest.fixture
def counts() -> Callable[..., np.ndarray]:
    """Draw counts, cells x features, the same every time."""

    def draw(n: int, g: int, seed: int = 0) -> np.ndarray[Any, Any]:
        return np.random.default_rng(seed).poisson(1.5, (n, g))

    return draw
