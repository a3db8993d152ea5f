"""Match the genes of a slice to a vocabulary: by id, symbol, ortholog or alias, with a report of what is lost."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp

from terrazzo.arrays import Bools, Ints
from terrazzo.errors import CheckpointError, GeneError, InputError, TerrazzoWarning
from terrazzo.genes.names import ensembl_id
from terrazzo.genes.orthologs import Candidate, KnownGenes, PairFinder, candidates, shipped
from terrazzo.safe_pickle import safe_unpickle
from terrazzo.safe_tables import read_csv, read_parquet

if TYPE_CHECKING:
    from terrazzo.genes.vocabulary import Vocabulary

__all__ = [
    "Counted",
    "Coverage",
    "GeneMatch",
    "GeneTable",
    "check_floor",
    "load_orthologs",
    "match_genes",
    "warn_few",
]

GeneTable: TypeAlias = Mapping[str, Any] | pd.DataFrame | str | os.PathLike[str]
"""Pairs of genes: a dict, a two-column DataFrame, or the path of a .csv, .tsv, .parquet or .pkl file."""

FEW_GENES = 50  # shared by slice and vocabulary: fewer get a warning

_WAYS = ("ensembl", "symbol", "symbol_case", "alias", "ortholog")
_N_EXAMPLES = 5
_UNMATCHED = -1
_OTHER = {"human": "mouse", "mouse": "human"}


class Counted(Protocol):
    """What matching needs of a slice, its counts and gene names; :class:`terrazzo.Slice` has it."""

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


@dataclass(frozen=True)
class Coverage:
    """How much of a slice a vocabulary knows.

    Attributes
    ----------
    n_genes, n_matched, n_unmatched
        Genes of the slice.
    share_counts
        Share of all counts of the slice that are of matched genes (0 for a slice without counts).
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
    n_ortholog_shipped
        How many of those by ortholog come from the table of the library, not from ``orthologs``.
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
    n_ortholog_shipped: int = 0

    def __str__(self) -> str:
        """Return one paragraph for people."""
        ways = [f"{n} by {way}" for way, n in self.by.items() if n]
        parts = [
            f"{self.n_matched} of {self.n_genes} genes matched ({', '.join(ways) or 'none'}), "
            f"holding {self.share_counts:.1%} of the counts",
            f"the least covered cell keeps {self.min_cell_share:.1%}",
        ]
        if self.n_ortholog_shipped:
            parts.append(f"{self.n_ortholog_shipped} orthologs are of terrazzo's own table")
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
        content = dataclasses.asdict(self)
        content["unmatched_examples"] = list(self.unmatched_examples)
        return content


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
    vocabulary: Vocabulary,
    tissue: Counted,
    orthologs: GeneTable | None,
    aliases: GeneTable | None,
) -> GeneMatch:
    """Match every gene of a slice; see ``Vocabulary.match`` for the order. Raises no error for a low coverage."""
    pairs = None if orthologs is None else _pairs(orthologs, "orthologs")
    matcher = _Matcher(vocabulary, tissue)
    matcher.apply("ensembl", matcher.by_id)
    n_lost = 0
    if tissue.organism == _OTHER.get(vocabulary.organism):
        n_lost = _match_other_species(matcher, vocabulary, tissue, pairs)
    elif tissue.organism == "mixed" and vocabulary.organism != "mixed":
        _warn_mixed(vocabulary.organism)
        matcher.apply("symbol", matcher.by_symbol_of_organism)
    else:
        if tissue.organism == "unknown" and pairs is not None:
            n_lost = matcher.apply_table(pairs)
        matcher.apply("symbol", matcher.by_symbol)
        matcher.apply("symbol_case", matcher.by_symbol_case)
    if aliases is not None:
        matcher.apply("alias", matcher.through(_unambiguous(_pairs(aliases, "aliases"))))
    row = matcher.row
    token = np.where(row >= 0, vocabulary.token[row], _UNMATCHED)
    median = np.where(row >= 0, vocabulary.median[row], 1.0)
    coverage = _coverage(tissue, row, matcher.by, n_lost, matcher.n_shipped)
    return GeneMatch(token.astype(np.int32), median, coverage)


