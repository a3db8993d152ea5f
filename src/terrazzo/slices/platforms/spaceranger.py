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

COUNTS = "filtered_feature_bc_matrix.h5"
DEFAULT_BIN = "008"  # um; the bin that Space Ranger's own analysis starts at
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
    folder = next(
        (
            inner
            for inner in (folder / "outs",)
            if inner.is_dir() and not (folder / "spatial").is_dir()
        ),
        folder,
    )
    if (folder / "binned_outputs").is_dir():
        folder = _binned(folder / "binned_outputs", choices.bins)
    elif choices.bins is not None and not _BIN.fullmatch(folder.resolve().name):
        raise ConfigError(
            f"{folder} has no binned_outputs, so no bins to choose from (bins={choices.bins})"
        )
    held = [name for name in _PLACES if (folder / name).is_file()]
    files = {
        "counts": one_file(folder, [COUNTS, f"*_{COUNTS}"], "the matrix of counts"),
        "positions": one_file(folder, held[:1] or _PLACES, "the table of positions"),
        "scales": one_file(folder, ["spatial/scalefactors_json.json"], "the file of scale factors"),
    }
    pictures = {name: folder / "spatial" / f"tissue_{name}_image.png" for name in _RESOLUTIONS}
    return files | {name: path for name, path in pictures.items() if path.is_file()}


def _binned(folder: Path, bins: str | None) -> Path:
    held = {
        found.group(1): path
        for path in sorted(folder.iterdir())
        if (found := _BIN.fullmatch(path.name))
    }
    shown = ", ".join(str(int(size)) for size in held) or "none"
    if bins is None:
        if DEFAULT_BIN not in held:
            raise InputError(
                f"{folder} has no square_{DEFAULT_BIN}um; pass bins= one of {shown} (micrometers)"
            )
        return held[DEFAULT_BIN]
    number = re.fullmatch(r"(?:square_)?0*(\d{1,3})(?:um)?", bins.strip())
    size = number.group(1).zfill(3) if number else ""
    if size not in held:
        raise ConfigError(
            f"{folder} has no bins of {bins}; there are (side in micrometers): {shown}"
        )
    return held[size]


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes, the array, positions in pixels of the scan, and both small pictures."""
    counted = read_matrix(files["counts"])
    positions = _positions(files["positions"])
    where = f"{files['counts']} and {files['positions'].name}"
    rows, spots = place(counted.barcodes.tolist(), positions, "barcode", where)
    obs = spots[["in_tissue", keys.ARRAY_ROW, keys.ARRAY_COL]].astype(np.int64)
    adata = counted.to_anndata(rows, obs)
    adata.obsm[keys.SPATIAL] = spots[_XY].to_numpy(dtype=float)
    factors = numbers_in(read_json(files["scales"]))
    side = _BIN.fullmatch(files["counts"].resolve().parent.name)
    if side:
        factors["bin_size_um"] = float(side.group(1))
    adata.uns[keys.TECHNOLOGY] = "Visium HD" if side else "Visium"
    pictures = {
        one: np.asarray(TissueImage.from_file(files[one]).pixels)
        for one in _RESOLUTIONS
        if one in files
    }
    library: dict[str, Any] = {"images": pictures, "scalefactors": factors, "metadata": {}}
    adata.uns[keys.SPATIAL] = {name: library}
    kind = f"Visium HD, {int(side.group(1))} um bins" if side else "Visium"
    missing = "" if pictures else "no picture in spatial/ (tissue_hires_image.png)"
    notes = (counted.left_out, unplaced(len(counted.barcodes), len(rows)), missing)
    return Opened(
        adata, f"{kind} (Space Ranger)", name, notes=tuple(note for note in notes if note)
    )


def _positions(path: Path) -> pd.DataFrame:
    """Read the table of positions; before version 2 it had no first line with names."""
    bare: list[str] = []
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace") as stream:
            bare = [] if "barcode" in stream.readline(2**16) else _COLUMNS
    return read_table(path, _COLUMNS, ids=["barcode"], names=bare)


SPACE_RANGER = Platform(
    "Space Ranger",
    (
        COUNTS,
        f"*_{COUNTS}",
        "spatial/tissue_positions*",
        "spatial/scalefactors_json.json",
        "binned_outputs",
        f"outs/{COUNTS}",
        "outs/spatial/tissue_positions*",
        "outs/binned_outputs",
    ),
    locate,
    read,
    takes=("bins",),
)
