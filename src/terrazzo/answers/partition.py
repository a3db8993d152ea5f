"""Partitions of cells: mixtures from two starts, their vote, and how far they agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from terrazzo.arrays import AnyFloats, Floats, Ints

__all__ = ["Mixture", "fit_mixtures", "means_of", "starts", "tree_of"]

MANY_CELLS = 50_000  # above, a sample is partitioned, and all other cells are assigned

MAX_FIT = 30_000  # cells that a mixture is fitted on

WARD_BELOW = 10_000  # cells up to which the tree is built on all of them
WARD_SAMPLE = 2_500

ROWS = 100_000  # cells whose likelihood is computed together


@dataclass(frozen=True)
class Mixture:
    """Gaussian mixture with one covariance.

    Attributes
    ----------
    means
        float64 ``(k, d)``.
    weights
        ``(k,)``, sum 1.
    precision_root
        ``(d, d)``: ``x -> x @ precision_root`` makes the covariance the identity.
    """

    means: Floats
    weights: Floats
    precision_root: Floats

    def __call__(self, vectors: AnyFloats) -> Ints:
        """Return the likeliest component of each row, int64 ``(n,)``."""
        centers = self.means @ self.precision_root
        half_norm = (centers**2).sum(axis=1) / 2
        positive = np.maximum(self.weights, 1e-300)
        offset = np.log(positive) - half_norm
        labels = np.empty(len(vectors), dtype=np.int64)
        for start in range(0, len(vectors), ROWS):
            part = vectors[start : start + ROWS].astype(np.float64)
            scaled = part @ self.precision_root
            log_density = scaled @ centers.T + offset
            labels[start : start + ROWS] = log_density.argmax(axis=1)
        return labels


def starts(vectors: Floats, k: int, seed: int, tree: Floats | None = None) -> list[Ints]:
    """Return two partitions to start from: a Ward tree cut at ``k``, and k-means.

    Parameters
    ----------
    vectors
        ``(n, d)``; above 10,000 rows the tree is built on a random 2,500, and the others take the nearest mean.
    k
        Clusters.
    seed
        Of the sample and of k-means.
    tree
        From :func:`tree_of`, for several ``k``; None: built.
    """
    from scipy.cluster.hierarchy import fcluster
    from sklearn.cluster import KMeans

    linkage = tree_of(vectors, seed) if tree is None else tree
    cut = fcluster(linkage, k, criterion="maxclust") - 1
    ward = _spread(vectors, cut.astype(np.int64), seed)
    k_means = KMeans(k, n_init=1, random_state=seed).fit_predict(vectors)
    return [ward, k_means.astype(np.int64)]


def tree_of(vectors: Floats, seed: int) -> Floats:
    """Return the linkage of a Ward tree of the rows, or of a sample of many rows."""
    from scipy.cluster.hierarchy import linkage

    sample = _sample(len(vectors), seed)
    return np.asarray(linkage(vectors[sample], method="ward"))


def _sample(n: int, seed: int) -> Ints:
    if n <= WARD_BELOW:
        return np.arange(n)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n, WARD_SAMPLE, replace=False))


def _spread(vectors: Floats, labels: Ints, seed: int) -> Ints:
    """Give all rows the label of the nearest mean of the sampled ones; the sample keeps its own where it is all."""
    sample = _sample(len(vectors), seed)
    if len(sample) == len(vectors):
        return labels
    means = means_of(vectors[sample], labels)
    norms = (means**2).sum(axis=1)
    squared = norms - 2 * vectors @ means.T  # but for the row's own norm
    return squared.argmin(axis=1).astype(np.int64)


def means_of(vectors: Floats, labels: Ints) -> Floats:
    """Return the mean of each cluster, ``(k, d)``."""
    k = int(labels.max()) + 1
    sums = np.empty((k, vectors.shape[1]))
    for column, values in enumerate(vectors.T):
        sums[:, column] = np.bincount(labels, values, minlength=k)
    sizes = np.bincount(labels, minlength=k)
    divisor = np.maximum(sizes, 1)
    return sums / divisor[:, None]


def fit_mixture(vectors: Floats, start: Ints, seed: int) -> tuple[Mixture, float]:
    """Fit a mixture from a partition; return it and its mean log-likelihood.

    Parameters
    ----------
    vectors
        float64 ``(n, d)``.
    start
        ``(n,)``: cluster of each row.
    seed
        Of the sample that is taken of more than 30,000 rows.
    """
    from sklearn.mixture import GaussianMixture

    rows = np.arange(len(vectors))
    if len(vectors) > MAX_FIT:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(vectors), MAX_FIT, replace=False))
    sample = vectors[rows]
    _, labels = np.unique(start[rows], return_inverse=True)
    means = means_of(sample, labels)
    sizes = np.bincount(labels)
    within = sample - means[labels]
    least_variance = 1e-6 * float(sample.var()) + 1e-12
    covariance = within.T @ within / len(sample)
    covariance[np.diag_indices_from(covariance)] += least_variance
    model: Any = GaussianMixture(
        len(means),
        covariance_type="tied",
        means_init=means,
        weights_init=sizes / sizes.sum(),
        precisions_init=np.linalg.inv(covariance),
        init_params="random_from_data",
        random_state=seed,
        reg_covar=least_variance,
        max_iter=200,
    )
    model.fit(sample)
    mixture = Mixture(model.means_, model.weights_, model.precisions_cholesky_)
    return mixture, float(model.lower_bound_)


def fit_mixtures(vectors: Floats, k: int, seed: int, tree: Floats | None = None) -> list[Mixture]:
    """Return the mixtures from both starts (see :func:`starts`), the likelier first; of many cells a sample is used."""
    if len(vectors) > MANY_CELLS:
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(vectors), MAX_FIT, replace=False)
        rows = np.sort(chosen)
        vectors = vectors[rows]
    fitted = []
    for start in starts(vectors, k, seed, tree):
        fitted.append(fit_mixture(vectors, start, seed))
    fitted.sort(key=lambda pair: -pair[1])
    return [mixture for mixture, _ in fitted]
