"""Counts of a slice by the names of its genes, without coordinates: what tasks about genes read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.genes.names import merge_plan, read_gene_names
from terrazzo.slices.counts import find_counts
from terrazzo.sparse import merge_columns


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
        """Read a slice; columns of one gene are summed. Errors as :func:`terrazzo.slices.counts.find_counts`."""
        found = find_counts(adata, layer, False)
        read = read_gene_names(found.var)
        column, first = merge_plan(read)
        texts = found.var.index.astype(str)
        place: dict[str, int] = {}
        for names in (
            texts,
            read.gene_ids,
            read.gene_symbols,
        ):  # an index goes before what another gene is called
            for name, number in zip(names, column, strict=True):
                if name:
                    place.setdefault(str(name), int(number))
        return cls(
            merge_columns(found.matrix, column, len(first)),
            tuple(str(texts[i]) for i in first),
            place,
        )

    @property
    def totals(self) -> NDArray[np.float64]:
        """Counts of every cell over all genes, float64 ``(n_cells,)``."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()
