"""The workshop's dummy: simulated tissue with known truth, for tests, documentation and the demo.

An *atlas* (from ``atlas_seed``) holds what slices share: genes, cell types with markers, the mixture of types in each
region, region programs and gradients. A slice (from ``seed``) draws the geometry - curved bands, as in cortex -
the cells, and their counts, negative binomial. Drawing goes in row blocks: memory follows the non-zeros.

Medians at the default depth, and of real slices: total counts | genes detected | share of zeros.

========  ==============================  =========================================================================
layout    simulated                       real
========  ==============================  =========================================================================
cells     143 | 67 of 300 | 0.77          Xenium breast 145 | 63 of 380 | 0.84; seqFISH 209 | 102 of 351 | 0.70
cells     1,062 | 724 of 18,000 | 0.96    none at hand: set to 700-800 genes, as in sequencing
visium    5,048 | 1,147 of 3,000 | 0.62   none at hand; at the depth of DLPFC 151673 (1,449 | 831 of 8,513 | 0.90)
                                          8,500 genes give 1,466 | 837 | 0.90
st        6,023 | 2,575 of 15,000 | 0.82  HER2 A1 4,291 | 2,345 of 15,045 | 0.85
========  ==============================  =========================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo import keys
from terrazzo.errors import ConfigError
from terrazzo.simulate.engine import (
    _PLATFORMS,
    _SEQUENCED,
    _Atlas,
    _atlas,
    _expression,
    _histology,
    _Truth,
    _truth,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.integer[Any]]

Layout = Literal["cells", "visium", "st"]

_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}
_FIRST_ID = 99_000_000_001  # far above any real Ensembl number


def _check_value(name: str, value: Any) -> None:
    fine: bool
    if name in ("name", "donor"):
        wanted, fine = (
            "a non-empty text without '/'",
            isinstance(value, str) and value != "" and "/" not in value,
        )
    elif name in ("depth", "batch"):
        wanted = "a number above 0" if name == "depth" else "a number of at least 0"
        fine = isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))
        fine = fine and bool(value > 0 or (value == 0 and name == "batch"))
    else:
        lowest = 0 if name.endswith("seed") else 1
        wanted = f"a whole number of at least {lowest}"
        fine = (
            isinstance(value, (int, np.integer))
            and not isinstance(value, bool)
            and bool(value >= lowest)
        )
    if not fine:
        raise ConfigError(f"simulate: {name} must be {wanted}, got {value!r}.")


def _check(
    layout: str,
    shape: str,
    organism: str,
    n_genes: int | None,
    gene_ids: Sequence[str] | None,
    symbols: Sequence[str] | None,
    **more: Any,
) -> int:
    """Refuse what is not possible; returns the number of genes."""
    for name, value, known in (
        ("layout", layout, tuple(_PLATFORMS)),
        ("shape", shape, ("ellipse", "square")),
        ("organism", organism, tuple(_PREFIX)),
    ):
        if value not in known:
            raise ConfigError(
                f"simulate: {name}={value!r} is not known; use one of {', '.join(known)}."
            )
    if gene_ids is None and symbols is not None:
        raise ConfigError("simulate: gene_symbols needs gene_ids of the same length.")
    for name, values in (("gene_ids", gene_ids), ("gene_symbols", symbols)):
        if values is not None and (isinstance(values, str) or len(set(values)) != len(values)):
            raise ConfigError(f"simulate: {name} must be a list of names without repeats.")
        if values is not None and gene_ids is not None and len(values) != len(gene_ids):
            raise ConfigError(
                f"simulate: {name} has {len(values)} names for {len(gene_ids)} gene_ids."
            )
    if n_genes is None:
        n_genes = 300 if gene_ids is None else len(gene_ids)
    if gene_ids is not None and n_genes != len(gene_ids):
        raise ConfigError(
            f"simulate: n_genes={n_genes}, but gene_ids has {len(gene_ids)}; leave n_genes out."
        )
    for name, value in {"n_genes": n_genes, **more}.items():
        _check_value(name, value)
    return int(n_genes)


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
        Bands of tissue and cell types; about a quarter of the types lie everywhere alike.
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
        ``obs["donor"]``; the slice's name, which opens every obs name.

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
    n_genes = _check(
        layout,
        shape,
        organism,
        n_genes,
        gene_ids,
        gene_symbols,
        n_cells=n_cells,
        n_regions=n_regions,
        n_types=n_types,
        seed=seed,
        atlas_seed=atlas_seed,
        depth=1.0 if depth is None else depth,
        image_px=image_px,
        batch=batch,
        donor=donor,
        name=name,
    )
    atlas, platform = _atlas(n_genes, n_regions, n_types, atlas_seed), _PLATFORMS[layout]
    truth = _truth(layout, n_cells, shape, atlas, seed)
    if depth is None:
        sequenced = layout == "cells" and n_genes > _SEQUENCED
        depth = 1050.0 if sequenced else platform.depth * (n_genes / platform.genes) ** 0.3
    settings = {
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
        "microns_per_pixel": truth.microns,
    }
    adata = _assemble(truth, atlas, _expression(truth, atlas, depth, batch, seed), name)
    ids = gene_ids or [f"{_PREFIX[organism]}{_FIRST_ID + i:011d}" for i in range(n_genes)]
    made = [f"{'SIM' if organism == 'human' else 'Sim'}{i + 1}" for i in range(n_genes)]
    adata.var_names = list(gene_symbols or gene_ids or made)
    adata.var["ensembl_id"] = list(ids)
    adata.obs["donor"] = pd.Categorical([donor] * n_cells)
    adata.uns.update(
        technology=technology or platform.technology, organism=organism, simulation=settings
    )
    if image:
        picture, finest = _histology(truth, atlas, image_px, np.random.default_rng([seed, 5]))
        factors = {
            "tissue_hires_scalef": truth.microns / finest,
            "spot_diameter_fullres": platform.diameter / truth.microns,
            "microns_per_pixel": truth.microns,
        }
        adata.uns["spatial"] = {name: {"images": {"hires": picture}, "scalefactors": factors}}
    return adata


def _assemble(truth: _Truth, atlas: _Atlas, counts: sp.csr_matrix, name: str) -> AnnData:
    from anndata import AnnData

    n, (n_regions, n_types) = len(truth.xy), atlas.mixture.shape
    regions = [f"region_{i + 1}" for i in range(n_regions)]
    types = [f"type_{i + 1}" for i in range(n_types)]
    share = np.zeros((n, n_types))
    np.add.at(share, (truth.owner, truth.types), 1.0)
    share /= share.sum(1, keepdims=True)
    obs = pd.DataFrame(index=[f"{name}-{i:06d}" for i in range(n)])
    obs["region"] = pd.Categorical.from_codes(truth.geometry.region(truth.xy), regions)
    obs["cell_type"] = pd.Categorical.from_codes(share.argmax(1), types)
    var = pd.DataFrame(index=[str(i) for i in range(counts.shape[1])])
    var["marker_of"] = pd.Categorical.from_codes(atlas.marker + 1, ["none", *types])
    var["program_of"] = pd.Categorical.from_codes(atlas.program + 1, ["none", *regions])
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = truth.to_native(truth.xy)
    if truth.lattice:
        adata.obs[keys.ARRAY_ROW], adata.obs[keys.ARRAY_COL] = truth.lattice
        adata.obsm["proportions"] = share
        adata.uns["proportions_names"] = np.array(types, dtype=object)
    return adata


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
        Of the whole corpus; each slice takes a seed of its own from it. The option ``atlas_seed`` sets the programs.
    batch
        As in :func:`tissue`.
    n_donors
        Donors, in turn; by default one for every two slices.
    name
        Slices are called ``<name>_1``, ``<name>_2``, ...
    **options
        Any other argument of :func:`tissue` but ``donor``.

    Raises
    ------
    ConfigError
        An argument that is not possible or not known.
    """
    _check_value("n_slices", n_slices)
    n_donors = max(1, n_slices // 2) if n_donors is None else n_donors
    for label, value in (("n_donors", n_donors), ("seed", seed)):
        _check_value(label, value)
    known = set(inspect.signature(tissue).parameters) - {"donor"}
    for option in sorted(set(options) - known):
        raise ConfigError(
            f"simulate: {option} is not an option of corpus; use any of {', '.join(sorted(known))}."
        )
    seeds = np.random.default_rng([seed, 6]).integers(2**31, size=n_slices)
    return [
        tissue(
            n_cells,
            seed=int(s),
            batch=batch,
            name=f"{name}_{i + 1}",
            donor=f"donor_{i % n_donors + 1}",
            **options,
        )
        for i, s in enumerate(seeds)
    ]
