"""SToFM's loaders: random cells for domain adaptation, whole sub-slices for multi-scale pretraining."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from terrazzo.arrays import Ints, Vectors
from terrazzo.corpus.genes import Columns, Match, columns_by_token
from terrazzo.corpus.loader import BlockLoader, Collate, ItemLoader, Members, Shard, Stream
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.models.sequences import Tokens
from terrazzo.systems.stofm.cache import CachedMember, CacheKey, EmbeddingCache
from terrazzo.systems.stofm.subslices import (
    SubSlice,
    SubSliceConfig,
    SubSliceCutter,
    length_unit,
    model_positions,
)
from terrazzo.systems.stofm.tokens import rank_tokens

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus

__all__ = ["CellBatch", "CellLoader", "SubSliceBatch", "SubSliceItem", "SubSliceLoader"]

# Members stay open, up to so many cells (their positions are in memory) and files.
MOST_OPEN_CELLS = 4_000_000
MOST_OPEN_MEMBERS = 256


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
        CSR ``(n, n_tokens)``, counts by token of the vocabulary; None unless they are wanted.
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

    @classmethod
    def join(cls, parts: list[CellBatch]) -> CellBatch:
        """Return one batch of several, in their order."""
        if len(parts) == 1:
            return parts[0]
        tokens = Tokens.join([part.tokens for part in parts])
        member = np.concatenate([part.member for part in parts])
        rows = np.concatenate([part.rows for part in parts])
        with_counts = [part.counts for part in parts if part.counts is not None]
        counts = sparse.vstack(with_counts, format="csr") if with_counts else None
        return cls(tokens, member, rows, counts)


@dataclass(frozen=True)
class SubSliceItem:
    """One sub-slice with the stored vectors of its cells.

    Attributes
    ----------
    sub
        Tokens, positions and pairs; ``sub.cells`` are rows of the slice, the sub-slice's own first, then its halo.
    features
        float32 ``(len(sub.cells), d)``, vector of each of these cells.
    virtual
        float32 ``(sub.n_virtual, d)``, virtual cells of the slice.
    id, member
        Slice, and its position in the loader's ``ids``.
    spacing
        The slice's median distance between neighbors, in units of ``sub.positions``.
    counts
        CSR, rows as ``sub.cells``, columns as ``Corpus.genes(id)``; None unless they are wanted.
    tokens
        Ranked genes of these cells; None without a match.
    """

    sub: SubSlice
    features: Vectors
    virtual: Vectors
    id: str
    member: int
    spacing: float
    counts: sparse.csr_matrix | None = None
    tokens: Tokens | None = None


SubSliceBatch = list[SubSliceItem]


@dataclass(frozen=True)
class _Block:
    """Contiguous rows of a member."""

    member: int
    start: int
    counts: sparse.csr_matrix

    @property
    def n_rows(self) -> int:
        return int(self.counts.shape[0])


class CellLoader(BlockLoader[Any]):
    """Loader of random cells of all slices of a split, tokenized, for domain adaptation.

    Parameters
    ----------
    corpus
        The slices.
    match
        From :func:`terrazzo.corpus.genes.member_match`.
    split
        Only slices of this split are read.
    batch_cells
        Cells of a batch in each process.
    max_length
        Longest token sequence, ``<cls>`` counted.
    block, buffer_blocks
        Rows of a block, and blocks that are mixed; memory holds ``block * buffer_blocks`` token sequences.
    seed
        Of the order; it is another one each epoch.
    shard
        This process.
    share
        Share of the slices (data-volume ablation); see :class:`terrazzo.corpus.loader.Members`.
    drop_last
        True: every batch has ``batch_cells`` cells, and cells that do not fill a batch in every process are left out
        (another choice each epoch). False: every cell exactly once; the last two batches may be smaller.
    prefetch
        Read the next blocks in a thread; order and state are the same.
    n_tokens
        Tokens of the vocabulary, where the counts are wanted too (thinned-count objectives); 0 for tokens only.
    collate
        Called with a batch, its epoch and its step; None: the :class:`CellBatch` is returned.

    Raises
    ------
    CorpusError
        The split has no slice.
    ConfigError
        Settings that are impossible, or fewer cells than a batch in every process needs.
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
        shard: Shard = Shard(),
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        n_tokens: int = 0,
        collate: Collate | None = None,
    ) -> None:
        if max_length < 2:
            raise ConfigError(f"max_length is {max_length}; it must be at least 2.")
        super().__init__(
            block,
            buffer_blocks,
            batch_cells,
            members=Members(corpus, split, share),
            shard=shard,
            seed=seed,
            settings={"max_length": max_length},
            drop_last=drop_last,
            prefetch=prefetch,
            collate=collate,
        )
        self._corpus = corpus
        self._match = match
        self._length = max_length
        self._n_tokens = n_tokens

    def read_block(self, member: int, start: int, stop: int) -> _Block:
        """Read the counts of some rows."""
        return _Block(member, start, self._corpus.rows(self.ids[member], start, stop))

    def mix(self, blocks: list[_Block]) -> CellBatch:
        """Tokenize blocks, those with the same columns together: numba's threads are slow to start.

        Not in the reading thread: those threads may not be entered from two places at once everywhere.
        """
        groups: dict[int, list[_Block]] = {}
        columns_of: dict[int, Columns] = {}
        for block in blocks:
            columns = self._match(self.ids[block.member])
            key = id(columns[0])  # members with the same genes share the array
            columns_of[key] = columns
            groups.setdefault(key, []).append(block)
        parts = [self._tokenized(group, columns_of[key]) for key, group in groups.items()]
        return CellBatch.join(parts)

    def _tokenized(self, blocks: list[_Block], columns: Columns) -> CellBatch:
        counts = blocks[0].counts
        if len(blocks) > 1:
            counts = sparse.vstack([block.counts for block in blocks], format="csr")
        token, median = columns
        tokens = rank_tokens(counts, token, median, self._length)
        sizes = [block.n_rows for block in blocks]
        member = np.repeat([block.member for block in blocks], sizes)
        rows = [np.arange(block.start, block.start + block.n_rows) for block in blocks]
        by_token = None
        if self._n_tokens:
            by_token = columns_by_token(counts, token, self._n_tokens)
        return CellBatch(tokens, member.astype(np.int64), np.concatenate(rows), by_token)

    def take(self, mixed: CellBatch, rows: Ints) -> CellBatch:
        """Return some cells."""
        return mixed.take(rows)

    def join(self, parts: list[CellBatch]) -> CellBatch:
        """Return one batch of several."""
        return CellBatch.join(parts)


