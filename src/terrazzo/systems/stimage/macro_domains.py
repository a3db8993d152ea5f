"""Macro-domains of the slice-based scheme: sites grouped by place and expression (eq 4)."""

from __future__ import annotations

import numpy as np

from terrazzo.arrays import AnyFloats, Floats, Ints, Vectors

__all__ = ["macro_domains"]

COMPONENTS = 8  # principal components of the values

ROUNDS = 20  # of k-means, at most


def macro_domains(values: Vectors, places: AnyFloats, k: int, rng: np.random.Generator) -> Ints:
    """Group sites by k-means on their places and the first components of their values, both of equal weight.

    The paper leaves open how a slice is partitioned. This partitions the sites passed in: those drawn from a slice in
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
    where = np.asarray(places, dtype=np.float64)
    where = _unit_spread(where)
    what = _components(values)
    what = _unit_spread(what)
    points = np.hstack([where, what])
    k = min(k, n)
    centers = _first_centers(points, k, rng)
    label = np.zeros(n, dtype=np.int64)
    for _ in range(ROUNDS):
        before = label
        label = _nearest_center(points, centers)
        if np.array_equal(before, label):
            break
        centers = _means(points, label, centers)
    _, numbered = np.unique(label, return_inverse=True)
    return numbered.astype(np.int64)


def _nearest_center(points: Floats, centers: Floats) -> Ints:
    distance = _squared_distances(points, centers)
    nearest = distance.argmin(axis=1)
    return nearest.astype(np.int64)


def _means(points: Floats, label: Ints, centers: Floats) -> Floats:
    """Return the mean point of each label; a center without points stays."""
    n_points = np.bincount(label, minlength=len(centers))
    n_points = n_points.reshape(-1, 1)
    sums = np.zeros_like(centers)
    np.add.at(sums, label, points)
    means = sums / np.maximum(n_points, 1)
    return np.where(n_points > 0, means, centers)


def _components(values: Vectors) -> Floats:
    """Return principal component scores, from the smaller of the two products."""
    exact = values.astype(np.float64)
    centered = exact - exact.mean(axis=0)
    n_rows, n_columns = centered.shape
    n_components = min(COMPONENTS, n_rows, n_columns)
    if n_rows > n_columns:
        products = centered.T @ centered
        _, vectors = np.linalg.eigh(products)
        return centered @ _last_first(vectors, n_components)
    products = centered @ centered.T
    squares, vectors = np.linalg.eigh(products)
    largest = _last_first(squares, n_components)
    largest = np.maximum(largest, 0)
    length = np.sqrt(largest)
    return _last_first(vectors, n_components) * length


def _last_first(ascending: Floats, n: int) -> Floats:
    """Return the last ``n`` entries of the last axis in reverse order, as eigenvalues are ascending."""
    descending = ascending[..., ::-1]
    return descending[..., :n]


def _unit_spread(points: Floats) -> Floats:
    """Center, and bring the mean squared distance from the center to 1."""
    centered = points - points.mean(axis=0)
    square = centered**2
    distance = square.sum(axis=1)
    mean = distance.mean()
    spread = float(np.sqrt(mean))
    return centered / max(spread, 1e-12)


def _first_centers(points: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Choose first centers far from each other (k-means++)."""
    n = len(points)
    first = int(rng.integers(n))
    chosen = [first]
    nearest = _distance_to(points, first)
    while len(chosen) < k:
        total = nearest.sum()
        if not total > 0:
            break
        share = nearest / total
        drawn = int(rng.choice(n, p=share))
        chosen.append(drawn)
        distance = _distance_to(points, drawn)
        nearest = np.minimum(nearest, distance)
    return points[chosen]


def _distance_to(points: Floats, index: int) -> Floats:
    """Return squared distances to one of the points."""
    center = points[[index]]
    distance = _squared_distances(points, center)
    return distance[:, 0]


def _squared_distances(points: Floats, centers: Floats) -> Floats:
    """Return squared distances, ``(points, centers)``."""
    point_squares = (points**2).sum(axis=1)
    center_squares = (centers**2).sum(axis=1)
    products = points @ centers.T
    point_squares = point_squares.reshape(-1, 1)
    squared = point_squares + center_squares - 2 * products
    return np.maximum(squared, 0)
