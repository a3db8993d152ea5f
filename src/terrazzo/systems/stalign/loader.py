"""Loader of spots of a corpus's slices (ST-Align)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.corpus.loader import Collate, ItemLoader, Members, Shard, Stream

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus

__all__ = ["SpotBatch", "SpotLoader"]


@dataclass(frozen=True)
class SpotBatch:
    """Random spots, those of a slice side by side and in the order of its rows.

    Attributes
    ----------
    member
        int64 ``(n,)``: slice of each spot, a position in the loader's ``ids``.
    rows
        int64 ``(n,)``: row of each spot in its slice.
    """

    member: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def by_slice(self) -> Iterator[tuple[int, Ints]]:
        """Yield each slice and its rows."""
        for member in np.unique(self.member).tolist():
            yield member, self.rows[self.member == member]


class SpotLoader(ItemLoader[Any]):
    """Spots of all slices of a split, in random order: what ST-Align is pretrained on.

    Parameters
    ----------
    corpus
        Where the slices are.
    make
        Called with a batch, its epoch and its step, in the reading thread; what it returns is passed on.
    split
        Only slices of this split are read.
    batch_spots
        Spots of a batch in each process.
    keep
        Returns True for a slice that is read; None: all are.
    seed, shard, drop_last, prefetch
        As in :class:`terrazzo.corpus.loader.Loader`.
    share
        Share of the slices.

    Raises
    ------
    CorpusError
        The split has no slice, or none that is read.
    ConfigError
        Settings that are impossible.
    """

    def __init__(
        self,
        corpus: Corpus,
        make: Callable[[SpotBatch, int, int], Any],
        *,
        split: str = "train",
        batch_spots: int = 256,
        seed: int = 0,
        shard: Shard = Shard(),
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        keep: Callable[[str], bool] | None = None,
        collate: Collate | None = None,
    ) -> None:
        members = Members(corpus, split, share, keep)
        self._ends = np.cumsum(members.n_cells)
        super().__init__(
            int(self._ends[-1]),
            batch_spots,
            Stream.SPOT_ORDER,
            self._read_spots,
            members=members,
            shard=shard,
            seed=seed,
            settings={},
            drop_last=drop_last,
            prefetch=prefetch,
            collate=collate,
        )
        self._make = make

    def _read_spots(self, spots: Ints, epoch: int, step: int) -> Any:
        spots = np.sort(spots)
        member = np.searchsorted(self._ends, spots, side="right").astype(np.int64)
        first = np.append(0, self._ends)[member]
        return self._make(SpotBatch(member, spots - first), epoch, step)