def _match_other_species(
    matcher: _Matcher, vocabulary: Vocabulary, tissue: Counted, pairs: pd.DataFrame | None
) -> int:
    """Match a mouse slice to human genes, or the reverse; return how many genes are not one-to-one."""
    if pairs is None:
        matcher.apply_shipped()
        _warn_orthologs(tissue, vocabulary.organism, matcher.by)
        return matcher.n_rivals
    without_table = _Matcher(vocabulary, tissue)
    without_table.apply("ensembl", without_table.by_id)
    without_table.apply_shipped()
    n_lost = matcher.apply_table(pairs)
    matcher.apply_shipped()
    matcher.fill(without_table)
    return n_lost


class _Matcher:
    """Rows of the vocabulary for the genes of a slice, found in one way after the other.

    Attributes
    ----------
    row
        int64 (n_genes,): row of the vocabulary, -1 while unmatched.
    way
        The way in which each gene was matched, "" while unmatched.
    n_shipped
        How many were matched by the orthologs of the library.
    """

    def __init__(self, vocabulary: Vocabulary, tissue: Counted) -> None:
        self.row = np.full(tissue.n_genes, _UNMATCHED, dtype=np.int64)
        self.way = [""] * tissue.n_genes
        self.n_shipped = 0
        self._rivals: set[int] = set()
        ids = tissue.gene_ids.tolist()
        symbols = tissue.gene_symbols.tolist()
        self._names: list[tuple[str, str]] = list(zip(ids, symbols, strict=True))
        self._organism = tissue.organism
        known_symbols = vocabulary.symbol.tolist()
        self._by_id = _first_positions(vocabulary.ensembl_id.tolist())
        self._by_symbol = _first_positions(known_symbols)
        self._by_upper = _only_positions([symbol.upper() for symbol in known_symbols])
        self._other_prefix = "ENSMUSG" if vocabulary.organism == "human" else "ENSG"
        self._vocabulary_organism = vocabulary.organism

    @property
    def by(self) -> dict[str, int]:
        """How many genes each way has matched."""
        return {way: self.way.count(way) for way in _WAYS}

    def apply(self, way: str, find: Callable[[str, str], int]) -> None:
        """Look for a row of every gene that has none, by its id and symbol."""
        for column in np.flatnonzero(self.row < 0).tolist():
            row = find(*self._names[column])
            if row >= 0:
                self.row[column] = row
                self.way[column] = way

    def apply_table(self, pairs: pd.DataFrame) -> int:
        """Match by the one-to-one pairs of a table; return how many genes without a row have others in it."""
        one_to_one, others = _one_to_one(pairs)
        finder = PairFinder(one_to_one, self._organism)
        genes = shipped().genes.get(self._vocabulary_organism)

        def find(gene: str, symbol: str) -> int:
            return self._row_of(finder.find(gene, symbol), genes)

        self.apply("ortholog", find)
        n_lost = 0
        for row, (gene, symbol) in zip(self.row.tolist(), self._names, strict=True):
            if row < 0 and not others.isdisjoint(finder.names(gene, symbol)):
                n_lost += 1
        return n_lost

    def apply_shipped(self) -> None:
        """Match by the orthologs of the library and by symbol in any case; an ortholog only takes a free row."""
        sure = []
        others = []
        for candidate in candidates(self._names, self._organism):
            if candidate.is_sure:
                sure.append(candidate)
            else:
                others.append(candidate)
        self._take_free_rows(sure)
        self.apply("symbol_case", self.by_symbol_case)
        self._take_free_rows(others)

    def _take_free_rows(self, orthologs: list[Candidate]) -> None:
        """Match genes to the first ortholog whose row is free."""
        taken = set(self.row.tolist())
        for ortholog in orthologs:
            column = ortholog.column
            if self.row[column] >= 0:
                continue
            row = self._by_id.get(ortholog.gene, _UNMATCHED)
            if row < 0:
                row = self._by_symbol.get(ortholog.symbol, _UNMATCHED)
            if row < 0:
                continue
            if row in taken:
                self._rivals.add(column)
            else:
                taken.add(row)
                self.row[column] = row
                self.way[column] = "ortholog"
                self.n_shipped += 1

    @property
    def n_rivals(self) -> int:
        """How many genes have no row because other genes took those of all their orthologs."""
        return sum(self.row[column] < 0 for column in self._rivals)

    def fill(self, other: _Matcher) -> None:
        """Take what another matcher of the same slice has for genes that have no row."""
        for column in np.flatnonzero((self.row < 0) & (other.row >= 0)).tolist():
            self.row[column] = other.row[column]
            self.way[column] = other.way[column]
            if other.way[column] == "ortholog":
                self.n_shipped += 1

    def by_id(self, gene: str, symbol: str) -> int:
        """Find a gene by its Ensembl id."""
        return self._by_id.get(gene, _UNMATCHED)

    def by_symbol(self, gene: str, symbol: str) -> int:
        """Find a gene by its symbol."""
        return self._by_symbol.get(symbol, _UNMATCHED)

    def by_symbol_of_organism(self, gene: str, symbol: str) -> int:
        """Find a gene by its symbol, unless its id is of the other organism."""
        if gene.startswith(self._other_prefix):
            return _UNMATCHED
        return self.by_symbol(gene, symbol)

    def by_symbol_case(self, gene: str, symbol: str) -> int:
        """Find a gene by its symbol, without regard to case."""
        return self._by_upper.get(symbol.upper(), _UNMATCHED)

    def through(self, table: Mapping[str, str]) -> Callable[[str, str], int]:
        """Return a way to find a gene by the name that a table has for its id or symbol."""

        def find(gene: str, symbol: str) -> int:
            return self._row_of(table.get(gene, "") or table.get(symbol, ""), None)

        return find

    def _row_of(self, name: str, genes: KnownGenes | None) -> int:
        """Return the row of a gene by id or symbol; with the genes of its organism, by its other name too."""
        gene = ensembl_id(name)
        row = self._by_id.get(gene or name)
        if row is None:
            row = self._by_symbol.get(name)
        if row is None and name and genes is not None:
            known = genes.find(gene, "" if gene else name)
            row = self._by_id.get(known, self._by_symbol.get(genes.symbol_of.get(known, "")))
        return _UNMATCHED if row is None else row


