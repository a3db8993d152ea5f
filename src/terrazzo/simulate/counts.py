"""Counts of a simulated slice: negative binomial, around profiles of types, regions and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from terrazzo.arrays import AnyFloats, Bools, Floats, Ints, Vectors
from terrazzo.simulate.atlas import Atlas
from terrazzo.simulate.geometry import GRADIENTS, Truth

__all__ = ["draw_counts"]

BLOCK = 4_000_000  # matrix entries that are dense at a time
LARGE_MEAN = 30  # means above it are drawn as gamma-Poisson, others by inversion
TORN = 0.01  # share of single cells that are torn or barely captured


def draw_counts(truth: Truth, atlas: Atlas, depth: float, batch: float, seed: int) -> sp.csr_matrix:
    """Turn the cells of each observation into counts, CSR float32 (n, G), of median total ``depth``."""
    rng = np.random.default_rng([seed, 3])
    weights, bulk = _cell_weights(truth, atlas)
    library = _library_sizes(bulk, truth, depth, rng)
    state = _gradient_state(truth)
    single_cells = truth.platform.cells == 1
    size = atlas.size * (0.7 if single_cells else 3.0)  # cells in a spot average out
    batch_fold = _batch_fold(atlas, batch, seed)
    profiles = _profiles(atlas, batch_fold)
    n_genes = len(atlas.base)
    sloped = np.flatnonzero(atlas.slope.any(0))
    slope = atlas.slope[:, sloped]
    n_rows = max(1, BLOCK // n_genes)
    blocks = []
    for start in range(0, len(library), n_rows):
        rows = slice(start, start + n_rows)
        mean = weights[rows] @ profiles
        gradient = np.exp(state[rows] @ slope)
        mean[:, sloped] *= gradient.astype(np.float32)
        mean *= library[rows, None]
        blocks.append(_negative_binomial(mean, size, rng))
    return sp.vstack(blocks, format="csr", dtype=np.float32)


def _cell_weights(truth: Truth, atlas: Atlas) -> tuple[sp.csr_matrix, Floats]:
    """Return the share of each region and type in an observation, CSR (n, R * T), and the size of its cells (n,)."""
    cells = truth.cells
    n = len(truth.xy)
    n_regions, n_types = atlas.mixture.shape
    kind = cells.regions * n_types + cells.types
    cell_bulk = atlas.bulk[cells.types]
    bulk = sp.csr_matrix((cell_bulk, (cells.owner, kind)), (n, n_regions * n_types))
    total = np.asarray(bulk.sum(1)).ravel()
    shares = sp.diags(1 / total) @ bulk
    return sp.csr_matrix(shares, dtype=np.float32), total


def _library_sizes(bulk: Floats, truth: Truth, depth: float, rng: np.random.Generator) -> Vectors:
    """Return the expected total counts of each observation, float32 (n,)."""
    platform = truth.platform
    n = len(bulk)
    noise = rng.normal(0.0, platform.sd, n)
    library = bulk * np.exp(noise)
    library *= depth / np.median(library)
    if platform.cells == 1:
        is_torn = rng.random(n) < TORN
        library[is_torn] *= 0.02
    return library.astype(np.float32)


def _gradient_state(truth: Truth) -> AnyFloats:
    """Return where each observation is on the two gradients, (n, 2)."""
    geometry = truth.geometry
    fields = [geometry.field(number, truth.xy) for number in GRADIENTS]
    return np.stack(fields, axis=1)


def _batch_fold(atlas: Atlas, batch: float, seed: int) -> Floats:
    """Return the fold change of each gene in this slice, (G,)."""
    rng = np.random.default_rng([seed, 4])
    n_genes = len(atlas.base)
    log_fold = rng.normal(0.0, 1.0, n_genes)
    return np.exp(log_fold * batch)


def _profiles(atlas: Atlas, batch_fold: Floats) -> Vectors:
    """Return the share of the counts that each gene has in each region and type, float32 (R * T, G)."""
    region_fold = atlas.region_fold[:, None, :]
    type_fold = atlas.type_fold[None]
    folds = atlas.base * batch_fold * region_fold * type_fold
    n_genes = folds.shape[-1]
    profiles = folds.reshape(-1, n_genes)
    shares = profiles / profiles.sum(1, keepdims=True)
    return shares.astype(np.float32)


def _negative_binomial(mean: AnyFloats, size: AnyFloats, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw counts of mean (n, G) and size (G,): uniforms pick the non-zeros, which alone are then worked out."""
    p_zero = _p_zero(mean, size.astype(mean.dtype))
    uniform = rng.random(mean.shape, dtype=np.float32)
    rows, columns = np.nonzero(uniform > p_zero)
    non_zero = (rows, columns)
    u = uniform[non_zero].astype(float)
    means = mean[non_zero].astype(float)
    sizes = size[columns]
    values = np.ones(len(rows), dtype=np.float32)
    _fill_by_inversion(values, u, means, sizes)
    _fill_large(values, means, sizes, rng)
    n_values = np.bincount(rows, minlength=len(mean))
    ends = np.cumsum(n_values)
    indptr = np.concatenate([[0], ends]).astype(np.int32)
    indices = columns.astype(np.int32)
    return sp.csr_matrix((values, indices, indptr), shape=mean.shape)


