"""Clusters of an embedding: mixtures, k-means, Leiden with a set number of communities; consensus and refinement."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import igraph
import numpy as np
from numpy.typing import ArrayLike, NDArray

from terrazzo.arrays import Floats, Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.progress import Progress
from terrazzo.tasks import metrics
from terrazzo.tasks.graphs import fuzzy_graph

__all__ = [
    "Method",
    "Vote",
    "by_size",
    "check_method",
    "cluster",
    "cluster_runs",
    "consensus",
    "leiden_to_k",
    "matched",
    "medoid_of",
    "refine_labels",
    "vote",
]

N_NEIGHBORS = 15  # itself included, as scanpy counts
GRAPH_DIMS = 50  # principal components in which neighbors are searched, as scanpy
MAX_TRIES = 30  # resolutions tried for one seed
MAX_RESOLUTION = 2.0**16
MAX_DIMS = 20  # a Gaussian mixture in more dimensions than this fits noise

Method = Literal["gmm", "kmeans", "leiden"]


def check_method(method: str) -> None:
    """Refuse an unknown method of clustering.

    Raises
    ------
    ConfigError
        Names the methods.
    """
    methods = get_args(Method)
    if method not in methods:
        known = ", ".join(map(repr, methods))
        raise ConfigError(f"method is {method!r}; it must be one of {known}.")


def cluster(vectors: Floats, k: int, method: str, seed: int) -> Ints:
    """Return cluster labels int64 ``(n,)``, 0 .. k-1, the largest cluster first.

    There are fewer where the vectors are not distinct enough; ``"leiden"`` may also find a few more or fewer.

    Parameters
    ----------
    vectors
        ``(n, d)``, finite.
    k
        Clusters, at most n.
    method, seed
        As in :func:`terrazzo.tasks.domains`.

    Raises
    ------
    ConfigError
        An unknown method.
    """
    return cluster_runs(vectors, k, method, [seed])[0]


def cluster_runs(
    vectors: Floats,
    k: int,
    method: str,
    seeds: Sequence[int],
    progress: bool | None = False,
) -> Ints:
    """Return the labels of :func:`cluster` for each of several seeds, int64 ``(len(seeds), n)``."""
    check_method(method)
    if k == 1:
        return np.zeros((len(seeds), len(vectors)), dtype=np.int64)
    total = len(seeds) if len(seeds) > 1 else None
    labels = []
    with Progress(progress).stage("domains", total, "fits") as advance:
        for run in _runs(vectors, k, method, seeds):
            labels.append(by_size(run))
            advance(1)
    return np.stack(labels)


def _runs(vectors: Floats, k: int, method: str, seeds: Sequence[int]) -> Iterator[Ints]:
    """Yield the labels of each seed, numbered in any order."""
    varying = _varying_columns(vectors)
    if method == "leiden":
        yield from leiden_to_k(varying, k, seeds)
        return
    for seed in seeds:
        yield _cluster(varying, k, method, seed)


def by_size(labels: Ints) -> Ints:
    """Rename non-negative labels so that 0 is the largest cluster, and none is left out."""
    order = np.argsort(-np.bincount(labels), kind="stable")
    new_label = np.argsort(order)
    return new_label[labels]


def _varying_columns(vectors: Floats) -> Floats:
    """Return the columns that vary by more than rounding; where there is none, the first."""
    spread = vectors.std(axis=0)
    largest = spread.max()
    if largest == 0:
        return vectors[:, :1]
    least = 1e-12 * max(largest, 1e-300)
    return vectors[:, spread > least]


def _cluster(vectors: Floats, k: int, method: str, seed: int) -> Ints:
    """Cluster by a mixture or by k-means, in at most 20 principal components."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if min(vectors.shape) > MAX_DIMS:
        vectors = PCA(MAX_DIMS, random_state=seed).fit_transform(vectors)
    if method == "gmm":
        least_variance = 1e-6 * vectors.var() + 1e-12
        model = GaussianMixture(
            k,
            covariance_type="tied",
            random_state=seed,
            n_init=3,
            reg_covar=least_variance,
        )
    else:
        model = KMeans(k, random_state=seed, n_init=10)
    with warnings.catch_warnings():  # the caller warns in plainer words
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        labels = model.fit_predict(vectors)
    return np.asarray(labels, dtype=np.int64)


