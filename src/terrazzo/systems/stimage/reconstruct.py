"""Prediction of hidden cells of a slice from the windows around them (ST as images, section 4.2, table 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from anndata import AnnData

from terrazzo.arrays import Bools, Floats, Ints, Vectors
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


__all__ = ["reconstruct"]

WINDOWS = 8  # in a batch


def reconstruct(
    model: STImage,
    tissue: Slice,
    match: GeneMatch,
    adata: AnnData,
    hidden: Bools,
    genes: list[str],
    config: STImageConfig,
    seed: int,
) -> Vectors:
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
    gridded = GriddedSlice.make(tissue, match, config, config.vit.n_genes, hidden)
    columns = _columns(adata, tissue, genes)
    tokens = gridded.token[columns].astype(np.int64)
    known = tokens >= 0
    site_of_cell = gridded.grid.site[hidden]
    mean = _mean(tissue, ~hidden, columns)
    values = np.tile(mean, (len(site_of_cell), 1))
    if known.any():
        known_tokens = tokens[known]
        sites, index = np.unique(site_of_cell, return_inverse=True)
        predicted = _predict(model, gridded, sites, known_tokens, config, seed)
        own_mean = gridded.scale.mean[known_tokens]
        values[:, known] = _in_paper_units(predicted, mean[known], own_mean)[index]
    return values


def _columns(adata: AnnData, tissue: Slice, genes: list[str]) -> Ints:
    """Return the slice's column of each gene; duplicates of a name were summed in it."""
    by_symbol = _first_of_each(tissue.gene_symbols.tolist())
    by_ensembl = _first_of_each(tissue.gene_ids.tolist())
    by_name: dict[str, int] = {}
    if adata.n_vars == tissue.n_genes:  # no gene was summed or dropped: columns correspond
        by_name = _first_of_each(adata.var_names.tolist())
    columns = []
    missing = []
    for gene in genes:
        column = by_name.get(gene, by_symbol.get(gene, by_ensembl.get(gene)))
        if column is None:
            missing.append(gene)
        else:
            columns.append(column)
    if missing:
        raise InputError(
            f"{tissue.name} has no gene {missing[0]!r} ({len(missing)} of {len(genes)} are missing)."
        )
    return np.array(columns, dtype=np.int64)


def _first_of_each(names: list[str]) -> dict[str, int]:
    """Return the first position of each name; empty names are left out."""
    place: dict[str, int] = {}
    for index, name in enumerate(names):
        if name:
            place.setdefault(str(name), index)
    return place


def _mean(tissue: Slice, visible: Bools, columns: Ints) -> Vectors:
    shown = np.flatnonzero(visible)
    values = log_values(tissue.counts[shown], PAPER_TOTAL, tissue.total_counts[shown])
    mean = np.asarray(values.mean(axis=0), dtype=np.float32)
    return mean.ravel()[columns]


@torch.inference_mode()
def _predict(
    model: STImage,
    gridded: GriddedSlice,
    sites: Ints,
    tokens: Ints,
    config: STImageConfig,
    seed: int,
) -> Vectors:
    """Return the model's own values of hidden sites, ``(len(sites), len(tokens))``: the mean over windows."""
    states = _mean_states(model, gridded, sites, config, seed)
    on_device = torch.from_numpy(states).to(model.device)
    wanted_tokens = torch.from_numpy(tokens).to(model.device)
    predicted = model.module.predict(on_device[None], wanted_tokens[None])[0].cpu().numpy()
    if config.standardize:
        return gridded.scale.restore(predicted, tokens)
    return predicted


def _mean_states(
    model: STImage, gridded: GriddedSlice, sites: Ints, config: STImageConfig, seed: int
) -> Vectors:
    """Return the states of hidden sites, ``(len(sites), width)``.

    A mean over the windows that hold a site; a window with many shown sites counts for more.
    """
    total = np.zeros((len(sites), config.vit.width))
    weight = np.zeros(len(sites))
    neighbors = config.neighbors if config.scheme == "multi-spot" else 0
    windows = _windows_with(gridded, sites, config.windows.window)
    for batch in gridded.batches(windows, config, model.autocorrelation, seed, WINDOWS):
        wanted = np.isin(batch.sites, sites)
        hidden = torch.from_numpy(wanted).to(model.device)
        shown = batch.present.to(model.device) & ~hidden
        # a hidden site has no domain, as in training; still the layer that predictions come from is passed
        no_domain = None
        if config.scheme == "slice":
            no_domain = torch.full_like(shown, -1, dtype=torch.int64)
        states = scheme_states(
            model.module,
            batch.values.to(model.device),
            batch.genes.to(model.device),
            batch.places.to(model.device),
            shown,
            neighbors=neighbors,
            domain=no_domain,
        )
        n_shown = shown.sum(dim=1).cpu().numpy()[:, None]
        n_shown = n_shown.repeat(wanted.shape[1], 1)[wanted]
        index = np.searchsorted(sites, batch.sites[wanted])
        np.add.at(total, index, states.cpu().numpy()[wanted] * n_shown[:, None])
        np.add.at(weight, index, n_shown)
    mean = total / np.maximum(weight, 1)[:, None]
    return mean.astype(np.float32)


def _windows_with(gridded: GriddedSlice, sites: Ints, side: int) -> Iterator[Ints]:
    """Yield the overlapping windows in which any of these sites is."""
    stride = max(side // 4, 1)
    for corner in tile_corners(gridded.grid, side, stride):
        window = window_sites(gridded.grid, corner, side)
        if np.isin(window, sites).any():
            yield window


def _in_paper_units(values: Vectors, mean: Vectors, own_mean: Floats) -> Vectors:
    """Return log1p of counts scaled to 10,000 from the model's own values, by the ratio of a gene's means.

    A prediction is a mean over the counts that a cell may have, none or many. Scaled inside the logarithm it would be
    more than the mean of the scaled values wherever a gene is absent from many cells: on DLPFC that costs most of what
    neighbors know beyond the gene's mean. Means are of the visible cells, on either scale.
    """
    factor = np.divide(mean, own_mean, out=np.ones(len(mean)), where=own_mean > 0)
    return (np.maximum(values, 0) * factor).astype(np.float32)
