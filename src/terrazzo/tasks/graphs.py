"""Neighbor graphs with UMAP's fuzzy weights, for Leiden."""

from __future__ import annotations

import igraph
import numba
import numpy as np
from scipy import sparse

from terrazzo.arrays import Floats, Ints

__all__ = ["fuzzy_graph"]

WEIGHT_DIGITS = 6  # edge weights are rounded: the last bits of an embedding must not move a cluster
BANDWIDTH_STEPS = 64  # bisection steps of the fuzzy weights, as in UMAP


def fuzzy_graph(distance: Floats, index: Ints) -> igraph.Graph:
    """Build the weighted neighbor graph of scanpy's ``pp.neighbors``.

    Parameters
    ----------
    distance, index
        ``(n, k - 1)``: the nearest neighbors of each point, itself left out.
    """
    n, others = distance.shape
    weight = _fuzzy_weights(distance, np.log2(others + 1))
    rows = np.repeat(np.arange(n), others)
    entries = (weight.ravel(), (rows, index.ravel()))
    directed = sparse.csr_matrix(entries, shape=(n, n))
    # the fuzzy union: an edge exists where either of its ends has it
    both = directed + directed.T - directed.multiply(directed.T)
    upper = sparse.triu(both, k=1).tocoo()
    values = np.round(upper.data, WEIGHT_DIGITS)
    keep = values > 0
    rows = upper.row[keep]
    columns = upper.col[keep]
    edges = np.column_stack([rows, columns])
    # igraph takes int64 without copying
    graph = igraph.Graph(n=n, edges=edges.astype(np.int64))
    graph.es["weight"] = values[keep].tolist()
    return graph


@numba.njit(cache=True)
def _fuzzy_weights(distance: Floats, target: float) -> Floats:  # pragma: no cover - compiled
    """Return UMAP's smoothed exponential weights: nearest neighbor 1, the sum of each row ``target``."""
    n, k = distance.shape
    out = np.empty((n, k))
    overall = distance.mean()
    for i in range(n):
        row = distance[i]
        rho = 0.0
        for j in range(k):
            if row[j] > 0.0:
                rho = row[j]
                break
        low = 0.0
        high = np.inf
        sigma = 1.0
        for _ in range(BANDWIDTH_STEPS):
            total = 0.0
            for j in range(k):
                gap = row[j] - rho
                if gap > 0:
                    total += np.exp(-gap / sigma)
                else:
                    total += 1.0
            if abs(total - target) < 1e-5:
                break
            if total > target:
                high = sigma
                sigma = (low + high) / 2
            elif high == np.inf:
                low = sigma
                sigma = sigma * 2
            else:
                low = sigma
                sigma = (low + high) / 2
        reference = row.mean() if rho > 0 else overall
        sigma = max(sigma, 1e-3 * reference)
        for j in range(k):
            gap = row[j] - rho
            if gap <= 0 or sigma == 0:
                out[i, j] = 1.0
            else:
                out[i, j] = np.exp(-gap / sigma)
    return out
