"""Slide-seq (Broad Institute): ``MappedDGEForR.csv``, genes by beads, and ``BeadLocationsForR.csv``, pixels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    one_file,
    place,
    read_table,
    read_wide,
    unplaced,
)

__all__ = ["SLIDE_SEQ"]

_COUNTS = ("*MappedDGEForR.csv", "*MappedDGEForR.csv.gz")
_PLACES = ("*BeadLocationsForR.csv", "*BeadLocationsForR.csv.gz")
_XY = ["xcoord", "ycoord"]  # pixels of 0.65 um


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    return {
        "counts": one_file(folder, _COUNTS, "the table of counts"),
        "beads": one_file(folder, _PLACES, "the table of beads"),
    }


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes and positions of beads."""
    wide = read_wide(files["counts"], 1)
    beads = read_table(files["beads"], ["barcodes", *_XY], ids=["barcodes"])
    ids = wide.names.tolist()
    rows, beads = place(ids, beads, "barcodes", f"{files['counts']} and {files['beads'].name}")
    counts = sp.csr_matrix(wide.values.T)[rows]
    obs = pd.DataFrame(index=[ids[row] for row in rows])
    var = pd.DataFrame(index=wide.ids.iloc[:, 0].to_numpy(dtype=object))
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = beads[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "Slide-seq"
    note = unplaced(len(ids), len(rows))
    return Opened(adata, "Slide-seq", name, notes=(note,) if note else ())


SLIDE_SEQ = Platform("Slide-seq", (*_COUNTS, *_PLACES), locate, read)
