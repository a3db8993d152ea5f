"""The order of a walk through the tissue: neighbours on the Hilbert curve are neighbours in space."""

from __future__ import annotations

import numpy as np

BITS = 20
"""Levels of the curve: a slice is seen as a square of 2**20 by 2**20 places (0.01 um of a centimetre)."""


def hilbert_index(coords: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Return the place of each point along the Hilbert curve through the square around all points.

    Parameters
    ----------
    coords
        float64 (n, 2), finite.
    bits
        Levels of the curve, 1 to 31.

    Returns
    -------
    numpy.ndarray
        int64 (n,), in ``range(4**bits)``.
    """
    if not len(coords):
        return np.zeros(0, dtype=np.int64)
    low = coords.min(axis=0)
    extent = float((coords.max(axis=0) - low).max())
    places = (coords - low) / extent * (2**bits - 1) if extent > 0 else np.zeros_like(coords)
    x, y = np.rint(places).astype(np.int64).T.copy()
    index = np.zeros(len(coords), dtype=np.int64)
    for level in range(bits - 1, -1, -1):
        right, up = (x >> level) & 1, (y >> level) & 1
        index += (3 * right ^ up) << (2 * level)
        side = (1 << level) - 1  # only the bits below this level matter from here on
        x, y = x & side, y & side
        turned = (up == 0) & (right == 1)
        x, y = np.where(turned, side - x, x), np.where(turned, side - y, y)
        x, y = np.where(up == 0, y, x), np.where(up == 0, x, y)
    return index


def hilbert_order(coords: np.ndarray) -> np.ndarray:
    """Return the rows in Hilbert order, int64 (n,); points at one place keep their order."""
    return np.argsort(hilbert_index(coords), kind="stable")
