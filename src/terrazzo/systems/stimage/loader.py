"""The third door to training: windows of the slices of a corpus, in a seeded order that can be resumed.

As the loaders of :mod:`terrazzo.systems.stofm.loaders`: one split, every window on one rank, the same number of batches on
every rank, and a small state from which another loader continues with the very next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.corpus.loader import Loader, Members, Shares
from terrazzo.errors import ConfigError
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.windows import Window, draw_corners, window_sites

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


WINDOW_ORDER, WINDOW_PLACE = (
    4,
    5,
)  # what a random stream is for; 1 to 3 are those of the other loaders


T = TypeVar("T")


@dataclass(frozen=True)
class WindowItem:
    """One window of a slice.

    Attributes
    ----------
    window
        Counts, totals, places and which sites hold a cell; ``S = config.window ** 2`` sites.
    sites
        int64 ``(S,)``: sites of the slice's grid, -1 for none.
    id, member
        Slice, and its position in the loader's ``ids``.
    number
        Of the window among those of its slice in the epoch.
    """

    window: Window
    sites: Ints
    id: str
    member: int
    number: int


class WindowLoader(Loader[T]):
    """Windows of all slices of a split, in random order: what ST as images is pretrained on (algorithm 1).

    Where a window lies depends on the seed, the epoch, the slice and the window's number alone, so that it does not
    matter which rank draws it.

    Parameters
    ----------
    corpus
        Where the counts are.
    store
        Grids of its slices.
    make
        Called with the windows of a batch and the epoch, in the thread that reads; what it returns is handed out.
    split, seed, rank, world, share, drop_last, prefetch
        As in :class:`~terrazzo.systems.stofm.loaders.CellLoader`.
    batch_windows
        Windows of a batch on each rank.
    windows_per_slice
        Windows of each slice in an epoch; 0: as many as it takes to hold its occupied sites once.
    unit
        ``"window"``: squares (eq 6). ``"sites"``: as many occupied sites, from anywhere in the slice; places that a
        slice with fewer leaves are empty.
    token_of
        From a slice to the token of each of its columns, -1 for one whose counts are not needed; None: all are read.

    Raises
    ------
    CorpusError
        The split has no slice.
    ConfigError
        Settings that are impossible.
    """

    def __init__(
        self,
        corpus: Corpus,
        store: SiteStore,
        make: Callable[[list[WindowItem], int], T],
        *,
        split: str = "train",
        batch_windows: int = 32,
        windows_per_slice: int = 0,
        unit: Literal["window", "sites"] = "window",
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        token_of: Callable[[str], NDArray[np.int32]] | None = None,
    ) -> None:
        if windows_per_slice < 0:
            raise ConfigError(f"windows_per_slice is {windows_per_slice}; it must be at least 0.")
        members = Members(corpus, split, share)
        size = store.config.window**2
        # to hold the sites once it takes one for every `size` of them
        n_windows = [
            windows_per_slice or max(1, -(-store.n_sites(id) // size)) for id in members.ids
        ]
        self._member = np.repeat(np.arange(len(n_windows)), n_windows)
        self._number = np.concatenate([np.arange(n) for n in n_windows])
        settings: dict[str, Any] = {
            "windows_per_slice": windows_per_slice,
            "unit": unit,
            **store.settings(),
        }
        shares = Shares(len(self._member), batch_windows, world, drop_last)
        super().__init__(shares, members, rank, seed, prefetch, settings)
        self._store, self._unit, self._make, self._token_of = store, unit, make, token_of

    def _stream(self, epoch: int, first: int) -> Iterator[T]:
        order = self._rng(WINDOW_ORDER, epoch).permutation(len(self._member))
        chosen = (
            order[slice(*self._shares.span(self._rank, step))] for step in range(first, len(self))
        )
        yield from self._each(
            lambda some: self._make([self._item(epoch, i) for i in some.tolist()], epoch), chosen
        )

    def _item(self, epoch: int, index: int) -> WindowItem:
        member, number = int(self._member[index]), int(self._number[index])
        id, rng = self.ids[member], self._rng(WINDOW_PLACE, epoch, member, number)
        side = self._store.config.window
        grid = self._store.grid(id)
        if self._unit == "window":
            sites = window_sites(grid, draw_corners(self._store.corners(id), 1, rng)[0], side)
        else:
            there = grid.occupied
            drawn = np.sort(
                rng.choice(there, min(side**2, len(there)), replace=False, shuffle=False)
            )
            sites = np.pad(drawn, (0, side**2 - len(drawn)), constant_values=-1)
        token = None if self._token_of is None else self._token_of(id)
        return WindowItem(self._store.window(id, sites, token), sites, id, member, number)
