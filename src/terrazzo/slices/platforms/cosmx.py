"""CosMx (NanoString, Bruker): the flat files of counts, of cells and, for the size of a pixel, of fields of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import InputError
from terrazzo.genes.features import find_features
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    WideTable,
    one_file,
    place,
    plain_columns,
    read_table,
    read_wide,
    unplaced,
)

__all__ = ["COSMX"]

Texts = NDArray[np.str_]

_PIXEL = 0.12028  # um, of the instrument that is sold; its fields of view have 4,256 pixels a side
_PROTOTYPE_PIXEL = 0.18  # um, of the prototype (the public lung data); 5,472 x 3,648 pixels
_SIDE = 4256
_XY = ["CenterX_global_px", "CenterY_global_px"]
_LOCAL = ["CenterX_local_px", "CenterY_local_px"]
_IDS = ("fov", "cell_ID")
_NAMES = ("cell", "cell_id")  # c_<slide>_<fov>_<cell>
_SLIDES = ("slide_ID", "slide_ID_numeric", "slide_id", "Slide_ID", "slide", "Run_Tissue_name")
_NO_COUNTS = (*_IDS, *_NAMES, *_SLIDES)
_SLIDE = "slide"  # obs: which slide of an export of several


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
    wide = read_wide(counts_file, _NO_COUNTS)
    missing = [name for name in _IDS if name not in wide.ids.columns]
    if missing:
        raise InputError(
            f"{counts_file}: column {' and '.join(missing)} missing, which say whose the counts are"
        )
    cells = read_table(files["cells"], [*_IDS, *_XY], ids=[*_IDS, *_SLIDES, *_NAMES])
    where = f"{counts_file} and {files['cells'].name}"
    of_counts, of_cells, slide = _keys(wide.ids, cells, where)
    cells = _once(cells.assign(_key=of_cells), files["cells"])
    # what is in no cell is counted as cell 0 of its field of view
    is_cell = (wide.ids["cell_ID"] != "0").to_numpy()
    count_rows, repeated = _rows_once(np.flatnonzero(is_cell), of_counts, wide, counts_file)
    cell_keys = of_counts[count_rows]
    rows, cells = place(cell_keys.tolist(), cells, "_key", where, _XY)
    var = pd.DataFrame(index=wide.names.astype(object))
    features = find_features(var)
    genes = np.flatnonzero(features.is_gene)
    if not len(genes):
        raise InputError(f"{counts_file}: no column is a gene ({features.left_out})")
    obs = plain_columns(cells, ["_key", *_XY])
    obs = obs.set_axis(cell_keys[rows], axis=0)
    counts = wide.values[count_rows[rows]]
    counts = counts[:, genes]
    adata = AnnData(counts, obs=obs, var=var.iloc[genes])
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "CosMx"
    pixel, why = _pixel(files.get("fovs"), cells)
    factors = {"microns_per_pixel": pixel}
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": factors}}
    notes = [f"a pixel is {pixel:.5g} um: {why}"]
    if slide is not None:
        adata.obs[_SLIDE] = slide[count_rows[rows]].astype(object)
        slides = sorted(set(adata.obs[_SLIDE]))
        notes.append(f"{len(slides)} slides in one export, {', '.join(slides)}: obs[{_SLIDE!r}]")
    notes.append(features.note)
    n_fields = len(is_cell) - int(is_cell.sum())
    if n_fields:
        notes.append(f"counts that are in no cell left out ({n_fields} fields of view)")
    notes.append(repeated)
    notes.append(unplaced(len(cell_keys), len(rows)))
    return Opened(adata, "CosMx", name, notes=tuple(note for note in notes if note))


def _keys(
    counted: pd.DataFrame, cells: pd.DataFrame, where: str
) -> tuple[Texts, Texts, Texts | None]:
    """Return ids of the rows of both tables, and the slide of each row of the counts where there are several.

    Ids begin with the slide then.

    Raises
    ------
    InputError
        The cells are of several slides, and the counts do not say of which.
    """
    of_counts = _key(counted)
    of_cells = _key(cells)
    slide_of_cells = _slide(cells)
    if slide_of_cells is None:
        return of_counts, of_cells, None
    slides = sorted(set(slide_of_cells.tolist()))
    if len(slides) < 2:
        return of_counts, of_cells, None
    slide_of_counts = _slide(counted)
    if slide_of_counts is None or not set(slide_of_counts.tolist()) & set(slides):
        raise InputError(
            f"{where}: the export holds {len(slides)} slides ({', '.join(slides[:5])}), and the counts do not say "
            f"which cell is of which (they have no column {' or '.join(_NAMES)}); export each slide by itself"
        )
    of_counts = np.char.add(np.char.add(slide_of_counts, "_"), of_counts)
    of_cells = np.char.add(np.char.add(slide_of_cells, "_"), of_cells)
    return of_counts, of_cells, slide_of_counts


def _slide(table: pd.DataFrame) -> Texts | None:
    """Return the slide of each row: of the id ``c_<slide>_<fov>_<cell>``, else of a column; None where neither is."""
    for name in _NAMES:
        if name in table.columns:
            parts = table[name].str.extract(r"^c_(\w+?)_\d+_\d+$")[0]
            if parts.notna().all():
                return parts.to_numpy(dtype=np.str_)
    for name in _SLIDES:
        if name in table.columns:
            return table[name].str.replace(r"\.0$", "", regex=True).to_numpy(dtype=np.str_)
    return None


def _once(cells: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the table of cells without rows that are there twice.

    Raises
    ------
    InputError
        A cell has two positions.
    """
    cells = cells[~cells.duplicated(["_key", *_XY])]
    again = cells["_key"].duplicated()
    if again.any():
        raise InputError(
            f"{path}: {int(again.sum())} cells are there more than once with different positions "
            f"(first: {cells['_key'][again].iloc[0]}); are these files of several slides? Export each slide by itself"
        )
    return cells.reset_index(drop=True)


