"""Find regions: how many, where, how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from terrazzo.answers.partition import Mixture, fit_mixtures, means_of, tree_of
from terrazzo.answers.sources import Draw, Fitted, Recipe, Source
from terrazzo.answers.space import Expression, sampled_rows
from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.models.baselines import WITHIN_1_HOP, neighbor_mean
from terrazzo.progress import Advance, Progress
from terrazzo.slices import Slice
from terrazzo.splitting import thin_counts
from terrazzo.tasks.clustering import Vote, matched, refine_labels, vote
from terrazzo.tasks.metrics import clustering, nearest

__all__ = ["Found", "Settings", "find", "halves", "smoothed_agreement"]

FEWEST_CELLS = 30

K_RANGE = (2, 15)

SPLITS = 2  # how often counts are split to choose K

MAX_BOOTSTRAP_CELLS = 12_000  # so many that the Ward tree is built on a sample of them

SPREAD_CELLS = 10_000  # cells that are counted first where different ones are counted

PRESENT = 0.02  # share of a slice from which on a region counts as found in it

# mean share of the regions that a slice has; below, slices are standardized by themselves
LEAST_MIXED = 0.5

# mean ARI of two partitions; below, the same is tried, and taken if the seeds agree better
LEAST_SIMILAR = 0.6


@dataclass(frozen=True)
class Settings:
    """How regions are found.

    Attributes
    ----------
    k
        Number of regions; None: chosen.
    seeds
        One set of states each; every one gives two partitions.
    neighbors
        Of the one round of majority in space; 0: off.
    smooth_from
        Fewest cells of a slice that is smoothed.
    bootstraps
        Draws of genes, for the reproducibility of each region; 0: none.
    """

    k: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    neighbors: int = 18
    smooth_from: int = 1000
    bootstraps: int = 16


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes
    ----------
    labels
        Of each slice, int64 ``(n_cells,)``, 0 .. k-1.
    agreement
        Of each slice ``(n_cells,)``: the share of the partitions that agree with the vote.
    reproducibility
        Of each slice ``(n_cells,)``: sqrt(agreement x share of the nearest cells with the same label); of types the
        agreement alone.
    by_region
        ``(k,)``: agreement over draws of genes; NaN where there were none.
    k
        How many.
    curve
        Columns ``k``, ``score``, ``stability``: what the number was chosen by; empty where it was given.
    similarity
        Mean ARI between two partitions.
    fitted
        The vectors.
    mixtures
        Each partition: number of its seed, the mixture, and the region that each of its components is.
    by_itself
        True where each slice was standardized by itself.
    source
        Of the vectors; None for an earlier answer.
    """

    labels: list[Ints]
    agreement: list[Floats]
    reproducibility: list[Floats]
    by_region: Floats
    k: int
    curve: pd.DataFrame
    similarity: float
    fitted: Fitted
    mixtures: list[tuple[int, Mixture, Ints]]
    by_itself: bool
    source: Source | None = None


