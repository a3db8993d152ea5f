"""Orthologs of human and mouse: the table that comes with the library, and names of genes by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

import pandas as pd
import pyarrow.parquet as pq

__all__ = [
    "Candidate",
    "KnownGenes",
    "PairFinder",
    "Shipped",
    "candidates",
    "n_with_ortholog",
    "shipped",
]

_FILE = "orthologs.parquet"


@dataclass(frozen=True, eq=False)
class KnownGenes:
    """Genes of one organism in the table, by id and symbol.

    Attributes
    ----------
    symbol_of
        Ensembl id -> symbol, "" for a gene without one.
    id_of, id_of_upper
        Symbol, and symbol in upper case, -> Ensembl id; symbols of several genes are left out.
    """

    symbol_of: dict[str, str]
    id_of: dict[str, str]
    id_of_upper: dict[str, str]

    @cached_property
    def symbols(self) -> frozenset[str]:
        """All symbols."""
        return frozenset(self.symbol_of.values()) - {""}

    @classmethod
    def of(cls, ids: Sequence[str], symbols: Sequence[str]) -> KnownGenes:
        """Return the genes of a table, in which each may be in many rows."""
        symbol_of = dict(zip(ids, symbols, strict=True))
        named = [(symbol, gene) for gene, symbol in symbol_of.items() if symbol]
        upper = [(symbol.upper(), gene) for symbol, gene in named]
        return cls(symbol_of, _without_repeated(named), _without_repeated(upper))

    def find(self, gene: str, symbol: str) -> str:
        """Return the Ensembl id that the table has for a gene: by id, symbol, or symbol in any case; "" for none."""
        if gene in self.symbol_of:
            return gene
        if not symbol:
            return ""
        return self.id_of.get(symbol) or self.id_of_upper.get(symbol.upper(), "")

    def names(self, gene: str, symbol: str) -> list[str]:
        """Return the names of a gene: its own, then what the table adds."""
        known = self.find(gene, symbol)
        names = [gene, symbol, known, self.symbol_of.get(known, "")]
        return [name for name in dict.fromkeys(names) if name]


@dataclass(frozen=True, eq=False)
class Shipped:
    """The table of orthologs that comes with the library.

    Attributes
    ----------
    pairs
        Rows (human id, mouse id), the better ones first: one-to-one before others, then those of the same symbol,
        then those of high confidence.
    n_sure
        How many of the first are one-to-one, or of the same symbol.
    genes
        "human" and "mouse": their genes.
    about
        ``source``, ``license``, ``citation``, ``release``.
    digest
        sha256 (hex) of the pairs and symbols.
    """

    pairs: tuple[tuple[str, str], ...]
    n_sure: int
    genes: dict[str, KnownGenes]
    about: dict[str, str]
    digest: str

    @cached_property
    def partners(self) -> dict[str, dict[str, list[tuple[int, str]]]]:
        """By organism and Ensembl id: rank in ``pairs`` and id of each ortholog."""
        of_human: dict[str, list[tuple[int, str]]] = {}
        of_mouse: dict[str, list[tuple[int, str]]] = {}
        for rank, (human, mouse) in enumerate(self.pairs):
            of_human.setdefault(human, []).append((rank, mouse))
            of_mouse.setdefault(mouse, []).append((rank, human))
        return {"human": of_human, "mouse": of_mouse}


@dataclass(frozen=True)
class Candidate:
    """An ortholog of a gene of a slice: column of the slice, id and symbol in the other organism.

    ``is_sure``: one-to-one, or of the same symbol.
    """

    column: int
    gene: str
    symbol: str
    is_sure: bool


class PairFinder:
    """The pairs of a table of a user, found by any name of a gene.

    Parameters
    ----------
    pairs
        Gene -> gene of the other organism, ids or symbols.
    organism
        Of the first ones: "human" or "mouse", whose ids and symbols the table of the library translates; else names are
        taken as they are.
    """

    def __init__(self, pairs: Mapping[str, str], organism: str) -> None:
        self._pairs = pairs
        self._genes = shipped().genes.get(organism)
        self._by_upper = _without_repeated((name.upper(), pairs[name]) for name in pairs)

    def names(self, gene: str, symbol: str) -> list[str]:
        """Return the names under which a gene may be in the table."""
        if self._genes is None:
            return [name for name in (gene, symbol) if name]
        return self._genes.names(gene, symbol)

    def find(self, gene: str, symbol: str) -> str:
        """Return what the table has for a gene, "" for nothing."""
        for name in self.names(gene, symbol):
            if name in self._pairs:
                return self._pairs[name]
        return self._by_upper.get(symbol.upper(), "")


@cache
def shipped() -> Shipped:
    """Read the table that comes with the library, once."""
    path = resources.files("terrazzo") / "genes" / _FILE
    with path.open("rb") as file:
        table = pq.read_table(file)
    frame = table.to_pandas()
    about = {}
    for name, text in (table.schema.metadata or {}).items():
        if name in (b"source", b"license", b"citation", b"release"):
            about[name.decode()] = text.decode()
    genes = {}
    for organism in ("human", "mouse"):
        ids = frame[f"{organism}_id"].tolist()
        symbols = frame[f"{organism}_symbol"].tolist()
        genes[organism] = KnownGenes.of(ids, symbols)
    pairs = tuple(zip(frame["human_id"].tolist(), frame["mouse_id"].tolist(), strict=True))
    same_symbol = frame["human_symbol"].str.upper() == frame["mouse_symbol"].str.upper()
    is_sure = (frame["homology"] == "one2one") | (same_symbol & (frame["human_symbol"] != ""))
    return Shipped(pairs, int(is_sure.sum()), genes, about, _digest(frame))


def candidates(names: Iterable[tuple[str, str]], organism: str) -> Iterator[Candidate]:
    """Yield the orthologs of the genes of a slice by the table of the library, the better ones first.

    A gene may occur several times, and so may an ortholog: take the first that is free.

    Parameters
    ----------
    names
        Ensembl id and symbol of each column, "" where unknown.
    organism
        Of the slice: "human" or "mouse".
    """
    table = shipped()
    other = "mouse" if organism == "human" else "human"
    own_genes = table.genes[organism]
    other_genes = table.genes[other]
    ranked: list[tuple[int, int, str]] = []
    for column, (gene, symbol) in enumerate(names):
        known = own_genes.find(gene, symbol)
        for rank, target in table.partners[organism].get(known, ()):
            ranked.append((rank, column, target))
    ranked.sort()
    for rank, column, target in ranked:
        yield Candidate(column, target, other_genes.symbol_of[target], rank < table.n_sure)


def n_with_ortholog(ids: Sequence[str], symbols: Sequence[str], organism: str) -> int:
    """Return how many of the genes of a slice ("human" or "mouse") have an ortholog of their own in the table."""
    names = zip(ids, symbols, strict=True)
    own: dict[int, str] = {}
    taken: set[str] = set()
    for candidate in candidates(names, organism):
        if candidate.column not in own and candidate.gene not in taken:
            own[candidate.column] = candidate.gene
            taken.add(candidate.gene)
    return len(own)


def _without_repeated(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return name -> value of the names that occur once."""
    value_of: dict[str, str] = {}
    repeated = set()
    for name, value in pairs:
        if name in value_of:
            repeated.add(name)
        value_of[name] = value
    for name in repeated:
        del value_of[name]
    return value_of


def _digest(frame: pd.DataFrame) -> str:
    """Return the sha256 (hex) of a table of texts and booleans."""
    text = frame.to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()
