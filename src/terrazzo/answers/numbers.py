"""How many regions: found in one half of the counts, scored on the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from terrazzo.answers.partition import fit_mixtures, means_of, tree_of
from terrazzo.answers.sources import Draw, Recipe, Source
from terrazzo.arrays import Floats, Int32s, Ints
from terrazzo.models.baselines import WITHIN_1_HOP, neighbor_mean
from terrazzo.models.projections import Expression, sampled_rows
from terrazzo.slices import Slice
from terrazzo.splitting import thin_counts
from terrazzo.tasks.clustering import medoid_of

__all__ = ["Chosen", "around", "best_number", "choose", "explained", "halves"]

K_RANGE = (2, 15)

FEW_SPLITS = 2  # how often counts are split to compare sources over all numbers, and for slices of many cells

SPLITS = 4  # how often otherwise: one split says little of a few hundred spots

MANY_CELLS = 20_000  # scores of more cells hardly differ between splits

# How far below the highest bend a smaller number is as good. Set on simulated tissues of even seeds; the agreement of
# splits, added to the height, found one more of them, but took seven layers of cortex for three
BAND = 0.05


@dataclass(frozen=True)
class Chosen:
    """The source whose regions explain most, and the number of regions.

    Attributes
    ----------
    source
        Of the vectors.
    k
        How many.
    curve
        Columns ``k``; ``score``: the share of the variance of the other half that the means of the regions explain;
        ``stability``: mean ARI between the regions of two splits.
    """

    source: Source
    k: int
    curve: pd.DataFrame


def choose(
    slices: Sequence[Slice],
    sources: Sequence[Source],
    k: int | None = None,
    genes: Draw | None = None,
) -> Chosen:
    """Choose a source and a number of regions; the seeds of a caller change neither.

    Parameters
    ----------
    slices
        Slices, at least one.
    sources
        At least one.
    k
        Number that was asked for: only sources are compared. None: 2 to 15 are tried.
    genes
        That were chosen on these slices; None: chosen for every split.
    """
    n_cells = sum(tissue.n_cells for tissue in slices)
    numbers = _numbers(n_cells, k)
    n_splits = SPLITS if n_cells <= MANY_CELLS else FEW_SPLITS
    n_compared = FEW_SPLITS if k is None else n_splits
    tried = [_Tried(source) for source in sources]
    for seed in range(n_compared):
        split = _split(slices, seed, genes)
        for one in tried:
            one.add(split, numbers)
    best = max(tried, key=lambda one: one.mean)
    for seed in range(n_compared, n_splits):
        best.add(_split(slices, seed, genes), numbers)
    curve = best.curve(numbers)
    return Chosen(best.source, best_number(curve) if k is None else k, curve)


def _numbers(n_cells: int, k: int | None) -> Ints:
    """Return the numbers to try: 2 to 15, or the one that was asked for and those beside it."""
    if k is None:
        last = min(K_RANGE[1], max(n_cells // 10, 2))
        return np.arange(K_RANGE[0], last + 1)
    first = max(k - 1, min(k, 2))
    last = min(k + 1, n_cells)
    return np.arange(first, last + 1)


# ---- splits of counts


def halves(tissue: Slice, seed: int) -> tuple[Slice, Slice]:
    """Return a slice twice, with the two random halves of every count (binomial): one to find, the other to test."""
    rng = np.random.default_rng(seed)
    first, second = thin_counts(tissue.counts, 0.5, rng)
    return replace(tissue, counts=first), replace(tissue, counts=second)


@dataclass(frozen=True)
class _Split:
    """Slices whose counts are split.

    Attributes
    ----------
    seed
        Of the split, and of all that is fitted on it.
    whole, first
        Slices with all counts, and with one half.
    seen, unseen
        Components of both halves, averaged over a cell and its six nearest (one cell is mostly noise), less their mean
        in the slice.
    rows
        Cells of each slice that are scored; None for all.
    genes
        That the components are made of.
    """

    seed: int
    whole: Sequence[Slice]
    first: list[Slice]
    seen: Floats
    unseen: Floats
    rows: list[Ints] | None
    genes: Draw | None


def _split(slices: Sequence[Slice], seed: int, genes: Draw | None) -> _Split:
    first = []
    second = []
    for tissue in slices:
        one, other = halves(tissue, seed)
        first.append(one)
        second.append(other)
    expression = Recipe().expression(first, genes)
    rows = sampled_rows([tissue.n_cells for tissue in slices])
    seen = around(expression, first, rows)
    unseen = around(expression, second, rows)
    return _Split(seed, slices, first, seen, unseen, rows, genes)


def around(
    expression: Expression, slices: Sequence[Slice], rows: Sequence[Ints] | None = None
) -> Floats:
    """Return components averaged over a cell and its six nearest, less their mean in the slice.

    With that mean, regions that follow the slices would score best.
    """
    parts = []
    for i, tissue in enumerate(slices):
        components = expression(tissue)
        wanted = None if rows is None else rows[i]
        means = neighbor_mean(components, tissue.coords, WITHIN_1_HOP, wanted).astype(np.float64)
        parts.append(means - means.mean(axis=0))
    return np.concatenate(parts)


# ---- scores


@dataclass(frozen=True)
class _Tried:
    """What a source has reached.

    Attributes
    ----------
    source
        Of the vectors.
    scores
        For each split the score of each number.
    labels
        For each split the regions of each number, int32 ``(numbers, n_cells)``.
    """

    source: Source
    scores: list[Floats] = field(default_factory=list)
    labels: list[Int32s] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean score over splits and numbers."""
        return float(np.mean(self.scores))

    def add(self, split: _Split, numbers: Ints) -> None:
        """Find regions in one half of the counts, and score them on the other."""
        slices = split.first if self.source.refits else split.whole
        fitted = self.source.fit(slices, (split.seed,), rows=split.rows, draw=split.genes)
        vectors = np.concatenate(fitted.views[0])
        tree = tree_of(vectors, split.seed)
        scores = np.zeros(len(numbers))
        table = np.zeros((len(numbers), len(vectors)), dtype=np.int32)
        for place, k in enumerate(numbers):
            likelier = fit_mixtures(vectors, int(k), split.seed, tree)[0]
            _, labels = np.unique(likelier(vectors), return_inverse=True)
            scores[place] = explained(split.seen, split.unseen, labels)
            table[place] = labels
        self.scores.append(scores)
        self.labels.append(table)

    def curve(self, numbers: Ints) -> pd.DataFrame:
        """Return the table of a :class:`Chosen`."""
        stability = []
        for place in range(len(numbers)):
            runs = np.stack([table[place] for table in self.labels]).astype(np.int64)
            _, similarity = medoid_of(runs)
            stability.append(similarity)
        score = np.mean(self.scores, axis=0)
        return pd.DataFrame({"k": numbers, "score": score, "stability": stability})


def explained(seen: Floats, unseen: Floats, labels: Ints) -> float:
    """Return the share of the variance of ``unseen`` that the means of ``seen`` explain."""
    deviation = unseen - unseen.mean(axis=0)
    means = means_of(seen, labels)
    residual = unseen - means[labels]
    total = (deviation**2).sum()
    rest = (residual**2).sum()
    return float(1 - rest / max(total, 1e-12))


def best_number(curve: pd.DataFrame) -> int:
    """Return the number at which the score bends.

    A number's height is how far its score is above the line from the first to the best, both axes scaled to 0 .. 1.
    Within 0.05 of the highest, the smallest number is taken.
    """
    numbers = curve["k"].to_numpy(dtype=np.float64)
    if len(numbers) < 3:
        return int(numbers[0])
    score = curve["score"].to_numpy(dtype=np.float64)
    rise = max(float(score.max() - score[0]), 1e-12)
    risen = (score - score[0]) / rise
    position = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    height = risen - position
    is_good = height >= height.max() - BAND
    return int(numbers[is_good][0])
