"""The simulator's back room: atlas, geometry, cells, counts and the drawn section behind :mod:`terrazzo.simulate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.integer[Any]]

Layout = Literal["cells", "visium", "st"]


@dataclass(frozen=True)
class _Platform:
    """What a layout fixes: lengths in micrometers, counts for a panel of ``genes`` genes."""

    technology: str
    area: float  # tissue per observation, um^2
    diameter: float  # of an observation, um
    cells: float  # cells in an observation, on average
    depth: float
    genes: int
    sd: float  # of the log library size
    microns: float  # per unit of obsm["spatial"]


_PLATFORMS = {
    "cells": _Platform("MERFISH", 150.0, 10.0, 1.0, 150.0, 300, 0.55, 1.0),
    "visium": _Platform("Visium", 100.0 * 86.6025, 55.0, 7.0, 5000.0, 3000, 0.4, 0.5),
    "st": _Platform("ST", 200.0 * 200.0, 100.0, 25.0, 6000.0, 15000, 0.5, 0.5),
}
_SEQUENCED = 2000  # a panel with more genes is sequencing, not imaging
_BLOCK = 4_000_000  # matrix entries held dense at a time
_BLANK = 248.0  # glass around the drawn tissue
_FINEST = 0.25  # um per pixel of the drawn image, at the best


@dataclass(frozen=True)
class _Atlas:
    """What all slices of one tissue share; T types, R regions, G genes."""

    base: Floats  # (G,) mean share of counts
    type_fold: Floats  # (T, G) fold change
    region_fold: Floats  # (R, G)
    mixture: Floats  # (R, T) rows sum to 1
    marker: Ints  # (G,) type a gene marks, -1 for none
    program: Ints  # (G,) region a gene follows, -1 for none
    slope: Floats  # (2, G) loading on the two gradients, mostly 0
    size: Floats  # (G,) negative binomial size
    density: Floats  # (R,) relative cell density, at most 1
    bulk: Floats  # (T,) relative library size
    nucleus: Floats  # (T,) radius, um
    stain: Floats  # (R, 3) background color
    rough: Floats  # (R,) relative strength of the grain


def _atlas(n_genes: int, n_regions: int, n_types: int, atlas_seed: int) -> _Atlas:
    rng = np.random.default_rng([atlas_seed, n_genes, n_regions, n_types])
    base = np.exp(rng.normal(0.0, 1.35 if n_genes <= _SEQUENCED else 1.8, n_genes))
    marker, program = np.full(n_genes, -1), np.full(n_genes, -1)
    order = rng.permutation(n_genes)
    n_marker, n_program = (max(1, round(0.35 * n_genes)), round(0.2 * n_genes))
    marker[order[:n_marker]] = np.arange(n_marker) % n_types
    program[order[n_marker : n_marker + n_program]] = np.arange(n_program) % n_regions
    type_fold = np.exp(rng.normal(0.0, 0.15, (n_types, n_genes)))
    region_fold = np.exp(rng.normal(0.0, 0.05, (n_regions, n_genes)))
    marks, follows = np.flatnonzero(marker >= 0), np.flatnonzero(program >= 0)
    base[marks] *= 0.5
    type_fold[marker[marks], marks] *= rng.uniform(3.0, 10.0, marks.size)
    region_fold[program[follows], follows] *= rng.uniform(1.3, 2.2, follows.size)
    slope = np.where(rng.random((2, n_genes)) < 0.08, rng.normal(0.0, 0.4, (2, n_genes)), 0.0)

    n_shared = max(1, n_types // 4) if n_types > 2 else 0  # glia, vessels: everywhere alike
    n_own = n_types - n_shared
    home, region = (np.arange(n_own) + 0.5) / n_own, (np.arange(n_regions) + 0.5) / n_regions
    own = np.exp(-0.5 * ((region[:, None] - home) / (0.75 / n_regions)) ** 2) + 0.02
    mixture = np.hstack(
        [
            0.6 * own / own.sum(1, keepdims=True),
            np.full((n_regions, n_shared), 0.4 / max(1, n_shared)),
        ]
    )
    return _Atlas(
        base / base.sum(),
        type_fold,
        region_fold,
        mixture / mixture.sum(1, keepdims=True),
        marker,
        program,
        slope,
        size=rng.gamma(4.0, 0.4, n_genes) + 0.2,
        density=rng.uniform(0.55, 1.0, n_regions),
        bulk=np.exp(rng.normal(0.0, 0.25, n_types)),
        nucleus=rng.uniform(2.2, 4.2, n_types),
        stain=rng.uniform([222.0, 148.0, 190.0], [246.0, 196.0, 220.0], (n_regions, 3)),
        rough=rng.uniform(0.4, 1.6, n_regions),
    )


class _Geometry:
    """Outline and bands of one slice, in unit coordinates: the tissue is where ``level <= 1``, about."""

    def __init__(self, shape: str, n_regions: int, rng: np.random.Generator) -> None:
        self.shape = shape
        self.aspect = rng.uniform(0.8, 1.25) ** 0.5
        self.tilt = rng.uniform(-0.35, 0.35) + (np.pi / 2) * rng.integers(4)
        self.bow = rng.uniform(-0.35, 0.35)
        # five smooth fields: band displacement, outline, two gradients, stain
        self.waves = rng.normal(0.0, 2.2, (5, 6, 2))
        self.phases = rng.uniform(0.0, 2 * np.pi, (5, 6))
        widths = rng.uniform(0.7, 1.3, n_regions)
        inside = (rng.random((20_000, 2)) - 0.5) * 2.6
        inside = inside[self.level(inside) <= 1]
        self.edges = np.quantile(self.depth(inside), np.cumsum(widths / widths.sum())[:-1])

    def field(self, which: int, xy: Floats) -> Floats:
        """Smooth random field, mean about 0 and standard deviation about 1."""
        total = np.zeros(xy.shape[:-1], dtype=xy.dtype)
        for (u, v), phase in zip(self.waves[which], self.phases[which], strict=True):
            total += np.sin(
                xy[..., 0] * xy.dtype.type(u) + xy[..., 1] * xy.dtype.type(v) + xy.dtype.type(phase)
            )
        return total / xy.dtype.type(3**0.5)

    def level(self, xy: Floats) -> Floats:
        x, y = xy[..., 0] / self.aspect, xy[..., 1] * self.aspect
        if self.shape == "square":
            return np.maximum(np.abs(x), np.abs(y)) * (4 / np.pi) ** 0.5
        return np.hypot(x, y) * (1 + 0.05 * self.field(1, xy))

    def depth(self, xy: Floats) -> Floats:
        along = xy[..., 0] * np.cos(self.tilt) - xy[..., 1] * np.sin(self.tilt)
        across = xy[..., 0] * np.sin(self.tilt) + xy[..., 1] * np.cos(self.tilt)
        return across + self.bow * along**2 + 0.09 * self.field(0, xy)

    def region(self, xy: Floats) -> Ints:
        return np.searchsorted(self.edges, self.depth(xy))


def _cell_positions(
    n: int,
    radius: float,
    geometry: _Geometry,
    density: Floats,
    area: float,
    rng: np.random.Generator,
) -> Floats:
    """Draw the ``n`` innermost cells, one per ``area`` um^2: a jittered hexagonal grid, thinned by region."""
    pitch = (2 / 3**0.5 * area * float(density.mean())) ** 0.5 / radius
    reach = 1.5 + 4 * pitch
    cols, rows = np.meshgrid(
        np.arange(-reach, reach, pitch), np.arange(-reach, reach, pitch * 0.75**0.5)
    )
    cols[1::2] += pitch / 2
    xy = np.stack([cols.ravel(), rows.ravel()], axis=1)
    xy += rng.normal(0.0, 0.18 * pitch, xy.shape)
    kept = xy[rng.random(len(xy)) < density[geometry.region(xy)]]
    inner = np.argsort(geometry.level(kept), kind="stable")[:n]
    return kept[rng.permutation(inner)]


def _lattice(n: int, layout: str, radius: float, geometry: _Geometry) -> tuple[Floats, Ints, Ints]:
    """Return the ``n`` innermost spots, in unit coordinates, with array row and column (Visium: row + col even)."""
    span = int(np.ceil(2.0 * radius / 86.0)) + 4
    span += span % 2
    row, col = (
        a.ravel()
        for a in np.meshgrid(np.arange(-span, span + 1), np.arange(-2 * span, 2 * span + 1))
    )
    if layout == "visium":
        even = (row + col) % 2 == 0
        row, col = row[even], col[even]
        xy = np.stack([col * 50.0, row * 50.0 * 3**0.5], axis=1)
    else:
        xy = np.stack([col * 200.0, row * 200.0], axis=1)
    xy = xy / radius
    inner = np.sort(np.argsort(geometry.level(xy), kind="stable")[:n])
    inner = inner[np.lexsort((col[inner], row[inner]))]
    row, col = row[inner] + span, col[inner] + 2 * span
    margin = (
        (int(row.min()) - 2) // 2 * 2,
        (int(col.min()) - 2) // 2 * 2,
    )  # even shifts keep the parity
    return xy[inner], row - margin[0], col - margin[1]


def _negative_binomial(mean: Floats, size: Floats, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw counts of mean (n, G) and size (G,): uniforms pick the non-zeros, which alone are then worked out."""
    zero = np.exp(-size.astype(mean.dtype) * np.log1p(mean / size.astype(mean.dtype)))
    uniform = rng.random(mean.shape, dtype=np.float32)
    rows, cols = np.nonzero(uniform > zero)
    u, m, r = uniform[rows, cols].astype(float), mean[rows, cols].astype(float), size[cols]
    values = np.ones(len(rows), dtype=np.float32)
    step = m / (m + r)
    mass = np.exp(-r * np.log1p(m / r)) * r * step  # P(1)
    below = np.exp(-r * np.log1p(m / r)) + mass
    live = np.flatnonzero((u > below) & (m <= 30))
    u, r, step, mass, below = u[live], r[live], step[live], mass[live], below[live]
    count = 1
    while live.size:  # inversion, one count at a time
        mass = mass * step * (r + count) / (count + 1)
        below = below + mass
        count += 1
        values[live] = count
        more = (u > below) & (mass > 1e-12)
        live, u, r, step, mass, below = (
            live[more],
            u[more],
            r[more],
            step[more],
            mass[more],
            below[more],
        )
    todo = np.flatnonzero(m > 30)  # gamma-Poisson, drawn again where zero
    while todo.size:
        shape = size[cols[todo]]
        values[todo] = rng.poisson(rng.gamma(shape, m[todo] / shape))
        todo = todo[values[todo] == 0]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(mean)))]).astype(
        np.int32
    )
    return sp.csr_matrix((values, cols.astype(np.int32), indptr), shape=mean.shape)


