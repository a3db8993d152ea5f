"""Features that ST-Align's trained part reads of a slice: crops, frozen features, values; batches of them as tensors.

They do not change in training, so they are computed once: in memory for one ``embed``, or in a
:class:`~terrazzo.systems.stalign.feature_cache.FeatureCache`, where each array is named after the slice's content and
the settings that it depends on, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.arrays import Bools, Ints, Vectors
from terrazzo.models.projections import standardized
from terrazzo.systems.stalign.aligned import AlignedSlice

__all__ = [
    "AlignBatch",
    "Features",
    "Modality",
    "NicheValues",
    "Rows",
    "Scale",
    "Standards",
    "batches",
    "moments",
    "one_scale",
]

Modality = Literal["both", "genes", "image"]

Scale = Literal["spot", "niche"]

Standards = tuple[Vectors, Vectors]  # mean and standard deviation of each column


class Rows(Protocol):
    """Rows that are read when they are indexed: an array, on disk or in memory, or crops of an image."""

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        """Return some rows."""

    def __len__(self) -> int:
        """Return the number of rows."""


@dataclass(frozen=True)
class AlignBatch:
    """Spots as tensors; what a modality does not need is None.

    Attributes
    ----------
    spot_image
        uint8 ``(n, P, P, 3)``; without adaptive encoders float32 ``(n, d_i)``.
    niche_image
        float32 ``(n, d_i)``.
    spot_genes
        float32 ``(n, d_g)``.
    niche_genes
        float32 ``(n, G)``; without adaptive encoders ``(n, d_g)``.
    niche_components
        float32 ``(n, d_g)``: mean of ``spot_genes`` over the niche; only where vectors start from it.
    known
        bool ``(n, G)``: genes that the spot's slice has measured.
    colors
        float32 ``(n, 2, 3)``: mean and sd of the slice's colors; None where they are fixed.
    spots, niches
        int64 ``(n,)``, ``(n, K + 1)``: numbers of the spots and of their niche's members, -1 for none.
    """

    spot_image: Tensor | None
    niche_image: Tensor | None
    spot_genes: Tensor | None
    niche_genes: Tensor | None
    known: Tensor
    colors: Tensor | None
    spots: Tensor
    niches: Tensor
    niche_components: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of spots."""
        return len(self.spots)

    def to(self, device: torch.device | str) -> AlignBatch:
        """Return the batch on a device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            moved[field.name] = None if tensor is None else tensor.to(device)
        return AlignBatch(**moved)

    @classmethod
    def join(cls, batches: Sequence[AlignBatch]) -> AlignBatch:
        """Return one batch of several, in their order."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            parts = [getattr(batch, field.name) for batch in batches]
            joined[field.name] = None if parts[0] is None else torch.cat(parts)
        return cls(**joined)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of all spots of one slice; attributes as in :class:`AlignBatch`.

    Attributes
    ----------
    members
        int64 ``(n, K + 1)``: rows of each niche.
    known
        bool ``(G,)``.
    colors
        float32 ``(2, 3)``, or None.
    standards
        Of the parts that are standardized within the slice: mean and what is divided by, by the part's name.
    """

    members: Ints
    known: Bools
    spot_image: Rows | None = None
    niche_image: Rows | None = None
    spot_genes: Rows | None = None
    niche_genes: Rows | None = None
    niche_components: Rows | None = None
    colors: Vectors | None = None
    standards: dict[str, Standards] | None = None

    def __len__(self) -> int:
        """Return the number of spots."""
        return len(self.members)

    def take(self, rows: Any, first: int = 0) -> AlignBatch:
        """Return some spots as tensors.

        Parameters
        ----------
        rows
            Integers.
        first
            Number of this slice's first spot, so that spots of several slices are distinct.
        """
        rows = np.asarray(rows, dtype=np.int64)
        members = self.members[rows]
        niches = np.where(members < 0, -1, members + first)
        colors = None
        if self.colors is not None:
            colors = _repeated(self.colors, len(rows))
        return AlignBatch(
            spot_image=self._part("spot_image", rows),
            niche_image=self._part("niche_image", rows),
            spot_genes=self._part("spot_genes", rows),
            niche_genes=self._part("niche_genes", rows),
            known=_repeated(self.known, len(rows)),
            colors=colors,
            spots=torch.from_numpy(rows + first),
            niches=torch.from_numpy(niches),
            niche_components=self._part("niche_components", rows),
        )

    def _part(self, name: str, rows: Ints) -> Tensor | None:
        part: Rows | None = getattr(self, name)
        if part is None:
            return None
        values = np.ascontiguousarray(part[rows])
        standards = self.standards or {}
        if name in standards:
            mean, deviation = standards[name]
            values = standardized(values, mean, deviation)
        return torch.from_numpy(values)


def _repeated(array: NDArray[Any], n: int) -> Tensor:
    """Return an array ``n`` times along a new first axis."""
    copies = np.broadcast_to(array, (n, *array.shape)).copy()
    return torch.from_numpy(copies)


class NicheValues:
    """Mean log values over niches, computed when they are indexed."""

    def __init__(self, aligned: AlignedSlice) -> None:
        self._aligned = aligned

    def __len__(self) -> int:
        return len(self._aligned)

    def __getitem__(self, rows: Any) -> Vectors:
        """Return float32 ``(len(rows), G)``."""
        numbers = np.arange(len(self))[rows]
        return self._aligned.niche_values(numbers)


def moments(rows: Rows, size: int = 4096) -> Standards:
    """Return mean and standard deviation of each column over all rows, read some at a time."""
    total: Any = np.zeros(1)
    square_total: Any = np.zeros(1)
    for numbers in batches(len(rows), size):
        block = np.asarray(rows[numbers], dtype=np.float64)
        total = total + block.sum(axis=0)
        square_total = square_total + (block**2).sum(axis=0)
    n = max(len(rows), 1)
    mean = total / n
    variance = np.maximum(square_total / n - mean**2, 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def one_scale(standards: Standards) -> Standards:
    """Return means, and one number for all columns: what the rows' root mean square length is after centering."""
    mean, deviation = standards
    length = np.sqrt(np.square(deviation, dtype=np.float64).sum())
    return mean, np.full_like(deviation, length)


def batches(n: int, size: int) -> Iterator[Ints]:
    """Yield all rows in order, some at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))
