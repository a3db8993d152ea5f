"""A labeled slice cut once for fine-tuning: its tokens, sub-slices and stored cell vectors, in canonical order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray
from torch import Tensor

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


@dataclass
class Scene:
    """One slice; rows in canonical order.

    Attributes
    ----------
    name
        Of the slice.
    tokens, positions
        As ``embed`` makes them.
    codes, train, validation
        Class of each cell (-1: none); which cells are learned from; which stop the training.
    features, virtual, subslices
        Stored vectors of cells and virtual cells, and the sub-slices around them; :func:`refresh` makes them anew.
    """

    name: str
    tokens: Tokens
    positions: NDArray[np.float64]
    codes: NDArray[np.int64]
    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    features: NDArray[np.float32] = field(init=False)
    virtual: NDArray[np.float32] = field(init=False)
    subslices: list[SubSlice] = field(init=False)


def prepare(
    model: SToFM,
    adata: AnnData,
    codes: NDArray[np.int64],
    train: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    *,
    orthologs: Any = None,
    progress: bool | None = False,
) -> Scene:
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
    """
    config, tissue = model.config.subslices, Slice.from_anndata(adata)
    tokens = tokenize(
        tissue,
        model.vocabulary.match(tissue, orthologs=orthologs),
        model.config.cell_encoder.max_length,
    )
    order = canonical_order(tokens, tissue)
    positions = model_positions(tissue.coords[order], config, slice_length_unit(tissue, config))
    scene = Scene(
        tissue.name, tokens.take(order), positions, codes[order], train[order], validation[order]
    )
    refresh(model, scene, progress)
    return scene


def refresh(model: SToFM, scene: Scene, progress: bool | None = False) -> None:
    """Encode all cells with the weights of this moment, and make virtual cells of them, as ``embed`` would now.

    Which cells a sub-slice holds does not change: that depends on positions alone.
    """
    config, positions = model.config.subslices, scene.positions
    encoder = model.module.cell_encoder
    scene.features, _ = encode_cells(
        encoder, scene.tokens, model.cls_token, "float32", Progress(progress)
    )
    macro = macro_scale(scene.features, positions, config)
    scene.virtual = macro.features
    scene.subslices = list(
        iterate(positions, macro.positions, split_cells(positions, config), config)
    )


def subslice_vectors(model: SToFM, scene: Scene, sub: SubSlice, again: NDArray[np.int64]) -> Tensor:
    """Return the vectors that ``embed`` would write for a sub-slice's own cells, ``(n_core, d)``.

    Parameters
    ----------
    model
        SToFM.
    scene, sub
        The slice, and one of its sub-slices.
    again
        Cells of the sub-slice (by their place in it) that are encoded again, with gradient.
    """
    device, first = model.device, 1 + sub.n_virtual
    x, types, pairs = subslice_tensors([sub], scene.features, scene.virtual, device)
    if len(again):
        tokens = scene.tokens.take(sub.cells[again])
        ids, mask = pad(tokens, tokens.flat, model.cls_token)
        encoded = model.module.cell_encoder(ids.to(device), mask.to(device))
        x = x.index_copy(0, torch.from_numpy(again + first).to(device), encoded)
    hidden = model.module.se2(x, types, pairs).hidden[first : first + sub.n_core]
    if model.config.output != "own+niche":
        return hidden
    return torch.cat(
        [x[first : first + sub.n_core], hidden / float(model.module.se2.typical_norm())], dim=1
    )


@torch.no_grad()
def scene_vectors(model: SToFM, scene: Scene) -> NDArray[np.float32]:
    """Return the vectors that ``embed`` would write for all cells, ``(n, d)``, rows in canonical order."""
    none, parts = np.empty(0, dtype=np.int64), scene.subslices
    found = np.concatenate(
        [subslice_vectors(model, scene, sub, none).cpu().numpy() for sub in parts]
    )
    out = np.empty_like(found)
    out[np.concatenate([sub.cells[: sub.n_core] for sub in parts])] = found
    return out
