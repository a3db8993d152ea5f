"""Check of a corpus, every file hashed again, and tables of what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.corpus.store import COLUMNS, MEMBERS, VOCABULARY, Corpus, read_about, read_manifest
from terrazzo.errors import CorpusError
from terrazzo.files import hash_file, hash_files, hash_json, read_record
from terrazzo.progress import Progress

__all__ = ["FIX", "info", "verify"]

# Columns of the manifest that are not in a member's record, or may differ there.
_FROM_SOURCES = ("id", "file", "tissue", "donor", "source", "split", "origin")

FIX = (
    "run the same `terrazzo corpus build` again, which makes anew what is damaged or missing and keeps the rest; "
    "delete by hand what does not belong to it"
)


def verify(corpus: Corpus | str | os.PathLike[str], *, progress: bool | None = None) -> list[str]:
    """Hash every file of a corpus again.

    Parameters
    ----------
    corpus
        A corpus or its folder.
    progress
        Show a bar; None: on a terminal.

    Returns
    -------
    list of str
        One line a problem, with the slice and the file; empty where there is none. The same build again fixes all but
        files that do not belong to the corpus.

    Raises
    ------
    CorpusError
        The folder is not a corpus, or its manifest is not as written, so that nothing can be compared.
    """
    if isinstance(corpus, Corpus):
        corpus = corpus.folder
    folder = Path(corpus)
    about = read_about(folder)
    manifest = read_manifest(folder, about)
    hashes = about["files"].get(VOCABULARY)
    problems = _verify_vocabulary(folder / VOCABULARY, hashes)
    bar = Progress(progress)
    with bar.stage("verify", len(manifest), "slices") as advance:
        for row in manifest.to_dict("records"):
            id = row["id"]
            for problem in _verify_member(folder, row):
                problems.append(f"slice {id}: {problem}")
            advance(1)
    listed = set(manifest["id"])
    left_out = {row["id"] for row in about["dropped"]}
    problems += _verify_names(folder / MEMBERS, listed, left_out)
    return problems


def _verify_vocabulary(path: Path, hashes: list[str] | None) -> list[str]:
    """Return what is wrong with the vocabulary; ``hashes``: None where the corpus has none."""
    if not hashes:
        return []
    if not path.is_file():
        return [f"{VOCABULARY}: missing"]
    if hash_file(path) not in hashes:
        return [f"{VOCABULARY}: damaged"]
    return []


def _verify_names(members: Path, listed: set[str], left_out: set[str]) -> list[str]:
    """Return what is in the folder of the members and should not be.

    Parameters
    ----------
    members
        The folder.
    listed
        Slices of the manifest.
    left_out
        Slices that are not in the corpus, but may have a record.
    """
    paths = sorted(members.iterdir())
    present = {path.stem for path in paths if path.suffix == ".zarr"}
    unlisted = sorted(present - listed)
    problems = []
    for id in unlisted:
        problems.append(f"slice {id}: {MEMBERS}/{id}.zarr is not in the manifest")
    ids_of = {
        ".zarr": present | listed,
        ".json": present | listed | left_out,
    }
    for path in paths:
        name = path.name
        known = path.stem in ids_of.get(path.suffix, ())
        if not known and not name.startswith("."):
            problems.append(f"{MEMBERS}/{name}: does not belong to the corpus")
    return problems


def _verify_member(folder: Path, row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a member of the manifest."""
    file = row["file"]
    id = row["id"]
    target = folder / file
    if not target.is_dir():
        return [f"{file} is missing"]
    sidecar = f"{MEMBERS}/{id}.json"
    try:
        record = read_record(folder / sidecar)
    except CorpusError:
        return [f"{sidecar} is missing or damaged"]
    files: dict[str, str] = record["files"]
    problems = []
    differing = []
    for name in COLUMNS:
        if name not in _FROM_SOURCES and record.get(name) != row[name]:
            differing.append(name)
    if differing or hash_json(files) != row["sha256"]:
        names = ", ".join(differing) or "sha256"
        problems.append(f"{sidecar} and the manifest differ in {names}")
    hashes = hash_files(target)
    for name in sorted(hashes.keys() | files.keys()):
        place = f"{file}/{name}"
        if name not in hashes:
            problems.append(f"{place} is missing")
        elif name not in files:
            problems.append(f"{place} does not belong to it")
        elif hashes[name] != files[name]:
            problems.append(f"{place} is damaged")
    return problems


def info(corpus: Corpus | str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """Return what is in a corpus.

    Returns
    -------
    dict of str to pandas.DataFrame
        Tables "technology", "organism", "tissue" and "split": a row a value, and columns slices, cells, cells_left_out
        (by quality control), genes (columns of a slice, median), median_genes (expressed genes a
        cell: the median of the slices' medians, weighed by cells).
    """
    if not isinstance(corpus, Corpus):
        corpus = Corpus.open(corpus)
    tables = {}
    for name in ("technology", "organism", "tissue", "split"):
        rows = []
        groups = corpus.manifest.groupby(name, sort=False)
        for value, part in groups:
            row = {name: value}
            row.update(_summary(part))
            rows.append(row)
        table = pd.DataFrame(rows)
        table = table.sort_values(["cells", name], ascending=[False, True], ignore_index=True)
        tables[name] = table
    return tables


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of some slices."""
    n_cells = part["n_cells"].sum()
    n_read = part["n_cells_read"].sum()
    ordered = part.sort_values("median_genes")
    n_below = ordered["n_cells"].cumsum()
    upper_half = ordered[n_below >= n_cells / 2]
    return {
        "slices": len(part),
        "cells": int(n_cells),
        "cells_left_out": int(n_read - n_cells),
        "genes": int(part["n_genes"].median()),
        "median_genes": float(upper_half["median_genes"].iloc[0]),
    }
