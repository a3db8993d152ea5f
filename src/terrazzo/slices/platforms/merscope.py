"""MERSCOPE (Vizgen): ``cell_by_gene.csv`` and ``cell_metadata.csv``, of the instrument or its post-processing tool."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError
from terrazzo.genes.features import find_features
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    first_line,
    first_match,
    one_file,
    place,
    plain_columns,
    read_table,
    read_wide,
    reading,
    unplaced,
)

__all__ = ["MERSCOPE"]

_XY = ["center_x", "center_y"]  # um, of the whole section
_COUNTS = "cell_by_gene"
_CELLS = "cell_metadata"


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder; both names may have the same additions: ``S1_cell_by_gene.csv``."""
    counts = _find(folder, _COUNTS, "the table of counts")
    plain = counts.name.removesuffix(".gz").removesuffix(".csv")
    name = glob.escape(plain.replace(_COUNTS, _CELLS))
    if any(folder.glob(f"{name}.csv*")):
        cells = one_file(folder, [f"{name}.csv", f"{name}.csv.gz"], "the table of cells")
    else:
        cells = _find(folder, _CELLS, "the table of cells")
    return {"counts": counts, "cells": cells}


def _find(folder: Path, name: str, what: str) -> Path:
    """Return the table of a name, else the only one whose name contains it."""
    exact = (f"{name}.csv", f"{name}.csv.gz")
    return first_match(folder, (exact, (f"*{name}*.csv", f"*{name}*.csv.gz")), what)


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes and centers of cells, in micrometers."""
    wide = read_wide(files["counts"], 1)
    with reading(files["cells"]):
        header = first_line(files["cells"])
    key = header[0] if header else ""  # "EntityID", or without a name
    if key == "":
        key = "Unnamed: 0"  # as pandas calls it then
    cells = read_table(files["cells"], [key, *_XY], ids=[key])
    ids = wide.ids.iloc[:, 0].tolist()
    where = f"{files['counts']} and {files['cells'].name}"
    rows, cells = place(ids, cells, key, where, _XY)
    var = pd.DataFrame(index=wide.names.astype(object))
    features = find_features(var)
    genes = np.flatnonzero(features.is_gene)
    if not len(genes):
        raise InputError(f"{files['counts']}: no column is a gene ({features.left_out})")
    names = [ids[row] for row in rows]
    obs = plain_columns(cells, [key, *_XY])
    obs = obs.set_axis(names, axis=0)
    counts = wide.values[rows]
    counts = counts[:, genes]
    adata = AnnData(counts, obs=obs, var=var.iloc[genes])
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "MERSCOPE"
    lost = unplaced(len(ids), len(rows))
    notes = [note for note in (features.note, lost) if note]
    return Opened(adata, "MERSCOPE", name, notes=tuple(notes))


MERSCOPE = Platform("MERSCOPE", (f"*{_COUNTS}*.csv*", f"*{_CELLS}*.csv*"), locate, read)
