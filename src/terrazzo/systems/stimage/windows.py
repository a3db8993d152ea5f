"""Croppable multi-channel images: windows of a slice's grid, and the genes that are their channels.

ST as images, section 3.2, steps 2 and 3 (eqs 6 and 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.errors import ConfigError
from terrazzo.expression import SliceScale, scaling
from terrazzo.slices.grids import Grid, Layout, observed
from terrazzo.systems.stimage.counts import SiteCounts

Channels = Literal["weighted", "spatial", "hvg", "random", "all"]


EPSILON = 1e-6  # of eq 7: a gene that does not vary can be drawn, too


@dataclass(frozen=True)
class WindowConfig:
    """How a slice becomes windows and channels.

    Attributes
    ----------
    layout, bin_um
        See :func:`terrazzo.slices.grids.lay_out`.
    window
        Sites on a side (paper 16).
    occupancy
        Least share of a window's sites that hold a cell; where no window has so many, the fullest ones are drawn.
    channels
        Genes of a window (paper 512).
    choose
        ``"weighted"``: drawn without replacement, by variance in the window (eq 7); ``"hvg"``: those of largest
        variance in the window; ``"random"``; ``"spatial"``: those of largest spatial autocorrelation in the training
        slices, always the same; ``"all"`` the genes that the model knows.
    """

    layout: Layout = "auto"
    bin_um: float = 0.0
    window: int = 16
    occupancy: float = 0.25
    channels: int = 512
    choose: Channels = "weighted"

    def __post_init__(self) -> None:
        if self.window < 1 or self.channels < 1:
            raise ValueError("window and channels must be at least 1.")
        if not 0 < self.occupancy <= 1:
            raise ValueError(f"occupancy is {self.occupancy}; it must be above 0 and at most 1.")
        if not 0 <= self.bin_um < np.inf:
            raise ValueError(f"bin_um is {self.bin_um}; it must be at least 0 (0: no bins).")


def corners(grid: Grid, config: WindowConfig) -> Ints:
    """Return the corners (row, column) that eq 6 draws from: windows that are full enough, ``(n, 2)``."""
    counts = observed(grid, config.window)
    floor = min(config.occupancy * config.window**2, counts.max())
    return np.argwhere(counts >= max(floor, 1)).astype(np.int64)


def describe(grid: Grid, config: WindowConfig) -> str:
    """Return a grid and its windows in one line for people."""
    (rows, columns), cells, held, side = (
        grid.shape,
        len(grid.site),
        len(grid.occupied),
        config.window,
    )
    sites, most = rows * columns, int(grid.layer.max()) + 1
    each = "1 cell each" if most == 1 else f"{cells / held:.3g} cells each (most {most:,})"
    line = (
        f"{grid.layout}, {_count(rows, 'row')} x {_count(columns, 'column')}, {held:,} of {_count(sites, 'site')} "
        f"occupied ({held / sites:.0%}), {each}; {_count(len(corners(grid, config)), 'window')} of {side} x {side}"
    )
    fullest = int(observed(grid, side).max())
    enough = fullest >= config.occupancy * side**2
    return line if enough else f"{line}, the fullest with cells on {fullest:,} of {side**2:,} sites"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def draw_corners(allowed: Ints, n: int, rng: np.random.Generator) -> Ints:
    """Draw ``n`` corners uniformly (eq 6), with replacement."""
    return allowed[rng.integers(len(allowed), size=n)]


def tile_corners(grid: Grid, window: int, stride: int) -> Ints:
    """Return corners of overlapping windows that hold every occupied site; those without one are left out."""
    counts = observed(grid, window)
    if not 1 <= stride <= window:
        raise ConfigError(
            f"stride is {stride}; it must be at least 1, and at most the window's {window} sites."
        )
    steps = [np.unique(np.append(np.arange(0, n, stride), n - 1)) for n in counts.shape]
    rows, columns = (a.ravel() for a in np.meshgrid(*steps, indexing="ij"))
    kept = counts[rows, columns] > 0
    return np.stack([rows[kept], columns[kept]], axis=1).astype(np.int64)


def window_sites(grid: Grid, corner: Ints, window: int) -> Ints:
    """Return the sites of a window, row by row, ``(window**2,)``; -1 beyond the edge of the grid."""
    rows, columns = (corner[i] + np.arange(window) for i in (0, 1))
    inside = (rows < grid.shape[0])[:, None] & (columns < grid.shape[1])[None]
    return np.where(inside, rows[:, None] * grid.shape[1] + columns[None], -1).ravel()


def choose_channels(
    weight: NDArray[np.float64],
    m: int,
    how: Channels,
    rng: np.random.Generator,
    *,
    epsilon: float = EPSILON,
) -> Ints:
    """Choose the genes of a window, ascending; all of them where there are no more than ``m``.

    Parameters
    ----------
    weight
        ``(genes,)``, at least 0: variance in the window (eq 7), or autocorrelation (``"spatial"``).
    m
        How many.
    how
        See :class:`WindowConfig`. ``"weighted"`` draws without replacement with probability proportional to
        ``weight + epsilon``, one after the other: the ``m`` largest of log-weights with Gumbel noise.
    rng
        Source of chance.
    epsilon
        Added to every weight.
    """
    n = len(weight)
    if how == "all" or n <= m:
        return np.arange(n, dtype=np.int64)
    if how == "random":
        return np.sort(rng.permutation(n)[:m]).astype(np.int64)
    score = weight if how in ("hvg", "spatial") else np.log(weight + epsilon) + rng.gumbel(size=n)
    least = -np.partition(-score, m - 1)[m - 1]
    above, equal = np.flatnonzero(score > least), np.flatnonzero(score == least)
    return np.sort(np.append(above, equal[: m - len(above)])).astype(
        np.int64
    )  # of equal ones the first


@dataclass(frozen=True)
class Window:
    """Some sites of a slice, mostly a square of them.

    Attributes
    ----------
    counts
        Of its ``S`` sites, by token of the vocabulary.
    totals
        ``(S,)``: counts of a site over all genes of the slice, known to the vocabulary or not.
    present
        bool ``(S,)``: sites with a cell.
    places
        float32 ``(S, 2)``: x and y in pitches; 0 beyond the edge of the grid.
    """

    counts: SiteCounts
    totals: Floats
    present: Bools
    places: NDArray[np.float32]

    def channels(
        self,
        config: WindowConfig,
        measured: Ints,
        autocorrelation: Floats,
        scale: SliceScale,
        rng: np.random.Generator,
    ) -> Ints:
        """Choose the window's channels among the tokens that the slice measured.

        Parameters
        ----------
        config
            How many, and by which rule.
        measured
            Tokens of the slice's genes, ascending.
        autocorrelation
            ``(n_tokens,)``, of the training slices; for the rule ``"spatial"``.
        scale
            Of the slice.
        rng
            For the rules that draw.
        """
        if config.choose in ("all", "random"):
            weight = np.ones(len(measured))
        elif config.choose == "spatial":
            return fixed_channels(config, measured, autocorrelation)
        else:
            weight = self.counts.variance(scaling(scale.total, self.totals), self.present)[measured]
        return measured[choose_channels(weight, config.channels, config.choose, rng)]

    def values(self, genes: Ints, scale: SliceScale, standardize: bool) -> NDArray[np.float32]:
        """Return the channels' values, float32 ``(S, m)``; 0 on sites without a cell, or without a count."""
        return channel_values(self.counts, self.totals, self.present, genes, scale, standardize)


