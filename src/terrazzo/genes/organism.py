"""Organism of a slice: what it states, Ensembl ids, genome prefixes, and symbols, weighed against each other."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.errors import TerrazzoWarning
from terrazzo.genes.names import GeneNames, recognize_organism
from terrazzo.genes.orthologs import shipped

__all__ = ["OrganismFound", "find_organism"]

_TITLE = re.compile(r"[A-Z][^A-Z]*[a-z][^A-Z]*")
_TWO_LETTERS = re.compile("[A-Za-z]{2}")
_MIXED_SHARE = (
    0.01  # a second organism counts from this share of the genes with an id or genome prefix on
)
_MIXED_SYMBOLS = 0.05  # and from this share of the symbols, which are weaker evidence
_CLEAR_SHARE = 0.9  # of ids or prefixes, to contradict what a slice states
_MIN_VOTES = 3  # symbols that only one organism has
_CLEAR_VOTES = 3  # times as many as of the other organism


@dataclass(frozen=True)
class OrganismFound:
    """An organism, "human", "mouse", "mixed" or "unknown", and the evidence for it, a few words."""

    name: str
    evidence: str


@dataclass(frozen=True)
class _Votes:
    """What symbols say.

    Attributes
    ----------
    n_symbols, n_title, n_upper
        Symbols with two letters; of them those written as in mouse (Ace2), and in capitals (ACE2).
    human, mouse
        Symbols that only this organism has, whatever their case.
    human_exact, mouse_exact
        Symbols that are written as only this organism has them.
    """

    n_symbols: int
    n_title: int
    n_upper: int
    human: int
    mouse: int
    human_exact: int
    mouse_exact: int

    @property
    def letters(self) -> str:
        """What the case of most symbols says."""
        if 2 * self.n_title > self.n_symbols:
            return "mouse"
        if 2 * self.n_upper > self.n_symbols:
            return "human"
        return "unknown"

    @property
    def is_mixed(self) -> bool:
        """Whether many symbols are written as in human, and many as in mouse."""
        fewer = min(self.human_exact, self.mouse_exact)
        both = self.human_exact + self.mouse_exact
        return fewer >= _MIN_VOTES and fewer > _MIXED_SYMBOLS * both

    def __str__(self) -> str:
        written = f"{self.n_title} as in mouse, {self.n_upper} in capitals"
        alone = f"{self.human} human, {self.mouse} mouse"
        return f"{self.n_symbols} symbols, {written}; names of one organism only: {alone}"


def find_organism(obs: pd.DataFrame, uns: Mapping[str, Any], names: GeneNames) -> OrganismFound:
    """Find the organism: stated in ``uns`` or ``obs``, by Ensembl ids or genome prefixes, then by symbols.

    Ids and prefixes go before a statement that they contradict. Warns (``TerrazzoWarning``) where they do, where there
    are both human and mouse genes, and where symbols contradict each other.
    """
    stated = _stated(obs, uns)
    by_id = _by_id(names)
    if stated is None:
        return _by_symbol(names.gene_symbols) if by_id is None else _warned_if_mixed(by_id)
    if by_id is None or by_id.clear in ("", stated.name):
        return stated
    if stated.name not in ("human", "mouse") or by_id.clear not in ("human", "mouse"):
        return stated
    warnings.warn(
        f"{stated.evidence} says {stated.name}, but the genes are {by_id.clear} ({by_id.evidence}): they are taken as "
        f"{by_id.clear}. Pass organism= (--organism) if that is wrong.",
        TerrazzoWarning,
        stacklevel=4,
    )
    return OrganismFound(by_id.clear, by_id.evidence)


@dataclass(frozen=True)
class _ById:
    """What ids and prefixes say: shares of human and mouse, the commonest organism, and that if it is clear."""

    human: float
    mouse: float
    commonest: str
    clear: str
    evidence: str


def _by_id(names: GeneNames) -> _ById | None:
    """Weigh Ensembl ids and genome prefixes; None where there are none."""
    is_known = names.column_organism != ""
    organisms, n_genes = np.unique(names.column_organism[is_known], return_counts=True)
    if len(organisms) == 0:
        return None
    n_known = int(n_genes.sum())
    share_of = dict(zip(organisms.tolist(), (n_genes / n_known).tolist(), strict=True))
    commonest = str(organisms[np.argmax(n_genes)])
    is_clear = share_of[commonest] >= _CLEAR_SHARE and n_known >= _MIN_VOTES
    n_commonest = int(n_genes.max())
    return _ById(
        human=share_of.get("human", 0.0),
        mouse=share_of.get("mouse", 0.0),
        commonest=commonest,
        clear=commonest if is_clear else "",
        evidence=f"{n_commonest} of {n_known} Ensembl ids or genome prefixes",
    )


def _warned_if_mixed(by_id: _ById) -> OrganismFound:
    """Return what ids and prefixes say; warn if that is two organisms."""
    if by_id.human > _MIXED_SHARE and by_id.mouse > _MIXED_SHARE:
        _warn_mixed(f"human ({by_id.human:.0%}) and mouse ({by_id.mouse:.0%})")
        return OrganismFound("mixed", "Ensembl ids or genome prefixes")
    if by_id.commonest in ("human", "mouse"):
        return OrganismFound(by_id.commonest, by_id.evidence)
    return OrganismFound("unknown", "ids of another organism")


def _warn_mixed(shares: str) -> None:
    warnings.warn(
        f"the slice has {shares} genes: a model uses those of its "
        "own organism only. Pass organism= if one of them is not meant.",
        TerrazzoWarning,
        stacklevel=5,
    )


def _stated(obs: pd.DataFrame, uns: Mapping[str, Any]) -> OrganismFound | None:
    """Return the organism that the slice states, if it is one that we know."""
    value = uns.get(keys.ORGANISM) if isinstance(uns, Mapping) else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        organism = recognize_organism(value)
        if organism is not None:
            return OrganismFound(organism, f"uns[{keys.ORGANISM!r}]")
    if keys.ORGANISM in obs.columns:
        values = obs[keys.ORGANISM].dropna().map(str).unique()
        organism = recognize_organism(str(values[0])) if len(values) == 1 else None
        if organism is not None:
            return OrganismFound(organism, f"obs[{keys.ORGANISM!r}]")
    return None


def _by_symbol(symbols: np.ndarray) -> OrganismFound:
    """Weigh the case of symbols, and those that only one organism has; warn where they contradict each other."""
    votes = _count_votes(symbols.tolist())
    evidence = str(votes)
    if votes.is_mixed:
        _warn_mixed(f"human ({votes.human_exact}) and mouse ({votes.mouse_exact})")
        return OrganismFound("mixed", evidence)
    letters = votes.letters
    named = "mouse" if votes.mouse > votes.human else "human"
    more = max(votes.human, votes.mouse)
    fewer = min(votes.human, votes.mouse)
    if more < _MIN_VOTES or more == fewer or named == letters:
        return OrganismFound(letters, evidence)
    if more >= _CLEAR_VOTES * fewer:
        return OrganismFound(named, evidence)
    warnings.warn(
        f"the symbols do not tell human from mouse ({evidence}). Pass organism= (--organism human or mouse).",
        TerrazzoWarning,
        stacklevel=4,
    )
    return OrganismFound("unknown", evidence)


def _count_votes(symbols: list[str]) -> _Votes:
    """Count symbols by case, and by the organism that alone has them."""
    written = [symbol for symbol in symbols if _TWO_LETTERS.search(symbol)]
    n_title = sum(_TITLE.fullmatch(symbol) is not None for symbol in written)
    n_upper = sum(symbol == symbol.upper() for symbol in written)
    if not written:
        return _Votes(0, 0, 0, 0, 0, 0, 0)
    genes = shipped().genes
    human = genes["human"].symbols
    mouse = genes["mouse"].symbols
    human_upper = {symbol.upper() for symbol in human}
    mouse_upper = {symbol.upper() for symbol in mouse}
    exact = set(written)
    upper = {symbol.upper() for symbol in written}
    return _Votes(
        n_symbols=len(written),
        n_title=n_title,
        n_upper=n_upper,
        human=len(upper & human_upper - mouse_upper),
        mouse=len(upper & mouse_upper - human_upper),
        human_exact=len(exact & human - mouse),
        mouse_exact=len(exact & mouse - human),
    )
