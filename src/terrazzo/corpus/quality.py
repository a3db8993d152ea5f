"""What a slice must be to enter a corpus: enough genes and cells, genes of one organism, and not there already."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo.corpus.checksums import hash_json
from terrazzo.errors import ConfigError, GeneError, InputError
from terrazzo.genes import load_orthologs
from terrazzo.genes.names import ensembl_id, find_organism, read_gene_names
from terrazzo.slices import Slice
from terrazzo.sparse import merge_columns

_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class QualityControl:
    """Which cells and slices are kept.

    Attributes
    ----------
    min_genes
        Expressed genes that a cell needs (SToFM, section 4.1: 100), before ortholog mapping.
    min_cells
        Cells that a slice needs after that.
    """

    min_genes: int = 100
    min_cells: int = 1

    def __post_init__(self) -> None:
        if self.min_genes < 0 or self.min_cells < 1:
            raise ConfigError("quality control: min_genes must be at least 0, and min_cells at least 1.")

    def keep(self, piece: Slice) -> np.ndarray:
        """Say which cells stay, bool (n_cells,)."""
        return np.asarray(np.diff(piece.counts.indptr) >= self.min_genes)

    def reason(self, n_kept: int, n_cells: int) -> str:
        """Say why a slice of which so many cells stay is left out, "" if it is not."""
        if n_kept >= self.min_cells:
            return ""
        return (
            f"{n_kept:,} of {n_cells:,} cells have at least {self.min_genes} expressed genes; "
            f"a slice needs {self.min_cells:,}"
        )


@dataclass(frozen=True)
class Orthologs:
    """One-to-one pairs of genes, from those of other organisms to those of the corpus.

    Attributes
    ----------
    pairs
        Source gene -> gene of the corpus, ids without version or symbols.
    organism
        Organism of the genes of the corpus.
    """

    pairs: Mapping[str, str]
    organism: str

    @classmethod
    def from_table(cls, table: Mapping[str, str] | pd.DataFrame | str | os.PathLike[str]) -> Orthologs:
        """Take the one-to-one pairs of a dict, a two-column table or a file of one (see ``genes.load_orthologs``).

        Raises
        ------
        InputError
            Not such a table, no one-to-one pair, or targets that do not tell human from mouse.
        """
        if isinstance(table, str | os.PathLike):
            table = load_orthologs(table)
        frame = pd.DataFrame(list(table.items())) if isinstance(table, Mapping) else table
        if not isinstance(frame, pd.DataFrame) or frame.shape[1] != 2:
            raise InputError("orthologs must be a dict or a two-column table (slice gene, gene of the corpus)")
        frame = frame.set_axis(["source", "target"], axis=1).dropna().astype(str).map(lambda s: ensembl_id(s) or s)
        frame = frame.drop_duplicates()
        once = ~frame["source"].duplicated(keep=False) & ~frame["target"].duplicated(keep=False)
        pairs = dict(zip(frame.loc[once, "source"], frame.loc[once, "target"], strict=True))
        names = read_gene_names(pd.DataFrame(index=pd.Index(list(pairs.values()), dtype=object)))
        organism = find_organism(pd.DataFrame(), {}, names) if pairs else "unknown"
        if organism not in ("human", "mouse"):
            raise InputError(
                f"orthologs: {len(pairs)} one-to-one pairs whose second column reads as {organism} genes; "
                "give pairs from the slices' genes to human (or mouse) genes"
            )
        return cls(pairs, organism)

    def content_hash(self) -> str:
        """Return the sha256 (hex) of the pairs."""
        return hash_json([sorted(self.pairs.items()), self.organism])

    def apply(self, piece: Slice) -> tuple[Slice, str]:
        """Return the slice on genes of the corpus, and what was lost; genes without one-to-one ortholog are left out.

        Raises
        ------
        GeneError
            No gene of the slice is in the table.
        """
        names = zip(piece.gene_ids.tolist(), piece.gene_symbols.tolist(), strict=True)
        target = [self.pairs.get(gene, "") or self.pairs.get(symbol, "") for gene, symbol in names]
        known = np.flatnonzero([name != "" for name in target])
        if not len(known):
            raise GeneError(f"none of its {piece.n_genes} genes ({piece.organism}) is in the ortholog table")
        kept = sorted({target[i] for i in known})
        place = {name: at for at, name in enumerate(kept)}
        column = np.asarray([place[target[i]] for i in known], dtype=np.int64)
        counts = merge_columns(sp.csr_matrix(piece.counts[:, known]), column, len(kept))
        ids = np.asarray([ensembl_id(name) for name in kept], dtype=np.str_)
        symbols = np.asarray(["" if ensembl_id(name) else name for name in kept], dtype=np.str_)
        share = float(counts.sum()) / max(1.0, float(piece.counts.sum()))
        note = (
            f"{len(known)} of {piece.n_genes} {piece.organism} genes have a one-to-one {self.organism} ortholog, "
            f"holding {share:.1%} of the counts; the others are left out"
        )
        return replace(piece, counts=counts, gene_ids=ids, gene_symbols=symbols, organism=self.organism), note


def fingerprint(piece: Slice) -> str:
    """Return a sha256 (hex) of counts and native coordinates that does not depend on the order of cells or genes.

    Gene names do not count, so that a slice is known again where one database has symbols and another ids.
    """
    rows = _row_hashes(piece.counts)
    for axis in (0, 1):
        bits = (piece.native_coords[:, axis].astype(np.float32) + np.float32(0)).view(np.uint32)
        rows = _mix(rows ^ _mix(bits.astype(np.uint64) + np.uint64(axis + 1)))
    return hashlib.sha256(np.sort(rows).astype("<u8").tobytes()).hexdigest()


def _row_hashes(counts: sp.csr_matrix) -> np.ndarray:
    """Hash the set of values of each row, uint64 (n,)."""
    rows = np.empty(counts.shape[0], dtype=np.uint64)
    pointer = counts.indptr.astype(np.int64)
    start = 0
    while start < len(rows):
        stop = int(np.searchsorted(pointer, pointer[start] + _BLOCK_VALUES, side="right")) - 1
        stop = min(max(stop, start + 1), len(rows))
        values = counts.data[pointer[start] : pointer[stop]].astype(np.float64).view(np.uint64)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(values), dtype=np.uint64)])
        at = pointer[start : stop + 1] - pointer[start]
        rows[start:stop] = total[at[1:]] - total[at[:-1]] + np.diff(at).astype(np.uint64)
        start = stop
    return _mix(rows)


def _mix(value: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of splitmix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
