"""Simulate one slice, or the slices of a corpus, as AnnData."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo import keys
from terrazzo.errors import ConfigError
from terrazzo.simulate.atlas import PLATFORMS, SEQUENCED, Atlas, Layout, draw_atlas
from terrazzo.simulate.checks import SHAPES, check_choice, check_genes, check_value
from terrazzo.simulate.counts import draw_counts
from terrazzo.simulate.geometry import Truth, draw_truth
from terrazzo.simulate.histology import draw_section

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["corpus", "tissue"]

ID_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}
SYMBOL_PREFIX = {"human": "SIM", "mouse": "Sim"}
FIRST_ID = 99_000_000_001  # far above any real Ensembl number


def tissue(
    n_cells: int = 2000,
    *,
    layout: Layout = "cells",
    n_genes: int | None = None,
    n_regions: int = 5,
    n_types: int = 8,
    seed: int = 0,
    atlas_seed: int = 0,
    depth: float | None = None,
    image: bool = False,
    image_px: int = 1500,
    organism: Literal["human", "mouse"] = "human",
    technology: str | None = None,
    shape: Literal["ellipse", "square"] = "ellipse",
    gene_ids: Sequence[str] | None = None,
    gene_symbols: Sequence[str] | None = None,
    batch: float = 0.0,
    donor: str = "donor_1",
    name: str = "tissue",
) -> AnnData:
    """Simulate one slice of layered tissue with known truth.

    Parameters
    ----------
    n_cells
        Rows: cells, or spots on ``"visium"`` and ``"st"``.
    layout
        ``"cells"``: single cells, coordinates in um. ``"visium"``: 55 um spots, hexagonal pitch 100 um. ``"st"``: 100
        um spots, square pitch 200 um. Spots mix about 7 and 25 cells; their coordinates are full-resolution pixels.
    n_genes
        Columns; 300, or as many as ``gene_ids``. Over 2,000, ``"cells"`` is sequencing-like.
    n_regions, n_types
        Bands of tissue and cell types; about a quarter of the types are everywhere the same.
    seed
        Geometry, cells and counts of this slice. Never changes the atlas.
    atlas_seed
        Gene, type and region programs. Slices share them if n_genes, n_regions, n_types and atlas_seed are equal.
    depth
        Median total counts of a row; by default that of the platform.
    image, image_px
        Draw an H&E-like section into ``uns["spatial"]``, at most ``image_px`` pixels on its long side.
    organism
        Form of ids (``ENSG`` or ``ENSMUSG``, made up, from 99000000001) and symbols (``SIM1`` or ``Sim1``).
    technology
        ``uns["technology"]``; by default MERFISH, Visium or ST, so that the unit of the coordinates is known.
    shape
        Outline of the tissue.
    gene_ids, gene_symbols
        Real genes instead of made-up ones; ``var_names`` are the symbols, or the ids without them.
    batch
        Standard deviation of a log fold change of each gene, drawn for this slice.
    donor, name
        ``obs["donor"]``; the slice's name, with which every obs name starts.

    Returns
    -------
    anndata.AnnData
        X: CSR float32 counts. obs: region, cell_type (of a spot: its commonest), donor, and on arrays array_row,
        array_col. var: ensembl_id, marker_of, program_of. obsm: spatial (float64), and on arrays proportions, named
        by ``uns["proportions_names"]``. uns: technology, organism, simulation (the arguments and
        ``microns_per_pixel``), and with an image spatial, as Space Ranger has it: ``image_xy = spatial *
        tissue_hires_scalef``, ``microns_per_pixel`` of one unit of ``obsm["spatial"]``.

    Raises
    ------
    ConfigError
        An argument that is not possible; the message names it.

    Examples
    --------
    >>> tissue(200, n_genes=50, seed=1).shape
    (200, 50)
    """
    for label, choice, known in (
        ("layout", layout, PLATFORMS),
        ("shape", shape, SHAPES),
        ("organism", organism, ID_PREFIX),
    ):
        check_choice(label, choice, known)
    n_genes = check_genes(n_genes, gene_ids, gene_symbols)
    for label, value in {
        "n_cells": n_cells,
        "n_regions": n_regions,
        "n_types": n_types,
        "seed": seed,
        "atlas_seed": atlas_seed,
        "depth": 1.0 if depth is None else depth,
        "image_px": image_px,
        "batch": batch,
        "donor": donor,
        "name": name,
    }.items():
        check_value(label, value)
    if depth is None:
        depth = _usual_depth(layout, n_genes)
    atlas = draw_atlas(n_genes, n_regions, n_types, atlas_seed)
    truth = draw_truth(layout, n_cells, shape, atlas, seed)
    counts = draw_counts(truth, atlas, depth, batch, seed)
    adata = _assemble(truth, atlas, counts, name)
    _name_genes(adata, organism, gene_ids, gene_symbols)
    adata.obs["donor"] = pd.Categorical([donor] * n_cells)
    adata.uns["technology"] = technology or truth.platform.technology
    adata.uns["organism"] = organism
    adata.uns["simulation"] = {
        "layout": layout,
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_regions": n_regions,
        "n_types": n_types,
        "seed": seed,
        "atlas_seed": atlas_seed,
        "depth": float(depth),
        "shape": shape,
        "batch": float(batch),
        "microns_per_pixel": truth.frame.microns,
    }
    if image:
        picture_rng = np.random.default_rng([seed, 5])
        adata.uns["spatial"] = {name: _drawn_library(truth, atlas, image_px, picture_rng)}
    return adata


def _usual_depth(layout: Layout, n_genes: int) -> float:
    """Return the median total counts that the platform gives for so many genes."""
    if layout == "cells" and n_genes > SEQUENCED:
        return 1050.0
    platform = PLATFORMS[layout]
    return platform.depth * (n_genes / platform.genes) ** 0.3


def _assemble(truth: Truth, atlas: Atlas, counts: sp.csr_matrix, name: str) -> AnnData:
    """Put counts, labels and coordinates into an AnnData."""
    from anndata import AnnData

    n = len(truth.xy)
    n_regions, n_types = atlas.mixture.shape
    regions = [f"region_{i + 1}" for i in range(n_regions)]
    types = [f"type_{i + 1}" for i in range(n_types)]
    share = np.zeros((n, n_types))
    np.add.at(share, (truth.cells.owner, truth.cells.types), 1.0)
    share /= share.sum(1, keepdims=True)
    region = truth.geometry.region(truth.xy)
    obs = pd.DataFrame(index=[f"{name}-{i:06d}" for i in range(n)])
    obs["region"] = pd.Categorical.from_codes(region, regions)
    obs["cell_type"] = pd.Categorical.from_codes(share.argmax(1), types)
    var = pd.DataFrame(index=[str(i) for i in range(counts.shape[1])])
    var["marker_of"] = pd.Categorical.from_codes(atlas.marker + 1, ["none", *types])
    var["program_of"] = pd.Categorical.from_codes(atlas.program + 1, ["none", *regions])
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = truth.frame.to_native(truth.xy)
    if truth.lattice is not None:
        row, column = truth.lattice
        adata.obs[keys.ARRAY_ROW] = row
        adata.obs[keys.ARRAY_COL] = column
        adata.obsm["proportions"] = share
        adata.uns["proportions_names"] = np.array(types, dtype=object)
    return adata


def _name_genes(
    adata: AnnData,
    organism: str,
    gene_ids: Sequence[str] | None,
    gene_symbols: Sequence[str] | None,
) -> None:
    """Give the genes their real names, or made-up ones."""
    numbers = range(adata.n_vars)
    if gene_ids is None:
        prefix = ID_PREFIX[organism]
        gene_ids = [f"{prefix}{FIRST_ID + i:011d}" for i in numbers]
        gene_symbols = [f"{SYMBOL_PREFIX[organism]}{i + 1}" for i in numbers]
    adata.var_names = list(gene_ids if gene_symbols is None else gene_symbols)
    adata.var["ensembl_id"] = list(gene_ids)


def _drawn_library(
    truth: Truth, atlas: Atlas, image_px: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Draw the section, as an entry of ``uns["spatial"]``."""
    picture, pixel_um = draw_section(truth, atlas, image_px, rng)
    unit_um = truth.frame.microns
    factors = {
        "tissue_hires_scalef": unit_um / pixel_um,
        "spot_diameter_fullres": truth.platform.diameter / unit_um,
        "microns_per_pixel": unit_um,
    }
    return {"images": {"hires": picture}, "scalefactors": factors}