@dataclass(frozen=True)
class _OpenMember:
    """A member whose sub-slices are being read.

    Attributes
    ----------
    cached
        Its stored arrays.
    cutter
        Cuts sub-slices out of it.
    spacing
        Median distance between neighbors, in units of the model's positions.
    """

    cached: CachedMember
    cutter: SubSliceCutter
    spacing: float


class SubSliceLoader(ItemLoader[Any]):
    """Loader of whole sub-slices of all slices of a split, in random order, for multi-scale pretraining.

    Parameters
    ----------
    corpus
        The slices: their coordinates, and counts where they are wanted.
    cache
        Has every slice of the split under the same sub-slice settings.
    config
        Settings of the sub-slices.
    split, seed, shard, share, drop_last, prefetch
        As in :class:`CellLoader`.
    batch_slices
        Sub-slices of a batch in each process.
    with_counts
        Also read the counts of the cells.
    match, max_length
        From :func:`terrazzo.corpus.genes.member_match`: also tokenize the cells (this reads their counts).
    tokens_from
        Epoch from which on cells are tokenized; in earlier ones neither counts nor tokens are needed, nor read.
    collate
        Called with a batch, its epoch and its step; None: the list of :class:`SubSliceItem` is returned.

    Raises
    ------
    CorpusError
        The split has no slice, or the cache lacks one or has another content of it.
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
        shard: Shard = Shard(),
        share: float = 1.0,
        drop_last: bool = False,
        prefetch: bool = True,
        with_counts: bool = False,
        match: Match | None = None,
        max_length: int = 2048,
        tokens_from: int = 0,
        collate: Collate | None = None,
    ) -> None:
        if CacheKey("", config).stored != CacheKey("", cache.key.config).stored:
            raise ConfigError(
                f"the cache was made with other sub-slice settings ({cache.key.config}) than {config}."
            )
        members = Members(corpus, split, share)
        self._sources = [str(value) for value in members.rows["sha256"]]
        missing = []
        for name, source in zip(members.ids, self._sources, strict=True):
            if not cache.has(name, source):
                missing.append(name)
        if missing:
            raise CorpusError(
                f"{len(missing)} of {len(members.ids)} slices have no stored embeddings of this model, e.g. "
                f"{missing[0]!r}; compute them first ({cache.folder})."
            )
        n_parts = np.array([cache.n_parts(name) for name in members.ids], dtype=np.int64)
        first_part = np.cumsum(n_parts) - n_parts
        self._part_member = np.repeat(np.arange(len(n_parts)), n_parts)
        self._part_number = np.arange(n_parts.sum()) - np.repeat(first_part, n_parts)
        super().__init__(
            int(n_parts.sum()),
            batch_slices,
            Stream.SUBSLICE_ORDER,
            self._read_items,
            members=members,
            shard=shard,
            seed=seed,
            settings={"cache": cache.key.digest(), "config": str(config)},
            drop_last=drop_last,
            prefetch=prefetch,
            collate=self._finish,
        )
        self._corpus = corpus
        self._cache = cache
        self._config = config
        self._match = match
        self._length = max_length
        self._with_counts = with_counts
        self._tokens_from = tokens_from
        self._then = collate
        self._open_members: OrderedDict[int, _OpenMember] = OrderedDict()

    def _tokenizes(self, epoch: int) -> bool:
        return self._match is not None and epoch >= self._tokens_from

    def _read_items(self, numbers: Ints, epoch: int, step: int) -> SubSliceBatch:
        with_counts = self._with_counts or self._tokenizes(epoch)
        return [self._read_item(number, with_counts) for number in numbers.tolist()]

    def _read_item(self, number: int, with_counts: bool) -> SubSliceItem:
        member = int(self._part_member[number])
        name = self.ids[member]
        opened = self._opened(member)
        core = opened.cached.part(int(self._part_number[number]))
        sub = opened.cutter.cut(core)
        return SubSliceItem(
            sub,
            features=np.asarray(opened.cached.features[sub.cells]),
            virtual=opened.cached.macro.features,
            id=name,
            member=member,
            spacing=opened.spacing,
            counts=self._corpus.take(name, sub.cells) if with_counts else None,
        )

    def _finish(self, batch: SubSliceBatch, epoch: int, step: int) -> Any:
        """Tokenize, outside of the reading thread, and collate."""
        if self._tokenizes(epoch):
            batch = [self._with_tokens(item) for item in batch]
        return batch if self._then is None else self._then(batch, epoch, step)

    def _with_tokens(self, item: SubSliceItem) -> SubSliceItem:
        match = cast(Match, self._match)
        token, median = match(item.id)
        tokens = rank_tokens(item.counts, token, median, self._length)
        counts = item.counts if self._with_counts else None
        return replace(item, tokens=tokens, counts=counts)

    def _opened(self, member: int) -> _OpenMember:
        """Return an open member; those used last stay open."""
        opened = self._open_members.pop(member, None)
        if opened is None:
            opened = self._open(member)
        self._open_members[member] = opened
        n_cells = sum(int(self._members.n_cells[one]) for one in self._open_members)
        while len(self._open_members) > 1:
            if n_cells <= MOST_OPEN_CELLS and len(self._open_members) <= MOST_OPEN_MEMBERS:
                break
            oldest, _ = self._open_members.popitem(last=False)
            n_cells -= int(self._members.n_cells[oldest])
        return opened

    def _open(self, member: int) -> _OpenMember:
        name = self.ids[member]
        row = self._members.rows.iloc[member]
        cached = self._cache.read(name, self._sources[member])
        if len(cached.features) != row["n_cells"]:
            raise CorpusError(
                f"{self._cache.path(name)} has {len(cached.features)} cells, not {row['n_cells']}."
            )
        coords = self._corpus.coords(name)
        spacing = float(row["spacing"])
        unit = length_unit(str(row["unit"]), spacing, self._config)
        positions = model_positions(coords, self._config, unit)
        extent = float(np.ptp(coords, axis=0).max())
        scale = 1.0
        if extent > 0:
            scale = float(np.ptp(positions, axis=0).max()) / extent
        cutter = SubSliceCutter(positions, cached.macro.positions, self._config)
        return _OpenMember(cached, cutter, spacing * scale)
