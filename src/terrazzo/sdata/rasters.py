"""Pictures and labels that stay where they are: the boxes in which they are read, their sizes looked at first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from terrazzo.errors import InputError

MOST_CHUNK = 2**30  # bytes that are decoded at once
_SIDE = 4096  # of a box, where nothing is in pieces


def check_chunks(array: Any, where: str) -> None:
    """Refuse an array of which one piece would not fit into memory.

    Raises
    ------
    InputError
        A piece of more than 1 GiB.
    """
    size = int(np.prod(_chunks(array), dtype=object)) * array.dtype.itemsize
    if size > MOST_CHUNK:
        raise InputError(
            f"{where} is stored in pieces of {size:,} bytes, more than {MOST_CHUNK:,}; write it again in smaller chunks"
        )


def boxes(array: Any, where: str) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that cover an array, each made of whole pieces.

    Raises
    ------
    InputError
        Values that are not whole numbers; pieces that are too large.
    """
    if array.dtype.kind not in "iub" or array.ndim not in (2, 3):
        raise InputError(f"{where} holds {array.dtype} of {array.ndim} dimensions, not labels")
    check_chunks(array, where)
    steps = [range(0, side, step) for side, step in zip(array.shape, _chunks(array), strict=True)]
    for corner in product(*steps):
        yield tuple(
            slice(at, min(at + axis.step, side))
            for at, axis, side in zip(corner, steps, array.shape, strict=True)
        )


def _chunks(array: Any) -> tuple[int, ...]:
    """Sides of one piece: zarr has numbers, dask has the sides of each."""
    chunks = getattr(array, "chunks", None) or tuple(min(side, _SIDE) for side in array.shape)
    return tuple(max(1, int(max(one)) if isinstance(one, tuple) else int(one)) for one in chunks)
