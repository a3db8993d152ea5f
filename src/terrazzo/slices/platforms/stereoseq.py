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
from terrazzo.errors import ConfigError, InputError
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

DEFAULT_BIN = 50  # spots of the chip along a side: 25 um
SPOT = 0.5  # um, from spot to spot of the chip
_PLACES = ("", "outs/feature_expression/", "feature_expression/")
_CELLS, _BINS = ("*.adjusted.cellbin.gef", "*.cellbin.gef"), ("*.tissue.gef", "*.gef")
_BIN = re.compile(r"(?:bin)?0*(\d{1,4})")
_CHUNK = 2**23  # records that are read at a time
_MOST_SPOTS = 2**20  # along a side; the largest chip has 2**19


def locate(path: Path, choices: Choices) -> dict[str, Path]:
    """Find the file: itself, or in a folder that of the tissue's bins, or of its cells."""
    if path.is_file():
        return {"gef": path}
    place = next((path / part for part in _PLACES if any((path / part).glob("*.gef"))), path)
    held = {one.name for one in place.glob("*.gef")}
    by_cell = [pattern for pattern in _CELLS if any(place.glob(pattern))]
    binned = {name for name in held if not name.endswith((".cellbin.gef", ".raw.gef"))}
    if _wanted(choices) == "cell" or (by_cell and not binned):
        return {"gef": one_file(place, by_cell[:1] or _CELLS, "the GEF of cells")}
    tissue = sorted(name for name in binned if name.endswith(".tissue.gef"))
    return {"gef": one_file(place, tissue or sorted(binned) or _BINS, "the GEF of bins")}


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts and positions of cells, or of square bins; in spots of the chip, whose distance the file says."""
    path, wanted = files["gef"], _wanted(choices)
    with reading(path), h5py.File(path, "r") as file:
        if "cellBin" in file:
            if wanted not in (None, "cell"):
                raise ConfigError(
                    f"{path} holds cells, not bins: leave bins= out, or pass the file of bins"
                )
            adata, unit, kind = *_read_cells(file, path), "cells"
        elif "geneExp" in file:
            if wanted == "cell":
                raise ConfigError(
                    f"{path} holds bins, not cells: pass bins= as a number, or the file .cellbin.gef"
                )
            size = DEFAULT_BIN if wanted is None else int(wanted)
            adata, unit = _read_bins(file, path, size)
            kind = f"bins of {size} x {size} spots, {size * unit:g} um"
        else:
            raise InputError(
                f"{path}: neither geneExp (bins) nor cellBin (cells) is in it; this is no GEF"
            )
    adata.uns[keys.TECHNOLOGY] = "Stereo-seq"
    adata.uns[keys.SPATIAL] = {name: {"scalefactors": {"microns_per_pixel": unit}}}
    return Opened(adata, f"Stereo-seq, {kind}", name)


def _wanted(choices: Choices) -> str | None:
    if choices.bins is None or choices.bins.strip().lower() in ("cell", "cells", "cellbin"):
        return None if choices.bins is None else "cell"
    found = _BIN.fullmatch(choices.bins.strip())
    if not found or int(found.group(1)) < 1:
        raise ConfigError(
            f"bins={choices.bins!r}: Stereo-seq takes a number of spots (50) or 'cell'"
        )
    return found.group(1)


def _read_cells(file: Any, path: Path) -> tuple[AnnData, float]:
    group = file["cellBin"]
    cell = _records(group, "cell", ("id", "x", "y", "offset", "geneCount"), path)
    held = _records(group, "cellExp", ("geneID", "count"), path)
    var = _genes(group, path)
    if not len(cell):
        raise InputError(f"{path} holds no cells")
    ends = _ends(cell["offset"], cell["geneCount"], len(held), f"{path}: cellBin/cell")
    shape = (len(cell), len(var))
    counts = compressed(
        held["count"], held["geneID"], np.append(0, ends), shape, f"{path}: cellBin/cellExp"
    )
    names = cell["id"].astype(np.int64).astype(str).astype(object)
    more = [one for one in ("area", "dnbCount") if one in (cell.dtype.names or ())]
    obs = pd.DataFrame({one: cell[one].astype(np.int64) for one in more}, index=names)
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = np.stack([cell["x"], cell["y"]], axis=1).astype(np.float64)
    return adata, _spot(path, group, file)


def _read_bins(file: Any, path: Path, size: int) -> tuple[AnnData, float]:
    """Read bins of so many spots: as they are stored, else summed from the smallest."""
    stored = sorted(
        int(one[3:]) for one in file["geneExp"] if one.startswith("bin") and one[3:].isdigit()
    )
    held = size if size in stored else 1
    if held not in stored:
        raise ConfigError(
            f"{path} has no bins of {size} spots; it has: {', '.join(map(str, stored)) or 'none'}"
        )
    group = file[f"geneExp/bin{held}"]
    var = _genes(group, path)
    table = _records(group, "gene", ("offset", "count"), path)
    spots = group.get("expression")
    if (
        not isinstance(spots, h5py.Dataset)
        or spots.ndim != 1
        or not {"x", "y", "count"} <= set(spots.dtype.names or ())
    ):
        raise InputError(f"{path}: {group.name}/expression with x, y and count is missing")
    if not len(spots):
        raise InputError(f"{path}: {group.name} holds no counts")
    ends = _ends(table["offset"], table["count"], len(spots), f"{path}: {group.name}/gene")
    step = (
        size if held == 1 or _in_spots(spots, size) else 1
    )  # bins are numbered, or lie at their first spot
    parts = [_summed(spots, start, ends, step, path) for start in range(0, len(spots), _CHUNK)]
    column, row, gene, value = (np.concatenate(one) for one in zip(*parts, strict=True))
    width = int(column.max()) + 1
    sites, at = np.unique(row * width + column, return_inverse=True)
    counts = as_counts(
        sp.csr_matrix(sp.coo_matrix((value, (at, gene)), shape=(len(sites), len(var))))
    )
    place = np.stack([sites % width, sites // width], axis=1)
    names = [f"{x}_{y}" for x, y in (place * size).tolist()]
    obs = pd.DataFrame({keys.ARRAY_ROW: place[:, 1], keys.ARRAY_COL: place[:, 0]}, index=names)
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm[keys.SPATIAL] = (place + 0.5) * size  # centers, in spots
    return adata, _spot(path, spots, file)


def _in_spots(spots: Any, size: int) -> bool:
    """Say whether positions of bins are those of their first spot: all equal modulo the bin's side."""
    some = spots[:_CHUNK]
    return size == 1 or all(len(np.unique(some[axis] % size)) == 1 for axis in ("x", "y"))


