"""Leiden communities of an embedding's neighbor graph, the resolution searched until there are exactly K."""

from __future__ import annotations

import datetime
import random
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import igraph
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray

from terrazzo import keys
from terrazzo._version import __version__
from terrazzo.arrays import AnyFloats, Ints
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning
from terrazzo.progress import Progress
from terrazzo.records import vectors
from terrazzo.slices.geometry import read_coords
from terrazzo.systems.stofm.virtual_cells import fuzzy_graph
from terrazzo.tasks import metrics

N_NEIGHBORS = 15  # itself included, as scanpy counts


GRAPH_DIMS = 50  # principal components in which neighbors are sought, as scanpy


MAX_TRIES = 30  # resolutions tried for one seed


MAX_DOUBLINGS = 16  # from resolution 1 upwards


def leiden_to_k(vectors: NDArray[np.float64], k: int, seeds: Sequence[int]) -> Ints:
    """Return Leiden communities for each seed, as near to ``k`` of them as a resolution can be found for.

    The graph (:func:`terrazzo.systems.stofm.virtual_cells.fuzzy_graph`, 15 neighbors in at most 50 principal components) is built
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

    if min(points.shape) > GRAPH_DIMS:
        points = PCA(GRAPH_DIMS, random_state=0).fit_transform(points)
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


MAX_DIMS = 20  # a Gaussian mixture in more dimensions than this fits noise


ARRAY = "array"  # how a record names an embedding that was given as an array


Method = Literal["gmm", "kmeans", "leiden"]


def domains(
    adata: AnnData,
    *,
    use_rep: str | AnyFloats,
    n_domains: int,
    method: Method = "gmm",
    seed: int = 0,
    n_seeds: int = 1,
    refine: int = 0,
    spatial_key: str = keys.SPATIAL,
    key_added: str | None = None,
    progress: bool | None = None,
) -> AnnData:
    """Cluster an embedding into tissue domains and write them to ``obs["<use_rep>_domain"]``, the largest first.

    What was done is recorded in ``uns["terrazzo"][<that column>]``.

    Parameters
    ----------
    adata
        Holds the embedding.
    use_rep
        Key in ``obsm`` (of an embedding with two blocks, the niche block), ``"key:block"`` (written to
        ``obs["key_block_domain"]``), or an array ``(n, d)``.
    n_domains
        Number of domains K.
    method
        ``"gmm"``: Gaussian mixture with tied covariance on the first 20 principal components; ``"kmeans"`` on the same;
        ``"leiden"``: communities of the 15-nearest-neighbor graph, the resolution searched until there are K. It cuts
        embeddings that were averaged over wide surroundings into patches: neighbors in them are neighbors in space.
    seed, n_seeds
        First seed; with several, the embedding is clustered with each of ``seed .. seed + n_seeds - 1`` and
        :func:`consensus` combines the runs.
    refine
        Neighbors of :func:`refine_labels`, applied last; 0: not at all. It smooths: report it as such.
    spatial_key
        ``obsm`` key of the coordinates; read only to refine.
    key_added
        Another ``obs`` column; needed where ``use_rep`` is an array.
    progress
        Show a bar; None: on a terminal.

    Raises
    ------
    InputError
        No such embedding, values that are not finite; to refine, no coordinates.
    ConfigError
        ``n_domains``, ``n_seeds`` or ``refine`` do not fit the number of cells; an unknown method; no ``key_added``
        for an array, or one that is an ``obsm`` key.
    """
    values = vectors(adata, use_rep, purpose="niche")
    column = _column(adata, use_rep, key_added)
    check_settings(adata.n_obs, n_domains, method, n_seeds, refine)
    coords = read_coords(adata, spatial_key) if refine else None
    seeds = range(seed, seed + n_seeds)
    runs = cluster_runs(np.asarray(values, dtype=np.float64), n_domains, method, seeds, progress)
    labels = consensus(runs)
    if (message := shortfall(labels, n_domains, values, method)) != "":
        warnings.warn(message, TerrazzoWarning, stacklevel=2)
    if coords is not None:
        before = len(np.unique(labels))
        labels = refine_labels(labels, coords, refine)
        if (left := len(np.unique(labels))) < before:
            message = f"refining over {refine} neighbors dissolved {before - left} of {before} domains; use fewer."
            warnings.warn(message, TerrazzoWarning, stacklevel=2)
    labels = by_size(labels)
    names = [str(i) for i in range(max(n_domains, int(labels.max()) + 1))]
    adata.obs[column] = pd.Categorical.from_codes(labels, categories=names)
    record = {
        "task": "domains",
        "use_rep": named(use_rep),
        "method": method,
        "n_domains": int(n_domains),
        "n_found": len(np.unique(labels)),
        "seed": int(seed),
        "n_seeds": int(n_seeds),
        "refine": int(refine),
        "terrazzo_version": __version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    adata.uns[keys.UNS] = {**dict(adata.uns.get(keys.UNS, {})), column: record}
    return adata


def _column(adata: AnnData, use_rep: str | AnyFloats, key_added: str | None) -> str:
    if key_added is None:
        if not isinstance(use_rep, str):
            raise ConfigError(
                "an array has no name: pass key_added=, the obs column for its domains."
            )
        return keys.domain_key(use_rep.replace(":", "_"))
    if key_added in adata.obsm:
        raise ConfigError(
            f"key_added is {key_added!r}, which is an embedding too; their records in uns would share one name."
        )
    return key_added


def named(source: Any) -> str:
    """Return how a record names an embedding or labels: the key, or that it was an array."""
    return source if isinstance(source, str) else ARRAY


def check_settings(n: int, n_domains: int, method: str, n_seeds: int, refine: int) -> None:
    """Refuse settings that do not fit ``n`` cells.

    Raises
    ------
    ConfigError
        Says which, and what would fit.
    """
    if not 1 <= n_domains <= n:
        raise ConfigError(
            f"n_domains is {n_domains}; it must lie between 1 and the number of cells, {n}."
        )
    _check_method(method)
    if n_seeds < 1:
        raise ConfigError(f"the number of seeds is {n_seeds}; it must be at least 1.")
    if not 0 <= refine < n:
        raise ConfigError(
            f"refine is {refine}; it must lie between 0 (off) and the number of other cells, {n - 1}."
        )


def _check_method(method: str) -> None:
    if method not in get_args(Method):
        raise ConfigError(
            f"method is {method!r}; it must be one of {', '.join(map(repr, get_args(Method)))}."
        )


def shortfall(labels: Ints, n_domains: int, values: AnyFloats, method: str) -> str:
    """Return in words that there are not ``n_domains`` domains, and why; "" where there are."""
    found = len(np.unique(labels))
    if found == n_domains:
        return ""
    if len(np.unique(values, axis=0)) < n_domains:
        return f"the embedding has too few distinct vectors for {n_domains} domains: {found} were found."
    if method == "leiden":
        return (
            f"Leiden has no resolution with {n_domains} domains: {found} were found, the closest."
        )
    return f"{n_domains} domains were asked for and {found} were found: seeds disagree, or some cluster stayed empty."


def cluster(vectors: NDArray[np.float64], k: int, method: str, seed: int) -> Ints:
    """Return cluster labels int64 ``(n,)``, 0 .. k-1, the largest cluster first.

    There are fewer where the vectors are not distinct enough; ``"leiden"`` may also find a few more or fewer.

    Parameters
    ----------
    vectors
        ``(n, d)``, finite.
    k
        Clusters, at most n.
    method, seed
        As in :func:`domains`.

    Raises
    ------
    ConfigError
        An unknown method.
    """
    return cluster_runs(vectors, k, method, [seed])[0]


def cluster_runs(
    vectors: NDArray[np.float64],
    k: int,
    method: str,
    seeds: Sequence[int],
    progress: bool | None = False,
) -> Ints:
    """Return the labels of :func:`cluster` for each of several seeds, int64 ``(len(seeds), n)``."""
    _check_method(method)
    if k == 1:
        return np.zeros((len(seeds), len(vectors)), dtype=np.int64)
    if method == "leiden":
        runs = iter(leiden_to_k(_live(vectors), k, seeds))
    else:
        runs = (_cluster(vectors, k, method, seed) for seed in seeds)
    found = []
    with Progress(progress).stage(
        "domains", len(seeds) if len(seeds) > 1 else None, "fits"
    ) as advance:
        for labels in runs:
            found.append(by_size(labels))
            advance(1)
    return np.stack(found)


def by_size(labels: Ints) -> Ints:
    """Rename non-negative labels so that 0 is the largest cluster, and none is left out."""
    order = np.argsort(-np.bincount(labels), kind="stable")
    return np.argsort(order)[labels]


def _live(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns that vary by more than rounding."""
    spread = vectors.std(axis=0)
    return (
        vectors[:, spread > 1e-12 * max(spread.max(), 1e-300)]
        if spread.max() > 0
        else vectors[:, :1]
    )