def find(
    slices: Sequence[Slice],
    sources: Sequence[Source],
    settings: Settings,
    progress: bool | None = None,
) -> Found:
    """Find regions in slices, the same in all of them.

    Parameters
    ----------
    slices
        Slices, at least one.
    sources
        Of the vectors; of several the one whose regions explain most of the counts that were held out.
    settings
        How.
    progress
        Show bars; None: on a terminal.

    Raises
    ------
    InputError
        Too few cells, or cells that are all alike.
    ConfigError
        More regions than cells.
    """
    _check(slices, settings)
    bars = Progress(progress)
    source = sources[0]
    curve = pd.DataFrame({"k": [], "score": [], "stability": []})
    k = settings.k
    if k is None or len(sources) > 1:
        with bars.stage("choose by held-out counts", None):
            curves = score_numbers(slices, sources, settings)
        means = [one["score"].mean() for one in curves]
        best = int(np.argmax(means))
        source = sources[best]
        if k is None:
            curve = curves[best]
            k = knee(curve)
    with bars.stage("find regions", None):
        fitted = source.fit(slices, settings.seeds)
        _check_vectors(fitted, k)
        partitions = _partitions(fitted, k, settings.seeds)
        by_itself = False
        alone = source.by_itself() if len(slices) > 1 else None
        similarity = partitions.vote.similarity
        is_apart = mixed(_cut(partitions.vote.labels, slices), k) < LEAST_MIXED
        if alone is not None and (is_apart or similarity < LEAST_SIMILAR):
            refitted = alone.fit(slices, settings.seeds)
            others = _partitions(refitted, k, settings.seeds)
            by_itself = is_apart or others.vote.similarity > similarity
            if by_itself:
                source = alone
                fitted = replace(refitted, between_before=fitted.between_before)
                partitions = others
    smooth = _smoothed(partitions.vote.labels, slices, settings)
    order = _order(smooth, slices, _expression(fitted, by_itself, slices))
    labels = _cut(order[smooth], slices)
    agreement = _cut(partitions.vote.agreement, slices)
    by_region = np.full(int(order.max()) + 1, np.nan)
    if settings.bootstraps and fitted.genes:
        with bars.stage("draw genes", settings.bootstraps, "draws") as advance:
            by_region = _bootstrapped(slices, source, fitted.genes, labels, settings, advance)
    surely = []
    for tissue, own, share in zip(slices, labels, agreement, strict=True):
        surely.append(smoothed_agreement(own, share, tissue.coords, settings.neighbors))
    mixtures = []
    for seed, mixture, names in partitions.mixtures:
        mixtures.append((seed, mixture, order[names]))
    return Found(
        labels,
        agreement,
        surely,
        by_region,
        len(by_region),
        curve,
        partitions.vote.similarity,
        fitted,
        mixtures,
        by_itself,
        source,
    )


def _check(slices: Sequence[Slice], settings: Settings) -> None:
    n_cells = sum(tissue.n_cells for tissue in slices)
    k = settings.k
    if k is not None and not 1 <= k <= n_cells:
        raise ConfigError(
            f"k is {k}, and there are {n_cells} cells; pass a number of at most {n_cells}."
        )
    if n_cells < FEWEST_CELLS:
        raise InputError(
            f"{n_cells} cells are too few to find anything in; it takes at least {FEWEST_CELLS}."
        )


def _check_vectors(fitted: Fitted, k: int) -> None:
    stacked = np.concatenate(fitted.views[0])
    step = max(1, len(stacked) // SPREAD_CELLS)
    n_distinct = _n_distinct(stacked[::step])
    if n_distinct < k:
        n_distinct = _n_distinct(stacked)
    if n_distinct < 2 and k > 1:
        raise InputError("all cells are alike; there is nothing to find.")
    if n_distinct < k:
        raise InputError(
            f"there are only {n_distinct} different cells; pass a number of at most as many."
        )


def _n_distinct(vectors: Floats) -> int:
    distinct = np.unique(vectors.round(4), axis=0)
    return len(distinct)


@dataclass(frozen=True)
class _Partitions:
    vote: Vote
    mixtures: list[tuple[int, Mixture, Ints]]


def _partitions(fitted: Fitted, k: int, seeds: Sequence[int]) -> _Partitions:
    """Return the vote of two mixtures for each seed."""
    runs = []
    made = []
    for place, (seed, view) in enumerate(zip(seeds, fitted.views, strict=True)):
        vectors = np.concatenate(view)
        for mixture in fit_mixtures(vectors, k, seed):
            runs.append(mixture(vectors))
            made.append((place, mixture))
    result = vote(np.stack(runs))
    used, labels = np.unique(result.labels, return_inverse=True)
    renamed = np.zeros(int(result.labels.max()) + k + 1, dtype=np.int64)
    renamed[used] = np.arange(len(used))  # a label that no cell has any more is given to the first
    mixtures = []
    for (place, mixture), names in zip(made, result.names, strict=True):
        all_names = np.zeros(len(mixture.means), dtype=np.int64)
        all_names[: len(names)] = renamed[names]
        mixtures.append((place, mixture, all_names))
    return _Partitions(replace(result, labels=labels.astype(np.int64)), mixtures)


def _cut(values: Ints | Floats, slices: Sequence[Slice]) -> list:
    """Cut values of all cells into those of each slice."""
    ends = np.cumsum([tissue.n_cells for tissue in slices])
    return np.split(values, ends[:-1])


def mixed(labels: Sequence[Ints], k: int) -> float:
    """Return the mean share of the regions that make up at least 2 % of a slice."""
    shares = []
    for own in labels:
        sizes = np.bincount(own, minlength=k)
        share = sizes / max(len(own), 1)
        is_present = share >= PRESENT
        shares.append(is_present.sum() / k)
    return float(np.mean(shares))


def _smoothed(labels: Ints, slices: Sequence[Slice], settings: Settings) -> Ints:
    """Take one round of majority over the nearest cells in slices that are large enough."""
    parts = []
    for own, tissue in zip(_cut(labels, slices), slices, strict=True):
        if settings.neighbors and tissue.n_cells >= settings.smooth_from:
            own = refine_labels(own, tissue.coords, settings.neighbors)
        parts.append(own)
    return np.concatenate(parts).astype(np.int64)


def _expression(fitted: Fitted, by_itself: bool, slices: Sequence[Slice]) -> Expression:
    """Return the components that regions are numbered by: those of the vectors, unless slices stand alone."""
    if fitted.space is None or by_itself:
        return Recipe().expression(slices)
    return fitted.space.expression


def _order(labels: Ints, slices: Sequence[Slice], expression: Expression) -> Ints:
    """Return the number of each label: regions in the order of their first component of expression.

    Sizes and seeds move numbers; a region's mean expression hardly does.
    """
    components = [expression(tissue)[:, 0] for tissue in slices]
    first = np.concatenate(components).astype(np.float64)
    n_labels = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=n_labels)
    sums = np.bincount(labels, weights=first, minlength=n_labels)
    is_used = sizes > 0
    divisor = np.maximum(sizes, 1)
    means = sums / divisor
    key = np.where(is_used, -means, np.inf)
    falling = np.argsort(key, kind="stable")
    order = np.zeros(n_labels, dtype=np.int64)
    order[falling] = np.arange(n_labels)
    n_used = int(is_used.sum())
    return np.minimum(order, n_used - 1)


