"""MERSCOPE (Vizgen): ``cell_by_gene.csv`` and ``cell_metadata.csv``, of the instrument or its post-processing tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.safe_tables import first_line
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
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
_BLANK = "blank"  # how the names of barcodes begin that no gene has


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    return {
        "counts": one_file(
            folder, ["cell_by_gene.csv", "cell_by_gene.csv.gz"], "the table of counts"
        ),
        "cells": one_file(
            folder, ["cell_metadata.csv", "cell_metadata.csv.gz"], "the table of cells"
        ),
    }


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
    rows, cells = place(ids, cells, key, f"{files['counts']} and {files['cells'].name}")
    is_blank = np.char.startswith(np.char.lower(wide.names), _BLANK)
    obs = plain_columns(cells, [key, *_XY]).set_axis([ids[row] for row in rows], axis=0)
    var = pd.DataFrame(index=wide.names[~is_blank].astype(object))
    counts = wide.values[rows][:, ~is_blank]
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "MERSCOPE"
    n_blank = int(is_blank.sum())
    blank_note = f"{n_blank} blank barcodes left out" if n_blank else ""
    notes = (blank_note, unplaced(len(ids), len(rows)))
    return Opened(adata, "MERSCOPE", name, notes=tuple(note for note in notes if note))


MERSCOPE = Platform("MERSCOPE", ("cell_by_gene.csv*", "cell_metadata.csv*"), locate, read)