def _cluster(vectors: NDArray[np.float64], k: int, method: str, seed: int) -> Ints:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    kept = _live(vectors)
    if min(kept.shape) > MAX_DIMS:
        kept = PCA(MAX_DIMS, random_state=seed).fit_transform(kept)
    with warnings.catch_warnings():  # the caller says it in words of ours
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        if method == "gmm":
            floor = 1e-6 * kept.var() + 1e-12
            mixture = GaussianMixture(
                k, covariance_type="tied", random_state=seed, n_init=3, reg_covar=floor
            )
            return np.asarray(mixture.fit_predict(kept), dtype=np.int64)
        return np.asarray(KMeans(k, random_state=seed, n_init=10).fit_predict(kept), dtype=np.int64)


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
    try:
        table = np.asarray(runs)
    except ValueError as error:
        raise InputError("the runs differ in length; each must label the same cells.") from error
    if (
        table.ndim != 2
        or not table.size
        or not np.issubdtype(table.dtype, np.integer)
        or table.min() < 0
    ):
        raise InputError(
            f"runs must be whole numbers from 0 of shape (n_runs, n), not {table.dtype} {table.shape}."
        )
    table = table.astype(np.int64)
    if len(table) == 1:
        return cast(Ints, table[0])
    medoid = table[_medoid(table)]
    k, n = int(medoid.max()) + 1, table.shape[1]
    votes = np.zeros((n, k), dtype=np.int32)
    for run in table:
        votes[np.arange(n), _matched(run, medoid)[run]] += 2
    votes[np.arange(n), medoid] += 1  # breaks ties
    return np.asarray(votes.argmax(axis=1), dtype=np.int64)


