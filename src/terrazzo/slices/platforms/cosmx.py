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
    id_columns = (*_IDS, *_SLIDES, *_NAMES)
    cells = read_table(files["cells"], [*_IDS, *_XY], ids=id_columns)
    where = f"{counts_file} and {files['cells'].name}"
    of_counts, of_cells, slide = _keys(wide.ids, cells, where)
    cells = cells.assign(_key=of_cells)
    cells = _once(cells, files["cells"])
    # what is in no cell is counted as cell 0 of its field of view
    is_cell = (wide.ids["cell_ID"] != "0").to_numpy()
    count_rows = np.flatnonzero(is_cell)
    count_rows, repeated = _rows_once(count_rows, of_counts, wide, counts_file)
    cell_keys = of_counts[count_rows]
    rows, cells = place(cell_keys.tolist(), cells, "_key", where, _XY)
    used_rows = count_rows[rows]
    var = pd.DataFrame(index=wide.names.astype(object))
    features = find_features(var)
    genes = np.flatnonzero(features.is_gene)
    if not len(genes):
        raise InputError(f"{counts_file}: no column is a gene ({features.left_out})")
    obs = plain_columns(cells, ["_key", *_XY])
    obs = obs.set_axis(cell_keys[rows], axis=0)
    counts = wide.values[used_rows]
    counts = counts[:, genes]
    adata = AnnData(counts, obs=obs, var=var.iloc[genes])
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "CosMx"
    pixel, why = _pixel(files.get("fovs"), cells)
    factors = {"microns_per_pixel": pixel}
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": factors}}
    notes = [f"a pixel is {pixel:.5g} um: {why}"]
    if slide is not None:
        adata.obs[_SLIDE] = slide[used_rows].astype(object)
        slides = adata.obs[_SLIDE].unique()
        listed = ", ".join(slides)
        notes.append(f"{len(slides)} slides in one export, {listed}: obs[{_SLIDE!r}]")
    notes.append(features.note)
    n_fields = len(is_cell) - int(is_cell.sum())
    if n_fields:
        notes.append(f"counts that are in no cell left out ({n_fields} fields of view)")
    notes += repeated
    n_cells = len(cell_keys)
    notes.append(unplaced(n_cells, len(rows)))
    notes = [note for note in notes if note]
    return Opened(adata, "CosMx", name, notes=tuple(notes))


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
    slides = np.unique(slide_of_cells).tolist()
    if len(slides) < 2:
        return of_counts, of_cells, None
    slide_of_counts = _slide(counted)
    known = [] if slide_of_counts is None else slide_of_counts.tolist()
    if slide_of_counts is None or set(slides).isdisjoint(known):
        listed = ", ".join(slides[:5])
        raise InputError(
            f"{where}: the export holds {len(slides)} slides ({listed}), and the counts do not say which cell is of "
            f"which (they have no column {' or '.join(_NAMES)}); export each slide by itself"
        )
    of_counts = _join(slide_of_counts, of_counts)
    of_cells = _join(slide_of_cells, of_cells)
    return of_counts, of_cells, slide_of_counts


def _join(first: Texts, second: Texts) -> Texts:
    """Return texts with another in front, and "_" between."""
    front = np.char.add(first, "_")
    return np.char.add(front, second)


def _slide(table: pd.DataFrame) -> Texts | None:
    """Return the slide of each row: of the id ``c_<slide>_<fov>_<cell>``, else of a column; None where neither is."""
    for name in _NAMES:
        if name not in table.columns:
            continue
        slide = table[name].str.extract(r"^c_(\w+?)_\d+_\d+$")[0]
        if slide.notna().all():
            return slide.to_numpy(dtype=np.str_)
    for name in _SLIDES:
        if name in table.columns:
            slide = table[name].str.replace(r"\.0$", "", regex=True)
            return slide.to_numpy(dtype=np.str_)
    return None


def _once(cells: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the table of cells without rows that are there twice.

    Raises
    ------
    InputError
        A cell has two positions.
    """
    is_copy = cells.duplicated(["_key", *_XY])
    cells = cells[~is_copy]
    again = cells["_key"].duplicated()
    if again.any():
        repeated = cells["_key"][again]
        example = repeated.iloc[0]
        raise InputError(
            f"{path}: {len(repeated)} cells are there more than once with different positions (first: {example}); "
            "are these files of several slides? Export each slide by itself"
        )
    return cells.reset_index(drop=True)


def _rows_once(rows: Ints, ids: Texts, wide: WideTable, path: Path) -> tuple[Ints, list[str]]:
    """Return rows of cells without those that only repeat another or hold no number, and notes on these.

    AtoMx has exported cells twice, the second time with NA in every column.

    Raises
    ------
    InputError
        Two rows of one cell hold different counts.
    """
    notes = []
    n_missing = _n_missing(wide)
    is_missing = n_missing[rows] == len(wide.names)
    n_lost = int(is_missing.sum())
    rows = rows[~is_missing]
    _, first, group = np.unique(ids[rows], return_index=True, return_inverse=True)
    original = first[group]
    numbers = np.arange(len(rows))
    again = np.flatnonzero(original != numbers)
    if len(again):
        copy_rows = rows[again]
        original_rows = rows[original[again]]
        difference = wide.values[copy_rows] != wide.values[original_rows]
        differing, _ = difference.nonzero()
        if len(differing):
            first_row = copy_rows[differing[0]]
            example = ids[first_row]
            raise InputError(
                f"{path}: cell ids repeat with different counts (e.g. {example}); are these files of several slides? "
                "Export each slide by itself"
            )
        rows = np.delete(rows, again)
        notes.append(f"{len(again):,} rows of counts that repeat another left out")
    if n_lost:
        notes.append(f"{n_lost:,} rows of counts that hold only NA left out")
    return rows, notes


def _n_missing(wide: WideTable) -> Ints:
    """Return how many values of each row are NA."""
    n_rows, _ = wide.values.shape
    is_missing = np.isnan(wide.values.data)
    n_stored = np.diff(wide.values.indptr)
    row = np.repeat(np.arange(n_rows), n_stored)
    return np.bincount(row[is_missing], minlength=n_rows)


def _key(table: pd.DataFrame) -> Texts:
    """Return ids of cells over the whole slide; the numbers may be written as 1 or 1.0."""
    columns = []
    for name in _IDS:
        column = table[name].str.replace(r"\.0$", "", regex=True)
        columns.append(column)
    fov, cell = columns
    key = fov + "_" + cell
    return key.to_numpy(dtype=np.str_)


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
