"""Masked windows as tensors: channels chosen, sites or values hidden, counts split, at random for each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.corpus.loader import Stream
from terrazzo.expression import SliceScale
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.counts import SiteCounts, row_sums, thinned
from terrazzo.systems.stimage.loader import WindowItem
from terrazzo.systems.stimage.macro_domains import macro_domains
from terrazzo.systems.stimage.recipe import STImageObjective
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.windows import Window, channel_values
from terrazzo.training.stage import Movable

__all__ = ["MaskedWindows", "ThinnedCounts", "WindowMasking", "thin_window"]


@dataclass(frozen=True)
class MaskedWindows(Movable):
    """Windows with their shown, hidden and predicted values. ``B`` windows of ``S`` sites with ``m`` channels.

    Attributes
    ----------
    values
        float32 ``(B, S, m)``: input of the model, 0 where hidden.
    target
        float32 ``(B, S, m)``: values that are predicted.
    genes
        int64 ``(B, m)``: tokens of the channels, -1 for none.
    mean
        float32 ``(B, m)``: mean of each channel over the slice, on the scale of the values.
    places
        float32 ``(B, S, 2)``, pitches.
    shown
        bool ``(B, S)``: sites that enter.
    hidden, visible
        bool ``(B, S, m)``: values that are hidden and predicted, and that are shown and predicted from another split of
        the same counts. False on sites without a cell or count, and on channels without a gene, which no loss reads.
    domain
        int64 ``(B, S)``: macro-domain of each site, -1 for none; None but for the scheme ``"slice"``.
    ids
        Slices, for messages.
    """

    values: Tensor
    target: Tensor
    genes: Tensor
    mean: Tensor
    places: Tensor
    shown: Tensor
    hidden: Tensor
    visible: Tensor
    domain: Tensor | None
    ids: list[str]

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def cells(self) -> int:
        """Sites that were seen."""
        return int((self.shown | self.hidden.any(dim=-1)).sum())


@dataclass(frozen=True)
class WindowMasking:
    """Masking of windows, from :class:`WindowItem` to :class:`MaskedWindows`.

    Attributes
    ----------
    config, objective
        The model's and the objective's settings.
    store
        Scales and genes of the slices.
    autocorrelation
        float64 ``(n_tokens,)``, of the training slices.
    seed
        Of the run. What is drawn depends on it, the epoch, the slice and the window, not on the process or the batch.
    """

    config: STImageConfig
    objective: STImageObjective
    store: SiteStore
    autocorrelation: Floats
    seed: int

    def make(self, batch: list[WindowItem], epoch: int) -> MaskedWindows:
        """Draw what is hidden in each window, and pack them; channels are padded to the widest window's."""
        rngs = [self._rng(item, epoch) for item in batch]
        genes = [self._genes(item, rng) for item, rng in zip(batch, rngs, strict=True)]
        n_windows, n_sites = len(batch), len(batch[0].sites)
        width = max(len(one) for one in genes)
        shape = (n_windows, n_sites, width)
        domain = None
        if self.objective.scheme == "slice":
            domain = torch.full((n_windows, n_sites), -1)
        pack = MaskedWindows(
            values=torch.zeros(shape),
            target=torch.zeros(shape),
            genes=torch.full((n_windows, width), -1),
            mean=torch.zeros(n_windows, width),
            places=torch.from_numpy(np.stack([item.window.places for item in batch])),
            shown=torch.zeros((n_windows, n_sites), dtype=torch.bool),
            hidden=torch.zeros(shape, dtype=torch.bool),
            visible=torch.zeros(shape, dtype=torch.bool),
            domain=domain,
            ids=[item.id for item in batch],
        )
        for place, item in enumerate(batch):
            drawn = _Draft.of(pack, place, genes[place])
            self._draw(item, rngs[place], drawn)
        return pack

    def _rng(self, item: WindowItem, epoch: int) -> np.random.Generator:
        return np.random.default_rng(
            [self.seed, int(Stream.HIDING), epoch, item.member, item.number]
        )

    def _genes(self, item: WindowItem, rng: np.random.Generator) -> Ints:
        scale = self.store.scale(item.id)
        measured = self.store.measured(item.id)
        return item.window.channels(self.config.windows, measured, self.autocorrelation, scale, rng)

    def _draw(self, item: WindowItem, rng: np.random.Generator, draft: _Draft) -> None:
        """Fill in one window."""
        window = item.window
        objective = self.objective
        scale = self.store.scale(item.id)
        genes = draft.genes
        if not self.config.standardize:
            draft.mean[:] = scale.mean[genes]
        usable = window.present & (window.totals > 0)
        draft.hidden[:] = _hidden(usable, len(genes), objective, rng)
        draft.shown[:] = usable
        if objective.mask == "site":
            draft.shown[:] &= ~draft.hidden[:, 0]
        if objective.target == "thinned":
            self._write_thinned(window, scale, rng, draft)
        else:
            self._write(draft.target, window.counts, window.totals, usable, genes, scale)
            seen = draft.shown[:, None] & ~draft.hidden
            np.multiply(draft.target, seen, out=draft.values)
        if draft.domain is not None:
            shown = draft.shown
            places = window.places[shown]
            draft.domain[shown] = macro_domains(draft.values[shown], places, objective.domains, rng)

    def _write_thinned(
        self, window: Window, scale: SliceScale, rng: np.random.Generator, draft: _Draft
    ) -> None:
        """Show one part of the counts of each shown site; predict the other part, and what is hidden whole."""
        genes = draft.genes
        n_tokens = window.counts.n_tokens
        whole = window.counts.take(genes)
        part, rest = thin_window(window, whole, self.objective, rng, draft.shown)
        draft.shown[:] &= part.totals > 0
        again = draft.shown & (rest.totals > 0)
        draft.visible[:] = again[:, None] & ~draft.hidden
        shown_counts = SiteCounts.of(part.counts, genes, n_tokens)
        other_counts = SiteCounts.of(rest.counts, genes, n_tokens)
        whole_counts = SiteCounts.of(whole, genes, n_tokens)
        open_values = ~draft.hidden
        self._write(draft.values, shown_counts, part.totals, draft.shown, genes, scale, open_values)
        self._write(draft.target, other_counts, rest.totals, again, genes, scale, open_values)
        some_hidden = np.any(draft.hidden, axis=1)
        self._write(
            draft.target, whole_counts, window.totals, some_hidden, genes, scale, draft.hidden
        )

    def _write(
        self,
        out: Vectors,
        counts: SiteCounts,
        totals: Floats,
        sites: Bools,
        genes: Ints,
        scale: SliceScale,
        where: Bools | None = None,
    ) -> None:
        channel_values(counts, totals, sites, genes, scale, self.config.standardize, where, out)


