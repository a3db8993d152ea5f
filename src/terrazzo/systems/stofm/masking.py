"""From loader items to tensors: what is hidden, moved or split is drawn here, from a seed per batch or sub-slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from torch import Tensor

from terrazzo.genes import Vocabulary
from terrazzo.models.sequences import Tokens
from terrazzo.splitting import mask_cells, mask_tokens, noisy_positions, perturb_cells, thin_counts
from terrazzo.systems.stofm.loaders import CellBatch, SubSliceBatch, SubSliceItem
from terrazzo.systems.stofm.model import pair_tensors
from terrazzo.systems.stofm.pair_bias import Pairs
from terrazzo.systems.stofm.se2 import CELL
from terrazzo.systems.stofm.subslices import SubSliceConfig, with_positions
from terrazzo.systems.stofm.tokens import rank_tokens
from terrazzo.training.goals import AdaptObjective, MultiScaleObjective
from terrazzo.training.stage import Movable

RINGS = (6, 18, 36)  # shown neighbors up to the outer edge of each ring around a predicted cell


@dataclass(frozen=True)
class AdaptBatch(Movable):
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
class CellView:
    """What turns cells into :class:`AdaptBatch`: vocabulary, objective and longest sequence."""

    vocabulary: Vocabulary
    goal: AdaptObjective
    max_length: int

    @property
    def thins(self) -> bool:
        """Whether counts are needed."""
        return self.goal.own_weight > 0 or self.goal.view == "thinned"

    def make(
        self,
        batch: CellBatch,
        names: list[str],
        base_of: Callable[[int], NDArray[np.float32]],
        rng: np.random.Generator,
    ) -> AdaptBatch:
        """Draw the views of one batch; ``names`` are its slices, ``base_of`` one's log mean composition."""
        first, second, rest, base = batch.tokens, batch.tokens, None, None
        if self.thins and batch.counts is not None:
            part, left = self._thin(batch.counts, rng)
            first = self._rank(part)
            thins_twice = self.goal.view == "thinned" and self.goal.contrastive_weight > 0
            second = self._rank(self._thin(batch.counts, rng)[0]) if thins_twice else first
            if self.goal.own_weight > 0:
                rest = torch.from_numpy(left.toarray().astype(np.float32))
                base = torch.from_numpy(np.stack([base_of(m) for m in batch.member.tolist()]))
        cls, special = self.vocabulary.special["<cls>"], self.vocabulary.special
        masked, labels = mask_tokens(
            first.flat,
            rng,
            mask_token=special["<mask>"],
            gene_tokens=self.vocabulary.token,
            share=self.goal.mask_share,
        )
        plain, mask = pad(first, first.flat, cls)
        again, mask_second = (plain, mask) if second is first else pad(second, second.flat, cls)
        target, _ = pad(first, labels, -100, filler=-100)
        hidden, _ = pad(first, masked, cls)
        return AdaptBatch(hidden, plain, again, mask, mask_second, target, rest, base, names)

    def _thin(
        self, counts: sparse.csr_matrix, rng: np.random.Generator
    ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        return thin_counts(
            counts, rng.uniform(self.goal.thin_low, self.goal.thin_high, counts.shape[0]), rng
        )

    def _rank(self, counts: sparse.csr_matrix) -> Tokens:
        return rank_tokens(counts, *token_columns(self.vocabulary), self.max_length)


def token_columns(vocabulary: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return token and median of each column of counts whose columns are the tokens themselves."""
    token = np.full(vocabulary.n_tokens, -1, dtype=np.int32)
    token[vocabulary.token] = vocabulary.token
    median = np.ones(vocabulary.n_tokens)
    median[vocabulary.token] = vocabulary.median
    return token, median


def pad(tokens: Tokens, values: NDArray[Any], lead: int, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Return ``(cells, longest + 1)`` with ``lead`` in front, and the mask."""
    lengths = tokens.lengths + 1
    out = np.full((len(tokens), int(lengths.max())), filler, dtype=np.int64)
    mask = np.arange(out.shape[1]) < lengths[:, None]
    out[:, 0] = lead
    inner = mask.copy()
    inner[:, 0] = False
    out[inner] = values
    return torch.from_numpy(out), torch.from_numpy(mask.astype(np.int64))


@dataclass(frozen=True)
class ScenePack(Movable):
    """Sub-slices packed one after the other, with what is hidden and moved.

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
        the answers to beat are made.
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
class SceneView:
    """What turns stored sub-slices into :class:`ScenePack`."""

    goal: MultiScaleObjective
    config: SubSliceConfig
    cls_token: int

    def make(self, batch: SubSliceBatch, seed: list[int]) -> ScenePack:
        """Draw what is hidden and moved, from a generator per sub-slice: the same whichever process holds it."""
        drawn = [
            self._draw(item, np.random.default_rng([*seed, item.member, int(item.sub.cells[0])]))
            for item in batch
        ]
        starts = np.cumsum([0] + [d["sub"].n_tokens for d in drawn])
        blocks = [
            (np.zeros((1, i.features.shape[1]), np.float32), i.virtual, i.features) for i in batch
        ]
        hidden = torch.zeros(int(starts[-1]), dtype=torch.bool)
        hidden[_packed(drawn, starts, "masked")] = True
        again = [
            item.tokens.take(d["again"])
            for d, item in zip(drawn, batch, strict=True)
            if item.tokens is not None
        ]
        ids, mask, where = self._again(again, _packed(drawn, starts, "again_tokens"))
        return ScenePack(
            torch.from_numpy(
                np.concatenate([block for blocks_of_one in blocks for block in blocks_of_one])
            ),
            torch.from_numpy(np.concatenate([d["sub"].token_types for d in drawn])),
            [pair_tensors(d["sub"], torch.device("cpu")) for d in drawn],
            hidden,
            _packed(drawn, starts, "predicted"),
            _packed(drawn, starts, "shown"),
            torch.from_numpy(np.concatenate([d["rings"] for d in drawn])),
            [torch.from_numpy(d["moved"]) for d in drawn],
            [torch.from_numpy(d["columns"]) for d in drawn],
            [torch.from_numpy(d["true"]) for d in drawn],
            [torch.from_numpy(d["noisy"]) for d in drawn],
            ids,
            mask,
            where,
            [item.id for item in batch],
        )

    def _again(
        self, tokens: list[Tokens], where: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if not tokens or not len(where):
            return None, None, None
        flat = np.concatenate([t.flat for t in tokens])
        lengths = np.concatenate([t.lengths for t in tokens])
        joined = Tokens(flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        return *pad(joined, joined.flat, self.cls_token), where

    def _draw(self, item: SubSliceItem, rng: np.random.Generator) -> dict[str, Any]:
        """Draw for one sub-slice: what is hidden, what moves, which cells are encoded again. Tokens, not cells."""
        goal, sub = self.goal, item.sub
        first, n = 1 + sub.n_virtual, sub.n_core
        kept_share = _whole(goal.kept_share, n, rng)
        masked, kept = mask_cells(n, _whole(goal.mask_share, n, rng), rng, kept_share=kept_share)
        paper = goal.objective == "paper" and goal.gamma < 1
        noise = _whole(goal.perturb_share, n, rng) if paper else 0.0
        moved = perturb_cells(n, noise, rng, exclude=np.union1d(masked, kept))
        predicted = np.concatenate([masked, kept])
        positions = sub.positions
        moved_tokens = moved + first
        noisy = noisy_positions(
            positions, moved_tokens, item.spacing, rng, sigma_spacing=goal.sigma_spacing
        )
        columns = np.arange(1, sub.n_tokens)
        mean = (
            float(np.linalg.norm(positions[first:] - positions[first:].mean(axis=0), axis=1).mean())
            or 1.0
        )
        again = (
            np.sort(rng.permutation(n)[: goal.reencode])
            if item.tokens is not None
            else np.empty(0, np.int64)
        )
        shown = np.setdiff1d(np.arange(len(sub.cells)), masked)
        return {
            "sub": with_positions(sub, noisy, self.config) if len(moved) else sub,
            "masked": masked + first,
            "predicted": predicted + first,
            "shown": shown + first,
            "rings": _rings(positions[first:], item.features, shown, predicted),
            "moved": moved_tokens,
            "columns": columns,
            "true": _distances(positions, moved_tokens, columns) / np.float32(mean),
            "noisy": _distances(noisy, moved_tokens, columns) / np.float32(mean),
            "again": again,
            "again_tokens": again + first,
        }


def _whole(share: float, n: int, rng: np.random.Generator) -> float:
    """Return the share; where it is less than one cell of ``n``, 0 by chance, since a share above 0 gives one cell.

    A sub-slice of a single cell (table A.3) would be hidden always, and nothing ever shown.
    """
    return share if share == 0 or share * n >= 1 or rng.random() < share * n else 0.0


def _packed(drawn: list[dict[str, Any]], starts: NDArray[np.int64], name: str) -> Tensor:
    return torch.from_numpy(
        np.concatenate([d[name] + s for d, s in zip(drawn, starts[:-1], strict=True)])
    )


def _distances(
    positions: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    gap = positions[rows][:, None] - positions[columns][None]
    return np.sqrt((gap**2).sum(axis=-1)).astype(np.float32)


def _rings(
    places: NDArray[np.float64],
    features: NDArray[np.float32],
    shown: NDArray[np.int64],
    wanted: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the mean features of shown cells in rings around wanted ones, ``(wanted, rings * d)``; 0 where none is."""
    out = np.zeros((len(wanted), len(RINGS), features.shape[1]), dtype=np.float32)
    flat = (len(wanted), out.shape[1] * out.shape[2])
    if not len(shown) or not len(wanted):
        return out.reshape(flat)
    k = min(RINGS[-1] + 1, len(shown))
    _, index = cKDTree(places[shown]).query(places[wanted], k=[*range(1, k + 1)])
    itself = (
        shown[index] == wanted[:, None]
    )  # a cell that is predicted but shown must not answer for itself
    order, near = np.cumsum(~itself, axis=1), features[shown[index]]
    for ring, (inner, outer) in enumerate(pairwise((0, *RINGS))):
        weight = (~itself & (order > inner) & (order <= outer)).astype(np.float32)
        total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
        out[:, ring] = np.einsum("nk,nkd->nd", weight, near) / total
    return out.reshape(flat)
