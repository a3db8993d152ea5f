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
    first_match,
    place,
    plain_columns,
    read_json,
    read_table,
    unplaced,
)
from terrazzo.slices.platforms.tenx import locate_matrix, read_matrix

__all__ = ["XENIUM"]

_XY = ["x_centroid", "y_centroid"]
_CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
_IMAGES = {  # name of a choice: where it may be, by version
    "morphology_focus": (
        "morphology_focus/ch0000_dapi.ome.tif",
        "morphology_focus/morphology_focus_0000.ome.tif",
        "morphology_focus.ome.tif",
    ),
    "morphology_mip": ("morphology_mip.ome.tif",),
}


def locate(folder: Path, choices: Choices) -> dict[str, Path]:
    """Find the files of a folder."""
    files = locate_matrix(folder, "cell_feature_matrix")
    exact = [name for name in _CELLS if (folder / name).is_file()]
    prefixed = [(f"*_{name}",) for name in _CELLS]  # as GEO names them
    files["cells"] = first_match(folder, [exact[:1] or _CELLS, *prefixed], "the table of cells")
    for experiment in sorted(folder.glob("*experiment.xenium"))[:1]:
        files["experiment"] = experiment
    for name, places in _IMAGES.items():
        images = [folder / place for place in places if (folder / place).is_file()]
        if images:
            files[name] = images[0]
    return files


def read(files: dict[str, Path], name: str, choices: Choices) -> Opened:
    """Read counts of genes, positions, and the image of the nuclei where one is named."""
    matrix = read_matrix(files)
    cells = read_table(files["cells"], ["cell_id", *_XY], ids=["cell_id"])
    where = f"{files['counts']} and {files['cells'].name}"
    rows, cells = place(matrix.barcodes.tolist(), cells, "cell_id", where, _XY)
    adata = matrix.to_anndata(rows, plain_columns(cells, ["cell_id", *_XY]))
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "Xenium"
    experiment = read_json(files["experiment"]) if "experiment" in files else {}
    organism = _organism(experiment)
    if organism is not None:
        adata.uns[keys.ORGANISM] = organism
    notes = [matrix.left_out, unplaced(len(matrix.barcodes), len(rows))]
    image = None
    names = [image_name for image_name in _IMAGES if image_name in files]
    if choices.image is not None:
        image = _read_image(files, choices.image, experiment)
    elif names:
        notes.append(f"images of the nuclei, taken if named (image=): {', '.join(names)}")
    return Opened(adata, "Xenium", name, image, tuple(note for note in notes if note))


def _read_image(files: dict[str, Path], name: str, experiment: dict[str, Any]) -> TissueImage:
    folder = files["counts"].parent
    if name not in files or name not in _IMAGES:
        listed = ", ".join(image for image in _IMAGES if image in files) or "none"
        raise InputError(f"{folder}: there is no image {name!r}; there are: {listed}")
    size: Any = experiment.get("pixel_size")
    is_number = isinstance(size, int | float) and not isinstance(size, bool)
    if not is_number or not 0 < size < 100:
        raise InputError(
            f"{folder}: experiment.xenium does not state pixel_size, which an image needs"
        )
    return TissueImage.from_file(
        files[name], microns_per_pixel=float(size), scale=1.0 / float(size)
    )


def _organism(experiment: dict[str, Any]) -> str | None:
    stated = experiment.get("panel_organism")
    try:
        return parse_organism(stated) if isinstance(stated, str) else None
    except ConfigError:
        return None


XENIUM = Platform(
    "Xenium",
    (
        "experiment.xenium",
        "cell_feature_matrix.h5",
        "*_experiment.xenium",
        "*_cell_feature_matrix.h5",
        "cell_feature_matrix/*matrix.mtx*",
    ),
    locate,
    read,
    takes=("image",),
)
