"""Masking: loader items to tensors; what is hidden, moved or thinned is drawn from a seed per batch or sub-slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor

from terrazzo.arrays import Floats, Int32s, Ints, Vectors
from terrazzo.genes import Vocabulary
from terrazzo.models.sequences import Tokens
from terrazzo.splitting import mask_cells, mask_tokens, noisy_positions, perturb_cells, thin_counts
from terrazzo.systems.stofm.loaders import CellBatch, SubSliceBatch, SubSliceItem
from terrazzo.systems.stofm.model import pair_tensors, subslice_blocks
from terrazzo.systems.stofm.pair_bias import Pairs
from terrazzo.systems.stofm.recipe import AdaptObjective, PretrainObjective
from terrazzo.systems.stofm.subslices import CELL, SubSlice, SubSliceConfig, with_positions
from terrazzo.systems.stofm.tokens import rank_tokens
from terrazzo.training.stage import Movable

__all__ = [
    "RINGS",
    "CellMasking",
    "MaskedCells",
    "MaskedSubSlices",
    "SubSliceMasking",
    "pad",
    "token_columns",
]

RINGS = (6, 18, 36)  # shown neighbors up to the outer edge of each ring around a predicted cell
NOTHING: Ints = np.empty(0, dtype=np.int64)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class MaskedCells(Movable):
    """Random cells for domain adaptation.

    Attributes
    ----------
    ids_masked, ids_plain, ids_second
        int64 ``(cells, length)``: with masked genes, as they are, and the second view of the contrastive pair.
    mask, mask_second
        1 on tokens, 0 on padding.
    labels
        True token where masked, -100 elsewhere.
    rest, base
        Held-out counts, and the log mean composition of each cell's slice (minus infinity where it measured no gene),
        ``(cells, vocabulary)``; None without an own head.
    ids
        Slices, for messages.
    """

    ids_masked: Tensor
    ids_plain: Tensor
    ids_second: Tensor
    mask: Tensor
    mask_second: Tensor
    labels: Tensor
    rest: Tensor | None
    base: Tensor | None
    ids: list[str]

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True)
class CellMasking:
    """Masking of random cells.

    Attributes
    ----------
    vocabulary
        Of the counts and tokens.
    objective
        Its shares and rates.
    max_length
        Longest sequence, ``<cls>`` counted.
    """

    vocabulary: Vocabulary
    objective: AdaptObjective
    max_length: int

    @property
    def thins(self) -> bool:
        """Whether counts are needed."""
        return self.objective.own_weight > 0 or self.objective.view == "thinned"

    def make(
        self,
        batch: CellBatch,
        names: list[str],
        composition_of: Callable[[int], Vectors],
        rng: np.random.Generator,
    ) -> MaskedCells:
        """Draw the views of one batch; ``names`` are its slices, ``composition_of`` one's log mean composition."""
        objective = self.objective
        special = self.vocabulary.special
        first = batch.tokens
        second = batch.tokens
        rest = None
        base = None
        if self.thins and batch.counts is not None:
            part, others = self._thin(batch.counts, rng)
            first = self._rank(part)
            second = first
            if objective.view == "thinned" and objective.contrastive_weight > 0:
                second_part, _ = self._thin(batch.counts, rng)
                second = self._rank(second_part)
            if objective.own_weight > 0:
                rest = torch.from_numpy(others.toarray().astype(np.float32))
                compositions = [composition_of(member) for member in batch.member.tolist()]
                base = torch.from_numpy(np.stack(compositions))
        masked, labels = mask_tokens(
            first.flat,
            rng,
            mask_token=special["<mask>"],
            gene_tokens=self.vocabulary.token,
            share=objective.mask_share,
        )
        cls_token = special["<cls>"]
        ids_plain, mask = pad(first, first.flat, cls_token)
        ids_second = ids_plain
        mask_second = mask
        if second is not first:
            ids_second, mask_second = pad(second, second.flat, cls_token)
        ids_masked, _ = pad(first, masked, cls_token)
        padded_labels, _ = pad(first, labels, -100, filler=-100)
        return MaskedCells(
            ids_masked=ids_masked,
            ids_plain=ids_plain,
            ids_second=ids_second,
            mask=mask,
            mask_second=mask_second,
            labels=padded_labels,
            rest=rest,
            base=base,
            ids=names,
        )

    def _thin(
        self, counts: sparse.csr_matrix, rng: np.random.Generator
    ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        objective = self.objective
        rates = rng.uniform(objective.thin_low, objective.thin_high, counts.shape[0])
        return thin_counts(counts, rates, rng)

    def _rank(self, counts: sparse.csr_matrix) -> Tokens:
        token, median = token_columns(self.vocabulary)
        return rank_tokens(counts, token, median, self.max_length)


def token_columns(vocabulary: Vocabulary) -> tuple[Int32s, Floats]:
    """Return token and median of each column of counts whose columns are the tokens themselves."""
    token = np.full(vocabulary.n_tokens, -1, dtype=np.int32)
    token[vocabulary.token] = vocabulary.token
    median = np.ones(vocabulary.n_tokens)
    median[vocabulary.token] = vocabulary.median
    return token, median


def pad(tokens: Tokens, values: Any, lead: int, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Return values by token as ``(cells, longest + 1)`` with ``lead`` in front, and the mask."""
    lengths = tokens.lengths + 1
    out = np.full((len(tokens), int(lengths.max())), filler, dtype=np.int64)
    mask = np.arange(out.shape[1]) < lengths[:, None]
    out[:, 0] = lead
    inner = mask.copy()
    inner[:, 0] = False
    out[inner] = values
    return torch.from_numpy(out), torch.from_numpy(mask.astype(np.int64))


@dataclass(frozen=True)
class MaskedSubSlices(Movable):
    """Sub-slices packed one after the other, with hidden and moved cells.

    Attributes
    ----------
    features, types, pairs
        As the SE(2) Transformer takes them; features are the true ones, pairs the perturbed ones.
    hidden
        bool ``(tokens,)``: real cells whose features are to be hidden.
    predicted, shown_cells
        int64: tokens that are predicted; real cells that are shown.
    rings
        ``(predicted, 3 d)``: mean features of the 1st-6th, 7th-18th and 19th-36th nearest shown cells, from which
        trivial answers are made.
    moved, moved_columns
        Per sub-slice: tokens with noise on their position, and the tokens to which distances are recovered.
    true_distance, noisy_distance
        Per sub-slice ``(moved, columns)``, in units of the sub-slice's mean distance.
    again_ids, again_mask, again_tokens
        Cells to be encoded again, and the packed tokens that they are; None where none are.
    ids
        Slices, for messages.
    """

    features: Tensor
    types: Tensor
    pairs: list[Pairs]
    hidden: Tensor
    predicted: Tensor
    shown_cells: Tensor
    rings: Tensor
    moved: list[Tensor]
    moved_columns: list[Tensor]
    true_distance: list[Tensor]
    noisy_distance: list[Tensor]
    again_ids: Tensor | None
    again_mask: Tensor | None
    again_tokens: Tensor | None
    ids: list[str]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def cells(self) -> int:
        """Cells, halos counted."""
        return int((self.types == CELL).sum())

    @property
    def neighbor_mean(self) -> Tensor:
        """Mean features of the 6 nearest shown cells, ``(predicted, d)``."""
        return self.rings[:, : self.features.shape[1]]


@dataclass(frozen=True)
class _Drawn:
    """Draws for one sub-slice; numbers are tokens of it, not cells.

    Attributes
    ----------
    sub
        With its moved tokens elsewhere.
    masked, predicted, shown
        Hidden cells; cells that are predicted; cells that are shown.
    rings
        Mean features around each predicted cell.
    moved, columns
        Cells with noise; tokens to which distances are recovered.
    true_distance, noisy_distance
        ``(moved, columns)``.
    again
        *Cells* that are encoded again.
    again_tokens
        The same as tokens.
    """

    sub: SubSlice
    masked: Ints
    predicted: Ints
    shown: Ints
    rings: Vectors
    moved: Ints
    columns: Ints
    true_distance: Vectors
    noisy_distance: Vectors
    again: Ints
    again_tokens: Ints


@dataclass(frozen=True)
class SubSliceMasking:
    """Masking of stored sub-slices.

    Attributes
    ----------
    objective
        Its shares.
    config
        Settings of the sub-slices.
    cls_token
        Token in front of a cell that is encoded again.
    """

    objective: PretrainObjective
    config: SubSliceConfig
    cls_token: int

    def make(self, batch: SubSliceBatch, seed: list[int]) -> MaskedSubSlices:
        """Draw what is hidden and moved, from a generator per sub-slice: the same in whichever process."""
        drawn = []
        for item in batch:
            rng = np.random.default_rng([*seed, item.member, int(item.sub.cells[0])])
            drawn.append(self._draw(item, rng))
        sizes = [one.sub.n_tokens for one in drawn]
        starts = np.cumsum([0, *sizes])

        def packed(parts: list[Ints]) -> Tensor:
            """Return tokens of sub-slices, numbered as those of the pack."""
            shifted = [part + start for part, start in zip(parts, starts[:-1], strict=True)]
            return torch.from_numpy(np.concatenate(shifted))

        blocks: list[Vectors] = []
        for item in batch:
            blocks.extend(subslice_blocks(item.virtual, item.features))
        types = [one.sub.token_types for one in drawn]
        rings = [one.rings for one in drawn]
        hidden = torch.zeros(int(starts[-1]), dtype=torch.bool)
        hidden[packed([one.masked for one in drawn])] = True
        again_ids, again_mask = self._padded_again(batch, drawn)
        again_tokens = None
        if again_ids is not None:
            again_tokens = packed([one.again_tokens for one in drawn])
        return MaskedSubSlices(
            features=torch.from_numpy(np.concatenate(blocks)),
            types=torch.from_numpy(np.concatenate(types)),
            pairs=[pair_tensors(one.sub, CPU) for one in drawn],
            hidden=hidden,
            predicted=packed([one.predicted for one in drawn]),
            shown_cells=packed([one.shown for one in drawn]),
            rings=torch.from_numpy(np.concatenate(rings)),
            moved=[torch.from_numpy(one.moved) for one in drawn],
            moved_columns=[torch.from_numpy(one.columns) for one in drawn],
            true_distance=[torch.from_numpy(one.true_distance) for one in drawn],
            noisy_distance=[torch.from_numpy(one.noisy_distance) for one in drawn],
            again_ids=again_ids,
            again_mask=again_mask,
            again_tokens=again_tokens,
            ids=[item.id for item in batch],
        )

    def _padded_again(
        self, batch: SubSliceBatch, drawn: list[_Drawn]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return ids and mask of the cells that are encoded again; None where none are."""
        parts = []
        for item, one in zip(batch, drawn, strict=True):
            if item.tokens is not None:
                parts.append(item.tokens.take(one.again))
        if sum(len(part) for part in parts) == 0:
            return None, None
        joined = Tokens.join(parts)
        return pad(joined, joined.flat, self.cls_token)

    def _draw(self, item: SubSliceItem, rng: np.random.Generator) -> _Drawn:
        """Draw for one sub-slice which cells are hidden, which move, and which are encoded again."""
        objective = self.objective
        sub = item.sub
        first = 1 + sub.n_virtual  # token of the first cell
        n = sub.n_core
        kept_share = _possible(objective.kept_share, n, rng)
        mask_share = _possible(objective.mask_share, n, rng)
        masked, shown_anyway = mask_cells(n, mask_share, rng, kept_share=kept_share)
        predicted = np.concatenate([masked, shown_anyway])
        perturb_share = 0.0
        if objective.kind == "paper" and objective.gamma < 1:
            perturb_share = _possible(objective.perturb_share, n, rng)
        moved = perturb_cells(n, perturb_share, rng, exclude=predicted)
        moved_tokens = moved + first
        noisy = noisy_positions(
            sub.positions, moved_tokens, item.spacing, rng, sigma_spacing=objective.sigma_spacing
        )
        noisy_sub = with_positions(sub, noisy, self.config) if len(moved) else sub
        again = NOTHING
        if item.tokens is not None:
            again = np.sort(rng.permutation(n)[: objective.reencode])
        shown = np.setdiff1d(np.arange(len(sub.cells)), masked)
        columns = np.arange(1, sub.n_tokens)
        places = sub.positions[first:]
        from_middle = np.linalg.norm(places - places.mean(axis=0), axis=1)
        unit = np.float32(float(from_middle.mean()) or 1.0)
        return _Drawn(
            sub=noisy_sub,
            masked=masked + first,
            predicted=predicted + first,
            shown=shown + first,
            rings=_ring_means(places, item.features, shown, predicted),
            moved=moved_tokens,
            columns=columns,
            true_distance=_distances(sub.positions, moved_tokens, columns) / unit,
            noisy_distance=_distances(noisy, moved_tokens, columns) / unit,
            again=again,
            again_tokens=again + first,
        )


def _possible(share: float, n: int, rng: np.random.Generator) -> float:
    """Return the share; where it is less than one cell of ``n``, 0 at random, since a share above 0 gives one cell.

    A sub-slice of a single cell (table A.3) would be hidden always, and nothing ever shown.
    """
    if share == 0 or share * n >= 1:
        return share
    return share if rng.random() < share * n else 0.0


def _distances(positions: Floats, rows: Ints, columns: Ints) -> Vectors:
    gap = positions[rows][:, None] - positions[columns][None]
    squared = (gap**2).sum(axis=-1)
    return np.sqrt(squared).astype(np.float32)


def _ring_means(places: Floats, features: Vectors, shown: Ints, wanted: Ints) -> Vectors:
    """Return the mean features of shown cells in rings around wanted ones, ``(wanted, rings * d)``; 0 where none is."""
    n_features = features.shape[1]
    out = np.zeros((len(wanted), len(RINGS), n_features), dtype=np.float32)
    if len(shown) and len(wanted):
        k = min(RINGS[-1] + 1, len(shown))
        tree = cKDTree(places[shown])
        _, index = tree.query(places[wanted], k=list(range(1, k + 1)))
        neighbor = shown[index]
        # a cell that is predicted but shown must not answer for itself
        is_other = neighbor != wanted[:, None]
        order = np.cumsum(is_other, axis=1)
        near = features[neighbor]
        for ring, (inner, outer) in enumerate(pairwise((0, *RINGS))):
            in_ring = is_other & (order > inner) & (order <= outer)
            weight = in_ring.astype(np.float32)
            count = np.maximum(weight.sum(axis=1, keepdims=True), 1)
            out[:, ring] = np.einsum("nk,nkd->nd", weight, near) / count
    return out.reshape(len(wanted), len(RINGS) * n_features)
