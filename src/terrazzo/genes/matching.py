"""What the gene rooms need to know of a slice and of a vocabulary, so that they need not know either itself."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo.errors import CheckpointError, GeneError, InputError, TerrazzoWarning
from terrazzo.genes.names import ensembl_id
from terrazzo.safe_pickle import safe_unpickle


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
        """False for normalized values."""

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


GeneTable: TypeAlias = Mapping[str, Any] | pd.DataFrame | str | os.PathLike[str]


"""Pairs of genes: a dict, a two-column DataFrame, or the path of a .csv, .tsv, .parquet or .pkl file."""


_WAYS = ("ensembl", "symbol", "symbol_case", "alias", "ortholog")


_N_EXAMPLES = 5


@dataclass(frozen=True)
class Coverage:
    """How much of a slice a vocabulary knows.

    Attributes
    ----------
    n_genes, n_matched, n_unmatched
        Genes of the slice.
    share_counts
        Share of all counts of the slice that fall on matched genes (0 for a slice without counts).
    min_cell_share
        Smallest such share over the cells that have counts (0 if none has).
    n_empty_after
        Cells without a count on any matched gene.
    n_merged
        Matched genes beyond the first of each token: their counts are summed.
    by
        Way of matching -> number of genes: ensembl, symbol, symbol_case, alias, ortholog.
    unmatched_examples
        The unmatched genes with most counts, at most five.
    n_ortholog_lost
        Genes of the slice dropped because their orthologs are not one-to-one.
    """

    n_genes: int
    n_matched: int
    n_unmatched: int
    share_counts: float
    min_cell_share: float
    n_empty_after: int
    n_merged: int
    by: dict[str, int] = field(default_factory=dict)
    unmatched_examples: tuple[str, ...] = ()
    n_ortholog_lost: int = 0

    def __str__(self) -> str:
        """Return one paragraph for people."""
        ways = ", ".join(f"{n} by {way}" for way, n in self.by.items() if n) or "none"
        parts = [
            f"{self.n_matched} of {self.n_genes} genes matched ({ways}), holding {self.share_counts:.1%} of the counts",
            f"the least covered cell keeps {self.min_cell_share:.1%}",
        ]
        if self.n_empty_after:
            parts.append(f"{self.n_empty_after} cells have no matched counts")
        if self.n_merged:
            parts.append(f"{self.n_merged} genes share a token with another and are summed")
        if self.n_ortholog_lost:
            parts.append(f"{self.n_ortholog_lost} genes lost to orthologs that are not one-to-one")
        if self.unmatched_examples:
            parts.append(f"unmatched, e.g. {', '.join(self.unmatched_examples)}")
        return "; ".join(parts) + "."

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**dataclasses.asdict(self), "unmatched_examples": list(self.unmatched_examples)}


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Token and median of every gene (column) of a slice.

    Attributes
    ----------
    column_token
        int32 (n_genes,), -1 where unmatched. Two columns may have one token: sum their counts.
    column_median
        float64 (n_genes,), the vocabulary's non-zero median; 1.0 where unmatched.
    coverage
        The report.
    """

    column_token: np.ndarray
    column_median: np.ndarray
    coverage: Coverage


