"""Resumable loader of training samples: random slices, rows or items of a split, shared by several processes.

Every loader reads one split and no other. Every sample is returned exactly once an epoch over all processes, in no two
of them, and every process has the same number of batches. The state of a loader is small, counts the batches that were
returned, and is the same in every process; a loader that loads it continues with the very next batch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, CorpusError

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus

__all__ = ["BlockLoader", "ItemLoader", "Loader", "Members", "Shard", "Shares", "Stream", "spread"]

T = TypeVar("T")

K = TypeVar("K")

SPREAD = 64  # slices of a sample that is spread over a list

Collate = Callable[[Any, int, int], Any]  # a batch as it was read, its epoch, its step


class Stream(IntEnum):
    """Streams of random numbers, by their purpose. The numbers seed the streams: another number, other results."""

    BLOCK_ORDER = 1
    CELL_ORDER = 2
    SUBSLICE_ORDER = 3
    WINDOW_ORDER = 4
    WINDOW_PLACE = 5
    HIDING = 6
    SPOT_ORDER = 7
    TURNING = 8


@dataclass(frozen=True)
class Shard:
    """One process of a run: ``rank`` of ``world``.

    Raises
    ------
    ConfigError
        A rank that is negative or not below ``world``.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(
                f"rank is {self.rank}; it must be at least 0 and below world ({self.world})."
            )


class Members:
    """The slices of one split, or a fixed share of them.

    Parameters
    ----------
    corpus
        Where the slices are.
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    share
        Share of the slices; the choice depends on their names only, and smaller shares are nested in larger ones.
    keep
        Returns True for a slice that is used; None: all are.

    Raises
    ------
    ConfigError
        A share that is not above 0 and at most 1.
    CorpusError
        The split has no slice, or none that is used.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str,
        share: float = 1.0,
        keep: Callable[[str], bool] | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"share is {share}; it must be above 0 and at most 1.")
        table = corpus.manifest.set_index("id")
        ids = corpus.ids(split)
        if not ids:
            existing = ", ".join(sorted({str(name) for name in table["split"]})) or "none"
            raise CorpusError(
                f"the corpus has no slice in the split {split!r}; its splits: {existing}."
            )
        foreign = [name for name in ids if table.at[name, "split"] != split]
        if foreign:
            raise CorpusError(
                f"slice {foreign[0]!r} is not of the split {split!r}: it must never be loaded with it."
            )
        # by a hash of the name: a larger share has all slices of a smaller one, whatever the seed or the order
        ranked = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())
        n_chosen = max(1, round(share * len(ids)))
        chosen = set(ranked[:n_chosen])
        self.ids = [name for name in ids if name in chosen]
        if keep is not None:
            self.ids = [name for name in self.ids if keep(name)]
        if not self.ids:
            raise CorpusError(
                f"of the {len(chosen)} slices of the split {split!r} none can be used; see the log."
            )
        self.rows = table.loc[self.ids]
        self.n_cells = self.rows["n_cells"].to_numpy(dtype=np.int64)
        content = "\n".join([corpus.content_hash(), *self.ids])
        self.settings = {
            "split": split,
            "share": share,
            "corpus": hashlib.sha256(content.encode()).hexdigest(),
        }


def spread(ids: list[str]) -> list[str]:
    """Return at most 64 slices, spread over a list."""
    n_wanted = min(SPREAD, len(ids))
    steps = np.linspace(0, len(ids) - 1, n_wanted)
    return [ids[place] for place in np.unique(steps.astype(int))]


@dataclass(frozen=True)
class Shares:
    """Division of ``n`` samples into batches of ``world`` processes.

    Every process has ``steps`` batches of ``batch`` samples. Unless ``drop_last``, all samples are used: processes
    differ by at most one sample, and the last batch (or the last two, so that none is empty) may be smaller.

    Raises
    ------
    ConfigError
        Too few samples for the batches.
    """

    n: int
    batch: int
    world: int
    drop_last: bool

    def __post_init__(self) -> None:
        least = self.batch * self.world if self.drop_last else self.world
        if self.batch < 1 or self.n < least:
            hint = ", or drop_last=False." if self.drop_last else "."
            raise ConfigError(
                f"{self.n} samples cannot fill a batch of {self.batch} on each of {self.world} processes: take a "
                f"smaller batch, fewer processes{hint}"
            )
        if not self.drop_last and self.batch == 1 and self.n % self.world:
            raise ConfigError(
                f"{self.n} samples cannot be shared by {self.world} processes one at a time: pass drop_last=True, or a "
                "batch of at least 2."
            )

    @property
    def steps(self) -> int:
        """Batches of each process."""
        size = self.batch * self.world
        return self.n // size if self.drop_last else -(-self.n // size)

    def segment(self, rank: int) -> tuple[int, int]:
        """Return first and last + 1 of a process's samples where each process has one segment of the order."""
        if self.drop_last:
            size = self.steps * self.batch
            return rank * size, (rank + 1) * size
        return self.n * rank // self.world, self.n * (rank + 1) // self.world

    def bound(self, rank: int, step: int) -> int:
        """Return the number of a process's samples in its first ``step`` batches."""
        start, stop = self.segment(rank)
        total = stop - start
        if step == self.steps - 1 and total == step * self.batch:
            return total - 1  # one sample is left for the last batch
        return min(step * self.batch, total)

    def span(self, rank: int, step: int) -> tuple[int, int]:
        """Return first and last + 1 of a batch where all processes together have one segment of the order a step."""
        before = [self.bound(one, step) for one in range(self.world)]
        after = [self.bound(one, step + 1) for one in range(self.world)]
        start = sum(before)
        for one in range(rank):
            start += after[one] - before[one]
        return start, start + after[rank] - before[rank]


