"""From windows to tensors: channels are chosen, sites or values hidden, counts split, from a generator per window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Bools, Floats, Ints
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.counts import SiteCounts, row_sums, thinned
from terrazzo.systems.stimage.loader import WindowItem
from terrazzo.systems.stimage.macro_domains import macro_domains
from terrazzo.systems.stimage.sites import SiteStore
from terrazzo.systems.stimage.windows import Window, channel_values
from terrazzo.training.goals import PatchObjective
from terrazzo.training.stage import Movable

HIDING = 6  # what a random stream is for; 1 to 5 are the loaders'


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
        rngs = [
            np.random.default_rng([self.seed, HIDING, epoch, item.member, item.number])
            for item in batch
        ]
        genes = [self._genes(item, rng) for item, rng in zip(batch, rngs, strict=True)]
        sites, shape = (
            (len(batch), len(batch[0].sites)),
            (len(batch), len(batch[0].sites), max(len(g) for g in genes)),
        )
        pack = PatchPack(
            values=torch.zeros(shape),
            target=torch.zeros(shape),
            genes=torch.full((len(batch), shape[2]), -1),
            mean=torch.zeros(len(batch), shape[2]),
            places=torch.from_numpy(np.stack([item.window.places for item in batch])),
            shown=torch.zeros(sites, dtype=torch.bool),
            hidden=torch.zeros(shape, dtype=torch.bool),
            visible=torch.zeros(shape, dtype=torch.bool),
            domain=torch.full(sites, -1) if self.goal.scheme == "slice" else None,
            ids=[item.id for item in batch],
        )
        for place, item in enumerate(batch):
            self._draw(item, genes[place], rngs[place], pack, place)
        return pack

    def _genes(self, item: WindowItem, rng: np.random.Generator) -> Ints:
        scale, measured = self.store.scale(item.id), self.store.measured(item.id)
        return item.window.channels(self.config.patches, measured, self.autocorrelation, scale, rng)

    def _draw(
        self, item: WindowItem, genes: Ints, rng: np.random.Generator, pack: PatchPack, place: int
    ) -> None:
        """Fill in one window of a pack."""
        window, goal, scale = item.window, self.goal, self.store.scale(item.id)
        fields = pack.values, pack.target, pack.hidden, pack.visible, pack.mean, pack.genes
        values, target, hidden, visible, mean, tokens = (
            f[place, ..., : len(genes)].numpy() for f in fields
        )
        shown = pack.shown[place].numpy()
        tokens[:] = genes
        if not self.config.standardize:
            mean[:] = scale.mean[genes]
        usable = window.present & (window.totals > 0)
        hidden[:] = _hidden(usable, len(genes), goal, rng)
        shown[:] = usable & ~hidden[:, 0] if goal.mask == "site" else usable

        def write(
            out: NDArray[np.float32],
            counts: SiteCounts,
            totals: Floats,
            sites: Bools,
            where: Bools | None = None,
        ) -> None:
            channel_values(counts, totals, sites, genes, scale, self.config.standardize, where, out)

        if goal.target == "thinned":
            whole = window.counts.take(genes)
            first, second = split(window, whole, goal, rng, shown)
            whole, part, rest = (
                SiteCounts.of(c, genes, window.counts.n_tokens)
                for c in (whole, first[0], second[0])
            )
            shown &= first[1] > 0
            again = shown & (second[1] > 0)
            visible[:] = again[:, None] & ~hidden
            write(values, part, first[1], shown, ~hidden)
            write(target, rest, second[1], again, ~hidden)
            write(target, whole, window.totals, np.any(hidden, axis=1), hidden)
        else:
            write(target, window.counts, window.totals, usable)
            np.multiply(target, shown[:, None] & ~hidden, out=values)
        if pack.domain is not None:
            found = macro_domains(values[shown], window.places[shown], goal.domains, rng)
            pack.domain[place].numpy()[shown] = found


def split(
    window: Window,
    counts: sparse.csr_matrix,
    goal: PatchObjective,
    rng: np.random.Generator,
    sites: Bools | None = None,
) -> tuple[tuple[sparse.csr_matrix, Floats], tuple[sparse.csr_matrix, Floats]]:
    """Split the counts of every site by chance at a rate of its own; return (counts, totals) of both parts.

    ``counts`` are those of the channels. The other genes are needed for the totals alone, and so split as one: the sum
    of binomial draws of one rate is a binomial draw. Sites but ``sites`` (None: all) stay whole, in the first part.
    """
    rate = rng.uniform(goal.thin_low, goal.thin_high, counts.shape[0])
    if sites is not None:
        rate[~sites] = 1
    part = thinned(counts, rate, rng)
    first = sparse.csr_matrix((part, counts.indices, counts.indptr), shape=counts.shape)
    second = sparse.csr_matrix(
        (counts.data - part, counts.indices, counts.indptr), shape=counts.shape
    )
    own, kept = row_sums(counts), row_sums(first)
    others = np.rint(np.maximum(window.totals - own, 0)).astype(np.int64)
    drawn = rng.binomial(others, rate)
    return (first, kept + drawn), (second, own - kept + others - drawn)


def _hidden(usable: Bools, m: int, goal: PatchObjective, rng: np.random.Generator) -> Bools:
    """Choose what is hidden, bool ``(S, m)``; of sites, at least one where two are there, and never all."""
    if goal.mask == "entry":
        return (rng.random((len(usable), m), dtype=np.float32) < goal.mask_share) & usable[:, None]
    there = np.flatnonzero(usable)
    n = (
        min(max(round(goal.mask_share * len(there)), 1), len(there) - 1)
        if goal.mask_share and len(there)
        else 0
    )
    out = np.zeros((len(usable), m), dtype=bool)
    out[rng.permutation(there)[:n]] = True
    return out
