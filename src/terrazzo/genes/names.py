"""Gene names of a slice: Ensembl ids, symbols, duplicates, and the organism that they belong to."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, TerrazzoWarning

__all__ = [
    "ORGANISMS",
    "GeneNames",
    "ensembl_id",
    "find_organism",
    "merge_plan",
    "parse_organism",
    "read_gene_names",
    "strip_genome",
    "warn_merged",
]

ORGANISMS = ("human", "mouse", "mixed", "unknown")
_ENSEMBL = re.compile(r"(ENS[A-Z]*G(?:R\d{10}|\d{11}))(?:\.\d+)?(?:_PAR_Y)?")
_GENOME = re.compile(r"(GRCh\d+|hg\d+|GRCm\d+|mm\d+)(?:[.-][\w.-]*?)?_+(?=\S)")
_TITLE = re.compile(r"[A-Z][^A-Z]*[a-z][^A-Z]*")
_SPECIES = {"": "human", "MUS": "mouse"}  # between ENS and G of an Ensembl id
_N_SHOWN = 5  # genes that a warning names
_MIXED_SHARE = 0.01  # a second organism counts from this share of the named genes on
_ORGANISM_WORDS = {
    "human": ("human", "homo sapiens", "h sapiens", "hsapiens", "9606", "ncbitaxon:9606"),
    "mouse": ("mouse", "mus musculus", "m musculus", "mmusculus", "10090", "ncbitaxon:10090"),
}


@dataclass(frozen=True)
class GeneNames:
    """Names of the g columns of a matrix.

    Attributes
    ----------
    gene_ids, gene_symbols
        str (g,): Ensembl ids and symbols, "" where unknown.
    column_organism
        str (g,): "human", "mouse" or "other", by id or genome prefix; "" where neither says it.
    """

    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    column_organism: np.ndarray

    def take(self, columns: Ints) -> GeneNames:
        """Return the names of some columns."""
        return GeneNames(
            self.gene_ids[columns], self.gene_symbols[columns], self.column_organism[columns]
        )


def strip_genome(name: str) -> str:
    """Remove a genome prefix: ``GRCh38_TP53`` -> ``TP53``, ``mm10___Trp53`` -> ``Trp53``."""
    if _GENOME.match(name) is None:
        return name
    return _GENOME.sub("", name, count=1)


def ensembl_id(name: str) -> str:
    """Return the Ensembl gene id in ``name`` without genome prefix and version, "" if it is none."""
    match = _ENSEMBL.fullmatch(strip_genome(name))
    return match.group(1) if match else ""


def read_gene_names(var: pd.DataFrame) -> GeneNames:
    """Find the Ensembl ids and symbols of a ``var`` table.

    Ids are looked for in the columns ``keys.ENSEMBL_COLUMNS``, the index, then the symbol columns; symbols in
    ``keys.SYMBOL_COLUMNS``, else in the index (an Ensembl id is not a symbol).
    """
    index = _texts(var.index)
    id_columns = _text_columns(var, keys.ENSEMBL_COLUMNS)
    symbol_columns = _text_columns(var, keys.SYMBOL_COLUMNS)
    all_columns = [*id_columns, index, *symbol_columns]
    return GeneNames(
        gene_ids=_first_found(all_columns, ensembl_id),
        gene_symbols=_first_found([*symbol_columns, index], _symbol),
        column_organism=_first_found(all_columns, _name_organism),
    )


def _text_columns(var: pd.DataFrame, names: Iterable[str]) -> list[list[str]]:
    """Return the columns of these names that the table has."""
    return [_texts(var[name]) for name in names if name in var.columns]


def _first_found(columns: list[list[str]], read: Callable[[str], str]) -> np.ndarray:
    """Return for each gene what is read from the first column that says something, str (g,)."""
    values = [""] * len(columns[0])
    for column in columns:
        for i, name in enumerate(column):
            values[i] = values[i] or read(name)
    return np.asarray(values, dtype=np.str_)


def _symbol(name: str) -> str:
    """Return a symbol without genome prefix, "" for an Ensembl id."""
    return "" if ensembl_id(name) else strip_genome(name)


def merge_plan(names: GeneNames) -> tuple[Ints, Ints]:
    """Find the columns that are one gene: same Ensembl id, or same symbol where neither has an id.

    Returns
    -------
    column
        int64 (g,), the merged column of each column.
    first
        int64 (merged,), the first column of each merged one; merged columns keep the order of first occurrence.
    """
    merged_of: dict[tuple[str, str], int] = {}
    column = np.empty(len(names.gene_ids), dtype=np.int64)
    first: list[int] = []
    ids = names.gene_ids.tolist()
    symbols = names.gene_symbols.tolist()
    organisms = names.column_organism.tolist()
    rows = zip(ids, symbols, organisms, strict=True)
    for position, (gene, symbol, organism) in enumerate(rows):
        if gene:
            key = ("id", gene)
        elif symbol:
            key = (f"symbol {organism}", symbol)
        else:
            key = ("unnamed", str(position))
        if key not in merged_of:
            merged_of[key] = len(first)
            first.append(position)
        column[position] = merged_of[key]
    return column, np.asarray(first, dtype=np.int64)


def warn_merged(names: GeneNames, column: Ints, first: Ints) -> None:
    """Warn that columns of the same gene were summed, naming up to five genes."""
    n_columns = np.bincount(column, minlength=len(first))
    repeated = first[n_columns > 1]
    shown = []
    for position in repeated[:_N_SHOWN]:
        name = names.gene_symbols[position] or names.gene_ids[position]
        shown.append(str(name))
    text = ", ".join(shown)
    n_more = len(repeated) - _N_SHOWN
    if n_more > 0:
        text = f"{text} and {n_more} more"
    warnings.warn(
        f"{len(repeated)} genes are in more than one column; their columns were summed: {text}",
        TerrazzoWarning,
        stacklevel=4,
    )


def parse_organism(value: str) -> str:
    """Return ``value`` as one of ``ORGANISMS``.

    Raises
    ------
    ConfigError
        If it is none of them (nor a usual name of one, such as "Homo sapiens").
    """
    organism = _recognize(value)
    if organism is None:
        known = ", ".join(ORGANISMS)
        raise ConfigError(f"organism {value!r} is not known; use one of: {known}")
    return organism


def find_organism(obs: pd.DataFrame, uns: Mapping[str, Any], names: GeneNames) -> str:
    """Find the organism in ``uns["organism"]``, ``obs["organism"]``, Ensembl ids or genome prefixes, then symbols.

    Warns (``TerrazzoWarning``) when there are both human and mouse genes.
    """
    stated = _stated_organism(obs, uns)
    if stated is not None:
        return stated
    is_known = names.column_organism != ""
    organisms, n_genes = np.unique(names.column_organism[is_known], return_counts=True)
    if len(organisms) == 0:
        return _symbol_organism(names.gene_symbols.tolist())
    shares = n_genes / n_genes.sum()
    share_of = dict(zip(organisms.tolist(), shares.tolist(), strict=True))
    human = share_of.get("human", 0.0)
    mouse = share_of.get("mouse", 0.0)
    if human > _MIXED_SHARE and mouse > _MIXED_SHARE:
        warnings.warn(
            f"the slice has human ({human:.0%}) and mouse ({mouse:.0%}) genes: a model uses those of its "
            "own organism only. Pass organism= if one of them is not meant.",
            TerrazzoWarning,
            stacklevel=4,
        )
        return "mixed"
    commonest = str(organisms[np.argmax(shares)])
    return commonest if commonest in ("human", "mouse") else "unknown"


def _stated_organism(obs: pd.DataFrame, uns: Mapping[str, Any]) -> str | None:
    """Return the organism that the slice states, if it is one that we know."""
    value = uns.get(keys.ORGANISM) if isinstance(uns, Mapping) else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        organism = _recognize(value)
        if organism is not None:
            return organism
    if keys.ORGANISM in obs.columns:
        values = obs[keys.ORGANISM].dropna().map(str).unique()
        if len(values) == 1:
            return _recognize(values[0])
    return None


def _recognize(value: str) -> str | None:
    """Return the organism of this name, None for a name that is not known."""
    text = re.sub(r"[\s._]+", " ", value.strip().lower())
    if text in ORGANISMS:
        return text
    for organism, words in _ORGANISM_WORDS.items():
        if text in words:
            return organism
    return None


def _name_organism(name: str) -> str:
    """Return the organism that an Ensembl id or a genome prefix says, "" for neither."""
    gene = ensembl_id(name)
    if gene:
        species = gene[3:-12]
        return _SPECIES.get(species, "other")
    genome = _GENOME.match(name)
    if genome is None:
        return ""
    is_human = genome.group(1).startswith(("GRCh", "hg"))
    return "human" if is_human else "mouse"


def _symbol_organism(symbols: Iterable[str]) -> str:
    """Guess the organism from the letters of most symbols: human ones are in capitals, mouse ones start with one."""
    n_symbols = 0
    n_title = 0
    n_upper = 0
    for symbol in symbols:
        if re.search("[A-Za-z]{2}", symbol):
            n_symbols += 1
            n_title += _TITLE.fullmatch(symbol) is not None
            n_upper += symbol == symbol.upper()
    if 2 * n_title > n_symbols:
        return "mouse"
    if 2 * n_upper > n_symbols:
        return "human"
    return "unknown"


def _texts(values: pd.Index | pd.Series) -> list[str]:
    """Return values as stripped texts, "" where missing."""
    texts = []
    for value, is_missing in zip(values, pd.isna(values), strict=True):
        texts.append("" if is_missing else str(value).strip())
    return texts
