"""Counts of a slice by the names of its genes, without coordinates: what tasks about genes read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from terrazzo.arrays import Floats
from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices.counts import find_counts
from terrazzo.sparse import merge_columns

__all__ = ["Panel"]


@dataclass(frozen=True, eq=False)
class Panel:
    """The genes of a slice, one column each.

    Attributes
    ----------
    counts
        CSR ``(n_cells, n_genes)``.
    names
        Each gene under the name that its first column has in ``var_names``.
    place
        Number of a gene by any name of it: of the index, Ensembl id, symbol.
    """

    counts: sp.csr_matrix
    names: tuple[str, ...]
    place: dict[str, int]

    @classmethod
    def read(cls, adata: AnnData, layer: str | None = None) -> Panel:
        """Read a slice; columns of one gene are summed; errors as :func:`terrazzo.slices.counts.find_counts`."""
        found = find_counts(adata, layer, False)
        genes = read_gene_names(found.var)
        column, first = merge_plan(genes)
        index = found.var.index.astype(str)
        place: dict[str, int] = {}
        # a name in the index goes before the same name as another gene's id or symbol
        for names in (index, genes.gene_ids, genes.gene_symbols):
            for name, number in zip(names, column, strict=True):
                if name:
                    place.setdefault(str(name), int(number))
        counts = merge_columns(found.matrix, column, len(first))
        return cls(counts, tuple(str(index[i]) for i in first), place)

    @property
    def totals(self) -> Floats:
        """Counts of every cell over all genes, float64 ``(n_cells,)``."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()