def match_genes(
    vocabulary: GeneBook, piece: Counted, orthologs: GeneTable | None, aliases: GeneTable | None
) -> GeneMatch:
    """Match every gene of a slice; see ``Vocabulary.match`` for the order. Raises no error for a low coverage."""
    row = np.full(piece.n_genes, -1, dtype=np.int64)
    by = dict.fromkeys(_WAYS, 0)
    names = list(zip(piece.gene_ids.tolist(), piece.gene_symbols.tolist(), strict=True))
    by_id = _index(vocabulary.ensembl_id.tolist())
    by_symbol = _index(vocabulary.symbol.tolist())
    by_upper = _index([symbol.upper() for symbol in vocabulary.symbol.tolist()], unique=True)

    def apply(way: str, find: Callable[[str, str], int]) -> None:
        for column in np.flatnonzero(row < 0).tolist():
            found = find(*names[column])
            if found >= 0:
                row[column] = found
                by[way] += 1

    def target(name: str) -> int:
        return by_id.get(ensembl_id(name) or name, by_symbol.get(name, -1))

    def through(table: Mapping[str, str]) -> Callable[[str, str], int]:
        return lambda gene, symbol: target(table.get(gene, "") or table.get(symbol, ""))

    pair = (piece.organism, vocabulary.organism)
    foreign = pair in (("mouse", "human"), ("human", "mouse"))
    n_lost = 0
    apply("ensembl", lambda gene, _: by_id.get(gene, -1))
    if foreign and orthologs is not None:
        one_to_one, lost = _one_to_one(_pairs(orthologs, "orthologs"))
        apply("ortholog", through(one_to_one))
        n_lost = sum(
            row[i] < 0 and (gene in lost or symbol in lost)
            for i, (gene, symbol) in enumerate(names)
        )
    elif foreign:
        _warn_letter_case(*pair)
        apply("symbol_case", lambda _, symbol: by_upper.get(symbol.upper(), -1))
    elif piece.organism == "mixed" and vocabulary.organism != "mixed":
        _warn_mixed(vocabulary.organism)
        other = "ENSMUSG" if vocabulary.organism == "human" else "ENSG"
        apply(
            "symbol",
            lambda gene, symbol: -1 if gene.startswith(other) else by_symbol.get(symbol, -1),
        )
    else:
        apply("symbol", lambda _, symbol: by_symbol.get(symbol, -1))
        apply("symbol_case", lambda _, symbol: by_upper.get(symbol.upper(), -1))
    if aliases is not None:
        apply("alias", through(_unambiguous(_pairs(aliases, "aliases"))))
    token = np.where(row >= 0, vocabulary.token[row], -1).astype(np.int32)
    median = np.where(row >= 0, vocabulary.median[row], 1.0)
    return GeneMatch(token, median, _coverage(piece, row, by, n_lost))


def check_floor(
    match: GeneMatch, vocabulary: GeneBook, piece: Counted, floor: float, min_genes: int
) -> None:
    """Raise ``GeneError`` where too few genes or counts of the slice are known."""
    coverage = match.coverage
    needed = min(min_genes, piece.n_genes)
    has_counts = bool(piece.counts.nnz)
    if coverage.n_matched >= needed and (coverage.share_counts >= floor or not has_counts):
        return
    theirs = ", ".join(coverage.unmatched_examples[:3]) or "none"
    ours = ", ".join(_shown(gene, symbol) for gene, symbol in _first_genes(vocabulary, 3))
    column = 'a gene id column, e.g. adata.var["ensembl_id"]'
    if not (vocabulary.ensembl_id != "").any():
        column = 'a column of symbols, e.g. adata.var["gene_symbols"]: this vocabulary knows no Ensembl ids'
    raise GeneError(
        f"slice {piece.name!r} ({piece.organism}) does not meet the vocabulary ({vocabulary.organism}): "
        f"{coverage.n_matched} of {coverage.n_genes} genes matched, {coverage.share_counts:.1%} of the counts covered "
        f"(needed: {needed} genes and {floor:.0%}). Unmatched genes of the slice: {theirs}; genes of the vocabulary: "
        f"{ours}. Mend: pass the right organism= (--organism) when reading; for another species pass orthologs= "
        "(--orthologs: slice gene -> vocabulary gene, with the same kind of names as the slice); or add "
        f"{column}."
    )


def _first_genes(vocabulary: GeneBook, n: int) -> list[tuple[str, str]]:
    return list(
        zip(vocabulary.ensembl_id[:n].tolist(), vocabulary.symbol[:n].tolist(), strict=True)
    )


def _shown(gene: str, symbol: str) -> str:
    return f"{symbol} ({gene})" if gene and symbol else symbol or gene or "(no name)"


def _warn_letter_case(mine: str, theirs: str) -> None:
    warnings.warn(
        f"{mine} genes are matched to the {theirs} vocabulary by symbol without regard to case (Ace2 = ACE2), which "
        "only approximates one-to-one orthologs; pass orthologs= (a two-column table: slice gene, vocabulary gene)",
        TerrazzoWarning,
        stacklevel=5,
    )


def _warn_mixed(organism: str) -> None:
    warnings.warn(
        f"the slice mixes human and mouse genes; only its {organism} genes can match this vocabulary",
        TerrazzoWarning,
        stacklevel=5,
    )


def _index(names: list[str], unique: bool = False) -> dict[str, int]:
    """Name -> first position; with ``unique`` names that occur twice are left out."""
    found: dict[str, int] = {}
    repeated: set[str] = set()
    for position, name in enumerate(names):
        if name and name in found:
            repeated.add(name)
        elif name:
            found[name] = position
    return {name: at for name, at in found.items() if name not in repeated} if unique else found