def _summed(
    spots: Any, start: int, ends: NDArray[np.int64], step: int, path: Path
) -> tuple[NDArray[Any], ...]:
    """Sum some records by bin and gene: column, row, gene, count."""
    piece = spots[start : start + _CHUNK]
    x, y = piece["x"].astype(np.int64), piece["y"].astype(np.int64)
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) >= _MOST_SPOTS:
        raise InputError(
            f"{path}: positions beyond any chip (x {x.min()} to {x.max()}, y {y.min()} to {y.max()})"
        )
    gene = np.searchsorted(ends, np.arange(start, start + len(piece)), side="right")
    code = (gene * _MOST_SPOTS + y // step) * _MOST_SPOTS + x // step
    codes, at = np.unique(code, return_inverse=True)
    value = np.bincount(at, weights=piece["count"].astype(np.float64))
    return codes % _MOST_SPOTS, codes // _MOST_SPOTS % _MOST_SPOTS, codes // _MOST_SPOTS**2, value


def _genes(group: Any, path: Path) -> pd.DataFrame:
    table = _records(group, "gene", (), path)
    fields = table.dtype.names or ()
    name = next((one for one in ("geneName", "gene", "geneID") if one in fields), None)
    if name is None:
        raise InputError(f"{path}: {group.name}/gene has no field geneName, gene or geneID")
    columns = (
        {"gene_ids": texts(table["geneID"])} if "geneID" in fields and name != "geneID" else {}
    )
    return pd.DataFrame(columns, index=texts(table[name]).astype(object))


def _records(group: Any, name: str, fields: tuple[str, ...], path: Path) -> NDArray[Any]:
    table = dataset(group, name, "V", path)
    missing = [one for one in fields if one not in (table.dtype.names or ())]
    if missing:
        raise InputError(f"{path}: {group.name}/{name} has no field {', '.join(missing)}")
    return table


def _ends(offset: NDArray[Any], count: NDArray[Any], total: int, where: str) -> NDArray[np.int64]:
    """Return where each run of records ends, after checking that the runs follow each other and fill the file."""
    ends = np.cumsum(count.astype(np.int64))
    starts = ends - count.astype(np.int64)
    if (len(ends) and int(ends[-1]) != total) or not np.array_equal(
        starts, offset.astype(np.int64)
    ):
        raise InputError(
            f"{where}: offsets and counts do not fit the {total:,} records; the file is damaged"
        )
    return ends


def _spot(path: Path, *holders: Any) -> float:
    """Micrometers between spots, from ``resolution`` (nanometers) where it is said."""
    for holder in holders:
        if "resolution" in holder.attrs:
            stated = float(np.ravel(holder.attrs["resolution"])[0])
            if stated == 0:
                continue
            if not 50 <= stated <= 50_000:
                raise InputError(
                    f"{path}: resolution is {stated:g}; it should be nanometers between spots (500)"
                )
            return stated / 1000
    return SPOT


STEREO_SEQ = Platform(
    "Stereo-seq",
    tuple(f"{place}*.gef" for place in _PLACES),
    locate,
    read,
    takes=("bins",),
    suffix=".gef",
)
