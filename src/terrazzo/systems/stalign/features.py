"""What ST-Align's trained part reads of a slice: crops, frozen features, values; batches of spots as tensors.

Nothing of it changes in training, so that it is made once: in memory for one ``embed``, or in a
:class:`~terrazzo.systems.stalign.feature_cache.FeatureCache`, where each array is found by the slice's content and the settings
that it depends on, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.arrays import Ints
from terrazzo.systems.stalign.aligned import AlignedSlice

Modality = Literal["both", "genes", "image"]
Scale = Literal["spot", "niche"]


Standards = tuple[NDArray[np.float32], NDArray[np.float32]]


class Rows(Protocol):
    """Rows that are read when they are asked for: an array, on disk or not, or crops of an image."""

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

    def __len__(self) -> int:
        """Return the number of spots."""
        return len(self.spots)

    def to(self, device: torch.device | str) -> AlignBatch:
        """Return the batch on a device."""
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in held.items()}
        return AlignBatch(**moved)

    @classmethod
    def join(cls, batches: Sequence[AlignBatch]) -> AlignBatch:
        """Return one batch of several, in their order."""
        parts = {f.name: [getattr(b, f.name) for b in batches] for f in fields(cls)}
        whole: dict[str, Any] = {
            k: None if v[0] is None else torch.cat(v) for k, v in parts.items()
        }
        return cls(**whole)


@dataclass(frozen=True, eq=False)
class Features:
    """Everything of one slice; attributes as in :class:`AlignBatch`, of all spots.

    Attributes
    ----------
    members
        int64 ``(n, K + 1)``: rows of each niche.
    known
        bool ``(G,)``.
    colors
        float32 ``(2, 3)``, or None.
    standards
        Of the parts that are standardized within the slice: mean and sd, by the part's name.
    """

    members: Ints
    known: NDArray[np.bool_]
    spot_image: Rows | None = None
    niche_image: Rows | None = None
    spot_genes: Rows | None = None
    niche_genes: Rows | None = None
    colors: NDArray[np.float32] | None = None
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
            Number of this slice's first spot, so that spots of several slices can be told apart.
        """
        rows = np.asarray(rows, dtype=np.int64)
        n, members = len(rows), self.members[rows]
        return AlignBatch(
            self._part("spot_image", rows),
            self._part("niche_image", rows),
            self._part("spot_genes", rows),
            self._part("niche_genes", rows),
            torch.from_numpy(np.broadcast_to(self.known, (n, len(self.known))).copy()),
            None
            if self.colors is None
            else torch.from_numpy(np.broadcast_to(self.colors, (n, 2, 3)).copy()),
            torch.from_numpy(rows + first),
            torch.from_numpy(np.where(members < 0, -1, members + first)),
        )

    def _part(self, name: str, rows: Ints) -> Tensor | None:
        held: Rows | None = getattr(self, name)
        if held is None:
            return None
        values = np.ascontiguousarray(held[rows])
        if name in (self.standards or {}):
            mean, deviation = (self.standards or {})[name]
            values = standardized(values, mean, deviation)
        return torch.from_numpy(values)


class NicheValues:
    """Mean log values over niches, made when they are asked for."""

    def __init__(self, aligned: AlignedSlice) -> None:
        self._aligned = aligned

    def __len__(self) -> int:
        return len(self._aligned)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Return float32 ``(len(rows), G)``."""
        return self._aligned.niche_values(np.arange(len(self))[rows])


def moments(rows: Rows, size: int = 4096) -> Standards:
    """Return mean and standard deviation of each column over all rows, read some at a time."""
    n, first, second = 0, np.zeros(1), np.zeros(1)
    for start in range(0, len(rows), size):
        block = np.asarray(rows[np.arange(start, min(start + size, len(rows)))], dtype=np.float64)
        n, first, second = (
            n + len(block),
            first + block.sum(axis=0),
            second + (block**2).sum(axis=0),
        )
    mean = first / max(n, 1)
    return mean.astype(np.float32), np.sqrt(np.maximum(second / max(n, 1) - mean**2, 0)).astype(
        np.float32
    )


def standardized(
    values: NDArray[np.float32], mean: NDArray[np.float32], deviation: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return values of mean 0 and sd 1; 0 where they do not vary: rounding is not blown up."""
    flat = deviation <= 1e-6 + 1e-5 * np.abs(mean)
    return np.where(flat, 0, (values - mean) / np.where(flat, 1, deviation)).astype(np.float32)


def batches(n: int, size: int) -> Iterator[Ints]:
    """Yield all rows in order, some at a time."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))
