"""Gene names of a slice: Ensembl ids, symbols, duplicates, and the organism they tell."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.errors import ConfigError, TerrazzoWarning

ORGANISMS = ("human", "mouse", "mixed", "unknown")
_ENSEMBL = re.compile(r"(ENS[A-Z]*G(?:R\d{10}|\d{11}))(?:\.\d+)?(?:_PAR_Y)?")
_GENOME = re.compile(r"(GRCh\d+|hg\d+|GRCm\d+|mm\d+)(?:[.-][\w.-]*?)?_+(?=\S)")
_TITLE = re.compile(r"[A-Z][^A-Z]*[a-z][^A-Z]*")
_MIXED_SHARE = 0.01  # a second organism counts from this share of the named genes on
_ORGANISM_WORDS = {
    "human": ("human", "homo sapiens", "h sapiens", "hsapiens", "9606", "ncbitaxon:9606"),
    "mouse": ("mouse", "mus musculus", "m musculus", "mmusculus", "10090", "ncbitaxon:10090"),
}


@dataclass(frozen=True)
class GeneNames:
    """Names of the g columns of a matrix: Ensembl ids and symbols ("" unknown), and the organism each one tells."""

    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    column_organism: np.ndarray

    def take(self, columns: np.ndarray) -> GeneNames:
        """Return the names of some columns."""
        return GeneNames(
            self.gene_ids[columns], self.gene_symbols[columns], self.column_organism[columns]
        )


def strip_genome(name: str) -> str:
    """Remove a genome prefix: ``GRCh38_TP53`` -> ``TP53``, ``mm10___Trp53`` -> ``Trp53``."""
    return _GENOME.sub("", name, count=1) if _GENOME.match(name) else name


def ensembl_id(name: str) -> str:
    """Return the Ensembl gene id in ``name`` without genome prefix and version, "" if it is none."""
    found = _ENSEMBL.fullmatch(strip_genome(name))
    return found.group(1) if found else ""


def read_gene_names(var: pd.DataFrame) -> GeneNames:
    """Find the Ensembl ids and symbols of a ``var`` table.

    Ids are looked for in the columns ``keys.ENSEMBL_COLUMNS``, the index, then the symbol columns; symbols in
    ``keys.SYMBOL_COLUMNS``, else in the index (an Ensembl id is not a symbol).
    """
    index = _texts(var.index)
    id_columns = [_texts(var[name]) for name in keys.ENSEMBL_COLUMNS if name in var.columns]
    symbol_columns = [_texts(var[name]) for name in keys.SYMBOL_COLUMNS if name in var.columns]
    ids = [""] * len(index)
    for source in [*id_columns, index, *symbol_columns]:
        ids = [known or ensembl_id(name) for known, name in zip(ids, source, strict=True)]
    symbols = [""] * len(index)
    for source in [*symbol_columns, index]:
        symbols = [
            known or ("" if ensembl_id(name) else strip_genome(name))
            for known, name in zip(symbols, source, strict=True)
        ]
    organisms = ["" for _ in index]
    for source in [*id_columns, index, *symbol_columns]:
        organisms = [
            known or _name_organism(name) for known, name in zip(organisms, source, strict=True)
        ]
    return GeneNames(_array(ids), _array(symbols), _array(organisms))


def merge_plan(names: GeneNames) -> tuple[np.ndarray, np.ndarray]:
    """Find the columns that are one gene: same Ensembl id, or same symbol where neither has an id.

    Returns
    -------
    column
        int64 (g,), the merged column of each column.
    first
        int64 (merged,), the first column of each merged one; merged columns keep the order of first occurrence.
    """
    seen: dict[tuple[str, str], int] = {}
    column = np.empty(len(names.gene_ids), dtype=np.int64)
    first: list[int] = []
    rows = zip(
        names.gene_ids.tolist(),
        names.gene_symbols.tolist(),
        names.column_organism.tolist(),
        strict=True,
    )
    for position, (gene, symbol, organism) in enumerate(rows):
        key = ("id", gene) if gene else (f"symbol {organism}", symbol)
        if not gene and not symbol:
            key = ("unnamed", str(position))
        if key not in seen:
            seen[key] = len(first)
            first.append(position)
        column[position] = seen[key]
    return column, np.asarray(first, dtype=np.int64)


def warn_merged(names: GeneNames, column: np.ndarray, first: np.ndarray) -> None:
    """Warn that columns of the same gene were summed, naming up to five genes."""
    repeated = first[np.bincount(column, minlength=len(first)) > 1]
    shown = [str(names.gene_symbols[i] or names.gene_ids[i]) for i in repeated[:5]]
    more = f" and {len(repeated) - 5} more" if len(repeated) > 5 else ""
    warnings.warn(
        f"{len(repeated)} genes stand in more than one column; their columns were summed: {', '.join(shown)}{more}",
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
    found = _recognize(value)
    if found is None:
        raise ConfigError(f"organism {value!r} is not known; use one of: {', '.join(ORGANISMS)}")
    return found


def find_organism(obs: pd.DataFrame, uns: Mapping[str, Any], names: GeneNames) -> str:
    """Tell the organism from ``uns["organism"]``, ``obs["organism"]``, Ensembl ids or genome prefixes, then symbols.

    Warns (``TerrazzoWarning``) when human and mouse genes are both there.
    """
    stated = _stated_organism(obs, uns)
    if stated is not None:
        return stated
    known, n_of = np.unique(names.column_organism[names.column_organism != ""], return_counts=True)
    if len(known):
        share = dict(zip(known.tolist(), (n_of / n_of.sum()).tolist(), strict=True))
        human, mouse = share.get("human", 0.0), share.get("mouse", 0.0)
        if human > _MIXED_SHARE and mouse > _MIXED_SHARE:
            warnings.warn(
                f"the slice holds human ({human:.0%}) and mouse ({mouse:.0%}) genes: a model uses those of its "
                "own organism only. Pass organism= if one of them is not meant.",
                TerrazzoWarning,
                stacklevel=4,
            )
            return "mixed"
        best = max(share, key=lambda name: share[name])
        return best if best in ("human", "mouse") else "unknown"
    return _symbol_organism(names.gene_symbols.tolist())


def _stated_organism(obs: pd.DataFrame, uns: Mapping[str, Any]) -> str | None:
    value = uns.get(keys.ORGANISM) if isinstance(uns, Mapping) else None
    if isinstance(value, str | bytes | np.str_):
        found = _recognize(
            value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        )
        if found is not None:
            return found
    if keys.ORGANISM in obs.columns:
        values = obs[keys.ORGANISM].dropna().unique()
        if len(values) == 1:
            return _recognize(str(values[0]))
    return None


def _recognize(value: str) -> str | None:
    text = re.sub(r"[\s._]+", " ", value.strip().lower())
    if text in ORGANISMS:
        return text
    return next((organism for organism, words in _ORGANISM_WORDS.items() if text in words), None)


def _name_organism(name: str) -> str:
    gene = ensembl_id(name)
    if gene:
        species = gene[3:-12]
        return {"": "human", "MUS": "mouse"}.get(species, "other")
    prefix = _GENOME.match(name)
    if prefix is None:
        return ""
    return "human" if prefix.group(1).startswith(("GRCh", "hg")) else "mouse"


def _symbol_organism(symbols: Iterable[str]) -> str:
    letters = [symbol for symbol in symbols if re.search("[A-Za-z]{2}", symbol)]
    title = sum(_TITLE.fullmatch(symbol) is not None for symbol in letters)
    upper = sum(symbol == symbol.upper() for symbol in letters)
    if 2 * title > len(letters):
        return "mouse"
    return "human" if 2 * upper > len(letters) else "unknown"


def _texts(values: pd.Index | pd.Series) -> list[str]:
    return [
        "" if missing else str(value).strip()
        for value, missing in zip(values, pd.isna(values), strict=True)
    ]


def _array(values: list[str]) -> np.ndarray:
    return np.asarray(values, dtype=np.str_)
