"""Where a slice's counts come from, and how any matrix becomes one canonical CSR."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError, shortened
from terrazzo.sparse import canonical, check_matrix

__all__ = ["CountsFound", "find_counts", "to_csr"]

logger = logging.getLogger(__name__)

_CHUNK_VALUES = 2**22  # values checked, or densified, at a time


@dataclass(frozen=True)
class CountsFound:
    """Counts of one slice before gene names are read: CSR, the ``var`` table of its columns, and where it was."""

    matrix: sp.csr_matrix
    var: pd.DataFrame
    source: str
    is_counts: bool


def find_counts(adata: AnnData, layer: str | None, allow_normalized: bool) -> CountsFound:
    """Return the counts of ``adata``: named layer, ``layers["counts"]``, ``raw.X``, ``X``, in this order.

    Of ``raw.X`` and ``X`` the first that holds counts (finite, non-negative integers) is taken.

    Parameters
    ----------
    adata
        n cells x g genes, in memory or backed; never modified.
    layer
        Name of a layer; ``"X"`` and ``"raw"`` mean ``adata.X`` and ``adata.raw.X`` where no layer has that name.
    allow_normalized
        Accept non-negative values that are not integers.

    Raises
    ------
    InputError
        Missing layer; no matrix; NaN, infinite, negative or (unless allowed) non-integer values; not numbers.
    """
    first: CountsFound | None = None
    first_fault = ""
    for matrix, var, source in _candidates(adata, layer):
        csr = to_csr(matrix, source)
        fault = _fault(csr)
        candidate = CountsFound(csr, var, source, fault == "")
        if fault == "":
            if first is not None:
                logger.info("counts taken from %s: %s does not hold counts", source, first.source)
            return candidate
        if first is None or (fault == "fractional" and first_fault != "fractional"):
            first = candidate
            first_fault = fault
    if first is None:
        raise InputError(
            "the AnnData holds no expression matrix: X is empty and there is no layers['counts'] and no raw. "
            "Put the raw counts in adata.X or pass layer=."
        )
    if first_fault == "fractional" and allow_normalized:
        return first
    raise InputError(_fault_message(adata, first, first_fault))


def _candidates(adata: AnnData, layer: str | None) -> list[tuple[Any, pd.DataFrame, str]]:
    """Return matrices that may hold counts, in order, with the ``var`` of their columns and their names."""
    layers = list(adata.layers)
    if layer is not None:
        if layer in layers:
            return [(adata.layers[layer], adata.var, f"layers[{layer!r}]")]
        if layer == "X" and adata.X is not None:
            return [(adata.X, adata.var, "X")]
        if layer == "raw" and adata.raw is not None:
            return [(adata.raw.X, adata.raw.var, "raw.X")]
        raise InputError(f"there is no layer {layer!r}; layers in this AnnData: {layers or 'none'}")
    if keys.COUNTS_LAYER in layers:
        return [(adata.layers[keys.COUNTS_LAYER], adata.var, f"layers[{keys.COUNTS_LAYER!r}]")]
    candidates: list[tuple[Any, pd.DataFrame, str]] = []
    if adata.raw is not None:
        candidates.append((adata.raw.X, adata.raw.var, "raw.X"))
    if adata.X is not None:
        candidates.append((adata.X, adata.var, "X"))
    return candidates


def _fault(csr: sp.csr_matrix) -> str:
    """Name what keeps the values from being counts ("" if nothing), in bounded memory."""
    fractional = False
    for start in range(0, csr.nnz, _CHUNK_VALUES):
        values = csr.data[start : start + _CHUNK_VALUES]
        if not np.isfinite(values).all():
            return "nonfinite"
        if values.min() < 0:
            return "negative"
        fractional = fractional or bool((values != np.rint(values)).any())
    return "fractional" if fractional else ""


def _fault_message(adata: AnnData, found: CountsFound, fault: str) -> str:
    where = found.source
    values = found.matrix.data
    others = [f"layer={name!r}" for name in adata.layers if f"layers[{name!r}]" != where]
    if others:
        fix = f"Pass the layer that holds raw counts: {' or '.join(others)}"
    else:
        fix = "There is no other layer: put the raw counts in adata.layers['counts'] (or adata.X)"
    if fault == "fractional":
        examples = values[values != np.rint(values)][:3]
        shown = ", ".join(f"{value:g}" for value in examples)
        return (
            f"{where} does not hold counts: values are not integers (e.g. {shown}), as after normalization. "
            f"{fix}, or pass allow_normalized=True where a model takes ranks only."
        )
    if fault == "nonfinite":
        is_bad = ~np.isfinite(values)
        what = "NaN or infinite values"
    else:
        is_bad = values < 0
        what = "negative values, as after scaling; counts cannot be negative"
    bad = np.flatnonzero(is_bad)
    rows = np.unique(np.searchsorted(found.matrix.indptr, bad, side="right") - 1)
    cells = ", ".join(str(adata.obs_names[row]) for row in rows[:3])
    return f"{where} holds {len(bad)} {what} (first cells: {cells}). {fix}."


def to_csr(matrix: Any, where: str = "X") -> sp.csr_matrix:
    """Return any two-dimensional matrix as a new canonical CSR of float32 (float64 where a value exceeds 2**24).

    Parameters
    ----------
    matrix
        scipy sparse (any format), numpy (array, matrix, memmap), h5py dataset, backed sparse dataset of anndata, or
        dask array. A sparse matrix is never densified; a dense one is read some rows at a time.
    where
        Name used in error messages.

    Raises
    ------
    InputError
        If the values are not real numbers or the matrix is not two-dimensional.
    """
    if hasattr(matrix, "to_memory"):  # anndata's backed sparse datasets
        matrix = _in_memory(matrix, where)
    if len(getattr(matrix, "shape", ())) != 2:
        raise InputError(f"{where} is not a two-dimensional matrix (found {type(matrix).__name__})")
    dtype = np.dtype(matrix.dtype)
    if dtype.kind not in "biuf":
        raise InputError(
            f"{where} does not hold numbers (dtype {dtype}); convert it to a numeric matrix"
        )
    if sp.issparse(matrix):
        return canonical(_sparse_copy(matrix, where))
    if hasattr(matrix, "map_blocks"):  # dask: a block is checked before rows of it are taken
        matrix = matrix.map_blocks(_checked, where, dtype=matrix.dtype, meta=matrix._meta)
    n_rows, n_cols = matrix.shape
    step = max(1, _CHUNK_VALUES // max(1, n_cols))
    blocks = []
    for start in range(0, n_rows, step):
        block = _block(matrix, start, start + step)
        blocks.append(_sparse_copy(block, where))
    if not blocks:
        return sp.csr_matrix((n_rows, n_cols), dtype=np.float32)
    if len(blocks) == 1:
        return canonical(blocks[0])
    return canonical(sp.vstack(blocks, format="csr"))


def _in_memory(matrix: Any, where: str) -> Any:
    """Read a matrix that is in a file."""
    try:
        return matrix.to_memory()
    except (OSError, KeyError, ValueError, TypeError, IndexError, MemoryError) as error:
        raise InputError(f"{where} cannot be read ({shortened(error, quoted=False)})") from error


def _checked(block: Any, where: str) -> Any:
    """Return a block that no compiled code has read yet, checked."""
    check_matrix(block, where)
    return block


def _block(matrix: Any, start: int, stop: int) -> Any:
    block = matrix[start:stop]
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if sp.issparse(block):
        return block
    return sp.csr_matrix(np.asarray(block, dtype=np.float64))


def _native(array: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of this machine."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _sparse_copy(matrix: Any, where: str) -> sp.csr_matrix:
    """Check a sparse matrix and copy it to CSR, wide enough that summing duplicates cannot overflow or round."""
    check_matrix(matrix, where)
    if matrix.format in (
        "csr",
        "csc",
    ):  # a new one: flags that were set before its arrays changed are not its
        n_values = int(matrix.indptr[-1])  # behind them there may be room
        data, indices = matrix.data[:n_values], matrix.indices[:n_values]
        arrays = (_native(data), _native(indices), _native(matrix.indptr))
        matrix = type(matrix)(arrays, shape=matrix.shape, copy=False)
    exact = (
        matrix.format in ("csr", "csc")
        and matrix.dtype == np.float32
        and matrix.has_canonical_format
    )
    wide = matrix.astype(np.float32 if exact else np.float64, copy=True)
    csr = sp.csr_matrix(wide.tocsr())
    check_matrix(csr, where)
    return csr