def smoothed_agreement(labels: Ints, agreement: Floats, coords: Floats, n_neighbors: int) -> Floats:
    """Return sqrt(agreement x share of the nearest cells with the same label); the agreement for no neighbors."""
    if n_neighbors == 0:  # types: those of its neighbors say nothing of a cell's own
        return agreement
    n_nearest = min(max(n_neighbors, 6), len(labels) - 1)
    if n_nearest < 1:
        return np.sqrt(agreement)
    neighbors = nearest(coords, n_nearest)
    same = (labels[neighbors] == labels[:, None]).mean(axis=1)
    return np.sqrt(agreement * same)


# ---- how many


def halves(tissue: Slice, seed: int) -> tuple[Slice, Slice]:
    """Return a slice twice, with the two random halves of every count (binomial): one to find, the other to test."""
    rng = np.random.default_rng(seed)
    first, second = thin_counts(tissue.counts, 0.5, rng)
    return replace(tissue, counts=first), replace(tissue, counts=second)


def score_numbers(
    slices: Sequence[Slice], sources: Sequence[Source], settings: Settings
) -> list[pd.DataFrame]:
    """Score numbers of regions: found in one half of the counts, scored on the other.

    Returns
    -------
    For each source a table: ``k``; ``score``: the share of the variance of the other half that the means of the regions
    explain, in components averaged over a cell and its six nearest; ``stability``: ARI between the regions of two
    splits. Numbers are 2 to 15, or the one of the settings.
    """
    n_cells = sum(tissue.n_cells for tissue in slices)
    last = min(K_RANGE[1], max(n_cells // 10, 2))
    numbers = np.arange(K_RANGE[0], last + 1)
    if settings.k is not None:
        numbers = np.array([settings.k])
    scores = np.zeros((len(sources), SPLITS, len(numbers)))
    found: list[list[list[Ints]]] = [[[] for _ in numbers] for _ in sources]
    rows = sampled_rows([tissue.n_cells for tissue in slices])
    for split in range(SPLITS):
        pairs = [halves(tissue, split) for tissue in slices]
        first = [pair[0] for pair in pairs]
        expression = Recipe().expression(first)
        seen = _around(expression, first, rows)
        unseen = _around(expression, [pair[1] for pair in pairs], rows)
        for place, source in enumerate(sources):
            read = first if source.refits else slices
            seeds = settings.seeds[split : split + 1] or (0,)
            fitted = source.fit(read, seeds, rows=rows)
            vectors = np.concatenate(fitted.views[0])
            tree = tree_of(vectors, split)
            for column, k in enumerate(numbers):
                mixtures = fit_mixtures(vectors, int(k), split, tree)
                labels = mixtures[0](vectors)
                _, labels = np.unique(labels, return_inverse=True)
                scores[place, split, column] = explained(seen, unseen, labels)
                found[place][column].append(labels)
    tables = []
    for place in range(len(sources)):
        stability = [clustering(one, other)["ari"] for one, other in found[place]]
        score = scores[place].mean(axis=0)
        tables.append(pd.DataFrame({"k": numbers, "score": score, "stability": stability}))
    return tables


def _around(expression: Expression, slices: Sequence[Slice], rows: Sequence[Ints] | None) -> Floats:
    """Return components averaged over a cell and its six nearest: one cell is mostly noise."""
    parts = []
    for i, tissue in enumerate(slices):
        components = expression(tissue)
        wanted = None if rows is None else rows[i]
        parts.append(neighbor_mean(components, tissue.coords, WITHIN_1_HOP, wanted))
    return np.concatenate(parts).astype(np.float64)


def explained(seen: Floats, unseen: Floats, labels: Ints) -> float:
    """Return the share of the variance of ``unseen`` that the means of ``seen`` explain."""
    center = unseen.mean(axis=0)
    deviation = unseen - center
    means = means_of(seen, labels)
    residual = unseen - means[labels]
    total = (deviation**2).sum()
    rest = (residual**2).sum()
    return float(1 - rest / max(total, 1e-12))


def knee(curve: pd.DataFrame) -> int:
    """Return the number at which the score bends: farthest above the line from the first to the best."""
    numbers = curve["k"].to_numpy(dtype=np.float64)
    score = curve["score"].to_numpy()
    if len(numbers) < 3:
        return int(numbers[0])
    rise = max(float(score.max() - score[0]), 1e-12)
    height = (score - score[0]) / rise
    position = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    return int(numbers[int(np.argmax(height - position))])


# ---- how sure


def _bootstrapped(
    slices: Sequence[Slice],
    source: Source,
    genes: tuple[str, ...],
    labels: Sequence[Ints],
    settings: Settings,
    advance: Advance,
) -> Floats:
    """Return for each region the mean share of its cells that are found together again with other draws of genes."""
    rng = np.random.default_rng(0)
    rows = []
    n_cells = sum(tissue.n_cells for tissue in slices)
    for tissue in slices:
        n_rows = tissue.n_cells
        if n_cells > MAX_BOOTSTRAP_CELLS:
            share = tissue.n_cells / n_cells
            n_rows = max(2, round(MAX_BOOTSTRAP_CELLS * share))
            n_rows = min(n_rows, tissue.n_cells)
        chosen = rng.choice(tissue.n_cells, n_rows, replace=False)
        rows.append(np.sort(chosen))
    own = np.concatenate([label[row] for label, row in zip(labels, rows, strict=True)])
    k = max(int(label.max()) for label in labels) + 1
    n_genes = len(genes)
    sizes = np.bincount(own, minlength=k)
    sizes = np.maximum(sizes, 1)
    shares = np.zeros((settings.bootstraps, k))
    for draw in range(settings.bootstraps):
        chosen = rng.integers(0, n_genes, n_genes)
        times = np.bincount(chosen, minlength=n_genes).astype(np.float64)
        fitted = source.fit(slices, settings.seeds[:1], rows=rows, draw=Draw(genes, times))
        vectors = np.concatenate(fitted.views[0])
        mixtures = fit_mixtures(vectors, k, settings.seeds[0])
        run = mixtures[0](vectors)
        names = matched(run, own)
        same = names[run] == own
        n_same = np.bincount(own, weights=same, minlength=k)
        shares[draw] = n_same / sizes
        advance(1)
    return shares.mean(axis=0)
