"""A slice as ST as images reads it: on its grid, in a model's vocabulary, window by window, never dense as a whole.

Cells that share a bin are shown one at a time: layer 0 of the slice holds the first cell of every bin, layer 1 the
second where there is one, and so on; every cell gets a vector of its own. Cells of one lattice position are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrazzo.arrays import Floats, Ints
from terrazzo.expression import SliceScale
from terrazzo.genes import GeneMatch
from terrazzo.slices import Slice
from terrazzo.slices.grids import Grid, grid_of
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.counts import SiteCounts
from terrazzo.systems.stimage.windows import Window

BLOCK = 4096  # sites whose counts are looked at together


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
        bool ``(B, S)``: sites with a cell that has counts; no other is looked at.
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
    token: NDArray[np.int32]
    n_tokens: int
    visible: NDArray[np.bool_]
    scale: SliceScale

    @classmethod
    def make(
        cls,
        tissue: Slice,
        match: GeneMatch,
        config: STImageConfig,
        n_tokens: int,
        hidden: NDArray[np.bool_] | None = None,
    ) -> GriddedSlice:
        """Lay a slice out and measure its scale; of hidden cells nothing but the position is read."""
        grid = grid_of(tissue, layout=config.windows.layout, bin_um=config.windows.bin_um)
        visible = np.ones(tissue.n_cells, dtype=bool) if hidden is None else ~hidden
        bare = cls(
            tissue,
            grid,
            match.column_token,
            n_tokens,
            visible,
            SliceScale(1.0, np.zeros(0), np.zeros(0)),
        )
        shown = bare.shown_sites
        totals = _sums(
            np.searchsorted(shown, grid.site[visible]), tissue.total_counts[visible], len(shown)
        )
        blocks = (
            bare.window(shown[at : at + BLOCK]).counts.by_token()
            for at in range(0, len(shown), BLOCK)
        )
        scale = SliceScale.fit(blocks, totals, config.normalize)
        return cls(tissue, grid, match.column_token, n_tokens, visible, scale)

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
        return self.grid.ranked(*self.tissue.coords.T, self.tissue.total_counts)

    def window(self, sites: Ints, layer: int | None = None) -> Window:
        """Return some sites, -1 for none, as a window; of one layer, or with all visible cells of a site summed."""
        cells, where = self._cells(sites, layer)
        counts, totals = SiteCounts.summed(
            self.tissue.counts, cells, where, len(sites), self.token, self.n_tokens
        )
        held = np.zeros(len(sites), dtype=bool)
        held[where] = True
        return Window(counts, totals, held, self.grid.window_places(sites))

    def _cells(self, sites: Ints, layer: int | None) -> tuple[Ints, Ints]:
        """Return visible cells and where they are; of a layer, a site without it shows its last cell."""
        cells, where = self.grid.cells(sites)
        kept = self.visible[cells]
        cells, where = cells[kept], where[kept]
        if layer is None or self.grid.layout != "bin":
            return cells, where
        order = np.lexsort((self.layer[cells], where))
        cells, where = cells[order], where[order]
        fits = self.layer[cells] <= layer
        cells, where = cells[fits], where[fits]
        last = np.append(np.diff(where) > 0, True)[: len(where)]
        return cells[last], where[last]

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
        found = iter(sets)
        while some := list(islice(found, size)):
            yield self.batch(
                some, config, autocorrelation, [[seed, int(sites.max())] for sites in some], layer
            )

    def batch(
        self,
        sites: Sequence[Ints],
        config: STImageConfig,
        autocorrelation: Floats,
        seeds: list[list[int]],
        layer: int | None = None,
    ) -> WindowBatch:
        """Return some sets of sites, equally many each, as tensors."""
        windows, measured = [self.window(s, layer) for s in sites], self.measured
        genes = [
            w.channels(
                config.windows, measured, autocorrelation, self.scale, np.random.default_rng(seed)
            )
            for w, seed in zip(windows, seeds, strict=True)
        ]
        values = [
            w.values(g, self.scale, config.standardize) for w, g in zip(windows, genes, strict=True)
        ]
        width = max(len(g) for g in genes)
        return WindowBatch(
            torch.from_numpy(
                np.stack([np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in values])
            ),
            torch.from_numpy(
                np.stack([np.pad(g, (0, width - len(g)), constant_values=-1) for g in genes])
            ),
            torch.from_numpy(np.stack([w.places for w in windows])),
            torch.from_numpy(np.stack([w.present & (w.totals > 0) for w in windows])),
            np.stack(sites),
        )


def _sums(where: Ints, values: Floats, n: int) -> Floats:
    return np.bincount(where, values, minlength=n).astype(np.float64)
