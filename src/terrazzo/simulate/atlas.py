"""What simulated slices share: platforms, and the atlas of genes, cell types and regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from terrazzo.arrays import AnyFloats, Bools, Ints

__all__ = ["PLATFORMS", "SEQUENCED", "Atlas", "Layout", "Platform", "draw_atlas"]

Layout = Literal["cells", "visium", "st"]

SEQUENCED = 2000  # a panel with more genes is sequencing, not imaging
NO_TYPE = -1  # of a gene that marks no cell type, or follows no region


@dataclass(frozen=True)
class Platform:
    """What a layout fixes.

    Attributes
    ----------
    technology
        Name of the platform.
    area, diameter
        Tissue per observation (um^2), and the diameter of an observation (um).
    cells
        Cells in an observation, on average.
    depth, genes
        Median total counts of an observation, for a panel of so many genes.
    sd
        Standard deviation of the log library size.
    microns
        Micrometers per unit of ``obsm["spatial"]``.
    """

    technology: str
    area: float
    diameter: float
    cells: float
    depth: float
    genes: int
    sd: float
    microns: float


PLATFORMS = {
    "cells": Platform(
        technology="MERFISH",
        area=150.0,
        diameter=10.0,
        cells=1.0,
        depth=150.0,
        genes=300,
        sd=0.55,
        microns=1.0,
    ),
    "visium": Platform(
        technology="Visium",
        area=100.0 * 86.6025,
        diameter=55.0,
        cells=7.0,
        depth=5000.0,
        genes=3000,
        sd=0.4,
        microns=0.5,
    ),
    "st": Platform(
        technology="ST",
        area=200.0 * 200.0,
        diameter=100.0,
        cells=25.0,
        depth=6000.0,
        genes=15000,
        sd=0.5,
        microns=0.5,
    ),
}


@dataclass(frozen=True)
class Atlas:
    """What all slices of one tissue share; T types, R regions, G genes.

    Attributes
    ----------
    base
        (G,) mean share of the counts.
    type_fold, region_fold
        (T, G) and (R, G) fold changes.
    mixture
        (R, T) share of each type in a region; rows sum to 1.
    marker, program
        (G,) the type that a gene marks, the region that it follows; -1 for none.
    slope
        (2, G) loading of each gene on the two gradients, mostly 0.
    size
        (G,) size parameter of the negative binomial distribution.
    density
        (R,) relative cell density, at most 1.
    bulk
        (T,) relative library size.
    nucleus
        (T,) radius of a nucleus, um.
    stain
        (R, 3) background color.
    rough
        (R,) relative strength of the grain.
    """

    base: AnyFloats
    type_fold: AnyFloats
    region_fold: AnyFloats
    mixture: AnyFloats
    marker: Ints
    program: Ints
    slope: AnyFloats
    size: AnyFloats
    density: AnyFloats
    bulk: AnyFloats
    nucleus: AnyFloats
    stain: AnyFloats
    rough: AnyFloats


def draw_atlas(n_genes: int, n_regions: int, n_types: int, atlas_seed: int) -> Atlas:
    """Draw genes, types and regions; the order of the draws fixes what a seed gives."""
    rng = np.random.default_rng([atlas_seed, n_genes, n_regions, n_types])
    spread = 1.35 if n_genes <= SEQUENCED else 1.8
    base = np.exp(rng.normal(0.0, spread, n_genes))
    marker, program = _gene_roles(rng.permutation(n_genes), n_types, n_regions)
    type_fold = np.exp(rng.normal(0.0, 0.15, (n_types, n_genes)))
    region_fold = np.exp(rng.normal(0.0, 0.05, (n_regions, n_genes)))

    markers = np.flatnonzero(marker >= 0)
    followers = np.flatnonzero(program >= 0)
    base[markers] *= 0.5
    type_fold[marker[markers], markers] *= rng.uniform(3.0, 10.0, markers.size)
    region_fold[program[followers], followers] *= rng.uniform(1.3, 2.2, followers.size)

    has_slope: Bools = rng.random((2, n_genes)) < 0.08
    slope = np.where(has_slope, rng.normal(0.0, 0.4, (2, n_genes)), 0.0)
    return Atlas(
        base=base / base.sum(),
        type_fold=type_fold,
        region_fold=region_fold,
        mixture=_mixture(n_regions, n_types),
        marker=marker,
        program=program,
        slope=slope,
        size=rng.gamma(4.0, 0.4, n_genes) + 0.2,
        density=rng.uniform(0.55, 1.0, n_regions),
        bulk=np.exp(rng.normal(0.0, 0.25, n_types)),
        nucleus=rng.uniform(2.2, 4.2, n_types),
        stain=rng.uniform([222.0, 148.0, 190.0], [246.0, 196.0, 220.0], (n_regions, 3)),
        rough=rng.uniform(0.4, 1.6, n_regions),
    )


def _gene_roles(order: Ints, n_types: int, n_regions: int) -> tuple[Ints, Ints]:
    """Return the type that each gene marks and the region that it follows, given the genes in random order."""
    n_genes = len(order)
    n_markers = max(1, round(0.35 * n_genes))
    n_followers = round(0.2 * n_genes)
    markers = order[:n_markers]
    followers = order[n_markers : n_markers + n_followers]
    marker = np.full(n_genes, NO_TYPE)
    marker[markers] = np.arange(n_markers) % n_types
    program = np.full(n_genes, NO_TYPE)
    program[followers] = np.arange(n_followers) % n_regions
    return marker, program


def _mixture(n_regions: int, n_types: int) -> AnyFloats:
    """Return the share of each type in each region: most types have a home, a quarter is the same everywhere."""
    n_shared = max(1, n_types // 4) if n_types > 2 else 0  # glia, vessels
    n_own = n_types - n_shared
    home = (np.arange(n_own) + 0.5) / n_own
    region = (np.arange(n_regions) + 0.5) / n_regions
    width = 0.75 / n_regions
    distance = (region[:, None] - home) / width
    own = np.exp(-0.5 * distance**2) + 0.02
    own_share = 0.6 * own / own.sum(1, keepdims=True)
    shared_share = np.full((n_regions, n_shared), 0.4 / max(1, n_shared))
    mixture = np.hstack([own_share, shared_share])
    return mixture / mixture.sum(1, keepdims=True)
