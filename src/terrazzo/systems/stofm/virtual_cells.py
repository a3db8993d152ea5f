"""The macro scale of SToFM's Algorithm 1: clusters of expression and position, each summarized as a virtual cell."""

from __future__ import annotations

import random
from dataclasses import dataclass

import igraph
import numpy as np
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats, Ints, Vectors
from terrazzo.tasks.graphs import fuzzy_graph

__all__ = [
    "VirtualCells",
    "cluster_features",
    "first_components",
    "leiden_labels",
    "virtual_cells",
]

ROWS = 65_536  # rows per pass over the embeddings: float64 copies stay small

LEAST_RESOLUTION = 1e-6


@dataclass(frozen=True)
class VirtualCells:
    """Clusters of a slice, one virtual cell each.

    Attributes
    ----------
    labels
        int64 ``(n_cells,)``, cluster of each cell, 0 .. k-1.
    features
        float32 ``(k, d)``, mean embedding.
    positions
        float64 ``(k, 2)``, mean position.
    """

    labels: Ints
    features: Vectors
    positions: Floats


def first_components(features: Vectors, n_components: int = 2) -> Floats:
    """Return the scores of the leading principal components, ``(n, n_components)``.

    Exact (from the d x d covariance, streamed), with the sign rule of scikit-learn: the largest loading is positive.
    """
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, ROWS):
        centered = features[start : start + ROWS] - mean
        covariance += centered.T @ centered
    _, vectors = np.linalg.eigh(covariance)
    leading = vectors[:, ::-1][:, :n_components]
    count = leading.shape[1]
    largest = np.abs(leading).argmax(axis=0)
    signs = np.sign(leading[largest, np.arange(count)])
    leading = leading * signs
    scores = np.zeros((n, n_components))  # of fewer than n_components features the others stay 0
    for start in range(0, n, ROWS):
        centered = features[start : start + ROWS] - mean
        scores[start : start + ROWS, :count] = centered @ leading
    return scores


def cluster_features(features: Vectors, positions: Floats, alpha: float, mix: str) -> Floats:
    """Return ``F_c`` of Algorithm 1, line 2.

    Parameters
    ----------
    features
        Cell embeddings ``(n, d)``.
    positions
        ``(n, 2)``, centered.
    alpha
        Weight of expression (paper 0.8; the published code's ``leiden_alpha=0.2`` weighs positions: the same).
    mix
        ``"sum"``: the two planes are added, as published, which ties clusters to the slice's orientation; ``"concat"``:
        the weighted halves side by side, which a rotation leaves alone.

    Returns
    -------
    ``(n, 2)`` for ``"sum"``, ``(n, 4)`` for ``"concat"``.
    """
    components = first_components(features)
    expression = alpha * _divided_by_longest_row(components)
    place = (1 - alpha) * _divided_by_longest_row(positions)
    if mix == "sum":
        return expression + place
    return np.hstack([expression, place])


def _divided_by_longest_row(matrix: Floats) -> Floats:
    longest = np.linalg.norm(matrix, axis=1).max()
    return matrix / longest if longest > 0 else matrix


def leiden_labels(
    points: Floats, n_neighbors: int, resolution: float, max_clusters: int, seed: int
) -> Ints:
    """Cluster points: nearest-neighbor graph with UMAP's fuzzy weights, Leiden (igraph, modularity).

    The resolution is halved while there are more than ``max_clusters`` clusters, as published.

    Parameters
    ----------
    points
        ``(n, k)``.
    n_neighbors
        Neighbors of a point, itself included (scanpy's convention).
    resolution, max_clusters, seed
        Leiden settings.
    """
    n = len(points)
    if n <= 2:
        return np.zeros(n, dtype=np.int64)
    graph = _fuzzy_graph(points, min(n_neighbors, n))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        while True:
            clusters = graph.community_leiden(
                objective_function="modularity",
                weights="weight",
                resolution=resolution,
                n_iterations=2,
            )
            if len(clusters) <= max_clusters or resolution < LEAST_RESOLUTION:
                break
            resolution /= 2
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(clusters.membership, dtype=np.int64)


def _fuzzy_graph(points: Floats, k: int) -> igraph.Graph:
    tree = cKDTree(points)
    distance, index = tree.query(points, k=k, workers=-1)
    return fuzzy_graph(distance[:, 1:], index[:, 1:])


def virtual_cells(features: Vectors, positions: Floats, labels: Ints) -> VirtualCells:
    """Summarize each cluster (Algorithm 1, lines 4-8).

    Parameters
    ----------
    features
        Cell embeddings float32 ``(n, d)``.
    positions
        float64 ``(n, 2)``.
    labels
        Cluster of each cell, 0 .. k-1, none empty.
    """
    k = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=k)
    by_label = np.argsort(labels, kind="stable")
    bounds = np.cumsum(sizes)[:-1]
    members = np.split(by_label, bounds)
    means = np.stack([_mean(features, rows) for rows in members])
    centers = np.stack([positions[rows].mean(axis=0) for rows in members])
    return VirtualCells(labels, means, centers)


def _mean(features: Vectors, rows: Ints) -> Vectors:
    """Return the mean in float64, a block of rows at a time."""
    total = np.zeros(features.shape[1])
    for start in range(0, len(rows), ROWS):
        block = features[rows[start : start + ROWS]]
        total += block.sum(axis=0, dtype=np.float64)
    mean = total / len(rows)
    return mean.astype(np.float32)
