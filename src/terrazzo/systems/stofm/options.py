"""Options of ``embed``: SToFM, and its cell encoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from terrazzo.models.options import EmbedOptions, option

__all__ = ["CellEmbedOptions", "SToFMEmbedOptions"]


@dataclass(frozen=True)
class CellEmbedOptions(EmbedOptions):
    """Options of ``embed`` of a cell encoder alone.

    Attributes
    ----------
    precision
        ``"float32"``, or ``"bfloat16"`` for the cell encoder (its measured error is recorded in ``uns``).
    """

    precision: Literal["float32", "bfloat16"] = option(
        "float32", "Of the cell encoder; bfloat16 may be faster. Default float32."
    )


@dataclass(frozen=True)
class SToFMEmbedOptions(CellEmbedOptions):
    """Options of ``embed`` of SToFM.

    Attributes
    ----------
    clusters
        Column of ``obs`` to make virtual cells from, instead of running Leiden.
    partition, subslice_size, halo, pair
        In place of the checkpoint's :class:`~terrazzo.systems.stofm.subslices.SubSliceConfig`.
    seed
        Seed of Leiden.
    """

    clusters: str | None = option(None, "obs column to make virtual cells from.")
    partition: Literal["balanced", "grid"] | None = option(
        None, "How a slice is divided into sub-slices."
    )
    subslice_size: int | None = option(None, "Cells a sub-slice.")
    halo: float | None = option(None, "Context around a sub-slice, in spacings.")
    pair: Literal["knn", "full", "none"] | None = option(
        None, "Pairs of cells with a true distance."
    )
    seed: int = option(0, "Seed of the clusters behind virtual cells. Default 0.")
