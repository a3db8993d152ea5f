"""One slice on its grid, read window by window in a model's vocabulary, never dense as a whole.

Cells that share a bin are shown one at a time: layer 0 of the slice holds the first cell of every bin, layer 1 the
second where there is one, and so on; every cell gets a vector of its own. Cells of one lattice position are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Bools, Floats, Int32s, Ints
from terrazzo.expression import SliceScale
from terrazzo.genes import GeneMatch
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid, grid_of
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.counts import SiteCounts
from terrazzo.systems.stimage.windows import Window

__all__ = ["GriddedSlice", "WindowBatch"]

BLOCK = 4096  # sites whose counts are read together


@dataclass(frozen=True)
class WindowBatch:
    """Windows as tensors.

    Attributes
    ----------
    values
        float32 ``(B, S, m)``; 0 where there is no cell.
    genes
        int64 ``(B, m)``: tokens, -1 for none.
    places
        float32 ``(B, S, 2)``, pitches.
    present
        bool ``(B, S)``: sites with a cell that has counts; no other is attended to.
    sites
        int64 ``(B, S)`` array: sites of the grid, -1 beyond its edge.
    """

    values: Tensor
    genes: Tensor
    places: Tensor
    present: Tensor
    sites: Ints


@dataclass(frozen=True)
class GriddedSlice:
    """A slice on its grid.

    Attributes
    ----------
    tissue
        Counts, genes and positions.
    grid
        Its sites.
    token
        int32 ``(n_genes,)``: token of each gene, -1 for none.
    n_tokens
        Of the vocabulary.
    visible
        bool ``(n_cells,)``: cells whose counts may be read.
    scale
        Of the values, from visible cells.
    """

    tissue: Slice
    grid: Grid
    token: Int32s
    n_tokens: int
    visible: Bools
    scale: SliceScale

    @classmethod
    def make(
        cls,
        tissue: Slice,
        match: GeneMatch,
        config: STImageConfig,
        n_tokens: int,
        hidden: Bools | None = None,
    ) -> GriddedSlice:
        """Lay a slice out and measure its scale; of hidden cells nothing but the position is read."""
        grid = grid_of(tissue, layout=config.windows.layout, bin_um=config.windows.bin_um)
        visible = np.ones(tissue.n_cells, dtype=bool)
        if hidden is not None:
            visible = ~hidden
        no_scale = SliceScale(1.0, np.zeros(0), np.zeros(0))
        unscaled = cls(tissue, grid, match.column_token, n_tokens, visible, no_scale)
        return replace(unscaled, scale=unscaled._measured_scale(config))

    def _measured_scale(self, config: STImageConfig) -> SliceScale:
        shown = self.shown_sites
        place = np.searchsorted(shown, self.grid.site[self.visible])
        cell_totals = self.tissue.total_counts[self.visible]
        totals = np.bincount(place, cell_totals, minlength=len(shown)).astype(np.float64)
        return SliceScale.fit(self._count_blocks(shown), totals, config.normalize)

    def _count_blocks(self, sites: Ints) -> Iterator[sparse.csr_matrix]:
        for start in range(0, len(sites), BLOCK):
            yield self.window(sites[start : start + BLOCK]).counts.by_token()

    @property
    def shown_sites(self) -> Ints:
        """Sites with a visible cell, ascending."""
        return np.unique(self.grid.site[self.visible])

    @cached_property
    def measured(self) -> Ints:
        """Tokens of the slice's genes, ascending."""
        return np.unique(self.token[self.token >= 0]).astype(np.int64)

    @cached_property
    def layer(self) -> Ints:
        """Layer of each cell, int64 ``(n_cells,)``, by place and counts, not by row; all 0 where cells are summed."""
        if self.grid.layout != "bin":
            return np.zeros(len(self.grid.site), dtype=np.int64)
        x, y = self.tissue.coords.T
        return self.grid.ranked(x, y, self.tissue.total_counts)

    def window(self, sites: Ints, layer: int | None = None) -> Window:
        """Return some sites, -1 for none, as a window; of one layer, or with all visible cells of a site summed."""
        cells, where = self._cells(sites, layer)
        counts, totals = SiteCounts.summed(
            self.tissue.counts, cells, where, len(sites), self.token, self.n_tokens
        )
        present = np.zeros(len(sites), dtype=bool)
        present[where] = True
        return Window(counts, totals, present, self.grid.window_places(sites))

    def _cells(self, sites: Ints, layer: int | None) -> tuple[Ints, Ints]:
        """Return visible cells and where they are; of a layer, a site without it shows its last cell."""
        cells, where = self.grid.cells(sites)
        visible = self.visible[cells]
        cells = cells[visible]
        where = where[visible]
        if layer is None or self.grid.layout != "bin":
            return cells, where
        order = np.lexsort((self.layer[cells], where))
        cells = cells[order]
        where = where[order]
        up_to_layer = self.layer[cells] <= layer
        cells = cells[up_to_layer]
        where = where[up_to_layer]
        last_of_site = np.append(np.diff(where) > 0, True)[: len(where)]
        return cells[last_of_site], where[last_of_site]

    def batches(
        self,
        sets: Iterable[Ints],
        config: STImageConfig,
        autocorrelation: Floats,
        seed: int,
        size: int,
        layer: int | None = None,
    ) -> Iterator[WindowBatch]:
        """Yield sets of sites (windows), ``size`` at a time; drawn channels depend on the seed and on the sites."""
        remaining = iter(sets)
        while some := list(islice(remaining, size)):
            seeds = [[seed, int(sites.max())] for sites in some]
            yield self.batch(some, config, autocorrelation, seeds, layer)

    def batch(
        self,
        sites: Sequence[Ints],
        config: STImageConfig,
        autocorrelation: Floats,
        seeds: list[list[int]],
        layer: int | None = None,
    ) -> WindowBatch:
        """Return some sets of sites, equally many each, as tensors."""
        windows = [self.window(one, layer) for one in sites]
        genes = []
        for window, seed in zip(windows, seeds, strict=True):
            rng = np.random.default_rng(seed)
            genes.append(
                window.channels(config.windows, self.measured, autocorrelation, self.scale, rng)
            )
        width = max(len(one) for one in genes)
        shape = (len(windows), len(sites[0]), width)
        padded_values = np.zeros(shape, dtype=np.float32)
        padded_genes = np.full((len(windows), width), -1, dtype=np.int64)
        for row, (window, own) in enumerate(zip(windows, genes, strict=True)):
            padded_values[row, :, : len(own)] = window.values(own, self.scale, config.standardize)
            padded_genes[row, : len(own)] = own
        places = np.stack([window.places for window in windows])
        present = np.stack([window.present & (window.totals > 0) for window in windows])
        return WindowBatch(
            values=torch.from_numpy(padded_values),
            genes=torch.from_numpy(padded_genes),
            places=torch.from_numpy(places),
            present=torch.from_numpy(present),
            sites=np.stack(sites),
        )
