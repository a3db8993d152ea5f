"""The doors to training: random cells and whole sub-slices of a corpus, in a seeded order that can be resumed.

Both loaders keep the same promises. One split, none other. Every sample exactly once an epoch over all ranks, none on
two ranks, and on every rank the same number of batches. The state is small, counts the batches that were handed out,
and is the same on every rank; a loader that takes it on continues with the very next batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Ints
from terrazzo.corpus.genes import Columns, Match, columns_by_token
from terrazzo.corpus.loader import Loader, Members, Shares
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.cache import CachedMember, CacheKey, EmbeddingCache
from terrazzo.systems.stofm.subslices import (
    SubSlice,
    SubSliceConfig,
    iterate,
    length_unit,
    model_positions,
)
from terrazzo.systems.stofm.tokens import rank_tokens

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus


BLOCK_ORDER, CELL_ORDER, PART_ORDER = 1, 2, 3  # what a random stream is for


KEPT_CELLS = 4_000_000  # cells whose positions stay in memory


KEPT_MEMBERS = 256  # and as many open files at most


@dataclass(frozen=True)
class CellBatch:
    """Random cells.

    Attributes
    ----------
    tokens
        Ranked genes of each cell, without ``<cls>``.
    member
        int64 ``(n,)``: slice of each cell, a position in the loader's ``ids``.
    rows
        int64 ``(n,)``: row of each cell in its slice.
    counts
        CSR ``(n, n_tokens)``, counts by token of the vocabulary; None unless asked for.
    """

    tokens: Tokens
    member: Ints
    rows: Ints
    counts: sparse.csr_matrix | None = None

    def take(self, cells: Ints) -> CellBatch:
        """Return these cells, in this order."""
        counts = None if self.counts is None else self.counts[cells]
        return CellBatch(self.tokens.take(cells), self.member[cells], self.rows[cells], counts)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class SubSliceItem:
    """One sub-slice with what is stored of its cells.

    Attributes
    ----------
    sub
        Tokens, positions and pairs; ``sub.cells`` are rows of the slice, the sub-slice's own first, then its halo.
    features
        float32 ``(len(sub.cells), d)``, stored vector of each of these cells.
    virtual
        float32 ``(sub.n_virtual, d)``, virtual cells of the slice.
    id, member
        Slice, and its position in the loader's ``ids``.
    spacing
        The slice's median distance between neighbors, in units of ``sub.positions``.
    counts
        CSR, rows as ``sub.cells``, columns as ``Corpus.genes(id)``; None unless asked for.
    tokens
        Ranked genes of these cells; None unless a match was given.
    """

    sub: SubSlice
    features: NDArray[np.float32]
    virtual: NDArray[np.float32]
    id: str
    member: int
    spacing: float
    counts: sparse.csr_matrix | None = None
    tokens: Tokens | None = None


SubSliceBatch = list[SubSliceItem]


class CellLoader(Loader[CellBatch]):
    """Random cells of all slices of a split, tokenized: what domain adaptation reads.

    Rows are read in contiguous blocks, in a random order over all slices; ``buffer_blocks`` of them are mixed cell by
    cell. Iterating goes from the state (at first the start of epoch 0) to the end of the epoch, and then stands at the
    start of the next one.

    Parameters
    ----------
    corpus
        Where the cells are.
    match
        From :func:`member_match`.
    split
        Only slices of this split are read.
    batch_cells
        Cells of a batch on each rank.
    max_length
        Longest token sequence, ``<cls>`` counted.
    block, buffer_blocks
        Rows of a block, and blocks that are mixed; memory holds ``block * buffer_blocks`` token sequences.
    seed
        Of the order; it is another one each epoch.
    rank, world
        This process, and how many there are.
    share
        Share of the slices (data-volume ablation); the choice depends on their names only, and smaller ones are nested.
    drop_last
        True: every batch has ``batch_cells`` cells, and what does not fill a batch on every rank is left out (another
        choice each epoch). False: every cell exactly once; the last two batches may be smaller.
    prefetch
        Read the next blocks in a thread; order and state are the same.
    n_tokens
        Tokens of the vocabulary, where the counts are wanted too (thinned-count objectives); 0 for tokens only.

    Raises
    ------
    CorpusError
        The split has no slice.
    ConfigError
        Settings that are impossible, or fewer cells than a batch on every rank needs.
    """

    def __init__(
        self,
        corpus: Corpus,
        match: Match,
        *,
        split: str = "train",
        batch_cells: int = 32,
        max_length: int = 2048,
        block: int = 256,
        buffer_blocks: int = 32,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        n_tokens: int = 0,
    ) -> None:
        if min(block, buffer_blocks) < 1 or max_length < 2:
            raise ConfigError("block and buffer_blocks must be at least 1, max_length at least 2.")
        members = Members(corpus, split, share)
        n_blocks = -(-members.n_cells // block)
        self._block_member = np.repeat(np.arange(len(members.ids)), n_blocks)
        before = np.cumsum(n_blocks) - n_blocks
        self._block_start = (
            np.arange(len(self._block_member)) - before[self._block_member]
        ) * block
        self._block_stop = np.minimum(
            self._block_start + block, members.n_cells[self._block_member]
        )
        shares = Shares(int(members.n_cells.sum()), batch_cells, world, drop_last)
        settings = {"block": block, "buffer_blocks": buffer_blocks, "max_length": max_length}
        super().__init__(shares, members, rank, seed, prefetch, settings)
        self._corpus, self._match, self._length, self._buffer = (
            corpus,
            match,
            max_length,
            buffer_blocks,
        )
        self._n_tokens = n_tokens

    def _stream(self, epoch: int, first: int) -> Iterator[CellBatch]:
        pieces = self._pieces(epoch)
        ends = np.cumsum(pieces[:, 2] - pieces[:, 1])
        ends = np.append(ends[self._buffer - 1 : -1 : self._buffer], ends[-1])  # of each buffer
        at = self._shares.bound(self._rank, first)
        number = int(np.searchsorted(ends, at, side="right"))
        at -= int(ends[number - 1]) if number else 0
        chunks = (
            pieces[n * self._buffer : (n + 1) * self._buffer] for n in range(number, len(ends))
        )
        buffers = enumerate(self._each(self._read, chunks), start=number)
        mixed: CellBatch | None = None
        for step in range(first, len(self)):
            wanted = self._shares.bound(self._rank, step + 1) - self._shares.bound(self._rank, step)
            parts = []
            while wanted:
                if mixed is None:
                    number, blocks = next(buffers)
                    mixed = self._tokenized(blocks)
                    order = self._rng(CELL_ORDER, epoch, self._rank, number).permutation(len(mixed))
                cells = order[at : at + wanted]
                parts.append(mixed.take(cells))
                at, wanted = at + len(cells), wanted - len(cells)
                if at == len(mixed):
                    mixed, at = None, 0
            yield _joined(parts)

    def _pieces(self, epoch: int) -> Ints:
        """Blocks of this rank in the order of the epoch: (member, first row, last row + 1)."""
        order = self._rng(BLOCK_ORDER, epoch).permutation(len(self._block_member))
        start, stop = self._block_start[order], self._block_stop[order]
        ends = np.cumsum(stop - start)
        low, high = self._shares.segment(self._rank)
        cut = np.column_stack(
            [np.maximum(start, stop - (ends - low)), np.minimum(stop, stop - (ends - high))]
        )
        mine = cut[:, 0] < cut[:, 1]
        return np.column_stack([self._block_member[order], cut])[mine]

    def _read(self, pieces: Ints) -> list[tuple[int, int, sparse.csr_matrix]]:
        return [
            (m, start, self._corpus.rows(self.ids[m], start, stop))
            for m, start, stop in pieces.tolist()
        ]

    def _tokenized(self, blocks: list[tuple[int, int, sparse.csr_matrix]]) -> CellBatch:
        """Tokenize blocks, those with the same columns together: numba's threads are slow to start."""
        # here and not in the reading thread: those threads may not be entered from two places at once everywhere
        alike: dict[int, tuple[Columns, list[tuple[int, int, sparse.csr_matrix]]]] = {}
        for block in blocks:
            columns = self._match(self.ids[block[0]])
            alike.setdefault(id(columns[0]), (columns, []))[1].append(
                block
            )  # it also keeps the array, and so its id
        parts = []
        for columns, some in alike.values():
            counts = (
                sparse.vstack([rows for _, _, rows in some], format="csr")
                if len(some) > 1
                else some[0][2]
            )
            tokens = rank_tokens(counts, *columns, self._length)
            member = np.repeat([m for m, _, _ in some], [rows.shape[0] for _, _, rows in some])
            rows = np.concatenate(
                [np.arange(start, start + block.shape[0]) for _, start, block in some]
            )
            by_token = (
                columns_by_token(counts, columns[0], self._n_tokens) if self._n_tokens else None
            )
            parts.append(CellBatch(tokens, member.astype(np.int64), rows, by_token))
        return _joined(parts)