def _rows_once(rows: Ints, ids: Texts, wide: WideTable, path: Path) -> tuple[Ints, str]:
    """Return rows of cells without those that only repeat another or hold no number, and a note on these.

    AtoMx has exported cells twice, the second time with NA in every column.

    Raises
    ------
    InputError
        Two rows of one cell hold different counts.
    """
    missing = np.isnan(wide.values.data)
    n_missing = np.zeros(wide.values.shape[0], dtype=np.int64)
    if missing.any():
        of_row = np.repeat(np.arange(len(n_missing)), np.diff(wide.values.indptr))
        n_missing = np.bincount(of_row[missing], minlength=len(n_missing))
    is_missing = n_missing[rows] == len(wide.names)
    n_lost = int(is_missing.sum())
    rows = rows[~is_missing]
    _, first, place_of = np.unique(ids[rows], return_index=True, return_inverse=True)
    original = first[place_of]
    again = np.flatnonzero(original != np.arange(len(rows)))
    if len(again):
        difference = wide.values[rows[again]] != wide.values[rows[original[again]]]
        if difference.nnz:
            example = ids[rows[again[np.unique(difference.nonzero()[0])[0]]]]
            raise InputError(
                f"{path}: cell ids repeat with different counts (e.g. {example}); are these files of several slides? "
                "Export each slide by itself"
            )
        rows = np.delete(rows, again)
    notes = []
    if len(again):
        notes.append(f"{len(again):,} rows of counts that repeat another left out")
    if n_lost:
        notes.append(f"{n_lost:,} rows of counts that hold only NA left out")
    return rows, "; ".join(notes)


def _key(table: pd.DataFrame) -> Texts:
    """Return ids of cells over the whole slide; the numbers may be written as 1 or 1.0."""
    columns = []
    for name in _IDS:
        column = table[name].str.replace(r"\.0$", "", regex=True)
        columns.append(column)
    fov, cell = columns
    return (fov + "_" + cell).to_numpy(dtype=np.str_)


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