def _coverage(piece: Counted, row: np.ndarray, by: dict[str, int], n_lost: int) -> Coverage:
    known = row >= 0
    matched = np.asarray(piece.counts @ known.astype(np.float64)).ravel()
    total = piece.total_counts
    filled = total > 0
    per_gene = np.bincount(piece.counts.indices, weights=piece.counts.data, minlength=piece.n_genes)
    unmatched = np.flatnonzero(~known)
    top = unmatched[np.argsort(-per_gene[unmatched], kind="stable")[:_N_EXAMPLES]]
    examples = tuple(_shown(str(piece.gene_ids[i]), str(piece.gene_symbols[i])) for i in top)
    n_matched = int(known.sum())
    return Coverage(
        n_genes=piece.n_genes,
        n_matched=n_matched,
        n_unmatched=piece.n_genes - n_matched,
        share_counts=float(matched.sum() / total.sum()) if filled.any() else 0.0,
        min_cell_share=float((matched[filled] / total[filled]).min()) if filled.any() else 0.0,
        n_empty_after=int((matched == 0).sum()),
        n_merged=n_matched - len(np.unique(row[known])),
        by=by,
        unmatched_examples=examples,
        n_ortholog_lost=int(n_lost),
    )


def load_orthologs(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a two-column table of genes: slice gene -> vocabulary gene.

    Parameters
    ----------
    path
        ``.csv`` or ``.tsv`` (with a header line, unless its first line holds Ensembl ids), ``.parquet``, or ``.pkl`` (a
        dict, e.g. SToFM's ``mouseid2humanid.pkl``, read without running anything in it).

    Returns
    -------
    pandas.DataFrame
        str columns ``source``, ``target``; Ensembl versions stripped, incomplete rows left out.

    Raises
    ------
    InputError
        Missing, unreadable or unknown kind of file, or not two columns.
    CheckpointError
        A pickle that is damaged or holds more than containers and numbers.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(
            f"{path} does not exist or is not a file; pass a .csv, .tsv, .parquet or .pkl table"
        )
    if suffix in (".pkl", ".pickle"):
        content = safe_unpickle(path)
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, not a dict of gene -> gene"
            )
        return _pairs(content, str(path))
    try:
        if suffix == ".parquet":
            return _pairs(pd.read_parquet(path), str(path))
        if suffix in (".csv", ".tsv", ".txt"):
            lines = pd.read_csv(path, sep="," if suffix == ".csv" else "\t", header=None, dtype=str)
            headless = any(ensembl_id(str(name)) for name in lines.iloc[0])
            return _pairs(lines if headless else lines.iloc[1:], str(path))
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        IndexError,
    ) as error:  # pandas and pyarrow errors are ValueErrors or OSErrors
        raise InputError(f"{path} cannot be read as a table: {error}") from error
    raise InputError(f"{path}: a gene table is .csv, .tsv, .parquet or .pkl")


def _pairs(table: GeneTable, what: str) -> pd.DataFrame:
    """Return distinct (source, target) pairs of names."""
    if isinstance(table, str | os.PathLike):
        return load_orthologs(table)
    if isinstance(table, Mapping):
        rows = [
            (key, one)
            for key, value in table.items()
            for one in (value if _is_many(value) else (value,))
        ]
        frame = pd.DataFrame(rows, columns=["source", "target"], dtype=object)
    elif isinstance(table, pd.DataFrame) and table.shape[1] == 2:
        frame = table.set_axis(["source", "target"], axis=1)
    else:
        shown = list(table.columns) if isinstance(table, pd.DataFrame) else type(table).__name__
        raise InputError(
            f"{what} must be a dict or a two-column table (slice gene, vocabulary gene), not {shown}"
        )
    frame = frame.dropna().astype(str)
    frame = frame.map(lambda name: ensembl_id(name) or name.strip())
    return frame[(frame["source"] != "") & (frame["target"] != "")].drop_duplicates(
        ignore_index=True
    )


def _is_many(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _one_to_one(pairs: pd.DataFrame) -> tuple[dict[str, str], set[str]]:
    """Split the pairs into one-to-one ones and the sources of all others."""
    once = ~pairs["source"].duplicated(keep=False) & ~pairs["target"].duplicated(keep=False)
    used = pairs[once]
    return dict(zip(used["source"], used["target"], strict=True)), set(pairs.loc[~once, "source"])


def _unambiguous(pairs: pd.DataFrame) -> dict[str, str]:
    used = pairs[~pairs["source"].duplicated(keep=False)]
    return dict(zip(used["source"], used["target"], strict=True))
