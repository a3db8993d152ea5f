"""The training unit of ST as images: a window with its counts, and the values of the channels chosen for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terrazzo.units.grids import Floats, Ints
from terrazzo.units.patches import PatchConfig, choose_channels
from terrazzo.units.site_counts import Bools, SiteCounts
from terrazzo.units.site_values import SliceScale, scaling


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
        self, config: PatchConfig, measured: Ints, autocorrelation: Floats, scale: SliceScale, rng: np.random.Generator
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

    def values(self, genes: Ints, scale: SliceScale, standardise: bool) -> NDArray[np.float32]:
        """Return the channels' values, float32 ``(S, m)``; 0 on sites without a cell, or without a count."""
        return channel_values(self.counts, self.totals, self.present, genes, scale, standardise)


def fixed_channels(config: PatchConfig, measured: Ints, autocorrelation: Floats) -> Ints:
    """Return the channels of all windows of a slice by the rule ``"spatial"``; arguments as :meth:`Window.channels`."""
    unused = np.random.default_rng(0)
    return measured[choose_channels(autocorrelation[measured], config.channels, "spatial", unused)]


def channel_values(
    counts: SiteCounts,
    totals: Floats,
    sites: Bools,
    genes: Ints,
    scale: SliceScale,
    standardise: bool,
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
    scale, standardise
        Of the slice, and whether genes are brought to mean 0 and sd 1 in it.
    where, out
        bool ``(S, m)``, values that are written, None: all; and what they are written into, None: zeros.
    """
    mean, stretch = scale.standards(genes) if standardise else (np.zeros(len(genes)), np.ones(len(genes)))
    return counts.values(genes, scaling(scale.total, totals), sites & (totals > 0), mean, stretch, where, out)