@dataclass(frozen=True)
class _Draft:
    """One window of a pack as arrays that are written into; attributes as in :class:`MaskedWindows`."""

    genes: Ints
    values: Vectors
    target: Vectors
    mean: Vectors
    shown: Bools
    hidden: Bools
    visible: Bools
    domain: Ints | None

    @classmethod
    def of(cls, pack: MaskedWindows, place: int, genes: Ints) -> _Draft:
        """Return window ``place`` of a pack, as many channels of it as there are genes, with the genes filled in."""

        def channels(tensor: Tensor) -> Any:
            return tensor[place, ..., : len(genes)].numpy()

        channels(pack.genes)[:] = genes
        return cls(
            genes=genes,
            values=channels(pack.values),
            target=channels(pack.target),
            mean=channels(pack.mean),
            shown=pack.shown[place].numpy(),
            hidden=channels(pack.hidden),
            visible=channels(pack.visible),
            domain=None if pack.domain is None else pack.domain[place].numpy(),
        )


@dataclass(frozen=True)
class ThinnedCounts:
    """One part of the split counts of a window: CSR counts of the channels, and totals ``(S,)`` over all genes."""

    counts: sparse.csr_matrix
    totals: Floats


def thin_window(
    window: Window,
    counts: sparse.csr_matrix,
    objective: STImageObjective,
    rng: np.random.Generator,
    sites: Bools | None = None,
) -> tuple[ThinnedCounts, ThinnedCounts]:
    """Split the counts of every site at random at a rate of its own; return both parts.

    ``counts`` are those of the channels. The other genes are needed for the totals alone, and so split as one: the sum
    of binomial draws of one rate is a binomial draw. Sites but ``sites`` (None: all) stay whole, in the first part.
    """
    rate = rng.uniform(objective.thin_low, objective.thin_high, counts.shape[0])
    if sites is not None:
        rate[~sites] = 1
    part = thinned(counts, rate, rng)
    first = sparse.csr_matrix((part, counts.indices, counts.indptr), shape=counts.shape)
    rest = counts.data - part
    second = sparse.csr_matrix((rest, counts.indices, counts.indptr), shape=counts.shape)
    channel_totals = row_sums(counts)
    first_totals = row_sums(first)
    others = np.rint(np.maximum(window.totals - channel_totals, 0)).astype(np.int64)
    first_others = rng.binomial(others, rate)
    second_totals = channel_totals - first_totals + others - first_others
    return (
        ThinnedCounts(first, first_totals + first_others),
        ThinnedCounts(second, second_totals),
    )


def _hidden(
    usable: Bools, n_channels: int, objective: STImageObjective, rng: np.random.Generator
) -> Bools:
    """Choose what is hidden, bool ``(S, m)``; of two or more usable sites at least one, and never all."""
    n_sites = len(usable)
    if objective.mask == "entry":
        drawn = rng.random((n_sites, n_channels), dtype=np.float32)
        return (drawn < objective.mask_share) & usable[:, None]
    candidates = np.flatnonzero(usable)
    n_hidden = 0
    if objective.mask_share and len(candidates):
        wanted = max(round(objective.mask_share * len(candidates)), 1)
        n_hidden = min(wanted, len(candidates) - 1)
    out = np.zeros((n_sites, n_channels), dtype=bool)
    out[rng.permutation(candidates)[:n_hidden]] = True
    return out
