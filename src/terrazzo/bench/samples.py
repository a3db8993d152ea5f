"""A slice as a table uses it: with its labels, for heads and scores; and without any, for all that embeds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from dask.base import tokenize
from scipy import sparse

from terrazzo import datasets, keys, records
from terrazzo.bench.protocols import Part
from terrazzo.models.base import FoundationModel
from terrazzo.models.shift import Shift, compare
from terrazzo.tasks import Hidden, hide_genes
from terrazzo.tasks.transfer import to_slices

__all__ = ["KEY", "LoadedPart", "Sample", "record_of", "set_record", "without_labels"]

KEY = "X_bench"  # obsm key that a table works with
OBS_OF_READING = (keys.ARRAY_ROW, keys.ARRAY_COL, keys.LIBRARY, keys.ORGANISM)


@dataclass(frozen=True, eq=False)
class Sample:
    """A slice twice.

    Attributes
    ----------
    labeled
        As it was read; gets the vectors under :data:`KEY`.
    bare
        A copy without labels or proportions: all that an entry ever sees.
    """

    labeled: AnnData
    bare: AnnData

    @classmethod
    def read(
        cls, dataset: str, name: str, label: str, data: str | Path | None, *, image: bool = False
    ) -> Sample:
        """Read a slice of a dataset, with its picture or without; errors as :func:`terrazzo.datasets.load`."""
        adata = datasets.load(dataset, name, data, image=image)
        labels = {label}
        known = datasets.registry().get(dataset)
        if known is not None:
            labels.update(known.labels)
        return cls(adata, without_labels(adata, labels))

    @cached_property
    def content(self) -> str:
        """Hash of all that was read: counts, genes, names, labels, coordinates, stored vectors, pictures."""
        adata = self.labeled
        obsm = dict(adata.obsm)
        obsm.pop(KEY, None)
        uns = dict(adata.uns)
        uns.pop(keys.UNS, None)
        parts = (adata.X, dict(adata.layers), adata.obs, adata.var, obsm, uns)
        return str(tokenize(*parts, ensure_deterministic=True))

    @cached_property
    def blind(self) -> AnnData:
        """The bare slice without a single count: what expression is predicted from."""
        zeros = sparse.csr_matrix(self.bare.shape, dtype=np.float32)
        out = AnnData(zeros, obs=self.bare.obs, var=self.bare.var)
        out.obsm.update(dict(self.bare.obsm))
        out.uns.update(dict(self.bare.uns))
        return out

    def take(self, vectors: Any, record: dict[str, Any]) -> None:
        """Write the vectors of an entry, and their record, into the labeled slice."""
        self.labeled.obsm[KEY] = np.array(vectors)
        set_record(self.labeled, record)


def without_labels(adata: AnnData, labels: Collection[str]) -> AnnData:
    """Return a copy with no column of ``obs`` that reading a slice does not need, and no ``obsm`` of these names."""
    pictures = adata.uns.pop(keys.SPATIAL, None)
    out = adata.copy()
    if pictures is not None:  # shared: they are large, and nothing writes into them
        adata.uns[keys.SPATIAL] = pictures
        out.uns[keys.SPATIAL] = pictures
    columns = [column for column in OBS_OF_READING if column in out.obs]
    out.obs = out.obs[columns]
    for name in labels:
        out.obsm.pop(name, None)
        out.uns.pop(f"{name}_names", None)
    return out


def record_of(adata: AnnData, key: str = KEY) -> dict[str, Any]:
    """Return what terrazzo recorded of ``obsm[key]``; empty where it did not write it."""
    return records.records_of(adata).get(key, {})


def set_record(adata: AnnData, record: dict[str, Any]) -> None:
    """Record what ``obsm[KEY]`` is: an older record would name blocks that these vectors do not have."""
    known = records.records_of(adata)
    known.pop(KEY, None)
    if record:
        known[KEY] = record
    adata.uns[keys.UNS] = known


@dataclass(eq=False)
class LoadedPart:
    """One part of a table with its slices in memory.

    Attributes
    ----------
    part
        The part.
    test, train
        The slice that is scored, and its training slices.
    unlabeled
        What an entry may be fitted on.
    all_unlabeled
        What an entry that is fitted on the scored slice, too, is fitted on: the training slices first.
    """

    part: Part
    test: Sample
    train: list[Sample]
    unlabeled: list[AnnData] = field(init=False)
    all_unlabeled: list[AnnData] = field(init=False)
    _hidden: list[Hidden] = field(init=False, default_factory=list)
    _shifts: dict[int, Shift] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """List what an entry may be fitted on, once: baselines recognize the list and share a fit."""
        train = [sample.bare for sample in self.train]
        self._list(self.test.bare, train)

    def _list(self, test: AnnData, train: list[AnnData]) -> None:
        self.unlabeled = train or [test]
        self.all_unlabeled = [*train, test]

    @property
    def cross(self) -> bool:
        """Whether heads also learn from the training slices' labels."""
        return "cross" in self.part.settings

    @property
    def within(self) -> bool:
        """Whether the scored slice is split."""
        return "within" in self.part.settings

    @property
    def samples(self) -> list[Sample]:
        """The scored slice, then the training slices."""
        return [self.test, *self.train]

    def shift(self, model: FoundationModel | None) -> Shift:
        """Return the training slices and the scored one, compared by the genes that a model knows; None: by all."""
        key = id(model)
        if key not in self._shifts:
            labeled = to_slices([sample.bare for sample in self.train])
            self._shifts[key] = compare(labeled, to_slices(self.test.bare), model)
        return self._shifts[key]

    def hidden(self, n_genes: int) -> list[Hidden]:
        """Return the scored slice and the training slices without some genes, the same for every entry."""
        if not self._hidden:
            slices = [sample.bare for sample in self.samples]
            self._hidden = hide_genes(slices, n_genes, seed=0)
            test, *train = [one.visible for one in self._hidden]
            self._list(test, train)
        return self._hidden
