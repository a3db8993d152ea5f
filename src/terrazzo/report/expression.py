"""Genes of a page: which it holds, and their values in few bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from terrazzo.arrays import AnyFloats, Ints
from terrazzo.errors import did_you_mean
from terrazzo.expression import PAPER_TOTAL, log_values, spatial_autocorrelation, variance
from terrazzo.plot.figures import scale_of
from terrazzo.report.packing import FINE, Blocks, smallest
from terrazzo.slices import Slice

__all__ = ["Chosen", "choose", "default_number", "find", "hint", "names_of", "pack"]

VALUES = 10_000_000  # of genes in one slice, at most
ALL_VALUES = 3_000_000  # up to which all genes are held where no number is given
DEFAULT = 100  # genes of a larger slice
LEAST = 10  # genes, however many cells
POOL_VALUES = 20_000_000  # values whose agreement with the neighbors is computed, at most
POOL_GENES = 1000
SAMPLE = 5_000  # cells that tell which genes vary
MAX_COUNT = 2**32 - 1


@dataclass(frozen=True)
class Chosen:
    """Columns of the slice that the page holds, in its order; how they were chosen, in words."""

    columns: list[int]
    how: str


def names_of(tissue: Slice) -> list[str]:
    """Return one name for each gene: its symbol, else its id; a symbol that repeats is followed by the id."""
    ids = tissue.gene_ids.tolist()
    symbols = tissue.gene_symbols.tolist()
    names = [symbol or id for symbol, id in zip(symbols, ids, strict=True)]
    counts = Counter(names)
    for column, id in enumerate(ids):
        name = names[column]
        if counts[name] > 1 and id:
            names[column] = f"{name} ({id})"
    return names


def find(tissue: Slice, wanted: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the columns of genes by symbol or id, and the names that the slice does not have."""
    columns: dict[str, int] = {}
    ids = tissue.gene_ids.tolist()
    symbols = tissue.gene_symbols.tolist()
    for names in (ids, symbols, names_of(tissue)):
        first: dict[str, int] = {}
        for column, name in enumerate(names):
            if name:
                first.setdefault(name, column)
        columns.update(first)
    present = []
    missing = []
    for name in wanted:
        if name in columns:
            present.append(columns[name])
        else:
            missing.append(name)
    return present, missing


def hint(tissue: Slice, name: str) -> str:
    """Name the gene that was likely meant."""
    return did_you_mean(name, names_of(tissue))


def default_number(tissue: Slice) -> int:
    """Return how many genes a page holds where nobody says: all where that is little, else 100."""
    is_little = tissue.n_cells * tissue.n_genes <= ALL_VALUES
    return tissue.n_genes if is_little else DEFAULT


def choose(tissue: Slice, n_genes: int, wanted: Sequence[int], seed: int = 0) -> Chosen:
    """Choose the genes of a page: those wanted, then of the most variable those that follow the tissue most.

    Parameters
    ----------
    tissue
        The slice.
    n_genes
        Genes in all; fewer where cells are many (10 million values).
    wanted
        Columns that are taken whatever they are.
    seed
        Of the 5,000 cells that tell which genes vary.
    """
    affordable = max(LEAST, VALUES // tissue.n_cells)
    n = min(n_genes, affordable, tissue.n_genes)
    first = list(dict.fromkeys(wanted))
    if n >= tissue.n_genes:
        rest = _others(range(tissue.n_genes), first)
        return Chosen(first + rest, f"all {tissue.n_genes:,} genes")
    if n <= len(first):
        return Chosen(first, "those asked for")
    variable = _most_variable(tissue, n, seed)
    counts = sparse.csr_matrix(tissue.counts[:, variable])
    values = _shown(tissue, counts, slice(None))
    agreement = spatial_autocorrelation(values, tissue.coords)
    order = np.argsort(-agreement, kind="stable")
    best = _others(variable[order].tolist(), first)
    n_best = n - len(first)
    best = best[:n_best]
    how = (
        f"of the {len(variable):,} most variable genes the {len(best):,} whose value says most about their "
        "neighbors'"
    )
    if first:
        how = f"those asked for ({len(first)}), and {how}"
    return Chosen(first + best, how)


def _others(columns: Iterable[int], first: Sequence[int]) -> list[int]:
    known = set(first)
    return [column for column in columns if column not in known]


def _most_variable(tissue: Slice, n: int, seed: int) -> Ints:
    """Return the columns of the most variable genes of some cells, more than ``n``, in order."""
    rng = np.random.default_rng(seed)
    size = min(SAMPLE, tissue.n_cells)
    rows = np.sort(rng.choice(tissue.n_cells, size, replace=False))
    values = _shown(tissue, tissue.counts[rows], rows)
    spread = np.asarray(variance(values), dtype=np.float64)
    affordable = min(POOL_GENES, POOL_VALUES // tissue.n_cells)
    n_varying = int((spread > 0).sum())
    n_pool = min(max(2 * n, affordable), n_varying)
    order = np.argsort(-spread, kind="stable")
    return np.sort(order[:n_pool])


def pack(tissue: Slice, columns: Sequence[int], blocks: Blocks) -> list[dict[str, Any]]:
    """Pack the values of genes: counts as they are, other numbers in 65,536 steps; with the ends of their colors."""
    names = names_of(tissue)
    chosen = tissue.counts[:, list(columns)]
    counts = sparse.csc_matrix(chosen)
    out = []
    for place, column in enumerate(columns):
        values = counts[:, place].toarray()
        packed = _packed(tissue, values.ravel(), blocks)
        out.append({"name": names[column], **packed})
    return out


def _packed(tissue: Slice, values: AnyFloats, blocks: Blocks) -> dict[str, Any]:
    most = values.max(initial=0)
    are_whole = not (values % 1).any()
    if tissue.is_counts and are_whole and most <= MAX_COUNT:
        unit = 1.0
    else:
        unit = float(most) / FINE or 1.0
    steps = np.rint(values / unit).astype(np.uint32)
    column = sparse.csr_matrix(values[:, None])
    shown = _shown(tissue, column, slice(None)).toarray()
    scale = scale_of(shown.ravel().astype(np.float64))
    kind = smallest(steps)
    packed: dict[str, Any] = {**blocks.numbers(steps, kind)}
    packed["unit"] = unit
    packed["low"] = scale.vmin
    packed["high"] = scale.vmax
    return packed


def _shown(tissue: Slice, counts: sparse.csr_matrix, rows: Any) -> sparse.csr_matrix:
    """Return values as they are colored: log1p of counts per 10,000; normalized values as they are."""
    if not tissue.is_counts:
        return counts
    return log_values(counts, PAPER_TOTAL, tissue.total_counts[rows])
