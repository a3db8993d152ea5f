"""Where the vectors of regions and types come from: the recipe without weights, a model, a baseline, or obsm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from terrazzo.answers.space import CellSpace, RegionSpace, between_slices, fit_expression
from terrazzo.arrays import AnyFloats, Floats, Ints
from terrazzo.expression import DIGITS, principal_directions
from terrazzo.models.baselines import WITHIN_3_HOPS
from terrazzo.models.projections import HALF, N_COMPONENTS, Expression
from terrazzo.slices import Slice

__all__ = ["CellRecipe", "Draw", "Embedded", "Fitted", "Recipe", "Source", "candidates"]


@dataclass(frozen=True)
class Fitted:
    """Vectors of the cells of several slices.

    Attributes
    ----------
    views
        For each seed the vectors of each slice, ``(n_cells, d)``; seeds that make no difference share one.
    space
        Makes vectors of other slices; None where that takes more than counts.
    between_before, between_after
        Share of the variance between slices: of components standardized over all slices, and of the vectors.
    genes
        That were used; empty where they are not known, or cannot be drawn.
    """

    views: list[list[Floats]]
    space: RegionSpace | CellSpace | None
    between_before: float
    between_after: float
    genes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draw:
    """Genes that were chosen or drawn before.

    Attributes
    ----------
    genes
        All that could be drawn.
    times
        ``(genes,)``: how often each was drawn, with replacement; None: every gene once.
    """

    genes: tuple[str, ...]
    times: Floats | None = None


class Source(Protocol):
    """Makes vectors of slices.

    Attributes
    ----------
    name
        For a person: the first line of the output.
    refits
        True where vectors can be made again of other counts of the same cells (half of them, other genes).
    """

    @property
    def name(self) -> str:
        """For a person."""
        ...

    @property
    def refits(self) -> bool:
        """See above."""
        ...

    def fit(
        self,
        slices: Sequence[Slice],
        seeds: Sequence[int],
        *,
        rows: Sequence[Ints] | None = None,
        draw: Draw | None = None,
    ) -> Fitted:
        """Return the vectors of slices, or of some rows of each, or by genes that were chosen or drawn before."""
        ...

    def by_itself(self) -> Source | None:
        """Return the source that standardizes every slice by itself; None where there is none."""
        ...


def _own_share(stated: float | None, slices: Sequence[Slice]) -> float:
    """Return the share of a slice's own mean that is taken out: as stated, or half for several slices, all for one."""
    if stated is not None:
        return stated
    return HALF if len(slices) > 1 else 1.0


def _between_before(expression: Expression, slices: Sequence[Slice]) -> float:
    """Return the share of variance between slices in components with one mean for all; 0 for one slice."""
    if len(slices) < 2:
        return 0.0
    common = replace(expression, own_share=0.0)
    return between_slices([common(tissue) for tissue in slices])


@dataclass(frozen=True)
class Recipe:
    """Ring means of states of cells: no weights, no labels (T4, 20 components, not whitened).

    Attributes
    ----------
    own_share
        Share of a slice's own mean that is taken out; None: half for several slices, all for one.
    """

    own_share: float | None = None
    name: str = "states of cells and of their surroundings (T4), fitted on these slices"
    refits: bool = True

    def fit(
        self,
        slices: Sequence[Slice],
        seeds: Sequence[int],
        *,
        rows: Sequence[Ints] | None = None,
        draw: Draw | None = None,
    ) -> Fitted:
        """Return the vectors of slices; see :class:`Source`."""
        expression = self.expression(slices, draw)
        joint = len(slices) > 1
        space, views = RegionSpace.fit(slices, expression, seeds, joint=joint, rows=rows)
        before = _between_before(expression, slices)
        return Fitted(views, space, before, between_slices(views[0]), expression.genes)

    def expression(self, slices: Sequence[Slice], draw: Draw | None = None) -> Expression:
        """Return the components of expression that the vectors are made of."""
        own_share = _own_share(self.own_share, slices)
        if draw is None:
            return fit_expression(slices, own_share)
        return fit_expression(slices, own_share, genes=draw.genes, weights=draw.times)

    def by_itself(self) -> Recipe | None:
        """Return the recipe with each slice standardized by itself; None where it is."""
        return None if self.own_share == 1.0 else replace(self, own_share=1.0)


