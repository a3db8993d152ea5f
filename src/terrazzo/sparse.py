"""Sparse matrices: the check of foreign ones, their canonical form, and columns or rows that are summed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import InputError, TerrazzoError, shortened

__all__ = [
    "FLOAT32_EXACT",
    "canonical",
    "check_anndata",
    "check_arrays",
    "check_matrix",
    "merge_columns",
    "merge_rows",
]

FLOAT32_EXACT = 2**24  # the largest integer up to which float32 holds every integer
INT32_MAX = 2**31 - 1


def check_arrays(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    sides: tuple[int, int],
    where: str,
    error: type[TerrazzoError] = InputError,
) -> None:
    """Check the arrays of a compressed matrix, so that no compiled code reads or writes beyond it.

    Parameters
    ----------
    data, indices, indptr
        As of a CSR or CSC matrix; nothing else has read them yet.
    sides
        Rows and columns of a CSR, columns and rows of a CSC.
    where, error
        For the message.

    Raises
    ------
    error
        Arrays that are not one-dimensional, not of numbers (indices: of whole numbers), or do not belong together; row
        pointers that do not start at 0, fall, or end beyond the values; an index outside of the matrix.
    """
    fault = _fault_of_kinds(data, indices, indptr)
    if not fault:
        fault = _fault_of_pointers(data, indices, indptr, sides[0])
    if not fault:
        fault = _fault_of_indices(indices, indptr, sides[1])
    if fault:
        raise error(f"{where} is a damaged sparse matrix: {fault}. Write it again from its source")


def _fault_of_kinds(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any]) -> str:
    """Say which array is not of a kind that a matrix can have; "" for none."""
    kinds = {"data": "biufc", "indices": "iu", "indptr": "iu"}
    arrays = {"data": data, "indices": indices, "indptr": indptr}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            return f"{name} is not a one-dimensional array"
        if array.dtype.kind not in kinds[name]:
            return f"{name} is of type {array.dtype}"
    return ""


def _fault_of_pointers(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], major: int
) -> str:
    """Say what is wrong with the pointers to the values of each row (or column); "" for nothing."""
    n_pointers = len(indptr)
    if n_pointers != major + 1:
        return f"indptr has {n_pointers:,} entries, not {major + 1:,}"
    if indptr[0] != 0:
        return f"indptr starts at {indptr[0]}, not 0"
    falls = indptr[1:] < indptr[:-1]
    if falls.any():
        return "indptr falls"
    n_data = len(data)
    n_indices = len(indices)
    end = int(indptr[-1])
    if end > min(n_data, n_indices):
        return f"indptr ends at {end:,}; there are {n_data:,} values and {n_indices:,} indices"
    return ""


def _fault_of_indices(indices: NDArray[Any], indptr: NDArray[Any], minor: int) -> str:
    """Say whether an index is outside of the matrix; "" for none."""
    end = int(indptr[-1])
    used = indices[:end]
    if end == 0 or _largest_index(used) < minor:
        return ""
    lowest = int(used.min())
    highest = int(used.max())
    return f"indices reach from {lowest:,} to {highest:,}, not from 0 to at most {minor - 1:,}"


def _largest_index(indices: NDArray[Any]) -> int:
    """Return the largest index in one pass; a negative one counts as a huge one."""
    native = indices.dtype.newbyteorder("=")
    if indices.dtype.kind == "i" and indices.dtype == native:
        unsigned = np.dtype(f"u{indices.dtype.itemsize}")
        return int(indices.view(unsigned).max())
    if int(indices.min()) < 0:
        return int(np.iinfo(np.int64).max)
    return int(indices.max())


def check_matrix(matrix: Any, where: str, error: type[TerrazzoError] = InputError) -> None:
    """Check a sparse matrix of SciPy in any format; errors as :func:`check_arrays`. Anything else is left alone."""
    if not sp.issparse(matrix):
        return
    n_rows, n_columns = matrix.shape
    if matrix.format in ("csr", "csc"):
        sides = (n_rows, n_columns) if matrix.format == "csr" else (n_columns, n_rows)
        check_arrays(matrix.data, matrix.indices, matrix.indptr, sides, where, error)
    elif matrix.format == "bsr":
        height, width = matrix.blocksize
        sides = (n_rows // height, n_columns // width)
        first = np.zeros(len(matrix.data), dtype=np.int8)  # a block each, however large
        check_arrays(first, matrix.indices, matrix.indptr, sides, where, error)
    elif matrix.format == "coo":
        _check_triples(matrix, where, error)


def _check_triples(matrix: Any, where: str, error: type[TerrazzoError]) -> None:
    """Check rows and columns of a matrix of triples."""
    n_values = len(matrix.data)
    axes = (matrix.row, matrix.col)
    for index, side in zip(axes, matrix.shape, strict=True):
        is_index = index.ndim == 1 and index.dtype.kind in "iu"
        fits = is_index and len(index) == n_values
        if fits and n_values:
            fits = _largest_index(index) < side
        if not fits:
            raise error(
                f"{where} is a damaged sparse matrix: rows or columns are outside of {matrix.shape}. "
                "Write it again from its source"
            )


def check_anndata(adata: AnnData, where: str, error: type[TerrazzoError] = InputError) -> None:
    """Check every sparse matrix of an AnnData in memory that comes from a file; errors as :func:`check_arrays`."""
    check_matrix(adata.X, f"{where}: X", error)
    if adata.raw is not None:
        check_matrix(adata.raw.X, f"{where}: raw.X", error)
    for kind in ("layers", "obsm", "varm", "obsp", "varp"):
        slots: Mapping[str, Any] = getattr(adata, kind)
        for name, value in slots.items():
            check_matrix(value, f"{where}: {kind}[{shortened(name)}]", error)


def canonical(csr: sp.csr_matrix) -> sp.csr_matrix:
    """Sort, sum duplicates, drop explicit zeros (in place) and return the narrowest exact dtype.

    float32, or float64 where an absolute value exceeds 2**24; indices int32 where they fit.
    """
    csr.sum_duplicates()
    csr.eliminate_zeros()
    _, n_columns = csr.shape
    largest = _largest(csr)
    needs_float64 = FLOAT32_EXACT < largest < np.inf
    data_type = np.float64 if needs_float64 else np.float32
    fits_int32 = max(csr.nnz, n_columns) < INT32_MAX
    index_type = np.int32 if fits_int32 else np.int64
    with np.errstate(over="ignore"):  # beside an infinite value, and refused with it
        data = csr.data.astype(data_type, copy=False)
    if (
        data.dtype != csr.data.dtype and not data.all()
    ):  # values so small that float32 has 0 for them
        csr.data = data
        csr.eliminate_zeros()
        data = csr.data
    indices = csr.indices.astype(index_type, copy=False)
    indptr = csr.indptr.astype(index_type)
    out = sp.csr_matrix((data, indices, indptr), shape=csr.shape, copy=False)
    out.has_sorted_indices = True
    out.has_canonical_format = True
    return out


def _largest(csr: sp.csr_matrix) -> float:
    """Return the largest absolute value; 0 for a matrix without values."""
    if csr.nnz == 0:
        return 0.0
    highest = float(csr.data.max())
    lowest = float(csr.data.min())
    return max(abs(highest), abs(lowest))


def merge_columns(csr: sp.csr_matrix, column: Ints, n_columns: int) -> sp.csr_matrix:
    """Sum columns that become one.

    Parameters
    ----------
    csr
        (n, g), canonical.
    column
        int64 (g,), the new column of each old one, all in ``range(n_columns)``.
    n_columns
        Number of columns of the result.
    """
    n_rows, _ = csr.shape
    data = csr.data.astype(np.float64)
    indices = column[csr.indices]
    indptr = csr.indptr.copy()
    merged = sp.csr_matrix((data, indices, indptr), shape=(n_rows, n_columns))
    return canonical(merged)


def merge_rows(csr: sp.csr_matrix, row: Ints, n_rows: int) -> sp.csr_matrix:
    """Sum rows that become one; returns ``csr`` itself where every row stays where it is.

    Parameters
    ----------
    csr
        (n, g).
    row
        int64 (n,), the new row of each old one, all in ``range(n_rows)``.
    n_rows
        Number of rows of the result.
    """
    n = len(row)
    old_row = np.arange(n)
    if n == n_rows and np.array_equal(row, old_row):
        return csr
    ones = np.ones(n, csr.dtype)
    members = sp.csr_matrix((ones, (row, old_row)), shape=(n_rows, n))
    return sp.csr_matrix(members @ csr)
