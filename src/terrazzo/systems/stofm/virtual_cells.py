"""The macro scale of SToFM's Algorithm 1: clusters of expression and position, each summarized as a virtual cell."""

from __future__ import annotations

import random
from dataclasses import dataclass

import igraph
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from terrazzo.arrays import Floats
from terrazzo.tasks.graphs import fuzzy_graph

ROWS = 65_536  # rows per pass over the embeddings: float64 copies stay small


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

    labels: NDArray[np.int64]
    features: NDArray[np.float32]
    positions: Floats


def first_components(features: NDArray[np.float32], n_components: int = 2) -> Floats:
    """Return the scores of the leading principal components, ``(n, n_components)``.

    Exact (from the d x d covariance, streamed), with the sign rule of scikit-learn: the largest loading is positive.
    """
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for start in range(0, n, ROWS):
        part = features[start : start + ROWS] - mean
        covariance += part.T @ part
    _, vectors = np.linalg.eigh(covariance)
    top = vectors[:, ::-1][:, :n_components]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
    out = np.concatenate([(features[s : s + ROWS] - mean) @ top for s in range(0, n, ROWS)])
    return np.pad(out, ((0, 0), (0, n_components - out.shape[1])))


def cluster_features(
    features: NDArray[np.float32], positions: Floats, alpha: float, mix: str
) -> Floats:
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
    expression = alpha * _by_largest_row(first_components(features))
    place = (1 - alpha) * _by_largest_row(positions)
    return expression + place if mix == "sum" else np.hstack([expression, place])


def _by_largest_row(matrix: Floats) -> Floats:
    norm = np.linalg.norm(matrix, axis=1).max()
    return matrix / norm if norm > 0 else matrix


def leiden_labels(
    points: Floats, n_neighbors: int, resolution: float, max_clusters: int, seed: int
) -> NDArray[np.int64]:
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
            found = graph.community_leiden(
                objective_function="modularity",
                weights="weight",
                resolution=resolution,
                n_iterations=2,
            )
            if len(found) <= max_clusters or resolution < 1e-6:
                break
            resolution /= 2
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int64)


def _fuzzy_graph(points: Floats, k: int) -> igraph.Graph:
    distance, index = cKDTree(points).query(points, k=k, workers=-1)
    return fuzzy_graph(distance[:, 1:], index[:, 1:])


def virtual_cells(
    features: NDArray[np.float32], positions: Floats, labels: NDArray[np.int64]
) -> VirtualCells:
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
    size = np.bincount(labels, minlength=k)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(size)[:-1])
    means = np.stack([_mean(features, rows) for rows in members])
    return VirtualCells(labels, means, np.stack([positions[rows].mean(axis=0) for rows in members]))


def _mean(features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean in float64, a block of rows at a time."""
    total = np.zeros(features.shape[1])
    for start in range(0, len(rows), ROWS):
        total += features[rows[start : start + ROWS]].sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)
