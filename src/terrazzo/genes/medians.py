"""Non-zero medians of normalized expression over many slices, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from terrazzo.arrays import AnyFloats, Floats, Ints
from terrazzo.errors import InputError
from terrazzo.genes.matching import Counted
from terrazzo.sparse import merge_columns

__all__ = ["EXACT_VALUES", "GeneUnion", "NonZeroMedians", "survey"]

EXACT_VALUES = 2**25
"""Up to so many non-zero values (0.3 GB) the medians are exact (to float32); beyond, within 0.7 % (log-spaced bins)."""

# Bins of the log10 of a share of the cell's counts
_BINS = 1024
_LOW = -6.0
_HIGH = 0.0

PackedValues: TypeAlias = NDArray[np.uint64]
"""One number a value: the gene in the high half, the bits of the float32 value in the low one."""

_HALF = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFFFFFF)


class NonZeroMedians:
    """Medians of the non-zero values of many genes, seen in any number of parts.

    Parameters
    ----------
    exact_values
        Keep all values up to so many; then count them in 1,024 log-spaced bins from 1e-6 to 1.
    """

    def __init__(self, exact_values: int = EXACT_VALUES) -> None:
        self._limit = exact_values
        self._packed: list[PackedValues] = []
        self._n_packed = 0
        self._histogram: Ints | None = None

    def add(self, gene: Ints, value: AnyFloats) -> None:
        """Add values, float in (0, 1], of genes, int, both (k,)."""
        self._packed.append(_pack(gene, value))
        self._n_packed += len(gene)
        if self._n_packed > self._limit:
            self._to_bins()

    def result(self, n_genes: int) -> Floats:
        """Medians, float64 (n_genes,); NaN for genes without a value."""
        if self._histogram is not None:
            self._to_bins()
            return _histogram_medians(self._histogram, n_genes)
        medians = np.full(n_genes, np.nan)
        if self._packed:
            by_gene_and_value = np.sort(np.concatenate(self._packed))
            gene, value = _unpack(by_gene_and_value)
            present, start, n = np.unique(gene, return_index=True, return_counts=True)
            lower = value[start + (n - 1) // 2]
            upper = value[start + n // 2]
            medians[present] = (lower + upper) / 2
        return medians

    def _to_bins(self) -> None:
        """Count the packed values in bins, and forget them."""
        for part in self._packed:
            if len(part):
                self._add_to_histogram(*_unpack(part))
        self._packed = []
        self._n_packed = 0

    def _add_to_histogram(self, gene: Ints, value: Floats) -> None:
        share = (np.log10(value) - _LOW) / (_HIGH - _LOW)
        number = (share * _BINS).astype(np.int64)
        column = np.clip(number, 0, _BINS - 1)
        n_genes = int(gene.max()) + 1
        flat = np.bincount(gene * _BINS + column, minlength=n_genes * _BINS)
        added = flat.reshape(n_genes, _BINS)
        old = self._histogram
        if old is None:
            self._histogram = added
        elif len(old) >= n_genes:
            old[:n_genes] += added
        else:
            added[: len(old)] += old
            self._histogram = added


def _pack(gene: Ints, value: AnyFloats) -> PackedValues:
    """Return one number a value, which sorts by gene and then by value: positive floats sort as their bits do."""
    narrow = np.ascontiguousarray(value, dtype=np.float32)
    high = gene.astype(np.uint64) << _HALF
    return high | narrow.view(np.uint32)


def _unpack(packed: PackedValues) -> tuple[Ints, Floats]:
    """Return genes and values."""
    gene = packed >> _HALF
    bits = (packed & _LOW_HALF).astype(np.uint32)
    value = bits.view(np.float32)
    return gene.astype(np.int64), value.astype(np.float64)


def _histogram_medians(histogram: Ints, n_genes: int) -> Floats:
    """Return the medians of counted values."""
    medians = np.full(n_genes, np.nan)
    total = histogram.sum(axis=1)
    n_below = np.cumsum(histogram, axis=1)
    lower = _bin_center(n_below, (total - 1) // 2)
    upper = _bin_center(n_below, total // 2)
    center = (lower + upper) / 2
    medians[: len(total)] = np.where(total > 0, center, np.nan)
    return medians


def _bin_center(n_below: Ints, rank: Ints) -> Floats:
    """Return the center of the bin with the value of this rank, for each gene."""
    is_reached = n_below > rank[:, None]
    number = is_reached.argmax(axis=1)
    exponent = _LOW + (number + 0.5) / _BINS * (_HIGH - _LOW)
    return 10**exponent


@dataclass
class GeneUnion:
    """Genes of many slices, joined by Ensembl id, or by symbol where an id is not known."""

    gene_ids: list[str]
    gene_symbols: list[str]
    by_id: dict[str, int]
    by_symbol: dict[str, int]

    @classmethod
    def empty(cls) -> GeneUnion:
        """Return a union of nothing."""
        return cls([], [], {}, {})

    def place(self, gene: str, symbol: str) -> int:
        """Return the position of a gene, adding it where it is new; -1 for one without any name."""
        if not gene and not symbol:
            return -1
        position = self._find(gene, symbol)
        if position is None:
            position = len(self.gene_ids)
            self.gene_ids.append("")
            self.gene_symbols.append("")
        if gene and not self.gene_ids[position]:
            self.gene_ids[position] = gene
            self.by_id[gene] = position
        if symbol and not self.gene_symbols[position]:
            self.gene_symbols[position] = symbol
        if symbol:
            self.by_symbol.setdefault(symbol, position)
        return position

    def _find(self, gene: str, symbol: str) -> int | None:
        """Return the position of a gene: by id, or by symbol if one of the two has no id."""
        if gene in self.by_id:
            return self.by_id[gene]
        position = self.by_symbol.get(symbol)
        if position is None:
            return None
        if gene and self.gene_ids[position]:
            return None
        return position


def survey(
    slices: Iterable[Counted], exact_values: int = EXACT_VALUES
) -> tuple[GeneUnion, Floats, set[str]]:
    """Go once through the slices: the union of their genes, their medians (share of a cell's counts), the organisms.

    Raises
    ------
    InputError
        A slice that does not hold counts.
    """
    union = GeneUnion.empty()
    medians = NonZeroMedians(exact_values)
    organisms = set()
    for tissue in slices:
        if not tissue.is_counts:
            raise InputError(
                f"slice {tissue.name!r} contains normalized values; medians need counts"
            )
        organisms.add(tissue.organism)
        counts, position = _union_columns(union, tissue)
        n_values = np.diff(counts.indptr)
        row = np.repeat(np.arange(tissue.n_cells), n_values)
        share = counts.data / tissue.total_counts[row]
        gene = position[counts.indices]
        is_named = gene >= 0
        medians.add(gene[is_named], share[is_named])
    return union, medians.result(len(union.gene_ids)), organisms


def _union_columns(union: GeneUnion, tissue: Counted) -> tuple[sp.csr_matrix, Ints]:
    """Return counts of a slice, one column a gene, and the position of each column in the union."""
    ids = tissue.gene_ids.tolist()
    symbols = tissue.gene_symbols.tolist()
    positions = []
    for gene, symbol in zip(ids, symbols, strict=True):
        positions.append(union.place(gene, symbol))
    position = np.asarray(positions, dtype=np.int64)
    distinct, column = np.unique(position, return_inverse=True)
    if len(distinct) == len(position):
        return tissue.counts, position
    return merge_columns(tissue.counts, column, len(distinct)), distinct
