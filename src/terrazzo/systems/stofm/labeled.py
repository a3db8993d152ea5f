"""Labeled slices prepared for fine-tuning: tokens, sub-slices and stored cell vectors, in canonical order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from terrazzo.arrays import Bools, Floats, Ints, Vectors
from terrazzo.models.sequences import Tokens
from terrazzo.progress import Progress
from terrazzo.slices import Slice
from terrazzo.systems.stofm.cell_model import encode_cells, tokenize
from terrazzo.systems.stofm.masking import pad
from terrazzo.systems.stofm.model import SToFM, canonical_order, slice_length_unit, subslice_tensors
from terrazzo.systems.stofm.subslices import (
    SubSlice,
    iterate,
    macro_scale,
    model_positions,
    split_cells,
)

__all__ = ["LabeledSlice", "prepare", "refresh", "slice_vectors", "subslice_vectors"]


@dataclass
class LabeledSlice:
    """One slice; rows in canonical order.

    Attributes
    ----------
    name
        Of the slice.
    tokens, positions
        As ``embed`` makes them.
    codes, train, validation
        Class of each cell (-1: none); which cells are learned from; which decide when training stops.
    features, virtual, subslices
        Stored vectors of cells and virtual cells, and the sub-slices around them; :func:`refresh` makes them anew.
    """

    name: str
    tokens: Tokens
    positions: Floats
    codes: Ints
    train: Bools
    validation: Bools
    features: Vectors = field(init=False)
    virtual: Vectors = field(init=False)
    subslices: list[SubSlice] = field(init=False)


def prepare(
    model: SToFM,
    adata: AnnData,
    codes: Ints,
    train: Bools,
    validation: Bools,
    *,
    orthologs: Any = None,
    progress: bool | None = False,
    slice_key: str | None = None,
) -> LabeledSlice:
    """Cut a slice as ``embed`` would.

    Parameters
    ----------
    model
        Its config and vocabulary decide.
    adata
        Raw counts and coordinates.
    codes, train, validation
        ``(n_obs,)``, in the order of its rows.
    orthologs, progress
        As in :meth:`terrazzo.SToFM.embed`.
    slice_key
        None, or "none": the cells are one slice, whatever tells them apart.
    """
    config = model.config.subslices
    tissue = Slice.from_anndata(adata, slice_key=slice_key)
    match = model.vocabulary.match(tissue, orthologs=orthologs)
    tokens = tokenize(tissue, match, model.config.cell_encoder.max_length)
    order = canonical_order(tokens, tissue)
    unit = slice_length_unit(tissue, config)
    labeled = LabeledSlice(
        name=tissue.name,
        tokens=tokens.take(order),
        positions=model_positions(tissue.coords[order], config, unit),
        codes=codes[order],
        train=train[order],
        validation=validation[order],
    )
    refresh(model, labeled, progress)
    return labeled


def refresh(model: SToFM, labeled: LabeledSlice, progress: bool | None = False) -> None:
    """Encode all cells with the present weights, and make virtual cells of them, as ``embed`` would now.

    Which cells belong to a sub-slice does not change: that depends on positions alone.
    """
    config = model.config.subslices
    encoder = model.module.cell_encoder
    bars = Progress(progress)
    features, _ = encode_cells(encoder, labeled.tokens, model.cls_token, "float32", bars)
    macro = macro_scale(features, labeled.positions, config)
    parts = split_cells(labeled.positions, config)
    labeled.features = features
    labeled.virtual = macro.features
    labeled.subslices = list(iterate(labeled.positions, macro.positions, parts, config))


def subslice_vectors(model: SToFM, labeled: LabeledSlice, sub: SubSlice, again: Ints) -> Tensor:
    """Return the vectors that ``embed`` would write for a sub-slice's own cells, ``(n_core, d)``.

    Parameters
    ----------
    model
        SToFM.
    labeled, sub
        The slice, and one of its sub-slices.
    again
        Cells of the sub-slice (by their place in it) that are encoded again, with gradient.
    """
    device = model.device
    first = 1 + sub.n_virtual  # token of the first cell
    x, types, pairs = subslice_tensors([sub], labeled.features, labeled.virtual, device)
    if len(again):
        tokens = labeled.tokens.take(sub.cells[again])
        ids, mask = pad(tokens, tokens.flat, model.cls_token)
        encoded = model.module.cell_encoder(ids.to(device), mask.to(device))
        rows = torch.from_numpy(again + first).to(device)
        x = x.index_copy(0, rows, encoded)
    core = slice(first, first + sub.n_core)
    niche = model.module.se2(x, types, pairs).hidden[core]
    if model.config.output != "own+niche":
        return niche
    typical_norm = float(model.module.se2.typical_norm())
    return torch.cat([x[core], niche / typical_norm], dim=1)


@torch.no_grad()
def slice_vectors(model: SToFM, labeled: LabeledSlice) -> Vectors:
    """Return the vectors that ``embed`` would write for all cells, ``(n, d)``, rows in canonical order."""
    none = np.empty(0, dtype=np.int64)
    cells = []
    vectors = []
    for sub in labeled.subslices:
        cells.append(sub.cells[: sub.n_core])
        vectors.append(subslice_vectors(model, labeled, sub, none).cpu().numpy())
    by_subslice = np.concatenate(vectors)
    out = np.empty_like(by_subslice)
    out[np.concatenate(cells)] = by_subslice
    return out
