"""Positions of cells as numbers that can be computed with: of any type, finite, of a possible size."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from terrazzo.errors import InputError, shortened
from terrazzo.safe_files import check_memory
from terrazzo.sparse import check_matrix

__all__ = ["check_places", "obsm_keys", "read_numbers"]

_FARTHEST = 1e12  # of any unit: in micrometers a thousand kilometers


def obsm_keys(adata: AnnData) -> list[str]:
    """Return the names of the entries of ``obsm``.

    Raises
    ------
    InputError
        An entry is a table of other cells, after names of cells were changed in place.
    """
    try:
        return [str(key) for key in adata.obsm]
    except ValueError as error:
        reason = shortened(error, 200, quoted=False)
        raise InputError(f"obsm does not belong to the cells of this AnnData ({reason})") from error


def read_numbers(adata: AnnData, key: str, where: str) -> np.ndarray:
    """Return an entry of ``obsm`` as float64, whatever it is stored as.

    Raises
    ------
    InputError
        Not real numbers; masked values; a damaged sparse matrix; rows that do not belong to the cells.
    """
    try:
        values = adata.obsm[key]
        if hasattr(values, "compute"):
            values = values.compute()
        if sp.issparse(values):
            check_matrix(values, where)
            check_memory(8 * int(np.prod(values.shape, dtype=object)), where)
            values = values.toarray()
        if np.ma.is_masked(values):
            raise InputError(
                f"{where} is masked for some cells; remove them or fill in their coordinates"
            )
        array = np.asarray(values)
        if array.dtype.kind in "cmMV":
            raise TypeError(f"its type is {array.dtype}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is no number becomes NaN, which is refused
            return np.array(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        reason = shortened(error, 200, quoted=False)
        raise InputError(
            f"{where} does not hold numbers ({reason}); give two numeric columns, x and y"
        ) from error


def check_places(coords: np.ndarray, where: str) -> None:
    """Check that positions can be computed with: that squares of distances neither overflow nor vanish.

    Parameters
    ----------
    coords
        float64 (n, 2).
    where
        What they are, for the message.

    Raises
    ------
    InputError
        Beyond 1e12 of any unit, or all within 1e-12 of it but not equal.
    """
    farthest = float(np.abs(coords).max(initial=0.0))
    if not farthest <= _FARTHEST:
        raise InputError(
            f"{where} reaches {farthest:.3g}, and no tissue is so large; fix the coordinates or their scale"
        )
    extent = float(np.ptp(coords, axis=0).max()) if len(coords) else 0.0
    if 0 < extent < 1 / _FARTHEST:
        raise InputError(
            f"{where} spans {extent:.3g} only, and no tissue is so small; fix the coordinates or their scale"
        )