def fixed_channels(config: WindowConfig, measured: Ints, autocorrelation: Floats) -> Ints:
    """Return the channels of all windows of a slice by the rule ``"spatial"``; arguments as :meth:`Window.channels`."""
    unused = np.random.default_rng(0)
    return measured[choose_channels(autocorrelation[measured], config.channels, "spatial", unused)]


def channel_values(
    counts: SiteCounts,
    totals: Floats,
    sites: Bools,
    genes: Ints,
    scale: SliceScale,
    standardize: bool,
    where: Bools | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return values of some genes, float32 ``(S, m)``; 0 on sites without a count, and where nothing is written.

    Parameters
    ----------
    counts, totals
        Of ``S`` sites, and ``(S,)`` counts of each over all genes.
    sites
        bool ``(S,)``: sites that are written.
    genes
        ``(m,)``: tokens, each once.
    scale, standardize
        Of the slice, and whether genes are brought to mean 0 and sd 1 in it.
    where, out
        bool ``(S, m)``, values that are written, None: all; and what they are written into, None: zeros.
    """
    mean, stretch = (
        scale.standards(genes) if standardize else (np.zeros(len(genes)), np.ones(len(genes)))
    )
    return counts.values(
        genes, scaling(scale.total, totals), sites & (totals > 0), mean, stretch, where, out
    )
