"""Ring means as a sparse matrix, for training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from terrazzo.arrays import Floats
from terrazzo.models.states import RINGS, nearest_in_rings

__all__ = ["ring_matrix"]


def ring_matrix(coords: Floats) -> Tensor:
    """Return the means over five rings as a sparse tensor ``(5 n_cells, n_cells)``, one ring below the other."""
    index = np.concatenate([part for _, part in nearest_in_rings(coords)])
    n_cells = len(coords)
    parts = []
    for inner, outer in pairwise(RINGS):
        ring = index[:, inner + 1 : outer + 1]
        n_members = ring.shape[1]
        columns = np.sort(ring, axis=1).ravel()
        starts = np.arange(n_cells + 1) * n_members
        data = np.full(len(columns), 1 / max(n_members, 1), dtype=np.float32)
        parts.append(sparse.csr_matrix((data, columns, starts), shape=(n_cells, n_cells)))
    stacked = sparse.vstack(parts, format="coo")
    places = np.stack([stacked.row, stacked.col]).astype(np.int64)
    return torch.sparse_coo_tensor(
        torch.from_numpy(places),
        torch.from_numpy(stacked.data),
        size=stacked.shape,
        is_coalesced=True,
        check_invariants=False,
    )
