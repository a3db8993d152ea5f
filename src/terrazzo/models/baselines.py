"""The trivial baselines that every claim is measured against, behind the same verb ``embed``."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo import keys
from terrazzo._version import __version__
from terrazzo.slices import Slice

NEIGHBOURS = {0: 0, 1: 6, 2: 18, 3: 36}  # spots within this many hops on a hexagonal lattice
MAX_GENES = 2000  # variable genes kept


class PCANeighbours:
    """PCA of log-normalised expression, averaged over each cell and its spatial neighbours.

    Counts are scaled to the slice's median total and log1p; the most variable genes are standardised; PCA; then the
    mean over the cell itself and its nearest 6 (1 hop), 18 or 36 (3 hops) neighbours. Weak where types matter,
    strong where regions do: a trained model must beat it.

    Parameters
    ----------
    n_components
        Principal components.
    hops
        0 (plain PCA), 1, 2 or 3.
    """

    default_key: ClassVar[str] = keys.X_PCA_NB
    title: ClassVar[str] = "PCA + neighbour mean"

    def __init__(self, n_components: int = 20, hops: int = 3) -> None:
        if hops not in NEIGHBOURS:
            raise ValueError(f"hops is {hops}; it must be one of {', '.join(map(str, NEIGHBOURS))}.")
        self.n_components, self.hops = n_components, hops

    def embed(self, adata: AnnData, *, key_added: str | None = None, seed: int = 0, **slice_options: Any) -> AnnData:
        """Write ``obsm["X_pca_nb"]``, float32 ``(n_cells, n_components)``.

        Parameters
        ----------
        adata
            Raw counts and ``obsm["spatial"]``.
        key_added
            Another ``obsm`` key.
        seed
            Seed of the PCA solver.
        **slice_options
            Passed to :meth:`terrazzo.Slice.from_anndata`.
        """
        tissue = Slice.from_anndata(adata, **slice_options)
        scores = expression_pca(tissue, self.n_components, seed)
        key = key_added or self.default_key
        adata.obsm[key] = neighbour_mean(scores, tissue.coords, NEIGHBOURS[self.hops])
        record = {
            "model": self.title,
            "n_components": self.n_components,
            "hops": self.hops,
            "seed": seed,
            "terrazzo_version": __version__,
        }
        adata.uns[keys.UNS] = {**dict(adata.uns.get(keys.UNS, {})), key: record}
        return adata


def expression_pca(tissue: Slice, n_components: int, seed: int) -> NDArray[np.float32]:
    """Return principal components of median-normalised log counts of the most variable genes, ``(n, n_components)``."""
    from sklearn.decomposition import PCA

    total = np.maximum(tissue.total_counts, 1)
    scaled = sparse.diags(np.median(total) / total) @ tissue.counts
    logged = sparse.csr_matrix(scaled, dtype=np.float32)
    logged.data = np.log1p(logged.data)
    n, genes = logged.shape
    mean = np.bincount(logged.indices, logged.data, minlength=genes) / n  # in float64
    variance = np.bincount(logged.indices, logged.data.astype(np.float64) ** 2, minlength=genes) / n - mean**2
    chosen = np.argsort(-variance, kind="stable")[:MAX_GENES]
    chosen = chosen[variance[chosen] > 1e-6 * mean[chosen] ** 2]  # more than rounding
    dense = logged[:, chosen].toarray()
    dense = (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-6)
    k = min(n_components, *dense.shape)
    scores = PCA(k, random_state=seed).fit_transform(dense) if k else np.zeros((tissue.n_cells, 0))
    return np.pad(scores, ((0, 0), (0, n_components - k))).astype(np.float32)


def neighbour_mean(values: NDArray[np.float32], coords: NDArray[np.float64], k: int) -> NDArray[np.float32]:
    """Average each row over the cell itself and its ``k`` nearest neighbours."""
    if k == 0 or len(values) == 1:
        return values
    _, index = cKDTree(coords).query(coords, k=min(k + 1, len(values)), workers=-1)
    return values[index].mean(axis=1)