@dataclass(frozen=True)
class CellRecipe:
    """Components of the single cell, as they are (types) or averaged over its neighbors (T1).

    Attributes
    ----------
    n_neighbors
        0: the cell alone.
    own_share
        As for :class:`Recipe`.
    """

    n_neighbors: int
    own_share: float | None = None
    name: str = "components of the single cell, fitted on these slices"
    refits: bool = True

    def fit(
        self,
        slices: Sequence[Slice],
        seeds: Sequence[int],
        *,
        rows: Sequence[Ints] | None = None,
        draw: Draw | None = None,
    ) -> Fitted:
        """Return the vectors of slices; see :class:`Source`."""
        expression = Recipe(self.own_share).expression(slices, draw)
        space = CellSpace(expression, self.n_neighbors)
        vectors = []
        for i, tissue in enumerate(slices):
            wanted = None if rows is None else rows[i]
            vectors.append(space(tissue, wanted)[0])
        before = _between_before(expression, slices)
        after = between_slices(vectors)
        return Fitted([vectors] * len(seeds), space, before, after, expression.genes)

    def by_itself(self) -> CellRecipe | None:
        """Return the recipe with each slice standardized by itself; None where it is."""
        return None if self.own_share == 1.0 else replace(self, own_share=1.0)


def candidates(kind: str) -> list[Source]:
    """Return what regions or types are looked for in without weights; the best by held-out counts is taken."""
    if kind == "type":
        return [CellRecipe(0)]
    smoothed = CellRecipe(
        WITHIN_3_HOPS, name="mean expression within three hops (T1), fitted on these slices"
    )
    return [Recipe(), smoothed]


@dataclass(frozen=True)
class Embedded:
    """Vectors of a model, a baseline or ``obsm``: their first 20 principal components.

    Attributes
    ----------
    name
        For a person.
    embed
        Returns the embedding of a slice; it is called with the number of the slice and the slice.
    refits
        True where ``embed`` reads the counts of the slice that it is given.
    own_share
        Share of a slice's own mean embedding that is taken out.
    """

    name: str
    embed: Callable[[int, Slice], AnyFloats]
    refits: bool
    own_share: float | None = None

    def fit(
        self,
        slices: Sequence[Slice],
        seeds: Sequence[int],
        *,
        rows: Sequence[Ints] | None = None,
        draw: Draw | None = None,
    ) -> Fitted:
        """Return the vectors of slices; see :class:`Source`. Genes cannot be drawn."""
        embeddings = []
        for i, tissue in enumerate(slices):
            embeddings.append(np.asarray(self.embed(i, tissue), dtype=np.float64))
        before = between_slices(embeddings)
        center = np.concatenate(embeddings).mean(axis=0)
        share = _own_share(self.own_share, slices)
        centered = []
        for embedding in embeddings:
            subtracted = share * embedding.mean(axis=0) + (1 - share) * center
            centered.append(embedding - subtracted)
        stacked = np.concatenate(centered)
        directions, _ = principal_directions(stacked.T @ stacked / len(stacked), N_COMPONENTS)
        vectors = []
        for i, part in enumerate(centered):
            projected = np.round(part @ directions, DIGITS)
            vectors.append(projected if rows is None else projected[rows[i]])
        return Fitted([vectors] * len(seeds), None, before, between_slices(vectors))

    def by_itself(self) -> Embedded | None:
        """Return the source with each slice centered by itself; None where it is."""
        return None if self.own_share == 1.0 else replace(self, own_share=1.0)
