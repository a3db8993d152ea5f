"""From windows to tensors: channels are chosen, sites or values hidden, counts split, from a generator per window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from terrazzo.corpus.sites import SiteStore
from terrazzo.corpus.windows import WindowItem
from terrazzo.models.stimage_config import STImageConfig
from terrazzo.training.batches import Movable
from terrazzo.training.config import PatchObjective
from terrazzo.units.grids import Floats, Ints
from terrazzo.units.macro_domains import macro_domains
from terrazzo.units.windows import Window, channel_values

HIDING = 6  # what a random stream is for; 1 to 5 are the loaders'
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PatchPack(Movable):
    """Windows with what is shown, hidden and predicted. ``B`` windows of ``S`` sites with ``m`` channels.

    Attributes
    ----------
    values
        float32 ``(B, S, m)``: what enters, 0 where hidden.
    target
        float32 ``(B, S, m)``: what is predicted.
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
        the same counts. False on sites without a cell or count, and on channels without a gene: no loss sees these.
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
class _Drawn:
    """One window: the fields of :class:`PatchPack` for it, and its domains."""

    values: NDArray[np.float32]
    target: NDArray[np.float32]
    genes: Ints
    mean: NDArray[np.float32]
    shown: Bools
    hidden: Bools
    visible: Bools
    domain: Ints | None


@dataclass(frozen=True)
class PatchView:
    """What turns windows into :class:`PatchPack`.

    Attributes
    ----------
    config, goal
        The model's and the objective's settings.
    store
        Scales and genes of the slices.
    autocorrelation
        float64 ``(n_tokens,)``, of the training slices.
    seed
        Of the run. What is drawn depends on it, the epoch, the slice and the window, not on the rank or the batch.
    """

    config: STImageConfig
    goal: PatchObjective
    store: SiteStore
    autocorrelation: Floats
    seed: int

    def make(self, batch: list[WindowItem], epoch: int) -> PatchPack:
        """Draw what is hidden in each window, and pack them; channels are padded to the widest window's."""
        drawn = [
            self._draw(item, np.random.default_rng([self.seed, HIDING, epoch, item.member, item.number]))
            for item in batch
        ]
        width = max(len(d.genes) for d in drawn)

        def packed(parts: list[NDArray], fill: float = 0) -> Tensor:
            """Stack, the last axis padded."""
            room = [[(0, 0)] * (p.ndim - 1) + [(0, width - p.shape[-1])] for p in parts]
            padded = [np.pad(p, r, constant_values=fill) for p, r in zip(parts, room, strict=True)]
            return torch.from_numpy(np.stack(padded))

        domains = [d.domain for d in drawn if d.domain is not None]
        return PatchPack(
            packed([d.values for d in drawn]),
            packed([d.target for d in drawn]),
            packed([d.genes for d in drawn], -1),
            packed([d.mean for d in drawn]),
            torch.from_numpy(np.stack([item.window.places for item in batch])),
            torch.from_numpy(np.stack([d.shown for d in drawn])),
            packed([d.hidden for d in drawn]),
            packed([d.visible for d in drawn]),
            torch.from_numpy(np.stack(domains)) if domains else None,
            [item.id for item in batch],
        )

    def _draw(self, item: WindowItem, rng: np.random.Generator) -> _Drawn:
        window, goal, standardise = item.window, self.goal, self.config.standardise
        scale = self.store.scale(item.id)
        measured = self.store.measured(item.id)
        genes = window.channels(self.config.patches, measured, self.autocorrelation, scale, rng)
        counts, usable = sparse.csr_matrix(window.counts[:, genes]), window.present & (window.totals > 0)
        whole = channel_values(counts, window.totals, genes, scale, standardise)
        values, other = whole, whole
        shown, again = usable, np.zeros_like(usable)
        if goal.target == "thinned":
            part, rest = split(window, counts, goal, rng)
            values = channel_values(*part, genes, scale, standardise)
            other = channel_values(*rest, genes, scale, standardise)
            shown = usable & (part[1] > 0)
            again = shown & (rest[1] > 0)
        hidden = _hidden(usable, len(genes), goal, rng)
        if goal.mask == "site":
            shown = shown & ~hidden[:, 0]
        values = np.where(shown[:, None] & ~hidden, values, 0).astype(np.float32)
        domain = None
        if goal.scheme == "slice":
            domain = np.full(len(usable), -1, dtype=np.int64)
            domain[shown] = macro_domains(values[shown], window.places[shown], goal.domains, rng)
        mean = np.zeros(len(genes)) if standardise else scale.mean[genes]
        target = np.where(hidden, whole, other)
        return _Drawn(values, target, genes, mean.astype(np.float32), shown, hidden, again[:, None] & ~hidden, domain)


def split(
    window: Window, counts: sparse.csr_matrix, goal: PatchObjective, rng: np.random.Generator
) -> tuple[tuple[sparse.csr_matrix, Floats], tuple[sparse.csr_matrix, Floats]]:
    """Split the counts of every site by chance at a rate of its own; return (counts, totals) of both parts.

    ``counts`` are those of the channels. The other genes are needed for the totals alone, and so split as one: the sum
    of binomial draws of one rate is a binomial draw.
    """
    rate = rng.uniform(goal.thin_low, goal.thin_high, counts.shape[0])
    chance = np.repeat(rate, np.diff(counts.indptr))
    part = (rng.random(len(chance)) < chance).astype(counts.dtype)  # right for a count of 1, as most are, and quick
    more = counts.data > 1
    part[more] = rng.binomial(counts.data[more].astype(np.int64), chance[more])
    first = sparse.csr_matrix((part, counts.indices, counts.indptr), shape=counts.shape)
    second = sparse.csr_matrix((counts.data - part, counts.indices, counts.indptr), shape=counts.shape)
    sums = [np.asarray(c.sum(axis=1, dtype=np.float64)).ravel() for c in (first, second)]
    others = np.rint(np.maximum(window.totals - sums[0] - sums[1], 0)).astype(np.int64)
    drawn = rng.binomial(others, rate)
    return (first, sums[0] + drawn), (second, sums[1] + others - drawn)


def _hidden(usable: Bools, m: int, goal: PatchObjective, rng: np.random.Generator) -> Bools:
    """Choose what is hidden, bool ``(S, m)``; of sites, at least one where two are there, and never all."""
    if goal.mask == "entry":
        return (rng.random((len(usable), m)) < goal.mask_share) & usable[:, None]
    there = np.flatnonzero(usable)
    n = min(max(round(goal.mask_share * len(there)), 1), len(there) - 1) if goal.mask_share and len(there) else 0
    out = np.zeros((len(usable), m), dtype=bool)
    out[rng.permutation(there)[:n]] = True
    return out
