"""Find regions: where they are, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from terrazzo.answers.numbers import around, choose, explained
from terrazzo.answers.partition import Mixture, fit_mixtures
from terrazzo.answers.sources import Draw, Fitted, Recipe, Source
from terrazzo.answers.space import Expression
from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.expression import chosen_genes
from terrazzo.progress import Advance, Progress
from terrazzo.slices import Slice
from terrazzo.tasks.clustering import Vote, matched, refine_labels, vote
from terrazzo.tasks.metrics import nearest

__all__ = ["Found", "Settings", "find", "smoothed_agreement"]

FEWEST_CELLS = 30

MAX_BOOTSTRAP_CELLS = 12_000  # so many that the Ward tree is built on a sample of them

SPREAD_CELLS = 10_000  # cells that are counted first where different ones are counted

PRESENT = 0.02  # share of a slice from which on a region counts as found in it

# mean share of the regions that a slice has; below, slices are standardized by themselves
LEAST_MIXED = 0.5

MANY_CELLS = 100_000  # of more, one seed tells whether slices are better standardized by themselves

# share of the variance within slices that regions must explain more for slices to be standardized by themselves
LEAST_GAIN = 0.01


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
    genes = Draw(tuple(chosen_genes(slices, "autocorrelation")))
    source = sources[0]
    curve = pd.DataFrame({"k": [], "score": [], "stability": []})
    k = settings.k
    if k is None or len(sources) > 1:
        with bars.stage("choose by held-out counts", None):
            chosen = choose(slices, sources, k, genes)
        source = chosen.source
        if k is None:
            curve = chosen.curve
            k = chosen.k
    with bars.stage("find regions", None):
        parted = _parted(slices, source, k, settings.seeds, genes)
    fitted = parted.fitted
    smooth = _smoothed(parted.vote.labels, slices, settings)
    order = _order(smooth, slices, _expression(parted, slices, genes))
    labels = _cut(order[smooth], slices)
    agreement = _cut(parted.vote.agreement, slices)
    by_region = np.full(int(order.max()) + 1, np.nan)
    if settings.bootstraps and fitted.genes:
        with bars.stage("draw genes", settings.bootstraps, "draws") as advance:
            by_region = _bootstrapped(
                slices, parted.source, fitted.genes, labels, settings, advance
            )
    surely = []
    for tissue, own, share in zip(slices, labels, agreement, strict=True):
        surely.append(smoothed_agreement(own, share, tissue.coords, settings.neighbors))
    mixtures = []
    for seed, mixture, names in parted.mixtures:
        mixtures.append((seed, mixture, order[names]))
    return Found(
        labels=labels,
        agreement=agreement,
        reproducibility=surely,
        by_region=by_region,
        k=len(by_region),
        curve=curve,
        similarity=parted.vote.similarity,
        fitted=fitted,
        mixtures=mixtures,
        by_itself=parted.by_itself,
        source=parted.source,
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
class _Parted:
    """Partitions of the cells, and their vote.

    Attributes
    ----------
    source, fitted
        Of the vectors, and the vectors.
    vote
        Of the partitions.
    mixtures, by_itself
        As in :class:`Found`, but for the order of the regions.
    """

    source: Source
    fitted: Fitted
    vote: Vote
    mixtures: list[tuple[int, Mixture, Ints]]
    by_itself: bool = False


def _parted(
    slices: Sequence[Slice], source: Source, k: int, seeds: Sequence[int], genes: Draw
) -> _Parted:
    """Partition cells; several slices in two ways, with half of each one's own mean taken out and with all of it.

    Half keeps what one slice has more of. All is taken where regions of half are one slice each, or explain less of the
    variance within slices.
    """
    common = _partitions(slices, source, k, seeds, genes)
    alone = source.by_itself() if len(slices) > 1 else None
    if alone is None:
        return common
    n_cells = sum(tissue.n_cells for tissue in slices)
    seeds_tried = seeds if n_cells <= MANY_CELLS else seeds[:1]
    separate = _partitions(slices, alone, k, seeds_tried, genes)
    is_apart = mixed(_cut(common.vote.labels, slices), k) < LEAST_MIXED
    if not is_apart:
        components = around(_expression(common, slices, genes), slices)
        of_common = explained(components, components, common.vote.labels)
        of_separate = explained(components, components, separate.vote.labels)
        if of_separate < of_common + LEAST_GAIN:
            return common
    if len(seeds_tried) < len(seeds):
        separate = _partitions(slices, alone, k, seeds, genes)
    fitted = replace(separate.fitted, between_before=common.fitted.between_before)
    return replace(separate, fitted=fitted, by_itself=True)


def _partitions(
    slices: Sequence[Slice], source: Source, k: int, seeds: Sequence[int], genes: Draw
) -> _Parted:
    """Return the vote of two mixtures for each seed."""
    fitted = source.fit(slices, seeds, draw=genes)
    _check_vectors(fitted, k)
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
    agreed = replace(result, labels=labels.astype(np.int64))
    return _Parted(source, fitted, agreed, mixtures)


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


def _expression(parted: _Parted, slices: Sequence[Slice], genes: Draw) -> Expression:
    """Return the components that regions are numbered by: those of the vectors, unless slices stand alone."""
    space = parted.fitted.space
    if space is None or parted.by_itself:
        return Recipe().expression(slices, genes)
    return space.expression


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
