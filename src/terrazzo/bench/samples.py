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

from terrazzo import keys
from terrazzo.bench.protocols import Part
from terrazzo.datasets import load, registry
from terrazzo.tasks import Hidden, hide_genes

KEY = "X_bench"  # obsm key that a table works with
SEEN_IN_OBS = (
    keys.ARRAY_ROW,
    keys.ARRAY_COL,
    keys.LIBRARY,
    keys.ORGANISM,
)  # what reading a slice looks at


@dataclass(frozen=True, eq=False)
class Sample:
    """A slice twice.

    Attributes
    ----------
    labeled
        As it was read; gets the vectors under :data:`KEY`.
    bare
        A copy without labels or proportions: all that a system ever sees.
    """

    labeled: AnnData
    bare: AnnData

    @classmethod
    def read(
        cls, dataset: str, name: str, label: str, data: str | Path | None, *, image: bool = False
    ) -> Sample:
        """Read a slice of a dataset, with its picture or without; errors as :func:`terrazzo.datasets.load`."""
        adata, known = load(dataset, name, data, image=image), registry().get(dataset)
        return cls(adata, without_labels(adata, {label, *(known.labels if known else ())}))

    @cached_property
    def content(self) -> str:
        """Hash of all that was read: counts, genes, names, labels, coordinates, stored vectors, pictures."""
        one = self.labeled
        obsm = {name: values for name, values in one.obsm.items() if name != KEY}
        uns = {name: value for name, value in one.uns.items() if name != keys.UNS}
        parts = (one.X, dict(one.layers), one.obs, one.var, obsm, uns)
        return str(tokenize(*parts, ensure_deterministic=True))

    @cached_property
    def blind(self) -> AnnData:
        """The bare slice without a single count: what expression is predicted from."""
        out = AnnData(
            sparse.csr_matrix(self.bare.shape, dtype=np.float32),
            obs=self.bare.obs,
            var=self.bare.var,
        )
        out.obsm.update(dict(self.bare.obsm))
        out.uns.update(dict(self.bare.uns))
        return out

    def take(self, vectors: Any, record: dict[str, Any]) -> None:
        """Take over what a system wrote."""
        self.labeled.obsm[KEY] = np.array(vectors)
        set_record(self.labeled, record)


def without_labels(adata: AnnData, labels: Collection[str]) -> AnnData:
    """Return a copy with no column of ``obs`` that reading a slice does not need, and no ``obsm`` of these names."""
    pictures = adata.uns.pop(keys.SPATIAL, None)
    out = adata.copy()
    if pictures is not None:  # shared: they are large, and nobody writes into them
        adata.uns[keys.SPATIAL] = out.uns[keys.SPATIAL] = pictures
    out.obs = out.obs[[c for c in SEEN_IN_OBS if c in out.obs]]
    for name in labels:
        out.obsm.pop(name, None)
        out.uns.pop(f"{name}_names", None)
    return out


def record_of(adata: AnnData, key: str = KEY) -> dict[str, Any]:
    """Return what is recorded of ``obsm[key]``; nothing where it is not ours."""
    return dict(dict(adata.uns.get(keys.UNS, {})).get(key, {}))


def set_record(adata: AnnData, record: dict[str, Any]) -> None:
    """Record what ``obsm[KEY]`` is: an older record would name blocks that these vectors do not have."""
    others = {k: v for k, v in dict(adata.uns.get(keys.UNS, {})).items() if k != KEY}
    adata.uns[keys.UNS] = others | ({KEY: record} if record else {})


@dataclass(eq=False)
class Scene:
    """One part with its slices in memory."""

    part: Part
    test: Sample
    train: list[Sample]
    unlabeled: list[AnnData] = field(init=False)
    _hidden: list[Hidden] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """List what a system may be fitted on, once: baselines recognize it and share a fit."""
        self.unlabeled = [s.bare for s in self.train or [self.test]]

    @property
    def cross(self) -> bool:
        """Whether heads also learn from the training slices' labels."""
        return "cross" in self.part.settings

    @property
    def within(self) -> bool:
        """Whether the scored slice is split."""
        return "within" in self.part.settings

    def hidden(self, genes: int) -> list[Hidden]:
        """Return the scored slice and the training slices without some genes, the same for every system."""
        if not self._hidden:
            self._hidden = hide_genes(
                [self.test.bare, *(s.bare for s in self.train)], genes, seed=0
            )
            self.unlabeled = [h.visible for h in self._hidden[1:] or self._hidden]
        return self._hidden
