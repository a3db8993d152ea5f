"""The genes that a page holds: which, and their values in few bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.errors import did_you_mean
from terrazzo.expression import PAPER_TOTAL, log_values, spatial_autocorrelation, variance
from terrazzo.plot.figures import scale_of
from terrazzo.report.packing import FINE, Blocks, smallest
from terrazzo.slices import Slice

VALUES = 10_000_000  # of genes in one slice, at most
LEAST = 10  # genes, however many cells
_DENSE = 20_000_000  # values that are looked at for the neighbors' agreement
_SAMPLE = 5_000  # cells that tell which genes vary
_MOST_COUNT = 2**32 - 1


@dataclass(frozen=True)
class Chosen:
    """Columns of the slice that are kept, in the order of the page; how they were chosen, in words."""

    columns: list[int]
    how: str


def names_of(tissue: Slice) -> list[str]:
    """Return one name for each gene: its symbol, else its id; a symbol that repeats is followed by the id."""
    plain = [
        symbol or id
        for symbol, id in zip(tissue.gene_symbols.tolist(), tissue.gene_ids.tolist(), strict=True)
    ]
    seen: dict[str, int] = {}
    for name in plain:
        seen[name] = seen.get(name, 0) + 1
    ids = tissue.gene_ids.tolist()
    return [
        f"{name} ({id})" if seen[name] > 1 and id else name
        for name, id in zip(plain, ids, strict=True)
    ]


def find(tissue: Slice, asked: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the columns of genes asked for by symbol or id, and the names that are not there."""
    place: dict[str, int] = {}
    for names in (tissue.gene_ids.tolist(), tissue.gene_symbols.tolist(), names_of(tissue)):
        place |= {name: column for column, name in reversed(list(enumerate(names))) if name}
    return [place[name] for name in asked if name in place], [
        name for name in asked if name not in place
    ]


def hint(tissue: Slice, name: str) -> str:
    """Name the gene that was likely meant."""
    return did_you_mean(name, names_of(tissue))


def choose(tissue: Slice, n_genes: int, asked: Sequence[int], seed: int = 0) -> Chosen:
    """Choose the genes of a page: those asked for, then of the most variable those that follow the tissue most.

    Parameters
    ----------
    tissue
        The slice.
    n_genes
        Genes in all; fewer where cells are many (10 million values).
    asked
        Columns that are taken whatever they are.
    seed
        Of the 5,000 cells that tell which genes vary.
    """
    n = min(n_genes, max(LEAST, VALUES // tissue.n_cells), tissue.n_genes)
    first = list(dict.fromkeys(asked))
    if n >= tissue.n_genes:
        rest = [column for column in range(tissue.n_genes) if column not in set(first)]
        return Chosen(first + rest, f"all {tissue.n_genes:,} genes")
    if n <= len(first):
        return Chosen(first, "those asked for")
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(tissue.n_cells, min(_SAMPLE, tissue.n_cells), replace=False))
    spread = np.asarray(variance(_shown(tissue, tissue.counts[some], some)), dtype=np.float64)
    pool = min(max(2 * n, min(1000, _DENSE // tissue.n_cells)), int((spread > 0).sum()))
    variable = np.sort(np.argsort(-spread, kind="stable")[:pool])
    values = _shown(tissue, sparse.csr_matrix(tissue.counts[:, variable]), slice(None))
    agreement = spatial_autocorrelation(values, tissue.coords)
    best = [
        int(column)
        for column in variable[np.argsort(-agreement, kind="stable")]
        if column not in set(first)
    ]
    best = best[: n - len(first)]
    how = f"of the {pool:,} most variable genes the {len(best):,} whose value says most about their neighbors'"
    return Chosen(first + best, f"those asked for ({len(first)}), and {how}" if first else how)


def pack(tissue: Slice, columns: Sequence[int], blocks: Blocks) -> list[dict[str, Any]]:
    """Keep the values of genes: counts as they are, other numbers in 65,536 steps; with the ends of their colors."""
    names, held = names_of(tissue), sparse.csc_matrix(tissue.counts[:, list(columns)])
    return [
        {"name": names[column], **_packed(tissue, held[:, place].toarray().ravel(), blocks)}
        for place, column in enumerate(columns)
    ]


def _packed(tissue: Slice, values: NDArray[np.floating], blocks: Blocks) -> dict[str, Any]:
    whole = tissue.is_counts and not (values % 1).any() and values.max(initial=0) <= _MOST_COUNT
    unit = 1.0 if whole else float(values.max(initial=0)) / FINE or 1.0
    steps = np.rint(values / unit).astype(np.uint32)
    column = sparse.csr_matrix(values[:, None])
    scale = scale_of(_shown(tissue, column, slice(None)).toarray().ravel().astype(np.float64))
    return {
        **blocks.numbers(steps, smallest(steps)),
        "unit": unit,
        "low": scale.vmin,
        "high": scale.vmax,
    }


def _shown(tissue: Slice, counts: sparse.csr_matrix, rows: Any) -> sparse.csr_matrix:
    """Values as they are colored: log1p of counts per 10,000; those that are no counts as they are."""
    return (
        log_values(counts, PAPER_TOTAL, tissue.total_counts[rows]) if tissue.is_counts else counts
    )
