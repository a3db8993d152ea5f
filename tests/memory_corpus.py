"""A corpus in memory, with the methods that loaders call; a few genes, and a vocabulary of them."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
from scipy import sparse

from terrazzo.genes import Vocabulary

N_GENES = 12
HELD_OUT = "held"  # the slice of the test split, which nothing may read
SIZES = {"a": 70, "b": 33, "c": 5, HELD_OUT: 40, "d": 51}
IDS = np.array([f"ENSG{i:011d}" for i in range(N_GENES)])
VOCABULARY = Vocabulary(
    IDS, np.array([f"G{i}" for i in range(N_GENES)]), np.arange(3, 3 + N_GENES), np.ones(N_GENES)
)


class MemoryCorpus:
    """Slices in memory with the methods of a corpus; the first two counts of a cell tell its row and its slice."""

    def __init__(self, sizes: dict[str, int], unit: str = "um") -> None:
        rows = [
            {
                "id": name,
                "n_cells": n,
                "split": "test" if name == HELD_OUT else "train",
                "organism": "human",
                "unit": unit,
                "spacing": 10.0,
                "sha256": f"sha-{name}",
            }
            for name, n in sizes.items()
        ]
        self.manifest = pd.DataFrame(rows)
        self.counts: dict[str, sparse.csr_matrix] = {}
        self.places: dict[str, np.ndarray] = {}
        self.reads = 0
        for number, (name, n) in enumerate(sizes.items()):
            rng = np.random.default_rng(number)
            counts = rng.poisson(1.0, (n, N_GENES)).astype(np.float32)
            counts[:, 0] = np.arange(n) + 1
            counts[:, 1] = number + 1
            self.counts[name] = sparse.csr_matrix(counts)
            self.places[name] = rng.uniform(0, 10 * np.sqrt(n), (n, 2))

    def ids(self, split: str | None = None) -> list[str]:
        table = self.manifest
        return list(table["id"] if split is None else table["id"][table["split"] == split])

    def genes(self, id: str) -> tuple[np.ndarray, np.ndarray]:
        return IDS, np.full(N_GENES, "")

    def rows(self, id: str, start: int, stop: int) -> sparse.csr_matrix:
        assert id != HELD_OUT, "a held-out slice was read"
        self.reads += 1
        return self.counts[id][start:stop]

    def take(self, id: str, rows: np.ndarray) -> sparse.csr_matrix:
        assert id != HELD_OUT, "a held-out slice was read"
        return self.counts[id][rows]

    def coords(self, id: str) -> np.ndarray:
        return self.places[id]

    def content_hash(self) -> str:
        return hashlib.sha256(self.manifest.to_csv().encode()).hexdigest()
