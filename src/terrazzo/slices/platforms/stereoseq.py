"""Stereo-seq (STOmics): gene expression files (GEF, HDF5), binned or by cell, alone or in SAW's output folder.

Layout, as SAW's manual has it: ``geneExp/binN/expression`` (x, y, count; gene by gene) and ``geneExp/binN/gene`` (name,
offset, count); ``cellBin/cell`` (id, x, y, offset, geneCount), ``cellBin/cellExp`` (geneID, count), ``cellBin/gene``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import Ints
from terrazzo.errors import ConfigError, InputError
from terrazzo.safe_hdf5 import open_file
from terrazzo.slices.hdf5 import require_filters
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    as_counts,
    compressed,
    dataset,
    one_file,
    reading,
    texts,
)

__all__ = ["STEREO_SEQ"]

_DEFAULT_BIN = 50  # spots of the chip along a side: 25 um
_SPOT_UM = 0.5  # from spot to spot of the chip
_PLACES = ("", "outs/feature_expression/", "feature_expression/")
_CELL_FILES = ("*.adjusted.cellbin.gef", "*.cellbin.gef")
_BIN_FILES = ("*.tissue.gef", "*.gef")
_BIN = re.compile(r"(?:bin)?0*(\d{1,4})")
_CHUNK = 2**23  # records that are read at a time
_MAX_SPOTS = 2**20  # along a side; the largest chip has 2**19


def locate(path: Path, choices: Choices) -> dict[str, Path]:
    """Find the file: itself, or in a folder that of the tissue's bins, or of its cells."""
    if path.is_file():
        return {"gef": path}
    folder = path
    for place in _PLACES:
        if any((path / place).glob("*.gef")):
            folder = path / place
            break
    names = sorted({file.name for file in folder.glob("*.gef")})
    binned = [name for name in names if not name.endswith((".cellbin.gef", ".raw.gef"))]
    of_cells = [pattern for pattern in _CELL_FILES if any(folder.glob(pattern))]
    if _wanted(choices) == "cell" or (of_cells and not binned):
        patterns = of_cells[:1] or _CELL_FILES
        return {"gef": one_file(folder, patterns, "the GEF of cells")}
    of_tissue = [name for name in binned if name.endswith(".tissue.gef")]
    patterns = of_tissue or binned or _BIN_FILES
    return {"gef": one_file(folder, patterns, "the GEF of bins")}


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts and positions of cells, or of square bins; in spots of the chip, whose distance the file states."""
    path = files["gef"]
    wanted = _wanted(choices)
    require_filters(path)
    with reading(path), open_file(path) as file:
        if "cellBin" in file:
            if wanted not in (None, "cell"):
                raise ConfigError(
                    f"{path} holds cells, not bins: leave bins= out, or pass the file of bins"
                )
            adata, spot_um = _read_cells(file, path)
            kind = "cells"
        elif "geneExp" in file:
            if wanted == "cell":
                raise ConfigError(
                    f"{path} holds bins, not cells: pass bins= as a number, or the file .cellbin.gef"
                )
            size = _DEFAULT_BIN if wanted is None else int(wanted)
            adata, spot_um = _read_bins(file, path, size)
            kind = f"bins of {size} x {size} spots, {size * spot_um:g} um"
        else:
            raise InputError(
                f"{path}: neither geneExp (bins) nor cellBin (cells) is in it; this is not a GEF"
            )
    adata.uns[keys.TECHNOLOGY] = "Stereo-seq"
    factors = {"microns_per_pixel": spot_um}
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": factors}}
    return Opened(adata, f"Stereo-seq, {kind}", name)


def _wanted(choices: Choices) -> str | None:
    """Return "cell", the number of spots along a bin, or None for the default."""
    if choices.bins is None:
        return None
    text = choices.bins.strip()
    if text.lower() in ("cell", "cells", "cellbin"):
        return "cell"
    match = _BIN.fullmatch(text)
    size = match.group(1) if match else "0"
    if int(size) < 1:
        raise ConfigError(
            f"bins={choices.bins!r}: Stereo-seq takes a number of spots (50) or 'cell'"
        )
    return size


def _read_cells(file: Any, path: Path) -> tuple[AnnData, float]:
    """Return the cells, and micrometers between spots."""
    group = file["cellBin"]
    cells = _records(group, "cell", ("id", "x", "y", "offset", "geneCount"), path)
    counts = _records(group, "cellExp", ("geneID", "count"), path)
    var = _genes(group, path)
    if not len(cells):
        raise InputError(f"{path} holds no cells")
    ends = _ends(cells["offset"], cells["geneCount"], len(counts), f"{path}: cellBin/cell")
    matrix = compressed(
        counts["count"],
        counts["geneID"],
        np.append(0, ends),
        (len(cells), len(var)),
        f"{path}: cellBin/cellExp",
    )
    ids = cells["id"].astype(np.int64)
    names = ids.astype(str).astype(object)
    obs = pd.DataFrame(index=names)
    fields = cells.dtype.names or ()
    for field in ("area", "dnbCount"):
        if field in fields:
            obs[field] = cells[field].astype(np.int64)
    adata = AnnData(matrix, obs=obs, var=var)
    xy = np.stack([cells["x"], cells["y"]], axis=1)
    adata.obsm[keys.SPATIAL] = xy.astype(np.float64)
    return adata, _spot_um(path, group, file)


def _read_bins(file: Any, path: Path, size: int) -> tuple[AnnData, float]:
    """Return bins of so many spots, stored or summed from the smallest; and micrometers between spots."""
    sizes = _stored_sizes(file["geneExp"])
    stored = size if size in sizes else 1
    if stored not in sizes:
        listed = ", ".join(str(one) for one in sizes) or "none"
        raise ConfigError(f"{path} has no bins of {size} spots; it has: {listed}")
    group = file[f"geneExp/bin{stored}"]
    var = _genes(group, path)
    genes = _records(group, "gene", ("offset", "count"), path)
    spots = _spot_records(group, path)
    ends = _ends(genes["offset"], genes["count"], len(spots), f"{path}: {group.name}/gene")
    # stored bins are numbered, or have the position of their first spot
    step = size if stored == 1 or _in_spots(spots, size) else 1
    parts = []
    for start in range(0, len(spots), _CHUNK):
        sums = _sum_records(spots, start, ends, step, path)
        parts.append(sums)
    columns, rows, gene, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    width = int(columns.max()) + 1
    site = rows * width + columns
    sites, cell = np.unique(site, return_inverse=True)
    shape = (len(sites), len(var))
    counts = sp.coo_matrix((value, (cell, gene)), shape=shape)
    counts = as_counts(sp.csr_matrix(counts))
    row, column = np.divmod(sites, width)
    place = np.stack([column, row], axis=1)
    first_spots = place * size
    names = [f"{x}_{y}" for x, y in first_spots.tolist()]
    obs = pd.DataFrame({keys.ARRAY_ROW: row, keys.ARRAY_COL: column}, index=names)
    adata = AnnData(counts, obs=obs, var=var)
    centers = (place + 0.5) * size  # in spots
    adata.obsm[keys.SPATIAL] = centers
    return adata, _spot_um(path, spots, file)


def _stored_sizes(group: Any) -> list[int]:
    """Return the sizes of the bins that a file has."""
    sizes = []
    for name in group:
        size = name.removeprefix("bin")
        if name != size and size.isdigit():
            sizes.append(int(size))
    return sorted(sizes)


def _spot_records(group: Any, path: Path) -> Any:
    """Return the records x, y, count of bins, which stay in the file."""
    spots = group.get("expression")
    fields: tuple[str, ...] = ()
    if isinstance(spots, h5py.Dataset) and spots.ndim == 1:
        fields = spots.dtype.names or ()
    if not {"x", "y", "count"}.issubset(fields):
        raise InputError(f"{path}: {group.name}/expression with x, y and count is missing")
    if not len(spots):
        raise InputError(f"{path}: {group.name} holds no counts")
    return spots


def _in_spots(spots: Any, size: int) -> bool:
    """Say whether positions of bins are those of their first spot: all equal modulo the bin's side."""
    if size == 1:
        return True
    some = spots[:_CHUNK]
    for axis in ("x", "y"):
        within_bin = some[axis] % size
        if len(np.unique(within_bin)) != 1:
            return False
    return True


