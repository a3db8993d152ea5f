"""Macro-domains of the slice-based scheme: sites grouped by where they lie and what they express (eq 4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terrazzo.arrays import Ints

COMPONENTS = 8  # of the values


ROUNDS = 20


def macro_domains(
    values: NDArray[np.float32], places: NDArray[np.floating], k: int, rng: np.random.Generator
) -> Ints:
    """Group sites by k-means on their places and the first components of their values, both of equal weight.

    The paper leaves open how a slice is partitioned. Here the sites that are given are: those drawn from a slice in
    training, any set of them when a slice is embedded. Nothing needs to be known of the slice as a whole, so a slice of
    a million cells costs no more; and since only what is shown is passed in, no hidden value decides a domain.

    Parameters
    ----------
    values
        ``(n, m)``: what is shown of each site, standardized or not.
    places
        ``(n, 2)``.
    k
        Domains at most; no more than sites.
    rng
        Of the first centers.

    Returns
    -------
    int64 ``(n,)``, numbers from 0 without gaps.
    """
    n = len(values)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    points = np.hstack([_unit(np.asarray(places, dtype=np.float64)), _unit(_components(values))])
    centers = _spread(points, min(k, n), rng)
    label = np.zeros(n, dtype=np.int64)
    for _ in range(ROUNDS):
        before, label = label, _squares(points, centers).argmin(axis=1).astype(np.int64)
        if np.array_equal(before, label):
            break
        count = np.bincount(label, minlength=len(centers))
        sums = np.zeros_like(centers)
        np.add.at(sums, label, points)
        centers = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centers)
    return np.unique(label, return_inverse=True)[1].astype(np.int64)


def _components(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return principal component scores, from the smaller of the two products."""
    wide = values.astype(np.float64)
    wide = wide - wide.mean(axis=0)
    kept = min(COMPONENTS, *wide.shape)
    if wide.shape[0] <= wide.shape[1]:
        square, vectors = np.linalg.eigh(wide @ wide.T)
        return vectors[:, ::-1][:, :kept] * np.sqrt(np.maximum(square[::-1][:kept], 0))
    vectors = np.linalg.eigh(wide.T @ wide)[1]
    return wide @ vectors[:, ::-1][:, :kept]


def _unit(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Center, and bring the mean squared distance from the center to 1."""
    centered = points - points.mean(axis=0)
    return centered / max(float(np.sqrt((centered**2).sum(axis=1).mean())), 1e-12)


def _spread(points: NDArray[np.float64], k: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Choose first centers far from each other (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = _squares(points, points[chosen])[:, 0]
    while len(chosen) < k and nearest.sum() > 0:
        chosen.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _squares(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _squares(points: NDArray[np.float64], centers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return squared distances, ``(points, centers)``."""
    cross = points @ centers.T
    return np.maximum(
        (points**2).sum(axis=1)[:, None] + (centers**2).sum(axis=1)[None] - 2 * cross, 0
    )
