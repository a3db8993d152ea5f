"""Checks of the simulator's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from terrazzo.errors import ConfigError

__all__ = ["SHAPES", "check_choice", "check_genes", "check_value"]

SHAPES = ("ellipse", "square")
USUAL_GENES = 300


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is none of the known ones."""
    names = list(known)
    if value not in names:
        raise ConfigError(
            f"simulate: {name}={value!r} is not known; use one of {', '.join(names)}."
        )


def check_value(name: str, value: Any) -> None:
    """Refuse a value of another kind, or out of range, than the argument of this name takes."""
    if name in ("name", "donor"):
        wanted = "a non-empty text without '/'"
        is_fine = isinstance(value, str) and value != "" and "/" not in value
    elif name == "depth":
        wanted = "a number above 0"
        is_fine = _is_number(value) and value > 0
    elif name == "batch":
        wanted = "a number of at least 0"
        is_fine = _is_number(value) and value >= 0
    else:
        lowest = 0 if name.endswith("seed") else 1
        wanted = f"a whole number of at least {lowest}"
        is_fine = _is_whole(value) and value >= lowest
    if not is_fine:
        raise ConfigError(f"simulate: {name} must be {wanted}, got {value!r}.")


def check_genes(
    n_genes: int | None, gene_ids: Sequence[str] | None, gene_symbols: Sequence[str] | None
) -> int:
    """Refuse names of genes that do not fit each other; returns the number of genes."""
    if gene_ids is None:
        if gene_symbols is not None:
            raise ConfigError("simulate: gene_symbols needs gene_ids of the same length.")
        n_genes = USUAL_GENES if n_genes is None else n_genes
        check_value("n_genes", n_genes)
        return int(n_genes)
    _check_names("gene_ids", gene_ids)
    if gene_symbols is not None:
        _check_names("gene_symbols", gene_symbols)
        if len(gene_symbols) != len(gene_ids):
            raise ConfigError(
                f"simulate: gene_symbols has {len(gene_symbols)} names for {len(gene_ids)} gene_ids."
            )
    if n_genes is not None and n_genes != len(gene_ids):
        raise ConfigError(
            f"simulate: n_genes={n_genes}, but gene_ids has {len(gene_ids)}; leave n_genes out."
        )
    check_value("n_genes", len(gene_ids))
    return len(gene_ids)


def _check_names(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str) or len(set(values)) != len(values):
        raise ConfigError(f"simulate: {name} must be a list of names without repeats.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
