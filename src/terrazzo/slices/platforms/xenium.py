"""Xenium (10x Genomics): the output folder of Xenium Onboard Analysis or Xenium Ranger; micrometers throughout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError
from terrazzo.genes.names import parse_organism
from terrazzo.images import TissueImage
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms.parts import (
    Platform,
    one_file,
    place,
    plain_columns,
    read_json,
    read_table,
    unplaced,
)
from terrazzo.slices.platforms.tenx import read_matrix

_XY = ["x_centroid", "y_centroid"]
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_PICTURES = {  # name of a choice: where it may lie, by version
    "morphology_focus": (
        "morphology_focus/ch0000_dapi.ome.tif",
        "morphology_focus/morphology_focus_0000.ome.tif",
        "morphology_focus.ome.tif",
    ),
    "morphology_mip": ("morphology_mip.ome.tif",),
}


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    held = [name for name in _CELLS if (folder / name).is_file()]
    files = {
        "counts": one_file(folder, ["cell_feature_matrix.h5"], "the matrix of counts"),
        "cells": one_file(folder, held[:1] or _CELLS, "the table of cells"),
    }
    if (folder / "experiment.xenium").is_file():
        files["experiment"] = folder / "experiment.xenium"
    for name, places in _PICTURES.items():
        found = [folder / place for place in places if (folder / place).is_file()]
        files |= {name: found[0]} if found else {}
    return files


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes, positions, and the picture of the nuclei if asked for."""
    counted = read_matrix(files["counts"])
    cells = read_table(files["cells"], ["cell_id", *_XY], ids=["cell_id"])
    where = f"{files['counts']} and {files['cells'].name}"
    rows, cells = place(counted.barcodes.tolist(), cells, "cell_id", where)
    adata = counted.to_anndata(rows, plain_columns(cells, ["cell_id", *_XY]))
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "Xenium"
    about = read_json(files["experiment"]) if "experiment" in files else {}
    organism = _organism(about)
    if organism is not None:
        adata.uns[keys.ORGANISM] = organism
    notes = [counted.left_out, unplaced(len(counted.barcodes), len(rows))]
    pictures = [one for one in _PICTURES if one in files]
    if pictures and choices.image is None:
        notes.append(f"pictures of the nuclei, taken if named (image=): {', '.join(pictures)}")
    picture = None if choices.image is None else _picture(files, choices.image, about)
    return Opened(adata, "Xenium", name, picture, tuple(note for note in notes if note))


def _picture(files: dict[str, Path], image: str, about: dict[str, Any]) -> TissueImage:
    if image not in files or image not in _PICTURES:
        held = ", ".join(one for one in _PICTURES if one in files) or "none"
        raise InputError(
            f"{files['counts'].parent}: there is no picture {image!r}; there are: {held}"
        )
    size = about.get("pixel_size")
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < 100:
        raise InputError(
            f"{files['counts'].parent}: experiment.xenium does not say pixel_size, which a picture needs"
        )
    return TissueImage.from_file(
        files[image], microns_per_pixel=float(size), scale=1.0 / float(size)
    )


def _organism(about: dict[str, Any]) -> str | None:
    stated = about.get("panel_organism")
    try:
        return parse_organism(stated) if isinstance(stated, str) else None
    except ConfigError:
        return None


XENIUM = Platform(
    "Xenium",
    ("experiment.xenium", "cell_feature_matrix.h5"),
    locate,
    read,
    takes=("image",),
)