def leiden_to_k(vectors: Floats, k: int, seeds: Sequence[int]) -> Ints:
    """Return Leiden communities for each seed, as near to ``k`` of them as a resolution can be found for.

    The graph (:func:`terrazzo.tasks.graphs.fuzzy_graph`, 15 neighbors in at most 50 principal components) is built
    once. Equal vectors are one node: an arbitrary choice among equally near neighbors would make groups of nothing.
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
    int64 ``(len(seeds), n)``: labels 0 .. n_communities-1 of each run.
    """
    distinct, node_of = np.unique(vectors, axis=0, return_inverse=True)
    node_of = node_of.ravel()
    if len(distinct) <= k:
        run = node_of.astype(np.int64)
        return np.tile(run, (len(seeds), 1))
    graph = _neighbor_graph(distinct)
    runs = []
    for seed in seeds:
        communities = _search_resolution(graph, k, seed)
        runs.append(communities[node_of])
    return np.stack(runs)


def _neighbor_graph(points: Floats) -> igraph.Graph:
    """Return the weighted graph of the nearest neighbors."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    if min(points.shape) > GRAPH_DIMS:
        points = PCA(GRAPH_DIMS, random_state=0).fit_transform(points)
    others = min(N_NEIGHBORS, len(points)) - 1
    tree = NearestNeighbors(n_neighbors=others).fit(points)
    distance, index = tree.kneighbors()
    return fuzzy_graph(distance, index)


def _search_resolution(graph: igraph.Graph, k: int, seed: int) -> Ints:
    """Bisect the resolution; stop at ``k`` communities, after so many tries, or where the interval is closed."""
    components = graph.connected_components()
    if (
        len(components) >= k
    ):  # no resolution gives fewer communities, a small enough one gives these
        return np.asarray(components.membership, dtype=np.int64)
    low = 0.0
    high = np.inf
    resolution = 1.0
    communities = _communities(graph, resolution, seed)
    best = communities
    least_error = abs(_count(best) - k)
    for _ in range(MAX_TRIES - 1):
        n_communities = _count(communities)
        if n_communities == k:
            break
        if n_communities < k:
            low = resolution
        else:
            high = resolution
        if low >= MAX_RESOLUTION or high - low < 1e-6 * high:
            break
        is_open = high == np.inf
        resolution = 2 * low if is_open else (low + high) / 2
        communities = _communities(graph, resolution, seed)
        error = abs(_count(communities) - k)
        if error < least_error:
            best = communities
            least_error = error
    return best


def _communities(graph: igraph.Graph, resolution: float, seed: int) -> Ints:
    """Run Leiden once; igraph draws from a generator of its own."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        clusters = graph.community_leiden(
            objective_function="modularity",
            weights="weight",
            resolution=resolution,
            n_iterations=2,
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(clusters.membership, dtype=np.int64)


def _count(labels: Ints) -> int:
    """Return the number of clusters of labels 0 .. k-1."""
    return int(labels.max()) + 1


def consensus(runs: ArrayLike) -> Ints:
    """Return the labels on which several runs agree, named as in the medoid run.

    The medoid is the run with the highest mean ARI to the others. Each other run's clusters are matched to its
    clusters one to one so that the most cells agree (Hungarian algorithm; clusters left over go to the one they
    overlap most), and each cell takes the commonest label; of equally common ones the medoid's, else the first. Needs
    memory for n x K votes, not for n x n co-associations.

    Parameters
    ----------
    runs
        int ``(n_runs, n)``: non-negative labels of each run.

    Returns
    -------
    int64 ``(n,)``; one run is returned as it is.

    Raises
    ------
    InputError
        Runs of other shapes, or labels that are not whole numbers from 0.
    """
    return vote(_label_table(runs)).labels


@dataclass(frozen=True)
class Vote:
    """What several partitions of the same cells agree on.

    Attributes
    ----------
    labels
        int64 ``(n,)``: the commonest label of each cell.
    agreement
        float64 ``(n,)``: the share of the partitions that say so.
    names
        For each partition, the label of the vote that each of its clusters is matched to.
    similarity
        Mean ARI between two of the partitions; NaN where there is one.
    """

    labels: Ints
    agreement: Floats
    names: list[Ints]
    similarity: float


