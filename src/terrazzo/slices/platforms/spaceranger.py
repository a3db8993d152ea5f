"""Space Ranger (10x Genomics): output folders of Visium, and of Visium HD by bin or by cell."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms import spaceranger_cells as cells
from terrazzo.slices.platforms.parts import (
    Platform,
    first_match,
    numbers_in,
    place,
    read_json,
    read_table,
    reading,
    unplaced,
)
from terrazzo.slices.platforms.tenx import locate_matrix, read_matrix

__all__ = ["SPACE_RANGER"]

_MATRIX = "filtered_feature_bc_matrix"
_COUNTS = f"{_MATRIX}.h5"
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
_PLACES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_SCALES = "scalefactors_json.json"
_CELL_FOLDER = "segmented_outputs"  # since version 4
_GEO = re.compile(r"GSM\d+")
_RESOLUTIONS = ("hires", "lowres")
_BIN = re.compile(r"square_(\d{3})um")


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder, or of one of its bins."""
    if (folder / "outs").is_dir() and not (folder / "spatial").is_dir():
        folder = folder / "outs"
    if cells.is_folder(folder):
        if choices.bins is not None and not _wants_cells(choices.bins):
            raise ConfigError(f"{folder} holds cells, not bins: leave bins= out")
        return cells.locate(folder)
    if _wants_cells(choices.bins):
        if not (folder / _CELL_FOLDER).is_dir():
            raise ConfigError(f"{folder} has no {_CELL_FOLDER}, so no cells (bins={choices.bins})")
        return cells.locate(folder / _CELL_FOLDER)
    if (folder / _CELL_FOLDER).is_dir() and not (folder / "binned_outputs").is_dir():
        return cells.locate(folder / _CELL_FOLDER)
    if (folder / "binned_outputs").is_dir():
        folder = _binned(folder / "binned_outputs", choices.bins)
    elif choices.bins is not None and not _BIN.fullmatch(folder.resolve().name):
        raise ConfigError(
            f"{folder} has no binned_outputs, so no bins to choose from (bins={choices.bins})"
        )
    if folder.name in (_MATRIX, "raw_feature_bc_matrix") and not _has_positions(folder):
        raise InputError(
            f"{folder} is the matrix alone, without positions: give the folder above it, which has spatial/"
        )
    files = locate_matrix(folder, _MATRIX)
    files["positions"] = _locate_positions(folder)
    scales = ((f"spatial/{_SCALES}",), *_prefixed(_SCALES))
    files["scales"] = first_match(folder, scales, "the file of scale factors")
    for name in _RESOLUTIONS:
        for pattern in (f"spatial/tissue_{name}_image.png", f"*tissue_{name}_image.png"):
            images = sorted(folder.glob(pattern))
            if images:
                files.setdefault(name, images[0])
    samples = {match.group() for path in files.values() if (match := _GEO.match(path.name))}
    if len(samples) > 1:
        raise InputError(
            f"{folder} has files of more than one sample ({', '.join(sorted(samples))}); give each a folder of its own"
        )
    return files


def _wants_cells(bins: str | None) -> bool:
    """Say whether cells are asked for instead of bins."""
    return bins is not None and bins.strip().lower() in ("cell", "cells")


def _prefixed(name: str) -> list[tuple[str, ...]]:
    """Return patterns of a file of ``spatial/`` under the names that GEO gives it."""
    return [
        (f"spatial/*{name}", f"spatial/*{name}.gz"),
        (f"*{name}", f"*{name}.gz"),
    ]


def _locate_positions(folder: Path) -> Path:
    """Find the table of positions: in ``spatial/``, else under the names that GEO gives it."""
    exact = [(f"spatial/{name}",) for name in _PLACES]
    prefixed = [pattern for name in _PLACES for pattern in _prefixed(name)]
    patterns = [*exact, *prefixed]
    if not _has_positions(folder):
        patterns = [tuple(f"spatial/{name}" for name in _PLACES)]
    return first_match(folder, patterns, "the table of positions")


def _has_positions(folder: Path) -> bool:
    """Say whether a folder has a table of positions under any name."""
    return any(
        next(folder.glob(pattern), None) is not None
        for pattern in ("spatial/*tissue_positions*", "*tissue_positions*")
    )


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
    if "polygons" in files:
        return cells.read(files, name)
    matrix = read_matrix(files)
    positions = _positions(files["positions"])
    where = f"{files['counts']} and {files['positions'].name}"
    rows, spots = place(matrix.barcodes.tolist(), positions, "barcode", where, _XY)
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
        technology = ""  # readers of Visium load DBiT-seq and others that are put into this layout
        kind = "the layout of Space Ranger, on an array that is not Visium's"
    if technology:
        adata.uns[keys.TECHNOLOGY] = technology
    images = cells.read_images(files)
    library: dict[str, Any] = {"images": images, "scalefactors": factors, "metadata": {}}
    adata.uns[keys.SPATIAL] = {name: library}
    missing = "" if images else "no image in spatial/ (tissue_hires_image.png)"
    segmented = ""
    if (files["counts"].resolve().parents[2] / _CELL_FOLDER).is_dir() and bin_folder:
        segmented = f"cells of {_CELL_FOLDER}, read if named (bins='cell')"
    unplaced_note = unplaced(len(matrix.barcodes), len(rows))
    notes = (matrix.left_out, unplaced_note, missing, segmented)
    return Opened(adata, kind, name, notes=tuple(note for note in notes if note))


def _is_staggered(obs: pd.DataFrame) -> bool:
    """Say whether the numbers of the spots leave out every second place, as those of Visium do."""
    total = obs[keys.ARRAY_ROW] + obs[keys.ARRAY_COL]
    return (total & 1).nunique() <= 1


def _positions(path: Path) -> pd.DataFrame:
    """Read the table of positions; before version 2 it had no first line with names."""
    names: list[str] = []
    if path.suffix != ".parquet":
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with reading(path), opener(path, "rt", encoding="utf-8", errors="replace") as stream:
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
        _CELL_FOLDER,
        cells.COUNTS,
        cells.POLYGONS,
        f"{_MATRIX}/*matrix.mtx*",
        "*matrix.mtx",
        "*matrix.mtx.gz",
        "*tissue_positions*",
        f"outs/{_MATRIX}/*matrix.mtx*",
        f"outs/{_CELL_FOLDER}",
        f"outs/{_COUNTS}",
        "outs/spatial/tissue_positions*",
        "outs/binned_outputs",
    ),
    locate,
    read,
    takes=("bins",),
)
