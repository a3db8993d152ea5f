"""CosMx (NanoString, Bruker): the flat files of counts, of cells and, for the size of a pixel, of fields of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import InputError
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    one_file,
    place,
    plain_columns,
    read_table,
    read_wide,
    unplaced,
)

__all__ = ["COSMX"]

_PIXEL = 0.12028  # um, of the instrument that is sold; its fields of view have 4,256 pixels a side
_PROTOTYPE_PIXEL = 0.18  # um, of the prototype (the public lung data); 5,472 x 3,648 pixels
_SIDE = 4256
_XY = ["CenterX_global_px", "CenterY_global_px"]
_LOCAL = ["CenterX_local_px", "CenterY_local_px"]
_IDS = ("fov", "cell_ID")
_CONTROLS = ("NegPrb", "Negative", "SystemControl", "FalseCode", "NegControl", "UnassignedCodeword")


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    files = {
        "counts": _one_table(folder, "exprMat", "the table of counts"),
        "cells": _one_table(folder, "metadata", "the table of cells"),
    }
    if any(folder.glob("*fov_positions_file.csv*")):
        files["fovs"] = _one_table(folder, "fov_positions", "the table of fields of view")
    return files


def _one_table(folder: Path, part: str, what: str) -> Path:
    return one_file(folder, [f"*{part}_file.csv", f"*{part}_file.csv.gz"], what)


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes and global positions of cells, in pixels, whose size is looked for in the files."""
    counts_file = files["counts"]
    wide = read_wide(counts_file, (*_IDS, "cell"))
    missing = [name for name in _IDS if name not in wide.ids.columns]
    if missing:
        raise InputError(
            f"{counts_file}: column {' and '.join(missing)} missing, which say whose the counts are"
        )
    cells = read_table(files["cells"], [*_IDS, *_XY], ids=list(_IDS))
    cells = cells.assign(_key=_key(cells))
    # what is in no cell is counted as cell 0 of its field of view
    is_cell = (wide.ids["cell_ID"] != "0").to_numpy()
    cell_keys = _key(wide.ids)
    cell_keys = cell_keys[is_cell]
    where = f"{counts_file} and {files['cells'].name}"
    rows, cells = place(cell_keys.tolist(), cells, "_key", where)
    is_control = np.array([gene.startswith(_CONTROLS) for gene in wide.names], dtype=bool)
    genes = wide.names[~is_control]
    var = pd.DataFrame(index=genes.astype(object))
    obs = plain_columns(cells, ["_key", *_XY])
    obs_names = cell_keys.to_numpy()[rows]
    obs = obs.set_axis(obs_names, axis=0)
    count_rows = np.flatnonzero(is_cell)
    counts = wide.values[count_rows[rows]]
    counts = counts[:, ~is_control]
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "CosMx"
    pixel, why = _pixel(files.get("fovs"), cells)
    factors = {"microns_per_pixel": pixel}
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": factors}}
    notes = [f"a pixel is {pixel:.5g} um: {why}"]
    n_controls = int(is_control.sum())
    if n_controls:
        notes.append(f"{n_controls} control probes and codes left out")
    n_fields = len(is_cell) - int(is_cell.sum())
    if n_fields:
        notes.append(f"counts that are in no cell left out ({n_fields} fields of view)")
    if len(rows) < len(cell_keys):
        notes.append(unplaced(len(cell_keys), len(rows)))
    return Opened(adata, "CosMx", name, notes=tuple(notes))


def _key(table: pd.DataFrame) -> pd.Series:
    """Return ids of cells over the whole slide; the numbers may be written as 1 or 1.0."""
    columns = []
    for name in _IDS:
        column = table[name].str.replace(r"\.0$", "", regex=True)
        columns.append(column)
    fov, cell = columns
    return fov + "_" + cell


def _pixel(fovs: Path | None, cells: pd.DataFrame) -> tuple[float, str]:
    """Return micrometers a pixel, and how it is known."""
    if fovs is not None:
        table = read_table(fovs, [])
        table = table.rename(columns=str.lower)
        pixels = _extent(table, ["x_global_px", "y_global_px"])
        um = 1000 * _extent(table, ["x_global_mm", "y_global_mm"])
        pixel = um / pixels if pixels > 0 else 0.0
        if 0.01 < pixel < 10:
            return pixel, f"{fovs.name} has both millimeters and pixels"
    local = [name for name in _LOCAL if name in cells.columns]
    positions = cells[local].to_numpy(dtype=float)
    if local and float(positions.max()) > _SIDE:
        why = f"fields of view reach beyond {_SIDE} pixels, as those of the prototype"
        return _PROTOTYPE_PIXEL, why
    return _PIXEL, "that of the instrument; pass microns_per_unit= if it was another"


def _extent(table: pd.DataFrame, columns: list[str]) -> float:
    """Return the larger range of two columns; 0 where they are not there."""
    if not set(columns) <= set(table.columns):
        return 0.0
    values = table[columns].to_numpy(dtype=float)
    ranges = np.ptp(values, axis=0)
    return float(ranges.max())


COSMX = Platform("CosMx", ("*exprMat_file.csv*", "*metadata_file.csv*"), locate, read)