def _joined(parts: list[CellBatch]) -> CellBatch:
    if len(parts) == 1:
        return parts[0]
    flat = np.concatenate([p.tokens.flat for p in parts])
    lengths = np.concatenate([p.tokens.lengths for p in parts])
    tokens = Tokens(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    wanted = [p.counts for p in parts if p.counts is not None]
    counts = sparse.vstack(wanted, format="csr") if wanted else None
    return CellBatch(
        tokens,
        np.concatenate([p.member for p in parts]),
        np.concatenate([p.rows for p in parts]),
        counts,
    )


@dataclass(frozen=True)
class _Scene:
    """An open member: what is stored of it, and a function that cuts sub-slices from it."""

    cached: CachedMember
    cut: Callable[[Ints], SubSlice]
    spacing: float


class SubSliceLoader(Loader[SubSliceBatch]):
    """Whole sub-slices of all slices of a split, in random order: what multi-scale pretraining reads.

    Step ``k`` of all ranks together takes one stretch of the order, so that two ranks see in a step what one process
    with twice the batch sees (but for the last two steps of an epoch).

    Parameters
    ----------
    corpus
        Where the coordinates (and counts) are.
    cache
        Holds every slice of the split under the same sub-slice settings.
    config
        Settings of the sub-slices.
    split, seed, rank, world, share, drop_last, prefetch
        As in :class:`CellLoader`.
    batch_slices
        Sub-slices of a batch on each rank.
    with_counts
        Also read the counts of the cells.
    match, max_length
        From :func:`member_match`: also tokenize the cells (this reads their counts).
    tokens_from
        Epoch from which cells are tokenized; in earlier ones neither counts nor tokens are needed, nor read.

    Raises
    ------
    CorpusError
        The split has no slice, or the cache lacks one or holds another content of it.
    ConfigError
        Settings that are impossible, or other sub-slice settings than the cache's.
    """

    def __init__(
        self,
        corpus: Corpus,
        cache: EmbeddingCache,
        config: SubSliceConfig,
        *,
        split: str = "train",
        batch_slices: int = 16,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        with_counts: bool = False,
        match: Match | None = None,
        max_length: int = 2048,
        tokens_from: int = 0,
    ) -> None:
        if CacheKey("", config).stored != CacheKey("", cache.key.config).stored:
            raise ConfigError(
                f"the cache was made with other sub-slice settings ({cache.key.config}) than {config}."
            )
        members = Members(corpus, split, share)
        sources = [str(value) for value in members.rows["sha256"]]
        lacking = [
            i for i, source in zip(members.ids, sources, strict=True) if not cache.has(i, source)
        ]
        if lacking:
            raise CorpusError(
                f"{len(lacking)} of {len(members.ids)} slices have no stored embeddings of this model, e.g. "
                f"{lacking[0]!r}; compute them first ({cache.folder})."
            )
        n_parts = np.array([cache.n_parts(i) for i in members.ids], dtype=np.int64)
        self._part_member = np.repeat(np.arange(len(n_parts)), n_parts)
        self._part_number = np.arange(n_parts.sum()) - np.repeat(
            np.cumsum(n_parts) - n_parts, n_parts
        )
        shares = Shares(int(n_parts.sum()), batch_slices, world, drop_last)
        super().__init__(
            shares,
            members,
            rank,
            seed,
            prefetch,
            {"cache": cache.key.digest(), "config": str(config)},
        )
        self._corpus, self._cache, self._config, self._match, self._length = (
            corpus,
            cache,
            config,
            match,
            max_length,
        )
        self._counts, self._sources, self._tokens_from = with_counts, sources, tokens_from
        self._scenes: OrderedDict[int, _Scene] = OrderedDict()

    def _stream(self, epoch: int, first: int) -> Iterator[SubSliceBatch]:
        order = self._rng(PART_ORDER, epoch).permutation(len(self._part_member))
        chosen = (
            order[slice(*self._shares.span(self._rank, step))] for step in range(first, len(self))
        )
        tokens = self._match is not None and epoch >= self._tokens_from
        for batch in self._each(
            lambda items: [self._item(i, self._counts or tokens) for i in items.tolist()], chosen
        ):
            yield [self._with_tokens(item) for item in batch] if tokens else batch

    def _item(self, number: int, with_counts: bool) -> SubSliceItem:
        member = int(self._part_member[number])
        scene = self._scene(member)
        sub = scene.cut(scene.cached.part(int(self._part_number[number])))
        counts = self._corpus.take(self.ids[member], sub.cells) if with_counts else None
        features = np.asarray(scene.cached.features[sub.cells])
        virtual = scene.cached.macro.features
        return SubSliceItem(sub, features, virtual, self.ids[member], member, scene.spacing, counts)

    def _with_tokens(self, item: SubSliceItem) -> SubSliceItem:
        tokens = rank_tokens(item.counts, *cast(Match, self._match)(item.id), self._length)
        return replace(item, tokens=tokens, counts=item.counts if self._counts else None)

    def _scene(self, member: int) -> _Scene:
        """Open a member, or find it open; those used last stay open."""
        scene = self._scenes.pop(member, None) or self._open(member)
        self._scenes[member] = scene
        n_cells = sum(int(self._members.n_cells[m]) for m in self._scenes)
        while len(self._scenes) > 1 and (n_cells > KEPT_CELLS or len(self._scenes) > KEPT_MEMBERS):
            n_cells -= int(self._members.n_cells[self._scenes.popitem(last=False)[0]])
        return scene

    def _open(self, member: int) -> _Scene:
        name, row, config = self.ids[member], self._members.rows.iloc[member], self._config
        cached = self._cache.read(name, self._sources[member])
        if len(cached.features) != row["n_cells"]:
            raise CorpusError(
                f"{self._cache.path(name)} holds {len(cached.features)} cells, not {row['n_cells']}."
            )
        coords, unit = self._corpus.coords(name), float(row["spacing"])
        positions = model_positions(coords, config, length_unit(str(row["unit"]), unit, config))
        extent = float(np.ptp(coords, axis=0).max())
        scale = float(np.ptp(positions, axis=0).max()) / extent if extent > 0 else 1.0
        return _Scene(cached, _cutter(positions, cached, config), unit * scale)


def _cutter(
    positions: NDArray[np.float64], cached: CachedMember, config: SubSliceConfig
) -> Callable[[Ints], SubSlice]:
    """Return a function that cuts single sub-slices; what `iterate` prepares for a slice is prepared once."""
    asked: list[Ints] = []

    def requests() -> Iterator[Ints]:
        while True:
            yield asked.pop()

    made = iterate(positions, cached.macro.positions, cast("list[Ints]", requests()), config)

    def cut(core: Ints) -> SubSlice:
        asked.append(core)
        return next(made)

    return cut
