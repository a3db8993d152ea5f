"""What the gene rooms need to know of a slice and of a vocabulary, so that they need not know either itself."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import scipy.sparse as sp


class Counted(Protocol):
    """Counts with named genes; :class:`terrazzo.Slice` is one."""

    @property
    def counts(self) -> sp.csr_matrix:
        """CSR (n_cells, n_genes)."""

    @property
    def gene_ids(self) -> np.ndarray:
        """Ensembl ids, str (n_genes,), "" where unknown."""

    @property
    def gene_symbols(self) -> np.ndarray:
        """Symbols, str (n_genes,), "" where unknown."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def organism(self) -> str:
        """One of "human", "mouse", "mixed", "unknown"."""

    @property
    def is_counts(self) -> bool:
        """False for normalised values."""

    @property
    def n_cells(self) -> int:
        """Rows."""

    @property
    def n_genes(self) -> int:
        """Columns."""

    @property
    def total_counts(self) -> np.ndarray:
        """float64 (n_cells,)."""


class GeneBook(Protocol):
    """Genes with tokens and medians; :class:`~terrazzo.genes.Vocabulary` is one."""

    @property
    def ensembl_id(self) -> np.ndarray:
        """Ensembl ids, str (n,)."""

    @property
    def symbol(self) -> np.ndarray:
        """Symbols, str (n,)."""

    @property
    def token(self) -> np.ndarray:
        """Tokens, int32 (n,)."""

    @property
    def median(self) -> np.ndarray:
        """Non-zero medians, float64 (n,)."""

    @property
    def organism(self) -> str:
        """One of "human", "mouse"."""