def _sum_records(
    spots: Any, start: int, ends: Ints, step: int, path: Path
) -> tuple[Ints, Ints, Ints, NDArray[Any]]:
    """Sum some records by bin and gene: return column, row, gene and count."""
    records = spots[start : start + _CHUNK]
    x = records["x"].astype(np.int64)
    y = records["y"].astype(np.int64)
    x_range = f"x {x.min()} to {x.max()}"
    y_range = f"y {y.min()} to {y.max()}"
    for position in (x, y):
        if position.min() < 0 or position.max() >= _MAX_SPOTS:
            raise InputError(f"{path}: positions beyond any chip ({x_range}, {y_range})")
    stop = start + len(records)
    numbers = np.arange(start, stop)
    gene = np.searchsorted(ends, numbers, side="right")
    row = y // step
    column = x // step
    code = gene * _MAX_SPOTS + row
    code = code * _MAX_SPOTS + column
    codes, position = np.unique(code, return_inverse=True)
    weights = records["count"].astype(np.float64)
    count = np.bincount(position, weights=weights)
    code, column = np.divmod(codes, _MAX_SPOTS)
    gene, row = np.divmod(code, _MAX_SPOTS)
    return column, row, gene, count


def _genes(group: Any, path: Path) -> pd.DataFrame:
    """Return the genes of a group, by name where there is one."""
    table = _records(group, "gene", (), path)
    fields = table.dtype.names or ()
    names = [field for field in ("geneName", "gene", "geneID") if field in fields]
    if not names:
        raise InputError(f"{path}: {group.name}/gene has no field geneName, gene or geneID")
    var = pd.DataFrame(index=texts(table[names[0]]).astype(object))
    if "geneID" in names[1:]:
        var["gene_ids"] = texts(table["geneID"])
    return var


