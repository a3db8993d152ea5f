"""Hidden cells of a slice, predicted by ST as images from the windows around them (section 4.2, table 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import InputError
from terrazzo.expression import PAPER_TOTAL, log_values
from terrazzo.genes import GeneMatch
from terrazzo.slices import Slice
from terrazzo.systems.stimage.config import STImageConfig
from terrazzo.systems.stimage.gridded import GriddedSlice
from terrazzo.systems.stimage.network import scheme_states
from terrazzo.systems.stimage.windows import tile_corners, window_sites

if TYPE_CHECKING:
    from terrazzo.systems.stimage.model import STImage


WINDOWS = 8  # worked on together


def reconstruct(
    model: STImage,
    tissue: Slice,
    match: GeneMatch,
    adata: AnnData,
    hidden: NDArray[np.bool_],
    genes: list[str],
    config: STImageConfig,
    seed: int,
) -> NDArray[np.float32]:
    """See :meth:`terrazzo.STImage.reconstruct`."""
    hidden = np.asarray(hidden, dtype=bool)
    if hidden.shape != (tissue.n_cells,):
        raise InputError(
            f"hidden has the shape {hidden.shape}; it must say of each of {tissue.n_cells} cells."
        )
    if hidden.all():
        raise InputError(
            f"{tissue.name}: all cells are hidden; there is nothing to predict them from."
        )
    held = GriddedSlice.make(tissue, match, config, config.vit.n_genes, hidden)
    columns = _columns(adata, tissue, genes)
    tokens = held.token[columns].astype(np.int64)
    known = tokens >= 0
    at = held.grid.site[hidden]
    mean = _mean(tissue, ~hidden, columns)
    out = np.tile(mean, (len(at), 1))
    if known.any():
        sites, back = np.unique(at, return_inverse=True)
        found = _predict(model, held, sites, tokens[known], config, seed)
        out[:, known] = _in_paper_units(found, mean[known], held.scale.mean[tokens[known]])[back]
    return out


def _columns(adata: AnnData, tissue: Slice, genes: list[str]) -> Ints:
    """Return the slice's column of each gene; duplicates of a name were summed there."""
    symbol = {str(s): i for i, s in reversed(list(enumerate(tissue.gene_symbols))) if s}
    ensembl = {str(g): i for i, g in reversed(list(enumerate(tissue.gene_ids))) if g}
    direct = (
        list(map(str, adata.var_names)) if adata.n_vars == tissue.n_genes else []
    )  # nothing was summed
    order = {name: i for i, name in reversed(list(enumerate(direct)))}
    found = [order.get(g, symbol.get(g, ensembl.get(g, -1))) for g in genes]
    if -1 in found:
        lacking = [g for g, i in zip(genes, found, strict=True) if i < 0]
        raise InputError(
            f"{tissue.name} has no gene {lacking[0]!r} ({len(lacking)} of {len(genes)} are not there)."
        )
    return np.array(found, dtype=np.int64)


def _mean(tissue: Slice, visible: NDArray[np.bool_], columns: Ints) -> NDArray[np.float32]:
    shown = np.flatnonzero(visible)
    values = log_values(tissue.counts[shown], PAPER_TOTAL, tissue.total_counts[shown])
    return np.asarray(values.mean(axis=0), dtype=np.float32).ravel()[columns]


@torch.inference_mode()
def _predict(
    model: STImage, held: GriddedSlice, sites: Ints, tokens: Ints, config: STImageConfig, seed: int
) -> NDArray[np.float32]:
    """Return the model's own values of hidden sites, ``(len(sites), len(tokens))``: the mean over windows."""
    side, module = config.windows.window, model.module
    windows = (
        window_sites(held.grid, c, side) for c in tile_corners(held.grid, side, max(side // 4, 1))
    )
    holding = (window for window in windows if np.isin(window, sites).any())
    total = np.zeros((len(sites), config.vit.width))
    weight = np.zeros(len(sites))
    for batch in held.batches(holding, config, model.autocorrelation, seed, WINDOWS):
        present, places = batch.present.to(model.device), batch.places.to(model.device)
        wanted = np.isin(batch.sites, sites)
        shown = present & ~torch.from_numpy(wanted).to(model.device)
        near = config.neighbors if config.scheme == "multi-spot" else 0
        values, genes = batch.values.to(model.device), batch.genes.to(model.device)
        # a site that is not shown has no domain, as in training; still the layer that predictions come from is passed
        none = torch.full_like(shown, -1, dtype=torch.int64) if config.scheme == "slice" else None
        states = (
            scheme_states(module, values, genes, places, shown, neighbors=near, domain=none)
            .cpu()
            .numpy()
        )
        # a window in which a site has many others around it knows more of it
        seen = shown.sum(dim=1).cpu().numpy()[:, None].repeat(wanted.shape[1], 1)[wanted]
        at = np.searchsorted(sites, batch.sites[wanted])
        np.add.at(total, at, states[wanted] * seen[:, None])
        np.add.at(weight, at, seen)
    mean = torch.from_numpy((total / np.maximum(weight, 1)[:, None]).astype(np.float32)).to(
        model.device
    )
    wished = torch.from_numpy(tokens).to(model.device)[None]
    predicted = module.predict(mean[None], wished)[0].cpu().numpy()
    return held.scale.restore(predicted, tokens) if config.standardize else predicted


def _in_paper_units(
    values: NDArray[np.float32], mean: NDArray[np.float32], own_mean: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return log1p of counts scaled to 10,000 from the model's own values, by the ratio of a gene's means.

    A prediction is a mean over what a cell may hold, none or many. To scale it inside the logarithm would say more than
    the mean of the scaled values wherever a gene is absent from many cells: on DLPFC that costs most of what
    neighbors know beyond the gene's mean. Means are of the visible cells, on either scale.
    """
    factor = np.divide(mean, own_mean, out=np.ones(len(mean)), where=own_mean > 0)
    return (np.maximum(values, 0) * factor).astype(np.float32)
