"""Space Ranger (10x Genomics): output folders of Visium, and of Visium HD by bin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError
from terrazzo.images import TissueImage
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    numbers_in,
    one_file,
    place,
    read_json,
    read_table,
    unplaced,
)
from terrazzo.slices.platforms.tenx import read_matrix

__all__ = ["SPACE_RANGER"]

_COUNTS = "filtered_feature_bc_matrix.h5"
_DEFAULT_BIN = "008"  # um; the bin that Space Ranger's own analysis starts at
_XY = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
_COLUMNS = [
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
]
_PLACES = (
    "spatial/tissue_positions.parquet",
    "spatial/tissue_positions.csv",
    "spatial/tissue_positions_list.csv",
)
_RESOLUTIONS = ("hires", "lowres")
_BIN = re.compile(r"square_(\d{3})um")


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder, or of one of its bins."""
    if (folder / "outs").is_dir() and not (folder / "spatial").is_dir():
        folder = folder / "outs"
    if (folder / "binned_outputs").is_dir():
        folder = _binned(folder / "binned_outputs", choices.bins)
    elif choices.bins is not None and not _BIN.fullmatch(folder.resolve().name):
        raise ConfigError(
            f"{folder} has no binned_outputs, so no bins to choose from (bins={choices.bins})"
        )
    tables = [name for name in _PLACES if (folder / name).is_file()]
    files = {
        "counts": one_file(folder, [_COUNTS, f"*_{_COUNTS}"], "the matrix of counts"),
        "positions": one_file(folder, tables[:1] or _PLACES, "the table of positions"),
        "scales": one_file(folder, ["spatial/scalefactors_json.json"], "the file of scale factors"),
    }
    for name in _RESOLUTIONS:
        image = folder / "spatial" / f"tissue_{name}_image.png"
        if image.is_file():
            files[name] = image
    return files


def _binned(folder: Path, bins: str | None) -> Path:
    """Return the folder of the bins that are chosen."""
    folders = {}
    for path in sorted(folder.iterdir()):
        match = _BIN.fullmatch(path.name)
        if match:
            folders[match.group(1)] = path
    listed = ", ".join(str(int(size)) for size in folders) or "none"
    if bins is None:
        if _DEFAULT_BIN not in folders:
            raise InputError(
                f"{folder} has no square_{_DEFAULT_BIN}um; pass bins= one of {listed} (micrometers)"
            )
        return folders[_DEFAULT_BIN]
    number = re.fullmatch(r"(?:square_)?0*(\d{1,3})(?:um)?", bins.strip())
    size = number.group(1).zfill(3) if number else ""
    if size not in folders:
        raise ConfigError(
            f"{folder} has no bins of {bins}; there are (side in micrometers): {listed}"
        )
    return folders[size]


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes, the array, positions in pixels of the scan, and both small images."""
    matrix = read_matrix(files["counts"])
    positions = _positions(files["positions"])
    where = f"{files['counts']} and {files['positions'].name}"
    rows, spots = place(matrix.barcodes.tolist(), positions, "barcode", where)
    obs = spots[["in_tissue", keys.ARRAY_ROW, keys.ARRAY_COL]].astype(np.int64)
    adata = matrix.to_anndata(rows, obs)
    adata.obsm[keys.SPATIAL] = spots[_XY].to_numpy(dtype=float)
    factors = numbers_in(read_json(files["scales"]))
    technology = "Visium"
    kind = "Visium (Space Ranger)"
    bin_folder = _BIN.fullmatch(files["counts"].resolve().parent.name)
    if bin_folder:
        side = bin_folder.group(1)
        factors["bin_size_um"] = float(side)
        technology = "Visium HD"
        kind = f"Visium HD, {int(side)} um bins (Space Ranger)"
    elif not _is_staggered(obs):
        technology = (
            ""  # DBiT-seq and others are put into this layout so that readers of Visium load them
        )
        kind = "the layout of Space Ranger, on an array that is not Visium's"
    if technology:
        adata.uns[keys.TECHNOLOGY] = technology
    images = {}
    for resolution in _RESOLUTIONS:
        if resolution in files:
            images[resolution] = np.asarray(TissueImage.from_file(files[resolution]).pixels)
    library: dict[str, Any] = {"images": images, "scalefactors": factors, "metadata": {}}
    adata.uns[keys.SPATIAL] = {name: library}
    missing = "" if images else "no image in spatial/ (tissue_hires_image.png)"
    notes = (matrix.left_out, unplaced(len(matrix.barcodes), len(rows)), missing)
    return Opened(adata, kind, name, notes=tuple(note for note in notes if note))


def _is_staggered(obs: pd.DataFrame) -> bool:
    """Say whether the numbers of the spots leave out every second place, as those of Visium do."""
    total = obs[keys.ARRAY_ROW] + obs[keys.ARRAY_COL]
    return (total & 1).nunique() <= 1


def _positions(path: Path) -> pd.DataFrame:
    """Read the table of positions; before version 2 it had no first line with names."""
    names: list[str] = []
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace") as stream:
            has_names = "barcode" in stream.readline(2**16)
        if not has_names:
            names = _COLUMNS
    return read_table(path, _COLUMNS, ids=["barcode"], names=names)


SPACE_RANGER = Platform(
    "Space Ranger",
    (
        _COUNTS,
        f"*_{_COUNTS}",
        "spatial/tissue_positions*",
        "spatial/scalefactors_json.json",
        "binned_outputs",
        f"outs/{_COUNTS}",
        "outs/spatial/tissue_positions*",
        "outs/binned_outputs",
    ),
    locate,
    read,
    takes=("bins",),
)