def corpus(
    n_slices: int = 4,
    n_cells: int = 1000,
    *,
    seed: int = 0,
    batch: float = 0.1,
    n_donors: int | None = None,
    name: str = "slice",
    **options: Any,
) -> list[AnnData]:
    """Simulate slices of one atlas: the same genes and programs, other geometry, cells, and a mild batch effect.

    Parameters
    ----------
    n_slices, n_cells
        How many slices, and rows in each.
    seed
        Of the whole corpus; each slice gets a seed of its own from it. The option ``atlas_seed`` sets the programs.
    batch
        As in :func:`tissue`.
    n_donors
        Number of donors, who take turns; by default one for every two slices.
    name
        Slices are called ``<name>_1``, ``<name>_2``, ...
    **options
        Any other argument of :func:`tissue` but ``donor``.

    Raises
    ------
    ConfigError
        An argument that is not possible or not known.
    """
    check_value("n_slices", n_slices)
    if n_donors is None:
        n_donors = max(1, n_slices // 2)
    check_value("n_donors", n_donors)
    check_value("seed", seed)
    known = set(inspect.signature(tissue).parameters) - {"donor"}
    for option in sorted(options):
        if option not in known:
            raise ConfigError(
                f"simulate: {option} is not an option of corpus; use any of {', '.join(sorted(known))}."
            )
    seeds = np.random.default_rng([seed, 6]).integers(2**31, size=n_slices)
    slices = []
    for i in range(n_slices):
        one = tissue(
            n_cells,
            seed=int(seeds[i]),
            batch=batch,
            name=f"{name}_{i + 1}",
            donor=f"donor_{i % n_donors + 1}",
            **options,
        )
        slices.append(one)
    return slices
