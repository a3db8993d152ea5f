"""Loader of spots of a corpus's slices (ST-Align), and the store of their features beside the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from terrazzo.arrays import Ints
from terrazzo.corpus.loader import Collate, ItemLoader, Members, Shard, Stream

if TYPE_CHECKING:
    from terrazzo.corpus.store import Corpus

from dataclasses import replace
from functools import cached_property, lru_cache

from terrazzo.corpus.genes import member_match
from terrazzo.corpus.store import Corpus
from terrazzo.progress import Progress
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import Identity
from terrazzo.systems.stalign.features import Features, Modality
from terrazzo.systems.stalign.model import STAlign

__all__ = ["FeatureStore", "SpotBatch", "SpotLoader", "StoredRows"]

FOLDER = ("cache", "features")  # in the corpus's folder


class FeatureStore:
    """Features of the slices of a corpus, stored in ``<corpus>/cache/features``.

    Parameters
    ----------
    corpus
        The slices.
    model
        Its frozen parts compute the features.
    modality
        What is read.
    bars
        Progress.
    """

    def __init__(
        self,
        corpus: Corpus,
        model: STAlign,
        modality: Modality = "both",
        bars: Progress | None = None,
    ) -> None:
        self._corpus = corpus
        self._model = model
        self._modality = modality
        self._bars = bars
        self._cache = FeatureCache(corpus.folder.joinpath(*FOLDER))
        self._match = member_match(corpus, model.vocabulary)
        self.of = lru_cache(maxsize=None)(self._read)  # small: large arrays stay on disk

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        module = self._model.module
        return module.image_encoder.fingerprint(), module.gene_encoder.fingerprint()

    def _read(self, name: str) -> Features:
        content = str(self._corpus.row(name)["sha256"])  # of counts, places and histology
        if self._modality == "image":
            identity = Identity(content, content)
        else:
            identity = Identity.of_hashes(content, content, *self._match(name))
        reader = self._model.stored_reader(
            lambda: self._aligned(name),
            identity,
            self._cache,
            fingerprints=self._fingerprints,
            bars=self._bars,
        )
        features = reader.read(self._modality)
        return replace(
            features,
            members=np.array(features.members),
            known=np.array(features.known),
            spot_image=_closed(features.spot_image),
            niche_image=_closed(features.niche_image),
            spot_genes=_closed(features.spot_genes),
            niche_genes=_closed(features.niche_genes),
            niche_components=_closed(features.niche_components),
        )

    def _aligned(self, name: str) -> AlignedSlice:
        model = self._model
        tissue = self._corpus.slice(name)
        match = None if self._modality == "image" else model.vocabulary.match(tissue)
        with_image = self._modality != "genes"
        return AlignedSlice.make(tissue, model.config, model.genes, match=match, image=with_image)


class StoredRows:
    """Rows of a stored array, which is open only while they are read: a process may have only so many files open."""

    def __init__(self, stored: np.memmap[Any, Any]) -> None:
        self._place: dict[str, Any] = {
            "filename": stored.filename,
            "dtype": stored.dtype,
            "offset": stored.offset,
            "shape": stored.shape,
        }

    def __len__(self) -> int:
        return int(self._place["shape"][0])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return a copy of some rows."""
        return np.array(np.memmap(mode="r", **self._place)[rows])


def _closed(rows: Any) -> Any:
    return StoredRows(rows) if isinstance(rows, np.memmap) else rows


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
