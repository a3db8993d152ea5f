"""Slide-seq (Broad Institute): a table of counts, genes by beads, and one of beads, pixels.

``MappedDGEForR.csv`` and ``BeadLocationsForR.csv`` of the pipeline; ``*.digital_expression.txt.gz`` and
``*_bead_locations.csv`` of the Single Cell Portal.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    check_columns,
    first_line,
    first_match,
    place,
    read_table,
    read_wide,
    unplaced,
)

__all__ = ["SLIDE_SEQ"]

_COUNTS = ("*MappedDGEForR.csv", "*MappedDGEForR.csv.gz")
_PLACES = ("*BeadLocationsForR.csv", "*BeadLocationsForR.csv.gz")
_PORTAL_COUNTS = ("*digital_expression*.txt", "*digital_expression*.txt.gz")
_PORTAL_PLACES = ("*bead_locations*.csv", "*bead_locations*.csv.gz")
_XY = ["xcoord", "ycoord"]  # pixels of 0.65 um
_KEY = "barcodes"
_OTHER_NAMES = {"barcode": _KEY, "bead": _KEY}


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    return {
        "counts": first_match(folder, (_COUNTS, _PORTAL_COUNTS), "the table of counts"),
        "beads": first_match(folder, (_PLACES, _PORTAL_PLACES), "the table of beads"),
    }


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes and positions of beads."""
    is_portal = ".txt" in files["counts"].suffixes
    wide = read_wide(files["counts"], 1, "\t" if is_portal else ",")
    beads = _read_beads(files["beads"])
    ids = wide.names.tolist()
    where = f"{files['counts']} and {files['beads'].name}"
    rows, beads = place(ids, beads, _KEY, where, _XY)
    counts = sp.csr_matrix(wide.values.T)[rows]
    obs = pd.DataFrame(index=[ids[row] for row in rows])
    var = pd.DataFrame(index=wide.ids.iloc[:, 0].to_numpy(dtype=object))
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = beads[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "Slide-seq"
    note = unplaced(len(ids), len(rows))
    return Opened(adata, "Slide-seq", name, notes=(note,) if note else ())


def _read_beads(path: Path) -> pd.DataFrame:
    """Read the table of beads; the portal's may call its columns otherwise, or have no first line with names."""
    header = [name.strip().lower() for name in first_line(path)]
    names: list[str] = []
    if len(header) == 3 and not {*header} & {_KEY, *_XY, *_OTHER_NAMES}:
        names = [_KEY, *_XY]
    table = read_table(path, [], ids=[_KEY, "barcode", "bead"], names=names)
    renamed = {}
    for name in table.columns:
        plain = _OTHER_NAMES.get(str(name).strip().lower(), str(name))
        if plain not in table.columns:
            renamed[name] = plain
    table = table.rename(columns=renamed)
    check_columns(table, [_KEY, *_XY], [_KEY], path)
    return table


SLIDE_SEQ = Platform(
    "Slide-seq", (*_COUNTS, *_PLACES, *_PORTAL_COUNTS, *_PORTAL_PLACES), locate, read
)
