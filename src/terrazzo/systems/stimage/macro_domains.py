"""Macro-domains of the slice-based scheme: sites grouped by place and expression (eq 4)."""

from __future__ import annotations

import numpy as np

from terrazzo.arrays import AnyFloats, Floats, Ints, Vectors

__all__ = ["macro_domains"]

COMPONENTS = 8  # principal components of the values

ROUNDS = 20  # of k-means, at most


def macro_domains(values: Vectors, places: AnyFloats, k: int, rng: np.random.Generator) -> Ints:
    """Group sites by k-means on their places and the first components of their values, both of equal weight.

    The paper leaves open how a slice is partitioned. Here the sites that are given are: those drawn from a slice in
    training, any set of them when a slice is embedded. Nothing needs to be known of the slice as a whole, so a slice of
    a million cells costs no more; and since only shown values are passed in, no hidden value decides a domain.

    Parameters
    ----------
    values
        ``(n, m)``: what is shown of each site, standardized or not.
    places
        ``(n, 2)``.
    k
        Domains at most; no more than sites.
    rng
        Draws the first centers.

    Returns
    -------
    int64 ``(n,)``, numbers from 0 without gaps.
    """
    n = len(values)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    where = _unit_spread(np.asarray(places, dtype=np.float64))
    what = _unit_spread(_components(values))
    points = np.hstack([where, what])
    centers = _first_centers(points, min(k, n), rng)
    label = np.zeros(n, dtype=np.int64)
    for _ in range(ROUNDS):
        before = label
        label = _squared_distances(points, centers).argmin(axis=1).astype(np.int64)
        if np.array_equal(before, label):
            break
        centers = _means(points, label, centers)
    _, numbered = np.unique(label, return_inverse=True)
    return numbered.astype(np.int64)


def _means(points: Floats, label: Ints, centers: Floats) -> Floats:
    """Return the mean point of each label; a center without points stays."""
    count = np.bincount(label, minlength=len(centers))[:, None]
    sums = np.zeros_like(centers)
    np.add.at(sums, label, points)
    means = sums / np.maximum(count, 1)
    return np.where(count > 0, means, centers)


def _components(values: Vectors) -> Floats:
    """Return principal component scores, from the smaller of the two products."""
    wide = values.astype(np.float64)
    wide = wide - wide.mean(axis=0)
    n_rows, n_columns = wide.shape
    n_components = min(COMPONENTS, n_rows, n_columns)
    if n_rows <= n_columns:
        square, vectors = np.linalg.eigh(wide @ wide.T)
        length = np.sqrt(np.maximum(square[::-1][:n_components], 0))
        return vectors[:, ::-1][:, :n_components] * length
    _, vectors = np.linalg.eigh(wide.T @ wide)
    return wide @ vectors[:, ::-1][:, :n_components]


def _unit_spread(points: Floats) -> Floats:
    """Center, and bring the mean squared distance from the center to 1."""
    centered = points - points.mean(axis=0)
    squared = (centered**2).sum(axis=1)
    spread = float(np.sqrt(squared.mean()))
    return centered / max(spread, 1e-12)


def _first_centers(points: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Choose first centers far from each other (k-means++)."""
    n = len(points)
    chosen = [int(rng.integers(n))]
    nearest = _squared_distances(points, points[chosen])[:, 0]
    while len(chosen) < k and nearest.sum() > 0:
        drawn = rng.choice(n, p=nearest / nearest.sum())
        chosen.append(int(drawn))
        distance = _squared_distances(points, points[chosen[-1:]])[:, 0]
        nearest = np.minimum(nearest, distance)
    return points[chosen]


def _squared_distances(points: Floats, centers: Floats) -> Floats:
    """Return squared distances, ``(points, centers)``."""
    of_points = (points**2).sum(axis=1)[:, None]
    of_centers = (centers**2).sum(axis=1)[None]
    cross = points @ centers.T
    return np.maximum(of_points + of_centers - 2 * cross, 0)
