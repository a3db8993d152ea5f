"""Regions as a tree: the most alike are joined, and the least alike cells of one region are split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from terrazzo.arrays import Bools, Floats, Ints

__all__ = ["FINEST", "tree_levels"]

FINEST = 15

FEWEST_CELLS = 20  # of a region that is split

MAX_SPLIT = 5_000  # cells that a split is looked for in


def tree_levels(vectors: Floats, labels: Ints, k: int, seed: int = 0) -> Ints:
    """Return the region of every cell at each level of the tree, int16 ``(n, levels)``.

    Column ``j - 1`` has ``j`` regions; each level splits one region of the one before. The level with ``k`` is
    ``labels``.

    Parameters
    ----------
    vectors
        ``(n, d)``: what regions were found in.
    labels
        ``(n,)``, 0 .. k-1.
    k
        Number of regions.
    seed
        Of the splits.
    """
    levels = []
    for new_number in _joined(vectors, labels, k):
        levels.append(new_number[labels])
    levels.append(labels)
    finer = _split(vectors, labels, k, seed)
    levels.extend(finer)
    return np.stack(levels, axis=1).astype(np.int16)


def _joined(vectors: Floats, labels: Ints, k: int) -> list[Ints]:
    """Return the number of each region when 1, 2, ... k-1 are left (Ward, weighed by cells)."""
    sizes = np.bincount(labels, minlength=k)
    sums = np.zeros((k, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    groups: dict[int, list[int]] = {}
    means: dict[int, Floats] = {}
    weight: dict[int, float] = {}
    for region in range(k):
        n_cells = max(float(sizes[region]), 1.0)
        groups[region] = [region]
        means[region] = sums[region] / n_cells
        weight[region] = n_cells
    levels = []
    for _ in range(k - 1):
        first, second = _nearest_pair(means, weight)
        own_sum = weight[first] * means[first]
        other_weight = weight.pop(second)
        other_sum = other_weight * means.pop(second)
        joined = weight[first] + other_weight
        means[first] = (own_sum + other_sum) / joined
        weight[first] = joined
        members = groups.pop(second)
        groups[first].extend(members)
        level = np.zeros(k, dtype=np.int64)
        for number, name in enumerate(sorted(groups)):
            level[groups[name]] = number
        levels.append(level)
    return levels[::-1]


def _nearest_pair(means: Mapping[int, Floats], weight: Mapping[int, float]) -> tuple[int, int]:
    """Return the two groups whose joining costs least variance, the smaller number first."""
    names = sorted(means)
    least = np.inf
    pair = (names[0], names[-1])
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            difference = means[first] - means[second]
            squared = float((difference**2).sum())
            product = weight[first] * weight[second]
            total = weight[first] + weight[second]
            cost = squared * product / total
            if cost < least:
                least = cost
                pair = (first, second)
    return pair


@dataclass(frozen=True)
class _Cut:
    """A split of one region: its cells, which of them leave, and the variance that is explained by it."""

    cells: Ints
    leaves: Bools
    gain: float


def _split(vectors: Floats, labels: Ints, k: int, seed: int) -> list[Ints]:
    """Return the levels with more than ``k`` regions: that split is taken which explains most variance."""
    cuts = {}
    for region in range(k):
        cells = np.flatnonzero(labels == region)
        cuts[region] = _best_cut(vectors, cells, seed)
    level = labels.copy()
    levels = []
    for new in range(k, FINEST):
        region = max(cuts, key=lambda name: cuts[name].gain)
        cut = cuts[region]
        if not cut.leaves.any():
            break
        level = level.copy()
        leaving = cut.cells[cut.leaves]
        staying = cut.cells[~cut.leaves]
        level[leaving] = new
        levels.append(level)
        cuts[region] = _best_cut(vectors, staying, seed)
        cuts[new] = _best_cut(vectors, leaving, seed)
    return levels


def _best_cut(vectors: Floats, cells: Ints, seed: int) -> _Cut:
    """Split the cells of a region in two by k-means; the smaller part leaves."""
    from sklearn.cluster import KMeans

    stays = np.zeros(len(cells), dtype=bool)
    own = vectors[cells]
    if len(cells) < FEWEST_CELLS:
        return _Cut(cells, stays, 0.0)
    sample = own
    if len(own) > MAX_SPLIT:
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(own), MAX_SPLIT, replace=False)
        sample = own[chosen]
    if (sample == sample[0]).all():
        return _Cut(cells, stays, 0.0)
    model = KMeans(2, n_init=3, random_state=seed).fit(sample)
    part = model.predict(own)
    sizes = np.bincount(part, minlength=2)
    smaller = int(np.argmin(sizes))
    leaves = part == smaller
    if leaves.all() or not leaves.any():
        return _Cut(cells, stays, 0.0)
    difference = own[leaves].mean(axis=0) - own[~leaves].mean(axis=0)
    n_leaving = int(leaves.sum())
    n_staying = len(cells) - n_leaving
    weight = n_leaving * n_staying / len(cells)
    squared = float((difference**2).sum())
    return _Cut(cells, leaves, squared * weight)
