"""Lists of genes by name: read from a file, and checked against the genes of a slice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from terrazzo.errors import ConfigError, InputError
from terrazzo.parsing import read_text

__all__ = ["check_distinct", "listed_genes", "nearest_name", "read_gene_list"]


def read_gene_list(path: str | Path) -> list[str]:
    """Return the genes of a text file: one a line, its first word; what follows a ``#`` is a comment.

    Words end at white space, a comma or a semicolon, so that a table whose first column names genes will do, without
    its header.

    Raises
    ------
    InputError
        No such file, no text, or no gene in it.
    """
    source = Path(path)
    lines = read_text(source, InputError).splitlines()
    genes: list[str] = []
    for line in lines:
        entry = line.partition("#")[0].strip().strip('"')
        first_word = re.split(r"[\s,;]", entry)[0].strip('"')
        if first_word and first_word not in genes:
            genes.append(first_word)
    if not genes:
        raise InputError(f"{source} names no gene; write one a line.")
    return genes


def listed_genes(genes: str | Sequence[str], or_else: str = "") -> list[str]:
    """Return genes that a user named, as a list.

    Parameters
    ----------
    genes
        One name, or several.
    or_else
        End of the message: what else could be passed.

    Raises
    ------
    ConfigError
        No gene, or one of them twice.
    """
    if isinstance(genes, str):
        genes = [genes]
    names = [str(gene) for gene in genes]
    n_different = len(set(names))
    if not names or n_different < len(names):
        raise ConfigError(f"genes must name at least one gene, each of them once{or_else}.")
    return names


def nearest_name(gene: str, known: Collection[str]) -> str:
    """Return the known name that is most like a misspelled one."""
    return difflib.get_close_matches(gene, known, n=1, cutoff=0.0)[0]


def check_distinct(genes: Sequence[str], number: Mapping[str, int]) -> None:
    """Refuse two names of one gene.

    Parameters
    ----------
    genes
        Names.
    number
        Number of the gene by each of its names.

    Raises
    ------
    ConfigError
        Two names have the same number.
    """
    numbers = {number[gene] for gene in genes}
    if len(numbers) < len(genes):
        raise ConfigError("genes names one gene twice, under two names of it.")
