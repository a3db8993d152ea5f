"""Vectors in which regions are found: components of expression and states of cells, averaged over rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.errors import InputError
from terrazzo.expression import chosen_genes, gene_columns, log_counts, principal_directions
from terrazzo.models.states import States, nearest_in_rings, ring_means
from terrazzo.slices import Slice

__all__ = ["Axes", "Expression", "RegionSpace", "between_slices"]

N_COMPONENTS = 20  # of expression, and of the vectors in which regions are found

LIMIT = 10.0  # standard deviations at which a gene is clipped

SHRINK = 0.5  # how much of a slice's own mean is taken instead of the mean of all

ROWS = 20_000  # cells that are made dense together

MAX_FIT = 50_000  # cells that the directions of the ring means are fitted on

FLAT = 1e-6


@dataclass(frozen=True)
class Expression:
    """Components of expression: genes, their scale, and directions.

    Attributes
    ----------
    genes
        Ids, or symbols where there are none.
    mean, sd
        float64 ``(genes,)``: of log counts over all slices; sd within slices, 0 for a gene that does not vary.
    directions
        ``(genes, 20)``, orthonormal columns.
    own_share
        Share of a slice's own mean in what is subtracted: 1 for each slice by itself, 0 for the mean of all.
    """

    genes: tuple[str, ...]
    mean: Floats
    sd: Floats
    directions: Floats
    own_share: float

    @classmethod
    def fit(
        cls,
        slices: Sequence[Slice],
        own_share: float,
        *,
        genes: Sequence[str] | None = None,
        weights: Floats | None = None,
    ) -> Expression:
        """Choose genes and fit directions on slices, all of which count alike per cell.

        Parameters
        ----------
        slices
            At least one; labels are not read.
        own_share
            See the attribute.
        genes
            None: those that all slices have, of more than 2,000 the 1,000 most spatially autocorrelated.
        weights
            ``(genes,)``: how often each gene counts (of a bootstrap); None: once.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common, or none that varies.
        """
        names = tuple(chosen_genes(slices, "autocorrelation")) if genes is None else tuple(genes)
        tables = [log_counts(tissue, names) for tissue in slices]
        means = np.stack([np.asarray(table.mean(axis=0)).ravel() for table in tables])
        sizes = np.array([table.shape[0] for table in tables], dtype=np.float64)
        variances = []
        for table, mean in zip(tables, means, strict=True):
            squares = np.asarray(table.multiply(table).mean(axis=0)).ravel()
            variances.append(np.maximum(squares - mean**2, 0))
        mean = sizes @ means / sizes.sum()
        sd = np.sqrt(sizes @ np.stack(variances) / sizes.sum())
        sd = np.where(sd > FLAT + 1e-5 * mean, sd, 0.0)
        if not sd.any():
            raise InputError("no gene of the slices varies; there is nothing to find regions by.")
        if weights is not None:
            sd = np.where(weights > 0, sd / np.sqrt(np.maximum(weights, 1e-12)), 0.0)
        start = cls(names, mean, sd, np.zeros((len(names), 0)), own_share)
        moment = np.zeros((len(names), len(names)))
        n_rows = 0
        for table, own_mean in zip(tables, means, strict=True):
            subtracted = start._subtracted(own_mean, weights)
            for first in range(0, table.shape[0], ROWS):
                part = start._standardized(table[first : first + ROWS], subtracted)
                moment += part.T @ part
                n_rows += len(part)
        directions, _ = principal_directions(moment / n_rows, N_COMPONENTS)
        return cls(names, mean, sd, directions, own_share)

    def __call__(self, tissue: Slice) -> Vectors:
        """Return the components of every cell, float32 ``(n_cells, 20)``; a missing gene counts as average."""
        columns = gene_columns(tissue)
        present = np.array([gene in columns for gene in self.genes])
        if not present.any():
            raise InputError(f"{tissue.name} has none of the {len(self.genes)} genes.")
        known = [gene for gene in self.genes if gene in columns]
        table = log_counts(tissue, known)
        own_mean = np.asarray(table.mean(axis=0)).ravel()
        part_of = Expression(
            tuple(known), self.mean[present], self.sd[present], self.directions[present], self.own_share
        )
        subtracted = part_of._subtracted(own_mean)
        out = np.empty((tissue.n_cells, self.directions.shape[1]), dtype=np.float32)
        for first in range(0, tissue.n_cells, ROWS):
            rows = slice(first, first + ROWS)
            out[rows] = part_of._standardized(table[rows], subtracted) @ part_of.directions
        return out

    def _subtracted(self, own_mean: Floats, weights: Floats | None = None) -> Floats:
        return self.own_share * own_mean + (1 - self.own_share) * self.mean

    def _standardized(self, values: sparse.csr_matrix, subtracted: Floats) -> Floats:
        divisor = np.where(self.sd > 0, self.sd, 1)
        scaled = (values.toarray() - subtracted) / divisor
        return np.where(self.sd > 0, np.clip(scaled, -LIMIT, LIMIT), 0.0)


@dataclass(frozen=True)
class Axes:
    """States of one seed, and the directions in which regions are looked for.

    Attributes
    ----------
    states
        Of single cells.
    center, directions
        ``(m,)`` and ``(m, 20)``: of the ring means.
    block_scale
        What the components' and the states' ring means are divided by; the first is infinite where only states count.
    """

    states: States
    center: Floats
    directions: Floats
    block_scale: tuple[float, float]

    def describe(self, components: Vectors, shares: Vectors, index: Ints) -> Floats:
        """Return the ring means of some cells, ``(wanted, m)``."""
        blocks = []
        first, second = self.block_scale
        if np.isfinite(first):
            blocks.append(ring_means(components, index) / first)
        blocks.append(np.sqrt(ring_means(shares, index)) / second)
        return np.hstack(blocks).astype(np.float64)


@dataclass(frozen=True)
class RegionSpace:
    """Everything that makes vectors of cells.

    Attributes
    ----------
    expression
        Components of single cells.
    axes
        One for each seed.
    """

    expression: Expression
    axes: tuple[Axes, ...]

    @classmethod
    def fit(
        cls, slices: Sequence[Slice], expression: Expression, seeds: Sequence[int], joint: bool
    ) -> tuple[RegionSpace, list[list[Floats]]]:
        """Fit states and directions; return them and the vectors: for each seed, of each slice ``(n_cells, 20)``.

        Parameters
        ----------
        slices
            Slices, at least one.
        expression
            Fitted on them.
        seeds
            Of the states.
        joint
            Components' ring means and states' ones side by side; else states only.
        """
        components = [expression(tissue) for tissue in slices]
        stacked = np.concatenate(components)
        axes = []
        shares_of = []
        for seed in seeds:
            states = States.fit(stacked, seed=seed)
            shares_of.append([states(part) for part in components])
            axes.append(Axes(states, np.zeros(0), np.zeros((0, 0)), (np.inf, 1.0)))
        n_cells = sum(tissue.n_cells for tissue in slices)
        rng = np.random.default_rng(0)
        samples: list[list[Floats]] = [[] for _ in seeds]
        for i, tissue in enumerate(slices):
            rows = None
            if n_cells > MAX_FIT:
                n_rows = max(1, round(MAX_FIT * tissue.n_cells / n_cells))
                rows = np.sort(rng.choice(tissue.n_cells, n_rows, replace=False))
            for _, index in nearest_in_rings(tissue.coords, rows):
                for seed_place in range(len(seeds)):
                    own = np.hstack(
                        [
                            ring_means(components[i], index),
                            np.sqrt(ring_means(shares_of[seed_place][i], index)),
                        ]
                    )
                    samples[seed_place].append(own)
        for seed_place, axis in enumerate(axes):
            values = np.concatenate(samples[seed_place]).astype(np.float64)
            n_component_values = 6 * components[0].shape[1]
            component_norm = np.linalg.norm(values[:, :n_component_values], axis=1).mean()
            state_norm = np.linalg.norm(values[:, n_component_values:], axis=1).mean()
            scale = (float(max(component_norm, 1e-12)) if joint else np.inf, float(state_norm))
            if joint:
                values[:, :n_component_values] /= scale[0]
            else:
                values = values[:, n_component_values:]
                scale = (np.inf, 1.0)
            if joint:
                values[:, n_component_values:] /= scale[1]
            center = values.mean(axis=0)
            centered = values - center
            moment = centered.T @ centered / len(values)
            directions, _ = principal_directions(moment, N_COMPONENTS)
            axes[seed_place] = Axes(axis.states, center, directions, scale)
        space = cls(expression, tuple(axes))
        vectors = []
        for seed_place in range(len(seeds)):
            vectors.append([])
        for i, tissue in enumerate(slices):
            for out, part in zip(vectors, space._vectors(tissue, components[i], [s[i] for s in shares_of]), strict=True):
                out.append(part)
        return space, vectors

    def __call__(self, tissue: Slice) -> list[Floats]:
        """Return the vectors of a slice for each seed, float64 ``(n_cells, 20)``."""
        components = self.expression(tissue)
        shares = [axis.states(components) for axis in self.axes]
        return self._vectors(tissue, components, shares)

    def _vectors(self, tissue: Slice, components: Vectors, shares: Sequence[Vectors]) -> list[Floats]:
        out = [np.empty((tissue.n_cells, axis.directions.shape[1])) for axis in self.axes]
        for part, index in nearest_in_rings(tissue.coords):
            for axis, own_shares, vectors in zip(self.axes, shares, out, strict=True):
                described = axis.describe(components, own_shares, index)
                vectors[part] = (described - axis.center) @ axis.directions
        return [np.round(vectors, 6) for vectors in out]


def between_slices(vectors: Sequence[Floats]) -> float:
    """Return the share of the variance of vectors that is between slices; 0 for one slice."""
    if len(vectors) < 2:
        return 0.0
    stacked = np.concatenate(vectors)
    center = stacked.mean(axis=0)
    total = ((stacked - center) ** 2).sum()
    between = 0.0
    for part in vectors:
        between += len(part) * ((part.mean(axis=0) - center) ** 2).sum()
    return float(between / max(total, 1e-12))
