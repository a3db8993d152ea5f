"""Features of a corpus's slices, stored beside it and computed where they are missing."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from terrazzo.corpus.genes import member_match
from terrazzo.corpus.store import Corpus
from terrazzo.progress import Progress
from terrazzo.systems.stalign.aligned import AlignedSlice
from terrazzo.systems.stalign.feature_cache import FeatureCache
from terrazzo.systems.stalign.feature_reader import Identity
from terrazzo.systems.stalign.features import Features, Modality
from terrazzo.systems.stalign.model import STAlign

__all__ = ["FeatureStore", "StoredRows"]

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