def _records(group: Any, name: str, fields: tuple[str, ...], path: Path) -> NDArray[Any]:
    """Read a table of records that has some fields."""
    table = dataset(group, name, "V", path)
    names = table.dtype.names or ()
    missing = [field for field in fields if field not in names]
    if missing:
        raise InputError(f"{path}: {group.name}/{name} has no field {', '.join(missing)}")
    return table


def _ends(offset: NDArray[Any], count: NDArray[Any], total: int, where: str) -> Ints:
    """Return where each run of records ends, after checking that the runs follow each other and fill the file."""
    counts = count.astype(np.int64)
    ends = np.cumsum(counts)
    starts = ends - counts
    stated = offset.astype(np.int64)
    is_whole = len(ends) == 0 or int(ends[-1]) == total
    if not is_whole or not np.array_equal(starts, stated):
        raise InputError(
            f"{where}: offsets and counts do not fit the {total:,} records; the file is damaged"
        )
    return ends


def _spot_um(path: Path, *holders: Any) -> float:
    """Return micrometers between spots, from ``resolution`` (nanometers) where it is stated."""
    for holder in holders:
        stated = np.ravel(holder.attrs.get("resolution", 0))
        resolution = float(stated[0])
        if resolution == 0:
            continue
        if not 50 <= resolution <= 50_000:
            raise InputError(
                f"{path}: resolution is {resolution:g}; it should be nanometers between spots (500)"
            )
        return resolution / 1000
    return _SPOT_UM


STEREO_SEQ = Platform(
    "Stereo-seq",
    tuple(f"{place}*.gef" for place in _PLACES),
    locate,
    read,
    takes=("bins",),
    suffix=".gef",
)