def _p_zero(mean: AnyFloats, size: AnyFloats) -> AnyFloats:
    """Return the probability of a zero."""
    exponent = -size * np.log1p(mean / size)
    return np.exp(exponent)


@dataclass(frozen=True)
class _Inversion:
    """State of counts that are drawn by inversion, (k,) each.

    Attributes
    ----------
    place
        Where the count goes.
    u
        Uniform number that the distribution function has to reach.
    size, step
        Of the recursion from one probability to the next.
    mass, below
        Probability of the current count, and of all counts up to it.
    """

    place: Ints
    u: Floats
    size: AnyFloats
    step: AnyFloats
    mass: AnyFloats
    below: AnyFloats

    def take(self, chosen: Ints | Bools) -> _Inversion:
        """Return some of them."""
        return _Inversion(
            place=self.place[chosen],
            u=self.u[chosen],
            size=self.size[chosen],
            step=self.step[chosen],
            mass=self.mass[chosen],
            below=self.below[chosen],
        )


def _fill_by_inversion(values: Vectors, u: Floats, mean: AnyFloats, size: AnyFloats) -> None:
    """Set values of small means to the count at which the distribution function reaches ``u``, one count at a time."""
    step = mean / (mean + size)
    p_zero = _p_zero(mean, size)
    p_one = p_zero * size * step
    everything = _Inversion(
        place=np.arange(len(values)),
        u=u,
        size=size,
        step=step,
        mass=p_one,
        below=p_zero + p_one,
    )
    is_small = mean <= LARGE_MEAN
    todo = everything.take(is_small & (u > everything.below))
    count = 1
    while todo.place.size:
        mass = todo.mass * todo.step * (todo.size + count)
        mass = mass / (count + 1)
        below = todo.below + mass
        count += 1
        values[todo.place] = count
        goes_on = (todo.u > below) & (mass > 1e-12)
        todo = replace(todo, mass=mass, below=below)
        todo = todo.take(goes_on)


def _fill_large(
    values: Vectors, mean: AnyFloats, size: AnyFloats, rng: np.random.Generator
) -> None:
    """Set values of large means to gamma-Poisson counts, drawn again where zero."""
    todo = np.flatnonzero(mean > LARGE_MEAN)
    while todo.size:
        shape = size[todo]
        scale = mean[todo] / shape
        rate = rng.gamma(shape, scale)
        values[todo] = rng.poisson(rate)
        is_zero = values[todo] == 0
        todo = todo[is_zero]
