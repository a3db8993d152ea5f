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

PIXEL = 0.12028  # um, of the instrument that is sold; its fields of view have 4,256 pixels a side
PROTOTYPE_PIXEL = 0.18  # um, of the prototype (the public lung data); 5,472 x 3,648 pixels
_SIDE = 4256
_XY = ["CenterX_global_px", "CenterY_global_px"]
_LOCAL = ["CenterX_local_px", "CenterY_local_px"]
_IDS = ("fov", "cell_ID")
_CONTROLS = ("NegPrb", "Negative", "SystemControl", "FalseCode", "NegControl", "UnassignedCodeword")


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    files = {
        role: one_file(folder, [f"*{part}_file.csv", f"*{part}_file.csv.gz"], what)
        for role, part, what in (
            ("counts", "exprMat", "the table of counts"),
            ("cells", "metadata", "the table of cells"),
        )
    }
    if any(folder.glob("*fov_positions_file.csv*")):
        what = "the table of fields of view"
        files["fovs"] = one_file(
            folder, ["*fov_positions_file.csv", "*fov_positions_file.csv.gz"], what
        )
    return files


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes and global positions of cells, in pixels whose size is found out."""
    wide = read_wide(files["counts"], (*_IDS, "cell"))
    missing = [one for one in _IDS if one not in wide.ids.columns]
    if missing:
        raise InputError(
            f"{files['counts']}: column {' and '.join(missing)} missing, which say whose the counts are"
        )
    cells = read_table(files["cells"], [*_IDS, *_XY], ids=list(_IDS))
    cells = cells.assign(_key=_key(cells))
    is_cell = (
        wide.ids["cell_ID"] != "0"
    ).to_numpy()  # what lies in no cell is counted as cell 0 of its field of view
    keys_of = _key(wide.ids)[is_cell]
    rows, cells = place(
        keys_of.tolist(), cells, "_key", f"{files['counts']} and {files['cells'].name}"
    )
    control = np.array([one.startswith(_CONTROLS) for one in wide.names], dtype=bool)
    obs = plain_columns(cells, ["_key", *_XY]).set_axis(keys_of.to_numpy()[rows], axis=0)
    counts = wide.values[np.flatnonzero(is_cell)[rows]][:, ~control]
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=wide.names[~control].astype(object)))
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "CosMx"
    pixel, why = _pixel(files.get("fovs"), cells)
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": {"microns_per_pixel": pixel}}}
    notes = (
        f"a pixel is {pixel:.5g} um: {why}",
        f"{int(control.sum())} control probes and codes left out" if control.any() else "",
        f"counts that lie in no cell left out ({int((~is_cell).sum())} fields of view)"
        if not is_cell.all()
        else "",
        unplaced(len(keys_of), len(rows)),
    )
    return Opened(adata, "CosMx", name, notes=tuple(note for note in notes if note))


def _key(table: pd.DataFrame) -> pd.Series:
    """Id of a cell over the whole slide; the numbers may be written as 1 or 1.0."""
    plain = [table[one].str.replace(r"\.0$", "", regex=True) for one in _IDS]
    return plain[0] + "_" + plain[1]


def _pixel(fovs: Path | None, cells: pd.DataFrame) -> tuple[float, str]:
    """Return micrometers a pixel, and how it is known."""
    if fovs is not None:
        table = read_table(fovs, []).rename(columns=str.lower)
        if {"x_global_px", "x_global_mm", "y_global_px", "y_global_mm"} <= set(table.columns):
            pixels = np.ptp(
                table[["x_global_px", "y_global_px"]].to_numpy(dtype=float), axis=0
            ).max()
            um = (
                1000
                * np.ptp(table[["x_global_mm", "y_global_mm"]].to_numpy(dtype=float), axis=0).max()
            )
            if pixels > 0 and 0.01 < um / pixels < 10:
                return float(um / pixels), f"{fovs.name} has both millimeters and pixels"
    held = [one for one in _LOCAL if one in cells.columns]
    if held and float(cells[held].to_numpy(dtype=float).max()) > _SIDE:
        return (
            PROTOTYPE_PIXEL,
            f"fields of view reach beyond {_SIDE} pixels, as those of the prototype",
        )
    return PIXEL, "that of the instrument; pass microns_per_unit= if it was another"


COSMX = Platform("CosMx", ("*exprMat_file.csv*", "*metadata_file.csv*"), locate, read)
