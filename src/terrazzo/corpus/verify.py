"""A corpus looked over: every file hashed again, and the tables of what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.corpus.store import COLUMNS, MEMBERS, VOCABULARY, Corpus, read_about, read_manifest
from terrazzo.errors import CorpusError
from terrazzo.files import hash_file, hash_json, read_record
from terrazzo.progress import Progress

_FROM_MANIFEST = (
    "id",
    "file",
    "tissue",
    "donor",
    "source",
    "split",
    "origin",
)  # not in the sidecar, or not only


MEND = (
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
        One line a problem, with the slice and the file; empty where there is none. The same build again mends all but
        files that do not belong to the corpus.

    Raises
    ------
    CorpusError
        The folder is no corpus, or its manifest is not as written, so that nothing can be compared.
    """
    folder = corpus.folder if isinstance(corpus, Corpus) else Path(corpus)
    about = read_about(folder)
    manifest = read_manifest(folder, about)
    problems = []
    known = about["files"].get(VOCABULARY)
    if known and not (folder / VOCABULARY).is_file():
        problems.append(f"{VOCABULARY}: missing")
    elif known and hash_file(folder / VOCABULARY) not in known:
        problems.append(f"{VOCABULARY}: damaged")
    listed = {str(name) for name in manifest["id"]}
    with Progress(progress).stage("verify", len(manifest), "slices") as advance:
        for row in manifest.to_dict("records"):
            problems += [f"slice {row['id']}: {problem}" for problem in _verify_member(folder, row)]
            advance(1)
    present = {path.stem for path in (folder / MEMBERS).glob("*.zarr")}
    problems += [
        f"slice {name}: {MEMBERS}/{name}.zarr is not in the manifest"
        for name in sorted(present - listed)
    ]
    ours = {f"{name}{end}" for name in present | listed for end in (".zarr", ".json")}
    ours |= {f"{row['id']}.json" for row in about["dropped"]}
    strangers = sorted(
        path.name
        for path in (folder / MEMBERS).iterdir()
        if path.name not in ours and path.name[0] != "."
    )
    return problems + [f"{MEMBERS}/{name}: does not belong to the corpus" for name in strangers]


def _verify_member(folder: Path, row: dict[str, Any]) -> list[str]:
    target = folder / row["file"]
    if not target.is_dir():
        return [f"{row['file']} is missing"]
    sidecar = folder / MEMBERS / f"{row['id']}.json"
    try:
        record = read_record(sidecar)
    except CorpusError:
        return [f"{MEMBERS}/{sidecar.name} is missing or damaged"]
    files: dict[str, str] = record["files"]
    problems = []
    facts = [
        name for name in COLUMNS if name not in _FROM_MANIFEST and record.get(name) != row[name]
    ]
    if facts or hash_json(files) != row["sha256"]:
        problems.append(
            f"{MEMBERS}/{sidecar.name} and the manifest differ in {', '.join(facts) or 'sha256'}"
        )
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
    manifest = (corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)).manifest
    tables = {}
    for name in ("technology", "organism", "tissue", "split"):
        rows = [
            {name: value, **_summary(part)} for value, part in manifest.groupby(name, sort=False)
        ]
        frame = pd.DataFrame(rows).sort_values(
            ["cells", name], ascending=[False, True], ignore_index=True
        )
        tables[name] = frame
    return tables


def _summary(part: pd.DataFrame) -> dict[str, Any]:
    ordered = part.sort_values("median_genes")
    running = ordered["n_cells"].cumsum()
    middle = ordered["median_genes"][running >= running.iloc[-1] / 2].iloc[0]
    return {
        "slices": len(part),
        "cells": int(part["n_cells"].sum()),
        "cells_left_out": int((part["n_cells_read"] - part["n_cells"]).sum()),
        "genes": int(part["n_genes"].median()),
        "median_genes": float(middle),
    }
