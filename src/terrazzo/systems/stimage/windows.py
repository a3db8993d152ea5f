"""Croppable multi-channel images: windows of a slice's grid, and the genes that are their channels.

ST as images, section 3.2, steps 2 and 3 (eqs 6 and 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.config import TOKENS, within
from terrazzo.errors import ConfigError
from terrazzo.expression import SliceScale, scaling
from terrazzo.slices.grids import Grid, Layout, observed
from terrazzo.systems.stimage.counts import SiteCounts

__all__ = [
    "Channels",
    "Window",
    "WindowConfig",
    "channel_values",
    "choose_channels",
    "corners",
    "describe",
    "draw_corners",
    "fixed_channels",
    "tile_corners",
    "window_sites",
]

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
        within(self, window=(1, 1024), channels=TOKENS)


def corners(grid: Grid, config: WindowConfig) -> Ints:
    """Return the corners (row, column) that eq 6 draws from: windows that are full enough, ``(n, 2)``."""
    counts = observed(grid, config.window)
    floor = min(config.occupancy * config.window**2, counts.max())
    return np.argwhere(counts >= max(floor, 1)).astype(np.int64)


def describe(grid: Grid, config: WindowConfig) -> str:
    """Return a grid and its windows in one line of text."""
    rows, columns = grid.shape
    n_sites = rows * columns
    n_occupied = len(grid.occupied)
    most = int(grid.layer.max()) + 1
    cells = "1 cell each"
    if most > 1:
        mean = len(grid.site) / n_occupied
        cells = f"{mean:.3g} cells each (most {most:,})"
    size = f"{_count(rows, 'row')} x {_count(columns, 'column')}"
    occupied = f"{n_occupied:,} of {_count(n_sites, 'site')} occupied ({n_occupied / n_sites:.0%})"
    side = config.window
    windows = _count(len(corners(grid, config)), "window")
    line = f"{grid.layout}, {size}, {occupied}, {cells}; {windows} of {side} x {side}"
    fullest = int(observed(grid, side).max())
    if fullest >= config.occupancy * side**2:
        return line
    return f"{line}, the fullest with cells on {fullest:,} of {side**2:,} sites"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


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
    n_rows, n_columns = counts.shape
    every_row, every_column = np.meshgrid(
        _steps(n_rows, stride), _steps(n_columns, stride), indexing="ij"
    )
    rows = every_row.ravel()
    columns = every_column.ravel()
    has_cells = counts[rows, columns] > 0
    return np.stack([rows[has_cells], columns[has_cells]], axis=1).astype(np.int64)


def _steps(n: int, stride: int) -> Ints:
    """Return every ``stride``-th number below ``n``, and the last."""
    return np.unique(np.append(np.arange(0, n, stride), n - 1))


def window_sites(grid: Grid, corner: Ints, window: int) -> Ints:
    """Return the sites of a window, row by row, ``(window**2,)``; -1 beyond the edge of the grid."""
    n_rows, n_columns = grid.shape
    row = (corner[0] + np.arange(window))[:, None]
    column = (corner[1] + np.arange(window))[None]
    inside = (row < n_rows) & (column < n_columns)
    return np.where(inside, row * n_columns + column, -1).ravel()


def choose_channels(
    weight: Floats,
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
        Random generator.
    epsilon
        Added to every weight.
    """
    n = len(weight)
    if how == "all" or n <= m:
        return np.arange(n, dtype=np.int64)
    if how == "random":
        return np.sort(rng.permutation(n)[:m]).astype(np.int64)
    score = weight
    if how == "weighted":
        score = np.log(weight + epsilon) + rng.gumbel(size=n)
    least = -np.partition(-score, m - 1)[m - 1]
    above = np.flatnonzero(score > least)
    equal = np.flatnonzero(score == least)[: m - len(above)]  # the first of equal ones
    return np.sort(np.append(above, equal)).astype(np.int64)


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
    places: Vectors

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
        if config.choose == "spatial":
            return fixed_channels(config, measured, autocorrelation)
        weight = np.ones(len(measured))
        if config.choose in ("weighted", "hvg"):
            factor = scaling(scale.total, self.totals)
            weight = self.counts.variance(factor, self.present)[measured]
        return measured[choose_channels(weight, config.channels, config.choose, rng)]

    def values(self, genes: Ints, scale: SliceScale, standardize: bool) -> Vectors:
        """Return the channels' values, float32 ``(S, m)``; 0 on sites without a cell, or without a count."""
        return channel_values(self.counts, self.totals, self.present, genes, scale, standardize)


def fixed_channels(config: WindowConfig, measured: Ints, autocorrelation: Floats) -> Ints:
    """Return the channels of all windows of a slice by the rule ``"spatial"``; arguments as :meth:`Window.channels`."""
    unused = np.random.default_rng(0)
    weight = autocorrelation[measured]
    return measured[choose_channels(weight, config.channels, "spatial", unused)]


def channel_values(
    counts: SiteCounts,
    totals: Floats,
    sites: Bools,
    genes: Ints,
    scale: SliceScale,
    standardize: bool,
    where: Bools | None = None,
    out: Vectors | None = None,
) -> Vectors:
    """Return values of some genes, float32 ``(S, m)``; 0 on sites without a count, and where nothing is written.

    Parameters
    ----------
    counts, totals
        Of ``S`` sites, and ``(S,)`` counts of each over all genes.
    sites
        bool ``(S,)``: sites that are written.
    genes
        ``(m,)``: tokens, each once.
    scale
        Of the slice.
    standardize
        Bring each gene to mean 0 and sd 1 in the slice.
    where, out
        bool ``(S, m)``, values that are written, None: all; and what they are written into, None: zeros.
    """
    mean = np.zeros(len(genes))
    stretch = np.ones(len(genes))
    if standardize:
        mean, stretch = scale.standards(genes)
    factor = scaling(scale.total, totals)
    written = sites & (totals > 0)
    return counts.values(genes, factor, written, mean, stretch, where, out)