class Loader(Generic[T]):
    """Order, state and prefetching of all loaders; iteration goes from the state to the end of the epoch.

    The state is then the start of the next epoch.

    Parameters
    ----------
    shares
        Samples and batches.
    members
        The slices.
    shard
        This process.
    seed
        Of the order, which is another one each epoch.
    prefetch
        Read the next batch in a thread; order and state are the same.
    settings
        Further settings that decide the order: a loader with other settings refuses the state.
    collate
        Called with a batch as it was read, its epoch and its step, in the thread that iterates; None: batches are
        returned as they were read.
    """

    def __init__(
        self,
        shares: Shares,
        members: Members,
        shard: Shard,
        *,
        seed: int,
        prefetch: bool = True,
        settings: dict[str, Any],
        collate: Collate | None = None,
    ) -> None:
        self.ids = members.ids
        self._shares = shares
        self._members = members
        self._rank = shard.rank
        self._seed = seed
        self._prefetch = prefetch
        self._collate = collate
        self._settings = {
            "kind": type(self).__name__,
            **members.settings,
            "seed": seed,
            "world": shares.world,
            "batch": shares.batch,
            "drop_last": shares.drop_last,
            **settings,
        }
        self._epoch = 0
        self._step = 0
        self._reading = threading.Lock()

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of an epoch, in every process."""
        return self._shares.steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; does nothing for the current one."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, number of its batches that were returned, and the settings that decide the order."""
        return {"epoch": self._epoch, "step": self._step, "settings": dict(self._settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another loader was; the state of any process serves all.

        Raises
        ------
        ConfigError
            The other loader had other settings or another corpus; the differences are shown.
        """
        before = state["settings"]
        now = self._settings
        differences = []
        for name in {**now, **before}:
            if now.get(name) != before.get(name):
                differences.append(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now")
        if differences:
            shown = "; ".join(differences)
            raise ConfigError(f"the data loader cannot resume, its settings differ: {shown}.")
        self._epoch = int(state["epoch"])
        self._step = int(state["step"])

    def __iter__(self) -> Iterator[T]:
        epoch = self._epoch
        step = self._step
        for batch in self._batches(epoch, step):
            if self._collate is not None:
                batch = self._collate(batch, epoch, step)
            step += 1
            # the state is set before the batch is returned: it counts it
            if step < len(self):
                self._epoch = epoch
                self._step = step
            else:
                self._epoch = epoch + 1
                self._step = 0
            yield batch

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        raise NotImplementedError

    def rng(self, stream: Stream, *numbers: int) -> np.random.Generator:
        """Return the generator of a stream, e.g. of one epoch of it."""
        return np.random.default_rng([self._seed, int(stream), *numbers])

    def _ahead(self, read: Callable[[K], Any], keys: Iterable[K]) -> Iterator[Any]:
        """Yield what is read for each key, the next one read in a thread while the last is used."""

        def alone(key: K) -> Any:
            with self._reading:  # an iterator that was abandoned may still be reading
                return read(key)

        if not self._prefetch:
            yield from map(alone, keys)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="terrazzo-loader") as pool:
            waiting = None
            for key in keys:
                coming = pool.submit(alone, key)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()


class ItemLoader(Loader[T]):
    """Numbered items (windows, sub-slices, spots) in random order.

    All processes together have one segment of the order a step, so that the batches of two processes are together that
    of one process with twice the batch size (but for the last two steps of an epoch).

    Parameters
    ----------
    n_items
        Number of items.
    batch
        Items of a batch in each process.
    stream
        Of the order.
    read
        Called with the items of a batch (in the order drawn), the epoch and the step, in the reading thread.
    members, shard, seed, drop_last, prefetch, settings, collate
        As in :class:`Loader`; ``drop_last``: items that do not fill a batch in every process are left out.
    """

    def __init__(
        self,
        n_items: int,
        batch: int,
        stream: Stream,
        read: Callable[[Ints, int, int], Any],
        *,
        members: Members,
        shard: Shard,
        seed: int,
        settings: dict[str, Any],
        drop_last: bool = False,
        prefetch: bool = True,
        collate: Collate | None = None,
    ) -> None:
        shares = Shares(n_items, batch, shard.world, drop_last)
        super().__init__(
            shares,
            members,
            shard,
            seed=seed,
            prefetch=prefetch,
            settings=settings,
            collate=collate,
        )
        self._stream = stream
        self._read = read

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        order = self.rng(self._stream, epoch).permutation(self._shares.n)

        def read(step: int) -> Any:
            start, stop = self._shares.span(self._rank, step)
            return self._read(order[start:stop], epoch, step)

        yield from self._ahead(read, range(first, len(self)))


@dataclass(frozen=True)
class _Blocks:
    """Contiguous rows: member, first row, last row + 1 of each block; int64 ``(n_blocks,)`` each."""

    member: Ints
    start: Ints
    stop: Ints

    @classmethod
    def of(cls, n_cells: Ints, size: int) -> _Blocks:
        """Cut members of these sizes into blocks of ``size`` rows."""
        n_blocks = -(-n_cells // size)
        member = np.repeat(np.arange(len(n_cells)), n_blocks)
        before = np.cumsum(n_blocks) - n_blocks
        start = (np.arange(len(member)) - before[member]) * size
        stop = np.minimum(start + size, n_cells[member])
        return cls(member, start, stop)


class BlockLoader(Loader[T]):
    """Random rows of members, read in contiguous blocks and shuffled row by row in a buffer.

    Parameters
    ----------
    block, buffer_blocks
        Rows of a block, and blocks of a buffer; ``block * buffer_blocks`` rows are in memory.
    batch
        Rows of a batch in each process.
    members, shard, seed, drop_last, prefetch, settings, collate
        As in :class:`Loader`.

    Raises
    ------
    ConfigError
        Settings below 1, or fewer rows than a batch in every process needs.

    Notes
    -----
    Subclasses implement :meth:`read_block` (reading thread), :meth:`mix` (all blocks of a buffer as one value with a
    length), :meth:`take` and :meth:`join`.
    """

    def __init__(
        self,
        block: int,
        buffer_blocks: int,
        batch: int,
        *,
        members: Members,
        shard: Shard,
        seed: int,
        settings: dict[str, Any],
        drop_last: bool = False,
        prefetch: bool = True,
        collate: Collate | None = None,
    ) -> None:
        if min(block, buffer_blocks) < 1:
            raise ConfigError("block and buffer_blocks must be at least 1.")
        shares = Shares(int(members.n_cells.sum()), batch, shard.world, drop_last)
        super().__init__(
            shares,
            members,
            shard,
            seed=seed,
            prefetch=prefetch,
            settings={"block": block, "buffer_blocks": buffer_blocks, **settings},
            collate=collate,
        )
        self._blocks = _Blocks.of(members.n_cells, block)
        self._buffer = buffer_blocks

    def read_block(self, member: int, start: int, stop: int) -> Any:
        """Read rows of a member; called in the reading thread."""
        raise NotImplementedError

    def mix(self, blocks: list[Any]) -> Any:
        """Return blocks, in their order, as one value that has a length and that :meth:`take` takes rows from."""
        raise NotImplementedError

    def take(self, mixed: Any, rows: Ints) -> Any:
        """Return some rows of what :meth:`mix` returned."""
        raise NotImplementedError

    def join(self, parts: list[Any]) -> Any:
        """Return a batch of what :meth:`take` returned, once or several times."""
        raise NotImplementedError

    def _batches(self, epoch: int, first: int) -> Iterator[Any]:
        pieces = self._pieces(epoch)
        ends = np.cumsum(pieces[:, 2] - pieces[:, 1])
        buffer_ends = np.append(ends[self._buffer - 1 : -1 : self._buffer], ends[-1])
        position = self._shares.bound(self._rank, first)
        number = int(np.searchsorted(buffer_ends, position, side="right"))
        if number:
            position -= int(buffer_ends[number - 1])
        numbers = range(number, len(buffer_ends))
        chunks = (pieces[n * self._buffer : (n + 1) * self._buffer] for n in numbers)
        buffers = zip(numbers, self._ahead(self._read_chunk, chunks), strict=False)
        mixed: Any = None
        order: Ints = np.empty(0, dtype=np.int64)
        for step in range(first, len(self)):
            before = self._shares.bound(self._rank, step)
            wanted = self._shares.bound(self._rank, step + 1) - before
            parts = []
            while wanted:
                if mixed is None:
                    number, blocks = next(buffers)
                    mixed = self.mix(blocks)
                    rng = self.rng(Stream.CELL_ORDER, epoch, self._rank, number)
                    order = rng.permutation(len(mixed))
                rows = order[position : position + wanted]
                parts.append(self.take(mixed, rows))
                position += len(rows)
                wanted -= len(rows)
                if position == len(mixed):
                    mixed = None
                    position = 0
            yield self.join(parts)

    def _pieces(self, epoch: int) -> Ints:
        """Return this process's blocks in the order of the epoch, ``(n, 3)``: member, first row, last row + 1."""
        blocks = self._blocks
        order = self.rng(Stream.BLOCK_ORDER, epoch).permutation(len(blocks.member))
        start = blocks.start[order]
        stop = blocks.stop[order]
        ends = np.cumsum(stop - start)
        low, high = self._shares.segment(self._rank)
        first = np.maximum(start, stop - (ends - low))
        last = np.minimum(stop, stop - (ends - high))
        mine = first < last
        return np.column_stack([blocks.member[order], first, last])[mine]

    def _read_chunk(self, pieces: Ints) -> list[Any]:
        return [self.read_block(member, start, stop) for member, start, stop in pieces.tolist()]
