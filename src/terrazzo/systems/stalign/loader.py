"""The fourth door to training: random spots of the slices of a corpus, by number, in an order that can be resumed.

As the loaders of :mod:`terrazzo.systems.stofm.loaders`: one split, every spot on one rank, the same number of batches on every
rank, and a small state from which another loader continues with the very next batch. What is read of a spot is the
business of who asks: its rows of arrays that were made before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.corpus.loader import Loader, Members, Shares

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


SPOT_ORDER = (
    7  # what a random stream is for; 1 to 6 are those of the other loaders and of what they hide
)


T = TypeVar("T")


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


class SpotLoader(Loader[T]):
    """Spots of all slices of a split, in random order: what ST-Align is pretrained on.

    Parameters
    ----------
    corpus
        Where the slices are.
    make
        Called with a batch, its epoch and its step, in the thread that reads; what it returns is handed out.
    split, seed, rank, world, share, drop_last, prefetch
        As in :class:`~terrazzo.systems.stofm.loaders.CellLoader`.
    batch_spots
        Spots of a batch on each rank. All ranks together take one stretch of the order a step.
    keep
        Says of a slice whether it is read; None: all are.

    Raises
    ------
    CorpusError
        The split has no slice, or none that is kept.
    ConfigError
        Settings that are impossible.
    """

    def __init__(
        self,
        corpus: Corpus,
        make: Callable[[SpotBatch, int, int], T],
        *,
        split: str = "train",
        batch_spots: int = 256,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        keep: Callable[[str], bool] | None = None,
    ) -> None:
        members = Members(corpus, split, share, keep)
        self._ends = np.cumsum(members.n_cells)
        shares = Shares(int(self._ends[-1]), batch_spots, world, drop_last)
        settings: dict[str, Any] = {}
        super().__init__(shares, members, rank, seed, prefetch, settings)
        self._make = make

    def _stream(self, epoch: int, first: int) -> Iterator[T]:
        order = self._rng(SPOT_ORDER, epoch).permutation(int(self._ends[-1]))

        def made(step: int) -> T:
            spots = np.sort(order[slice(*self._shares.span(self._rank, step))])
            member = np.searchsorted(self._ends, spots, side="right")
            starts = np.append(0, self._ends)[member]
            return self._make(SpotBatch(member.astype(np.int64), spots - starts), epoch, step)

        yield from self._each(made, range(first, len(self)))