def _medoid(runs: Ints) -> int:
    agreement = np.zeros((len(runs), len(runs)))
    for i in range(len(runs)):
        for j in range(i):
            agreement[i, j] = agreement[j, i] = metrics.clustering(runs[i], runs[j])["ari"]
    return int(np.argmax(agreement.sum(axis=1)))


def _matched(run: Ints, medoid: Ints) -> Ints:
    """Return the medoid's cluster for each cluster of a run."""
    from scipy.optimize import linear_sum_assignment

    overlap = np.zeros((int(run.max()) + 1, int(medoid.max()) + 1), dtype=np.int64)
    np.add.at(overlap, (run, medoid), 1)
    out = overlap.argmax(axis=1)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    out[rows] = columns
    return np.asarray(out, dtype=np.int64)


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
    places, codes, names = metrics.places_and_codes(coords, labels)
    n = len(codes)
    if not 0 <= n_neighbors < n:
        raise ConfigError(
            f"n_neighbors is {n_neighbors}; it must lie between 0 and the number of other cells, {n - 1}."
        )
    votes, rows = np.zeros((n, len(names)), dtype=np.int32), np.arange(n)
    near = codes[metrics.nearest(places, n_neighbors)]
    for column in near.T:
        votes[rows, column] += 1
    most, out = votes.max(axis=1), codes
    for column in (
        *near.T[::-1],
        codes,
    ):  # each overrules those before it where it is as common as any
        out = np.where(votes[rows, column] == most, column, out)
    return np.asarray(names[out])
