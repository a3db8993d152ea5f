"""The strong trivial baselines Z50, T1, T2, T3: principal components fitted on training slices, and spatial means.

Nothing is learnt but a PCA. On the slices measured before the project began they beat every published number, so each
claim of a trained model stands beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from terrazzo.errors import InputError
from terrazzo.models.baselines import neighbour_mean
from terrazzo.slices import Slice

Vectors = NDArray[np.float32]

GENOME_WIDE = 2000  # with more genes than this, the most spatially autocorrelated are chosen
N_GENES = 1000
NEAREST = 6  # neighbours of a spot for autocorrelation
WITHIN_3_HOPS = 36
RINGS = (0, 6, 18, 36, 90, 216)  # neighbours up to each ring's outer edge


@dataclass(frozen=True)
class StrongBaselines:
    """A PCA of standardised expression, fitted on training slices.

    Attributes
    ----------
    genes
        Names of the genes used, in the order of ``loadings``.
    loadings
        float64 ``(genes, 50)``.
    """

    genes: tuple[str, ...]
    loadings: NDArray[np.float64]

    @classmethod
    def fit(cls, slices: Sequence[Slice], n_components: int = 50, seed: int = 0) -> StrongBaselines:
        """Choose genes and fit the PCA on slices without labels.

        Parameters
        ----------
        slices
            Training slices, at least one.
        n_components
            Components kept (50).
        seed
            Seed of the solver.

        Raises
        ------
        InputError
            The slices have fewer than two genes in common.
        """
        from sklearn.decomposition import PCA

        tables = [_columns(s) for s in slices]
        common = [g for g in tables[0] if all(g in t for t in tables[1:])]
        if len(common) < 2:
            raise InputError("the training slices have fewer than two genes in common.")
        if len(common) > GENOME_WIDE:
            score = np.mean([_autocorrelation(s, _expression(s, common)) for s in slices], axis=0)
            common = [common[i] for i in np.sort(np.argsort(-score)[:N_GENES])]
        stacked = np.concatenate([_standardised(_expression(s, common)) for s in slices])
        found = PCA(min(n_components, *stacked.shape), random_state=seed).fit(stacked)
        return cls(tuple(common), found.components_.T.astype(np.float64))

    def embed(self, tissue: Slice) -> dict[str, Vectors]:
        """Return Z50, T1, T2 and T3 of a slice, each float32 ``(n_cells, d)``.

        Z50: its components. T1: 20 components averaged over the spots within 3 hops. T2: both, equal in mean norm.
        T3: 20 components of the cell and of five rings of its nearest neighbours.
        """
        here = _columns(tissue)
        known = [g for g in self.genes if g in here]
        if not known:
            raise InputError(f"{tissue.name} has none of the {len(self.genes)} genes of the baseline.")
        rows = [i for i, g in enumerate(self.genes) if g in here]
        z = (_standardised(_expression(tissue, known)) @ self.loadings[rows]).astype(np.float32)
        short = z[:, :20]
        smooth = neighbour_mean(short, tissue.coords, WITHIN_3_HOPS)
        return {
            "Z50": z,
            "T1": smooth,
            "T2": np.hstack([_unit(z), _unit(smooth)]),
            "T3": np.hstack([short, *rings(short, tissue.coords)]),
        }


def rings(values: Vectors, coords: NDArray[np.float64]) -> list[Vectors]:
    """Return the mean over five rings of nearest neighbours (1-6, 7-18, 19-36, 37-90, 91-216), each as ``values``."""
    reach = min(RINGS[-1] + 1, len(values))
    _, index = cKDTree(coords).query(coords, k=reach, workers=-1)
    index = index.reshape(len(values), -1)
    out = []
    for inner, outer in pairwise(RINGS):
        ring = index[:, inner + 1 : outer + 1]
        out.append(values[ring].mean(axis=1) if ring.shape[1] else np.zeros_like(values))
    return out


def _columns(tissue: Slice) -> dict[str, int]:
    """Return the column of each gene by id, or by symbol where there is no id."""
    names = np.where(tissue.gene_ids != "", tissue.gene_ids, tissue.gene_symbols)
    return {str(name): i for i, name in enumerate(names)}


def _expression(tissue: Slice, genes: Sequence[str]) -> sparse.csr_matrix:
    """Log counts scaled to the slice's median total, CSR ``(n_cells, genes)``."""
    columns = _columns(tissue)
    total = np.maximum(tissue.total_counts, 1)
    scaled = sparse.csr_matrix(sparse.diags(np.median(total) / total) @ tissue.counts)
    scaled.data = np.log1p(scaled.data)
    return scaled[:, [columns[g] for g in genes]]


def _standardised(expression: sparse.csr_matrix) -> NDArray[np.float32]:
    dense = expression.toarray().astype(np.float32)
    return (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-6)


def _autocorrelation(tissue: Slice, expression: sparse.csr_matrix) -> NDArray[np.float64]:
    """Correlation of each gene with the mean of its 6 neighbours."""
    k = min(NEAREST + 1, tissue.n_cells)
    _, index = cKDTree(tissue.coords).query(tissue.coords, k=k, workers=-1)
    rows = np.repeat(np.arange(tissue.n_cells), k - 1)
    mean = sparse.csr_matrix(
        (np.full(len(rows), 1 / (k - 1)), (rows, index[:, 1:].ravel())), shape=(tissue.n_cells,) * 2
    )
    out = np.zeros(expression.shape[1])
    for start in range(0, len(out), 2000):
        own = expression[:, start : start + 2000]
        around = np.asarray((mean @ own).todense())
        mine = own.toarray()
        mine, around = mine - mine.mean(axis=0), around - around.mean(axis=0)
        scale = np.sqrt((mine**2).sum(axis=0) * (around**2).sum(axis=0))
        out[start : start + 2000] = (mine * around).sum(axis=0) / np.maximum(scale, 1e-12)
    return out


def _unit(block: Vectors) -> Vectors:
    return block / max(float(np.linalg.norm(block, axis=1).mean()), 1e-12)
