"""Loader of windows of a corpus's slices (ST as images, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.corpus.loader import Collate, ItemLoader, Members, Shard, Stream
from terrazzo.errors import ConfigError
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.windows import Window, draw_corners, window_sites

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrazzo.arrays import Int32s
    from terrazzo.corpus.store import Corpus

__all__ = ["WindowItem", "WindowLoader"]


@dataclass(frozen=True)
class WindowItem:
    """One window of a slice.

    Attributes
    ----------
    window
        Counts, totals, places and which sites have a cell; ``S = config.window ** 2`` sites.
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


class WindowLoader(ItemLoader[Any]):
    """Windows of all slices of a split, in random order: what ST as images is pretrained on.

    Where a window is depends on the seed, the epoch, the slice and the window's number alone, so that it does not
    matter which process draws it.

    Parameters
    ----------
    corpus
        Where the counts are.
    store
        Grids of its slices.
    make
        Called with the windows of a batch and the epoch, in the reading thread; what it returns is passed on.
    split
        Only slices of this split are read.
    batch_windows
        Windows of a batch in each process.
    windows_per_slice
        Windows of each slice in an epoch; 0: as many as it takes for all of its occupied sites once.
    unit
        ``"window"``: squares (eq 6). ``"sites"``: as many occupied sites, from anywhere in the slice; places that a
        slice with fewer leaves are empty.
    seed, shard, drop_last, prefetch
        As in :class:`terrazzo.corpus.loader.Loader`.
    share
        Share of the slices.
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
        make: Callable[[list[WindowItem], int], Any],
        *,
        split: str = "train",
        batch_windows: int = 32,
        windows_per_slice: int = 0,
        unit: Literal["window", "sites"] = "window",
        seed: int = 0,
        shard: Shard = Shard(),
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        token_of: Callable[[str], Int32s] | None = None,
        collate: Collate | None = None,
    ) -> None:
        if windows_per_slice < 0:
            raise ConfigError(f"windows_per_slice is {windows_per_slice}; it must be at least 0.")
        members = Members(corpus, split, share)
        n_windows = [
            windows_per_slice or _windows_of(store.n_sites(name), store.config.window)
            for name in members.ids
        ]
        self._member = np.repeat(np.arange(len(n_windows)), n_windows)
        self._number = np.concatenate([np.arange(n) for n in n_windows])
        settings = {"windows_per_slice": windows_per_slice, "unit": unit, **store.settings()}
        super().__init__(
            len(self._member),
            batch_windows,
            Stream.WINDOW_ORDER,
            self._read_items,
            members=members,
            shard=shard,
            seed=seed,
            settings=settings,
            drop_last=drop_last,
            prefetch=prefetch,
            collate=collate,
        )
        self._store = store
        self._unit = unit
        self._make = make
        self._token_of = token_of

    def _read_items(self, numbers: Ints, epoch: int, step: int) -> Any:
        items = [self._item(epoch, number) for number in numbers.tolist()]
        return self._make(items, epoch)

    def _item(self, epoch: int, index: int) -> WindowItem:
        member = int(self._member[index])
        number = int(self._number[index])
        name = self.ids[member]
        sites = self._sites(name, self.rng(Stream.WINDOW_PLACE, epoch, member, number))
        token = None if self._token_of is None else self._token_of(name)
        window = self._store.window(name, sites, token)
        return WindowItem(window, sites, name, member, number)

    def _sites(self, name: str, rng: np.random.Generator) -> Ints:
        side = self._store.config.window
        grid = self._store.grid(name)
        if self._unit == "window":
            corner = draw_corners(self._store.corners(name), 1, rng)[0]
            return window_sites(grid, corner, side)
        occupied = grid.occupied
        n_drawn = min(side**2, len(occupied))
        drawn = np.sort(rng.choice(occupied, n_drawn, replace=False, shuffle=False))
        return np.pad(drawn, (0, side**2 - n_drawn), constant_values=-1)


def _windows_of(n_sites: int, side: int) -> int:
    """Return how many windows it takes for all of a slice's sites once."""
    return max(1, -(-n_sites // side**2))