def _counts(
    weights: sp.csr_matrix,
    state: Floats,
    library: Floats,
    atlas: _Atlas,
    size: Floats,
    batch: Floats,
    rng: Any,
) -> sp.csr_matrix:
    """Sample (n, G) counts; ``weights`` (n, R * T) is the share of each region and type in an observation."""
    profiles = atlas.base * batch * atlas.region_fold[:, None, :] * atlas.type_fold[None]
    profiles = profiles.reshape(-1, profiles.shape[-1])
    profiles = (profiles / profiles.sum(1, keepdims=True)).astype(np.float32)
    sloped = np.flatnonzero(atlas.slope.any(0))
    rows = max(1, _BLOCK // profiles.shape[1])
    blocks = []
    for start in range(0, weights.shape[0], rows):
        here = slice(start, start + rows)
        mean = weights[here] @ profiles
        mean[:, sloped] *= np.exp(state[here] @ atlas.slope[:, sloped]).astype(np.float32)
        mean *= library[here, None]
        blocks.append(_negative_binomial(mean, size, rng))
    return sp.vstack(blocks, format="csr", dtype=np.float32)


def _composition(
    xy: Floats,
    platform: _Platform,
    radius: float,
    geometry: _Geometry,
    atlas: _Atlas,
    rng: np.random.Generator,
) -> tuple[Ints, Floats, Ints, Ints]:
    """Draw the cells of each observation: its index, the cell's place in unit coordinates, region and type."""
    if platform.cells == 1:
        owner, places = np.arange(len(xy)), xy
    else:
        crowd = platform.cells * (atlas.density / atlas.density.mean())[geometry.region(xy)]
        owner = np.repeat(
            np.arange(len(xy)), 1 + rng.poisson(crowd - 1 if crowd.min() > 1 else crowd)
        )
        r, turn = (
            platform.diameter / 2 * rng.random(len(owner)) ** 0.5,
            rng.uniform(0, 2 * np.pi, len(owner)),
        )
        places = xy[owner] + np.stack([r * np.cos(turn), r * np.sin(turn)], axis=1) / radius
    region = geometry.region(places)
    return owner, places, region, _types(region, atlas, rng)


def _types(region: Ints, atlas: _Atlas, rng: np.random.Generator) -> Ints:
    ladder = np.cumsum(atlas.mixture, axis=1)[:, :-1]
    return (rng.random(len(region))[:, None] > ladder[region]).sum(1)


@dataclass(frozen=True)
class _Truth:
    """One slice before its counts: n observations made of c cells, places in unit coordinates."""

    platform: _Platform
    geometry: _Geometry
    radius: float  # um per unit
    xy: Floats  # (n, 2)
    lattice: list[Ints]  # array row and column, or nothing
    owner: Ints  # (c,) observation of a cell
    places: Floats  # (c, 2)
    regions: Ints  # (c,)
    types: Ints  # (c,)
    microns: float  # per native unit
    turn: Floats  # (2, 2) unit axes to native axes
    shift: Floats  # (2,) native
    extent: Floats  # (2,) native size of the picture
    cut: float  # level of the outline

    def to_native(self, xy: Floats) -> Floats:
        return xy @ self.turn * (self.radius / self.microns) + self.shift

    def to_unit(self, xy: Floats) -> Floats:
        back = (self.turn.T * (self.microns / self.radius)).astype(
            xy.dtype
        )  # float32 stays float32
        return (xy - self.shift.astype(xy.dtype)) @ back


def _truth(layout: str, n: int, shape: str, atlas: _Atlas, seed: int) -> _Truth:
    """Draw outline, bands, observations and their cells."""
    platform, rng = _PLATFORMS[layout], np.random.default_rng([seed, 2])
    geometry = _Geometry(shape, len(atlas.density), np.random.default_rng([seed, 1]))
    radius = (n * platform.area / np.pi) ** 0.5
    lattice: list[Ints] = []
    angle, microns = 0.0, platform.microns
    if layout == "cells":
        xy = _cell_positions(n, radius, geometry, atlas.density, platform.area, rng)
    else:
        xy, *lattice = _lattice(n, layout, radius, geometry)  # row, col
        angle, microns = rng.uniform(-0.05, 0.05), microns * rng.uniform(0.9, 1.1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    flat = xy @ turn * (radius / microns)
    margin = 0.06 * np.ptp(flat, axis=0).max() + (20.0 + platform.diameter) / microns
    low, high = flat.min(0) - margin, flat.max(0) + margin
    cells = _composition(xy, platform, radius, geometry, atlas, rng)
    cut = float(geometry.level(xy).max())
    return _Truth(
        platform, geometry, radius, xy, lattice, *cells, microns, turn, -low, high - low, cut
    )


def _stamp(canvas: Floats, xy: Floats, radius: Floats, rng: np.random.Generator) -> None:
    """Darken ``canvas`` (H, W), in place, under soft ellipses at ``xy`` (n, 2) of mean radius ``radius``, in pixels."""
    height, width = canvas.shape
    long, turn = rng.uniform(1.0, 1.35, len(xy)), rng.uniform(0.0, np.pi, len(xy))
    faint = rng.uniform(0.65, 0.95, len(xy)) * np.minimum(1.0, (radius / 0.7) ** 2)
    reach = int(np.ceil(1.35 * radius.max(initial=0.0) + 0.5))
    dx, dy = (
        a.ravel() for a in np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    )
    for start in range(0, len(xy), max(1, _BLOCK // dx.size)):
        part = slice(start, start + max(1, _BLOCK // dx.size))
        corner = np.floor(xy[part]).astype(int)
        x, y = corner[:, :1] + dx, corner[:, 1:] + dy
        u, v = x + 0.5 - xy[part, :1], y + 0.5 - xy[part, 1:]
        cos, sin, r, e = (
            np.cos(turn[part, None]),
            np.sin(turn[part, None]),
            radius[part, None],
            long[part, None],
        )
        away = np.hypot((u * cos + v * sin) / e, (v * cos - u * sin) * e)
        ink = np.clip(r - away + 0.5, 0.0, 1.0) * faint[part, None]
        drawn = (ink > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        np.maximum.at(canvas, (y[drawn], x[drawn]), ink[drawn].astype(canvas.dtype))


def _histology(
    truth: _Truth, atlas: _Atlas, image_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], float]:
    """Draw the slice like an H&E section; returns the image and its micrometers per pixel."""
    from scipy.ndimage import gaussian_filter

    geometry, platform = truth.geometry, truth.platform
    finest = max(_FINEST, float(truth.extent.max()) * truth.microns / image_px)
    scale = truth.microns / finest  # image pixels per native unit
    width, height = (max(1, int(a)) for a in np.ceil(truth.extent * scale - 1e-6))
    cols, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    unit = truth.to_unit(np.stack([cols + 0.5, rows + 0.5], axis=-1) / np.float32(scale))
    inside = geometry.level(unit) <= truth.cut + 8.0 / truth.radius
    region = geometry.region(unit)
    grain = gaussian_filter(rng.standard_normal((height, width), dtype=np.float32), 1.5) * 40
    grain += gaussian_filter(rng.standard_normal((height, width), dtype=np.float32), 5.0) * 80
    grain *= atlas.rough[region].astype(np.float32)
    rgb = atlas.stain[region].astype(np.float32) + (grain + 5 * geometry.field(4, unit))[..., None]

    places, types = truth.places, truth.types
    if platform.cells > 1:  # tissue between the spots
        area = np.pi / 4 * platform.diameter**2 / platform.cells
        n_more = max(1, round(np.pi * (truth.cut * truth.radius) ** 2 / area))
        more = _cell_positions(2 * n_more, truth.radius, geometry, atlas.density, area, rng)
        more = more[geometry.level(more) <= truth.cut]
        near, _ = cKDTree(truth.xy).query(more)
        more = more[near * truth.radius > platform.diameter / 2]
        places, types = (
            np.concatenate([places, more]),
            np.append(types, _types(geometry.region(more), atlas, rng)),
        )
    ink = np.zeros((height, width), dtype=np.float32)
    jitter = rng.uniform(0.85, 1.15, len(places))
    _stamp(ink, truth.to_native(places) * scale, atlas.nucleus[types] * jitter / finest, rng)
    rgb += ink[..., None] * (np.array([86, 58, 138], dtype=np.float32) - rgb)
    rgb[~inside] = _BLANK
    return np.clip(rgb, 0, 255).astype(np.uint8), finest


def _expression(
    truth: _Truth, atlas: _Atlas, depth: float, batch: float, seed: int
) -> sp.csr_matrix:
    """Turn the cells of each observation into (n, G) counts of median total ``depth``."""
    rng, n, platform = np.random.default_rng([seed, 3]), len(truth.xy), truth.platform
    n_regions, n_types = atlas.mixture.shape
    bulk = atlas.bulk[truth.types]
    weights = sp.csr_matrix(
        (bulk, (truth.owner, truth.regions * n_types + truth.types)), (n, n_regions * n_types)
    )
    library = np.asarray(weights.sum(1)).ravel()
    weights = sp.csr_matrix(sp.diags(1 / library) @ weights, dtype=np.float32)
    library *= np.exp(rng.normal(0.0, platform.sd, n))
    library *= depth / np.median(library)
    if platform.cells == 1:
        library[rng.random(n) < 0.01] *= 0.02  # torn or barely caught cells
    state = np.stack([truth.geometry.field(2, truth.xy), truth.geometry.field(3, truth.xy)], axis=1)
    size = atlas.size * (0.7 if platform.cells == 1 else 3.0)  # cells in a spot average out
    shift = np.exp(np.random.default_rng([seed, 4]).normal(0.0, 1.0, len(atlas.base)) * batch)
    return _counts(weights, state, library.astype(np.float32), atlas, size, shift, rng)
