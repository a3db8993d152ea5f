"""Tissue domains from an embedding, without labels."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning

MAX_DIMS = 20  # a Gaussian mixture in more dimensions than this fits noise


def domains(
    adata: AnnData,
    *,
    use_rep: str,
    n_domains: int,
    method: Literal["gmm", "kmeans"] = "gmm",
    seed: int = 0,
    key_added: str | None = None,
) -> AnnData:
    """Cluster ``obsm[use_rep]`` into tissue domains and write them to ``obs["<use_rep>_domain"]``.

    Parameters
    ----------
    adata
        Holds the embedding.
    use_rep
        Key in ``obsm``, ``(n, d)``.
    n_domains
        Number of domains K.
    method
        ``"gmm"``: Gaussian mixture with tied covariance on the first 20 principal components; ``"kmeans"``.
    seed
        Seed.
    key_added
        Another ``obs`` column.

    Raises
    ------
    InputError
        There is no such key, or it holds values that are not finite.
    ConfigError
        ``n_domains`` does not fit the number of cells.
    """
    if use_rep not in adata.obsm:
        raise InputError(f"obsm has no {use_rep!r}; there are: {', '.join(adata.obsm) or 'none'}. Embed first.")
    vectors = np.asarray(adata.obsm[use_rep], dtype=np.float64)
    if not np.isfinite(vectors).all():
        raise InputError(f"obsm[{use_rep!r}] holds values that are not finite.")
    if not 1 <= n_domains <= len(vectors):
        raise ConfigError(f"n_domains is {n_domains}; it must lie between 1 and the number of cells, {len(vectors)}.")
    labels = cluster(vectors, n_domains, method, seed)
    found = len(np.unique(labels))
    if found < n_domains:
        message = f"obsm[{use_rep!r}] has too few distinct vectors for {n_domains} domains: {found} were found."
        warnings.warn(message, TerrazzoWarning, stacklevel=2)
    names = [str(i) for i in range(n_domains)]
    column = pd.Categorical.from_codes(labels, categories=names)
    adata.obs[key_added or keys.domain_key(use_rep)] = column
    return adata


def cluster(vectors: NDArray[np.float64], k: int, method: str, seed: int) -> NDArray[np.int64]:
    """Return cluster labels 0 .. k-1, the largest cluster first."""
    from sklearn.exceptions import ConvergenceWarning

    if method not in ("gmm", "kmeans"):
        raise ConfigError(f"method is {method!r}; it must be 'gmm' or 'kmeans'.")
    if k == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    with warnings.catch_warnings():  # the caller says it in words of ours
        warnings.filterwarnings("ignore", "Number of distinct clusters", ConvergenceWarning)
        labels = _cluster(vectors, k, method, seed)
    by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
    return np.argsort(by_size)[labels]


def _cluster(vectors: NDArray[np.float64], k: int, method: str, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    spread = vectors.std(axis=0)
    kept = vectors[:, spread > 1e-12 * max(spread.max(), 1e-300)] if spread.max() > 0 else vectors[:, :1]
    if min(kept.shape) > MAX_DIMS:
        kept = PCA(MAX_DIMS, random_state=seed).fit_transform(kept)
    if method == "gmm":
        floor = 1e-6 * kept.var() + 1e-12
        mixture = GaussianMixture(k, covariance_type="tied", random_state=seed, n_init=3, reg_covar=floor)
        return np.asarray(mixture.fit_predict(kept))
    return np.asarray(KMeans(k, random_state=seed, n_init=10).fit_predict(kept))
