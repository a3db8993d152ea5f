"""Leiden communities of an embedding's neighbour graph, the resolution searched until there are exactly K."""

from __future__ import annotations

import random
from collections.abc import Sequence

import igraph
import numpy as np
from numpy.typing import NDArray

from terrazzo.units.macro import fuzzy_graph

N_NEIGHBORS = 15  # itself included, as scanpy counts
MAX_DIMS = 50  # principal components in which neighbours are sought, as scanpy
MAX_TRIES = 30  # resolutions tried for one seed
MAX_DOUBLINGS = 16  # from resolution 1 upwards

Ints = NDArray[np.int64]


def leiden_to_k(vectors: NDArray[np.float64], k: int, seeds: Sequence[int]) -> Ints:
    """Return Leiden communities for each seed, as near to ``k`` of them as a resolution can be found for.

    The graph (:func:`terrazzo.units.macro.fuzzy_graph`, 15 neighbours in at most 50 principal components) is built
    once. Equal vectors are one node: an arbitrary choice among equally near neighbours would make groups of nothing.
    The resolution (igraph, modularity, two iterations) is doubled or halved from 1 and then bisected. The number of
    communities is at least that of the graph's components, and may jump over ``k``: then the closest is returned.

    Parameters
    ----------
    vectors
        ``(n, d)``, finite.
    k
        Communities wanted.
    seeds
        One run each; the same seed gives the same run, whatever the others are.

    Returns
    -------
    int64 ``(len(seeds), n)``: labels 0 .. found-1 of each run.
    """
    distinct, back = np.unique(vectors, axis=0, return_inverse=True)
    back = back.ravel()
    if len(distinct) <= k:
        return np.tile(back.astype(np.int64), (len(seeds), 1))
    graph = _graph(distinct)
    return np.stack([_search(graph, k, seed)[back] for seed in seeds])


def _graph(points: NDArray[np.float64]) -> igraph.Graph:
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    if min(points.shape) > MAX_DIMS:
        points = PCA(MAX_DIMS, random_state=0).fit_transform(points)
    others = min(N_NEIGHBORS, len(points)) - 1
    distance, index = NearestNeighbors(n_neighbors=others).fit(points).kneighbors()
    return fuzzy_graph(distance, index)


def _search(graph: igraph.Graph, k: int, seed: int) -> Ints:
    """Bisect the resolution; stop at ``k`` communities, after so many tries, or where the interval is closed."""
    parts = graph.connected_components()
    if len(parts) >= k:  # what any resolution small enough gives; no resolution gives fewer
        return np.asarray(parts.membership, dtype=np.int64)
    low, high, resolution = 0.0, np.inf, 1.0
    best = _communities(graph, resolution, seed)
    found = best
    for _ in range(MAX_TRIES - 1):
        size = int(found.max()) + 1
        if size == k:
            break
        low, high = (resolution, high) if size < k else (low, resolution)
        if low >= 2.0**MAX_DOUBLINGS or high - low < 1e-6 * high:
            break
        resolution = 2 * low if high == np.inf else (low + high) / 2
        found = _communities(graph, resolution, seed)
        if abs(int(found.max()) + 1 - k) < abs(int(best.max()) + 1 - k):
            best = found
    return best


def _communities(graph: igraph.Graph, resolution: float, seed: int) -> Ints:
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            objective_function="modularity", weights="weight", resolution=resolution, n_iterations=2
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int64)