def check_floor(
    match: GeneMatch, vocabulary: Vocabulary, tissue: Counted, floor: float, min_genes: int
) -> None:
    """Raise ``GeneError`` where too few genes or counts of the slice are known."""
    coverage = match.coverage
    needed = min(min_genes, tissue.n_genes)
    has_counts = bool(tissue.counts.nnz)
    enough_counts = coverage.share_counts >= floor or not has_counts
    if coverage.n_matched >= needed and enough_counts:
        return
    unmatched = ", ".join(coverage.unmatched_examples[:3]) or "none"
    known = [
        _shown(gene, symbol)
        for gene, symbol in zip(vocabulary.ensembl_id[:3], vocabulary.symbol[:3], strict=True)
    ]
    if (vocabulary.ensembl_id != "").any():
        column = 'a gene id column, e.g. adata.var["ensembl_id"]'
    else:
        column = 'a column of symbols, e.g. adata.var["gene_symbols"]: this vocabulary knows no Ensembl ids'
    raise GeneError(
        f"slice {tissue.name!r} ({tissue.organism}) does not fit the vocabulary ({vocabulary.organism}): "
        f"{coverage.n_matched} of {coverage.n_genes} genes matched, {coverage.share_counts:.1%} of the counts covered "
        f"(needed: {needed} genes and {floor:.0%}). Unmatched genes of the slice: {unmatched}; genes of the "
        f"vocabulary: {', '.join(known)}. Fix: pass the right organism= (--organism) when reading; for a species "
        "that is neither human nor mouse pass orthologs= (--orthologs: slice gene -> vocabulary gene); or add "
        f"{column}."
    )


