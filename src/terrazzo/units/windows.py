"""The training unit of ST as images: a window with its counts, and the values of the channels chosen for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.units.grids import Floats, Ints
from terrazzo.units.patches import PatchConfig, choose_channels
from terrazzo.units.site_values import SliceScale, log_values, variance


@dataclass(frozen=True)
class Window:
    """Some sites of a slice, mostly a square of them.

    Attributes
    ----------
    counts
        CSR ``(S, n_tokens)``: counts by token of the vocabulary, summed over a site's cells.
    totals
        ``(S,)``: counts of a site over all genes of the slice, known to the vocabulary or not.
    present
        bool ``(S,)``: sites with a cell.
    places
        float32 ``(S, 2)``: x and y in pitches; 0 beyond the edge of the grid.
    """

    counts: sparse.csr_matrix
    totals: Floats
    present: NDArray[np.bool_]
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
            there = np.flatnonzero(self.present)
            weight = variance(log_values(self.counts[there], scale.total, self.totals[there]))[measured]
        return measured[choose_channels(weight, config.channels, config.choose, rng)]

    def values(self, genes: Ints, scale: SliceScale, standardise: bool) -> NDArray[np.float32]:
        """Return the channels' values, float32 ``(S, m)``; 0 on sites without a cell, or without a count."""
        out = channel_values(sparse.csr_matrix(self.counts[:, genes]), self.totals, genes, scale, standardise)
        out[~self.present] = 0
        return out


def fixed_channels(config: PatchConfig, measured: Ints, autocorrelation: Floats) -> Ints:
    """Return the channels of all windows of a slice by the rule ``"spatial"``; arguments as :meth:`Window.channels`."""
    unused = np.random.default_rng(0)
    return measured[choose_channels(autocorrelation[measured], config.channels, "spatial", unused)]


def channel_values(
    counts: sparse.csr_matrix, totals: Floats, genes: Ints, scale: SliceScale, standardise: bool
) -> NDArray[np.float32]:
    """Return values float32 ``(S, m)`` of the counts of some genes; 0 on sites without a count.

    Parameters
    ----------
    counts
        CSR ``(S, m)``.
    totals
        ``(S,)``: counts of a site over all genes.
    genes
        ``(m,)``: tokens of the columns.
    scale, standardise
        Of the slice, and whether genes are brought to mean 0 and sd 1 in it.
    """
    out = log_values(counts, scale.total, totals).toarray()
    if standardise:
        out = scale.standardise(out, genes)
    out[totals <= 0] = 0
    return out
