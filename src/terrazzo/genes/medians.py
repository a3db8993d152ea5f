"""Non-zero medians of normalized expression over many slices, in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from terrazzo.errors import InputError
from terrazzo.genes.matching import Counted
from terrazzo.sparse import merge_columns

EXACT_VALUES = 2**25
"""Up to so many non-zero values (0.3 GB) the medians are exact (to float32); beyond, within 0.7 % (log-spaced bins)."""

_BINS = 1024
_LOW, _HIGH = -6.0, 0.0  # log10 of a share of the cell's counts


class NonZeroMedians:
    """Medians of the non-zero values of many genes, seen in any number of parts.

    Parameters
    ----------
    exact_values
        Keep all values up to so many; then count them in 1,024 log-spaced bins from 1e-6 to 1.
    """

    def __init__(self, exact_values: int = EXACT_VALUES) -> None:
        self._limit = exact_values
        self._kept: list[
            np.ndarray
        ] = []  # uint64: gene in the high half, bits of the float32 value in the low one
        self._n_kept = 0
        self._histogram: np.ndarray | None = None

    def add(self, gene: np.ndarray, value: np.ndarray) -> None:
        """Add values, float in (0, 1], of genes, int, both (k,)."""
        bits = np.ascontiguousarray(value, dtype=np.float32).view(
            np.uint32
        )  # positive floats sort as their bits do
        self._kept.append((gene.astype(np.uint64) << np.uint64(32)) | bits)
        self._n_kept += len(gene)
        if self._n_kept > self._limit:
            self._to_bins()

    def result(self, n_genes: int) -> np.ndarray:
        """Medians, float64 (n_genes,); NaN for genes without a value."""
        if self._histogram is not None:
            self._to_bins()
            return _histogram_medians(self._histogram, n_genes)
        medians = np.full(n_genes, np.nan)
        if self._kept:
            gene, value = _unpack(np.sort(np.concatenate(self._kept)))
            present, start, n = np.unique(gene, return_index=True, return_counts=True)
            medians[present] = (value[start + (n - 1) // 2] + value[start + n // 2]) / 2
        return medians

    def _to_bins(self) -> None:
        for part in self._kept:
            if not len(part):
                continue
            gene, value = _unpack(part)
            place = (np.log10(value) - _LOW) / (_HIGH - _LOW) * _BINS
            column = np.clip(place.astype(np.int64), 0, _BINS - 1)
            n_genes = int(gene.max()) + 1
            flat = np.bincount(gene * _BINS + column, minlength=n_genes * _BINS)
            seen = flat.reshape(n_genes, _BINS)
            old = self._histogram
            if old is None:
                self._histogram = seen
            elif len(old) >= n_genes:
                old[:n_genes] += seen
            else:
                seen[: len(old)] += old
                self._histogram = seen
        self._kept, self._n_kept = [], 0


def _unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    value = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    return (packed >> np.uint64(32)).astype(np.int64), value.astype(np.float64)


def _histogram_medians(histogram: np.ndarray, n_genes: int) -> np.ndarray:
    medians = np.full(n_genes, np.nan)
    total = histogram.sum(axis=1)
    below = np.cumsum(histogram, axis=1)
    places = [(below > rank[:, None]).argmax(axis=1) for rank in ((total - 1) // 2, total // 2)]
    low, high = (10 ** (_LOW + (place + 0.5) / _BINS * (_HIGH - _LOW)) for place in places)
    center = (low + high) / 2
    medians[: len(total)] = np.where(total > 0, center, np.nan)
    return medians


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
        if gene in self.by_id:
            at = self.by_id[gene]
        elif symbol in self.by_symbol and (not gene or not self.gene_ids[self.by_symbol[symbol]]):
            at = self.by_symbol[symbol]
        elif gene or symbol:
            at = len(self.gene_ids)
            self.gene_ids.append("")
            self.gene_symbols.append("")
        else:
            return -1
        if gene and not self.gene_ids[at]:
            self.gene_ids[at] = gene
            self.by_id[gene] = at
        if symbol and not self.gene_symbols[at]:
            self.gene_symbols[at] = symbol
        if symbol:
            self.by_symbol.setdefault(symbol, at)
        return at


def survey(
    slices: Iterable[Counted], exact_values: int = EXACT_VALUES
) -> tuple[GeneUnion, np.ndarray, set[str]]:
    """Go once through the slices: the union of their genes, their medians (share of a cell's counts), the organisms.

    Raises
    ------
    InputError
        A slice that does not hold counts.
    """
    union, medians, organisms = GeneUnion.empty(), NonZeroMedians(exact_values), set()
    for piece in slices:
        if not piece.is_counts:
            raise InputError(f"slice {piece.name!r} holds normalized values; medians need counts")
        organisms.add(piece.organism)
        names = zip(piece.gene_ids.tolist(), piece.gene_symbols.tolist(), strict=True)
        column = np.asarray([union.place(gene, symbol) for gene, symbol in names], dtype=np.int64)
        counts = piece.counts
        if len(np.unique(column)) < len(column):
            places, inverse = np.unique(column, return_inverse=True)
            counts, column = merge_columns(counts, inverse, len(places)), places
        row = np.repeat(np.arange(piece.n_cells), np.diff(counts.indptr))
        gene = column[counts.indices]
        named = gene >= 0
        medians.add(gene[named], (counts.data / piece.total_counts[row])[named])
    return union, medians.result(len(union.gene_ids)), organisms