def vote(runs: Ints) -> Vote:
    """Match the clusters of each partition to those of the medoid, and take the commonest label of each cell.

    Parameters
    ----------
    runs
        int64 ``(n_runs, n)``.
    """
    n_runs, n = runs.shape
    place, similarity = medoid_of(runs)
    medoid = runs[place]
    k = int(medoid.max()) + 1
    cells = np.arange(n)
    votes = np.zeros((n, k), dtype=np.int32)
    names = []
    for run in runs:
        name = matched(run, medoid)
        names.append(name)
        votes[cells, name[run]] += 2
    votes[cells, medoid] += 1  # breaks ties
    labels = votes.argmax(axis=1).astype(np.int64)
    agreement = (votes[cells, labels] // 2) / n_runs
    return Vote(labels, agreement, names, similarity)


def _label_table(runs: ArrayLike) -> Ints:
    """Return the labels of several runs as a table, checked."""
    try:
        table = np.asarray(runs)
    except ValueError as error:
        raise InputError("the runs differ in length; each must label the same cells.") from error
    is_table = table.ndim == 2 and table.size > 0
    is_whole = np.issubdtype(table.dtype, np.integer)
    if not is_table or not is_whole or table.min() < 0:
        raise InputError(
            "runs must be whole numbers from 0 of shape (n_runs, n), "
            f"not {table.dtype} {table.shape}."
        )
    return table.astype(np.int64)


def medoid_of(runs: Ints) -> tuple[int, float]:
    """Return the number of the run that agrees best with the others, and the mean ARI of two runs (NaN for one)."""
    n_runs = len(runs)
    agreement = np.zeros((n_runs, n_runs))
    for i in range(n_runs):
        for j in range(i):
            ari = metrics.clustering(runs[i], runs[j])["ari"]
            agreement[i, j] = ari
            agreement[j, i] = ari
    n_pairs = n_runs * (n_runs - 1)
    mean = float(agreement.sum()) / n_pairs if n_pairs else float("nan")
    return int(np.argmax(agreement.sum(axis=1))), mean


def matched(run: Ints, medoid: Ints) -> Ints:
    """Return the cluster of ``medoid`` that each cluster of ``run`` is matched to (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    shape = (_count(run), _count(medoid))
    overlap = np.zeros(shape, dtype=np.int64)
    np.add.at(overlap, (run, medoid), 1)
    match = overlap.argmax(axis=1)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    match[rows] = columns
    return match.astype(np.int64)


def refine_labels(labels: ArrayLike, coords: ArrayLike, n_neighbors: int) -> NDArray[Any]:
    """Give each cell the commonest label of its nearest neighbors in space, as GraphST's ``refine_label`` does.

    The cell itself has no vote; of equally common labels it keeps its own, else takes that of the nearest neighbor
    that has one of them. All cells change at once, from the labels as they were. A domain may vanish.

    Parameters
    ----------
    labels
        ``(n,)``, words or integers.
    coords
        ``(n, 2)``, any unit.
    n_neighbors
        6 is the first ring of a hexagonal lattice; GraphST takes 50. 0: labels are returned as they are.

    Returns
    -------
    ``(n,)``, of the type of ``labels``.

    Raises
    ------
    ConfigError
        ``n_neighbors`` is negative, or not smaller than the number of cells.
    InputError
        Lengths differ, a label is missing, or coordinates are not finite.
    """
    labeled = metrics.labeled_places(coords, labels)
    codes = labeled.codes
    n_cells = len(codes)
    if not 0 <= n_neighbors < n_cells:
        raise ConfigError(
            f"n_neighbors is {n_neighbors}; "
            f"it must be between 0 and the number of other cells, {n_cells - 1}."
        )
    neighbors = metrics.nearest(labeled.places, n_neighbors)
    neighbor_codes = codes[neighbors].T  # a row for each rank, the nearest first
    cells = np.arange(n_cells)
    n_labels = len(labeled.names)
    votes = np.zeros((n_cells, n_labels), dtype=np.int32)
    for candidate in neighbor_codes:
        votes[cells, candidate] += 1
    most = votes.max(axis=1)
    refined = codes
    # each candidate overrules those before it where it is as common as any: the cell's own label comes last
    for candidate in (*neighbor_codes[::-1], codes):
        is_commonest = votes[cells, candidate] == most
        refined = np.where(is_commonest, candidate, refined)
    return np.asarray(labeled.names[refined])
