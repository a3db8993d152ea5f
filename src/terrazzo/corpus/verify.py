"""Check of a corpus, every file hashed again, and tables of what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.corpus.store import COLUMNS, MEMBERS, VOCABULARY, Corpus, read_about, read_manifest
from terrazzo.errors import CorpusError
from terrazzo.files import hash_file, hash_json, read_record
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
    folder = corpus.folder if isinstance(corpus, Corpus) else Path(corpus)
    about = read_about(folder)
    manifest = read_manifest(folder, about)
    problems = _verify_vocabulary(folder / VOCABULARY, about["files"].get(VOCABULARY))
    with Progress(progress).stage("verify", len(manifest), "slices") as advance:
        for row in manifest.to_dict("records"):
            problems += [f"slice {row['id']}: {problem}" for problem in _verify_member(folder, row)]
            advance(1)
    listed = {str(name) for name in manifest["id"]}
    recorded = {row["id"] for row in about["dropped"]}
    return problems + _verify_names(folder / MEMBERS, listed, recorded)


def _verify_vocabulary(path: Path, hashes: list[str] | None) -> list[str]:
    """Return what is wrong with the vocabulary; ``hashes``: None where the corpus has none."""
    if not hashes:
        return []
    if not path.is_file():
        return [f"{VOCABULARY}: missing"]
    return [] if hash_file(path) in hashes else [f"{VOCABULARY}: damaged"]


def _verify_names(members: Path, listed: set[str], recorded: set[str]) -> list[str]:
    """Return what is in the folder of the members and should not be.

    Parameters
    ----------
    members
        The folder.
    listed
        Slices of the manifest.
    recorded
        Slices that were left out, of which a record may exist.
    """
    present = {path.stem for path in members.glob("*.zarr")}
    problems = []
    for name in sorted(present - listed):
        problems.append(f"slice {name}: {MEMBERS}/{name}.zarr is not in the manifest")
    known = {f"{name}.zarr" for name in present | listed}
    known |= {f"{name}.json" for name in present | listed | recorded}
    for name in sorted(path.name for path in members.iterdir()):
        if name not in known and not name.startswith("."):
            problems.append(f"{MEMBERS}/{name}: does not belong to the corpus")
    return problems


def _verify_member(folder: Path, row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a member of the manifest."""
    target = folder / row["file"]
    if not target.is_dir():
        return [f"{row['file']} is missing"]
    sidecar = f"{MEMBERS}/{row['id']}.json"
    try:
        record = read_record(folder / sidecar)
    except CorpusError:
        return [f"{sidecar} is missing or damaged"]
    files: dict[str, str] = record["files"]
    problems = []
    differing = [name for name in COLUMNS if name not in _FROM_SOURCES]
    differing = [name for name in differing if record.get(name) != row[name]]
    if differing or hash_json(files) != row["sha256"]:
        names = ", ".join(differing) or "sha256"
        problems.append(f"{sidecar} and the manifest differ in {names}")
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    for name in sorted(present | set(files)):
        if name not in present:
            problems.append(f"{row['file']}/{name} is missing")
        elif name not in files:
            problems.append(f"{row['file']}/{name} does not belong to it")
        elif hash_file(target / name) != files[name]:
            problems.append(f"{row['file']}/{name} is damaged")
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
    opened = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    tables = {}
    for name in ("technology", "organism", "tissue", "split"):
        rows = []
        for value, part in opened.manifest.groupby(name, sort=False):
            rows.append({name: value, **_summary(part)})
        table = pd.DataFrame(rows)
        table = table.sort_values(["cells", name], ascending=[False, True], ignore_index=True)
        tables[name] = table
    return tables


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers of some slices."""
    left_out = part["n_cells_read"] - part["n_cells"]
    ordered = part.sort_values("median_genes")
    running = ordered["n_cells"].cumsum()
    upper_half = ordered["median_genes"][running >= running.iloc[-1] / 2]
    return {
        "slices": len(part),
        "cells": int(part["n_cells"].sum()),
        "cells_left_out": int(left_out.sum()),
        "genes": int(part["n_genes"].median()),
        "median_genes": float(upper_half.iloc[0]),
    }