def warn_few(match: GeneMatch, vocabulary: Vocabulary, tissue: Counted) -> None:
    """Warn where a slice has fewer than 50 genes of a vocabulary, or than half of a smaller one."""
    coverage = match.coverage
    n_shared = coverage.n_matched - coverage.n_merged
    n_enough = min(FEW_GENES, len(vocabulary) // 2)
    if n_shared >= n_enough:
        return
    message = (
        f"slice {tissue.name!r}: only {n_shared} of its {coverage.n_genes:,} genes are among the "
        f"{len(vocabulary):,} of the model ({coverage.share_counts:.1%} of the counts), fewer than {n_enough}: compare "
        "its vectors with a baseline's"
    )
    warnings.warn(message, TerrazzoWarning, stacklevel=4)


def _shown(gene: str, symbol: str) -> str:
    """Return the names of a gene for messages."""
    if gene and symbol:
        return f"{symbol} ({gene})"
    return str(symbol or gene or "(no name)")


def _warn_orthologs(tissue: Counted, vocabulary_organism: str, by: dict[str, int]) -> None:
    """Say that genes of another organism were matched, how, and how many."""
    text = (
        f"slice {tissue.name!r}: {tissue.organism} genes are matched to the {vocabulary_organism} vocabulary through "
        f"orthologs of Ensembl, a table that comes with terrazzo: {by['ortholog']} of {tissue.n_genes} genes"
    )
    n_case = by["symbol_case"]
    if n_case:
        text += f"; {n_case} more by symbol without regard to case, which only approximates one-to-one orthologs"
    warnings.warn(
        f"{text}; pass orthologs= (a two-column table: slice gene, vocabulary gene) for pairs of your own",
        TerrazzoWarning,
        stacklevel=6,
    )


def _warn_mixed(organism: str) -> None:
    warnings.warn(
        f"the slice mixes human and mouse genes; only its {organism} genes can match this vocabulary",
        TerrazzoWarning,
        stacklevel=5,
    )


def _first_positions(names: list[str]) -> dict[str, int]:
    """Return the first position of each name."""
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        if name:
            positions.setdefault(name, position)
    return positions


def _only_positions(names: list[str]) -> dict[str, int]:
    """Return the position of each name that occurs once."""
    positions = _first_positions(names)
    for position, name in enumerate(names):
        if name in positions and positions[name] != position:
            del positions[name]
    return positions


def _coverage(
    tissue: Counted, row: Ints, by: dict[str, int], n_lost: int, n_shipped: int
) -> Coverage:
    """Measure what is matched: row of each gene in the vocabulary, genes by way, lost to and by own orthologs."""
    is_matched = row >= 0
    n_matched = int(is_matched.sum())
    n_tokens = len(np.unique(row[is_matched]))
    matched_counts = np.asarray(tissue.counts @ is_matched.astype(np.float64)).ravel()
    total = tissue.total_counts
    has_counts = total > 0
    share_counts = 0.0
    min_cell_share = 0.0
    if has_counts.any():
        share_counts = float(matched_counts.sum() / total.sum())
        cell_share = matched_counts[has_counts] / total[has_counts]
        min_cell_share = float(cell_share.min())
    return Coverage(
        n_genes=tissue.n_genes,
        n_matched=n_matched,
        n_unmatched=tissue.n_genes - n_matched,
        share_counts=share_counts,
        min_cell_share=min_cell_share,
        n_empty_after=int((matched_counts == 0).sum()),
        n_merged=n_matched - n_tokens,
        by=by,
        unmatched_examples=_examples(tissue, ~is_matched),
        n_ortholog_lost=n_lost,
        n_ortholog_shipped=n_shipped,
    )


def _examples(tissue: Counted, is_unmatched: Bools) -> tuple[str, ...]:
    """Return names of the unmatched genes with most counts."""
    counts = tissue.counts
    per_gene = np.bincount(counts.indices, weights=counts.data, minlength=tissue.n_genes)
    unmatched = np.flatnonzero(is_unmatched)
    falling = np.argsort(-per_gene[unmatched], kind="stable")
    examples = []
    for column in unmatched[falling[:_N_EXAMPLES]]:
        gene = str(tissue.gene_ids[column])
        symbol = str(tissue.gene_symbols[column])
        examples.append(_shown(gene, symbol))
    return tuple(examples)


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
        str columns ``source``, ``target``; Ensembl versions removed, incomplete rows left out.

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
            kind = type(content).__name__
            raise CheckpointError(f"{path} contains a {kind}, not a dict of gene -> gene")
        return _pairs(content, str(path))
    if suffix not in (".parquet", ".csv", ".tsv", ".txt"):
        raise InputError(f"{path}: a gene table is .csv, .tsv, .parquet or .pkl")
    try:
        if suffix == ".parquet":
            return _pairs(read_parquet(path), str(path))
        return _pairs(_read_text_table(path, "," if suffix == ".csv" else "\t"), str(path))
    except InputError:
        raise
    except (OSError, ValueError, IndexError) as error:  # those of pandas and pyarrow are among them
        raise InputError(f"{path} cannot be read as a table: {error}") from error


def _read_text_table(path: Path, separator: str) -> pd.DataFrame:
    """Read a table of text, without its header line if it has one: a line without Ensembl ids."""
    lines = read_csv(path, sep=separator, header=None, dtype=str)
    if any(ensembl_id(str(name)) for name in lines.iloc[0]):
        return lines
    return lines.iloc[1:]


def _pairs(table: GeneTable, what: str) -> pd.DataFrame:
    """Return distinct (source, target) pairs of names."""
    if isinstance(table, str | os.PathLike):
        return load_orthologs(table)
    if isinstance(table, Mapping):
        frame = _mapping_pairs(table)
    elif isinstance(table, pd.DataFrame) and table.shape[1] == 2:
        frame = table.set_axis(["source", "target"], axis=1)
    else:
        is_frame = isinstance(table, pd.DataFrame)
        shown = list(table.columns) if is_frame else type(table).__name__
        raise InputError(
            f"{what} must be a dict or a two-column table (slice gene, vocabulary gene), not {shown}"
        )
    names = frame.dropna().astype(str).map(lambda name: ensembl_id(name) or name.strip())
    is_complete = (names["source"] != "") & (names["target"] != "")
    return names[is_complete].drop_duplicates(ignore_index=True)


def _mapping_pairs(table: Mapping[str, Any]) -> pd.DataFrame:
    """Return the pairs of a dict, whose values may be several genes."""
    rows = []
    for source, value in table.items():
        is_many = isinstance(value, list | tuple | set | frozenset)
        for target in value if is_many else (value,):
            rows.append((source, target))
    return pd.DataFrame(rows, columns=["source", "target"], dtype=object)


def _one_to_one(pairs: pd.DataFrame) -> tuple[dict[str, str], set[str]]:
    """Split the pairs into one-to-one ones and the sources of all others."""
    source, target = pairs["source"], pairs["target"]
    is_repeated = source.duplicated(keep=False) | target.duplicated(keep=False)
    one_to_one = dict(zip(source[~is_repeated], target[~is_repeated], strict=True))
    return one_to_one, set(source[is_repeated])


def _unambiguous(pairs: pd.DataFrame) -> dict[str, str]:
    """Return the pairs whose source occurs once."""
    used = pairs[~pairs["source"].duplicated(keep=False)]
    return dict(zip(used["source"], used["target"], strict=True))
