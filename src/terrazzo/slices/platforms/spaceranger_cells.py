"""Cells of Visium HD (Space Ranger 4 and later, ``segmented_outputs``): counts by cell, centers of their polygons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.arrays import Floats
from terrazzo.errors import InputError
from terrazzo.images import TissueImage
from terrazzo.slices.opened import Opened
from terrazzo.slices.platforms.parts import (
    numbers_in,
    one_file,
    place,
    read_json,
    reading,
    unplaced,
)
from terrazzo.slices.platforms.tenx import read_matrix

__all__ = ["COUNTS", "POLYGONS", "is_folder", "locate", "read", "read_images"]

COUNTS = "filtered_feature_cell_matrix.h5"
POLYGONS = "cell_segmentations.geojson"
_RESOLUTIONS = ("hires", "lowres")
_CELL = re.compile(r"cellid_0*(\d+)(?:-\d+)?")
_XY = ["x", "y"]
_PIECE = 2**20  # characters that are read at a time
_MAX_FEATURE = 2**24  # characters of one cell
_BETWEEN = tuple(", \t\r\n")  # features
_LIST = re.compile(r'"features"\s*:\s*\[')


def is_folder(folder: Path) -> bool:
    """Say whether a folder holds cells, complete or not."""
    return (folder / COUNTS).is_file() or (folder / POLYGONS).is_file()


def locate(folder: Path) -> dict[str, Path]:
    """Find the files of ``segmented_outputs``."""
    files = {
        "counts": one_file(folder, [COUNTS], "the matrix of counts of cells"),
        "polygons": one_file(folder, [POLYGONS], "the file of the cells' polygons"),
        "scales": one_file(folder, ["spatial/scalefactors_json.json"], "the file of scale factors"),
    }
    for name in _RESOLUTIONS:
        image = folder / "spatial" / f"tissue_{name}_image.png"
        if image.is_file():
            files[name] = image
    return files


def read(files: dict[str, Path], name: str) -> Opened:
    """Read counts of genes by cell, centers of the cells' polygons in pixels of the scan, and both small images."""
    matrix = read_matrix(files)
    factors = numbers_in(read_json(files["scales"]))
    pixel = factors.get("microns_per_pixel", 0.0)
    if not 0 < pixel < 100:
        raise InputError(f"{files['scales']} does not state microns_per_pixel, which cells need")
    centers = _read_centers(files["polygons"])
    ids = [_number(barcode, files["counts"]) for barcode in matrix.barcodes.tolist()]
    where = f"{files['counts']} and {files['polygons'].name}"
    rows, cells = place(ids, centers, "cell_id", where, _XY)
    adata = matrix.to_anndata(rows, pd.DataFrame(index=range(len(rows))))
    adata.obsm[keys.SPATIAL] = cells[_XY].to_numpy(dtype=float)
    adata.uns[keys.TECHNOLOGY] = "Visium HD"
    library = {"images": read_images(files), "scalefactors": factors, "metadata": {}}
    adata.uns[keys.SPATIAL] = {name: library}
    notes = (matrix.left_out, unplaced(len(matrix.barcodes), len(rows)))
    return Opened(
        adata,
        "Visium HD, cells (Space Ranger)",
        name,
        notes=tuple(note for note in notes if note),
        known={"microns_per_unit": pixel},
    )


def read_images(files: dict[str, Path]) -> dict[str, NDArray[Any]]:
    """Read the small images of the tissue that are there."""
    images = {}
    for resolution in _RESOLUTIONS:
        if resolution in files:
            images[resolution] = np.asarray(TissueImage.from_file(files[resolution]).pixels)
    return images


def _number(barcode: str, path: Path) -> str:
    """Return the number of a cell in its barcode, ``cellid_000000001-1``."""
    match = _CELL.fullmatch(barcode)
    if match is None:
        raise InputError(f"{path}: {barcode!r} is not the barcode of a cell (cellid_000000001-1)")
    return match.group(1)


def _read_centers(path: Path) -> pd.DataFrame:
    """Return the number of every cell and the center of its polygon."""
    numbers = []
    centers = []
    with reading(path):
        for feature in _features(path):
            numbers.append(str(int(feature["properties"]["cell_id"])))
            centers.append(_center(feature["geometry"]))
    xy = np.array(centers, dtype=np.float64).reshape(-1, 2)
    return pd.DataFrame({"cell_id": numbers, "x": xy[:, 0], "y": xy[:, 1]})


def _features(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of a GeoJSON file one by one, so that it is never whole in memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as stream:
        text = ""
        start = None
        while start is None:
            more = stream.read(_PIECE)
            if not more or len(text) > _MAX_FEATURE:
                raise InputError(f"{path} is not a GeoJSON file of features")
            text += more
            start = _LIST.search(text)
        position = start.end()
        while True:
            while text[position : position + 1] in _BETWEEN:
                position += 1
            if text.startswith("]", position):
                return
            try:
                feature, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError:
                more = stream.read(_PIECE)
                if not more or len(text) - position > _MAX_FEATURE:
                    raise
                text = text[position:] + more
                position = 0
                continue
            yield feature


def _center(geometry: dict[str, Any]) -> Floats:
    """Return the centroid of a polygon or of several, NaN where there is none."""
    if geometry["type"] == "Polygon":
        polygons = [geometry["coordinates"]]
    elif geometry["type"] == "MultiPolygon":
        polygons = geometry["coordinates"]
    else:
        raise InputError(f"a cell is a {geometry['type']}, not a polygon")
    area = 0.0
    moment = np.zeros(2)
    for rings in polygons:
        for number, ring in enumerate(rings):
            ring_area, ring_moment = _moments(np.asarray(ring, dtype=np.float64)[:, :2])
            sign = 1.0 if number == 0 else -1.0  # what follows the outline are holes
            area += sign * ring_area
            moment += sign * ring_moment
    if area > 0:
        return moment / area
    points = [point[:2] for rings in polygons for ring in rings[:1] for point in ring]
    return np.asarray(points, dtype=np.float64).mean(axis=0) if points else np.full(2, np.nan)


def _moments(ring: Floats) -> tuple[float, Floats]:
    """Return the area inside a closed ring, and that times its centroid."""
    origin = ring[0]
    here = ring - origin  # small numbers: their products do not cancel
    following = np.roll(here, -1, axis=0)
    cross = here[:, 0] * following[:, 1] - following[:, 0] * here[:, 1]
    area = cross.sum() / 2
    moment = ((here + following) * cross[:, None]).sum(axis=0) / 6
    sign = 1.0 if area >= 0 else -1.0
    return float(sign * area), sign * (moment + area * origin)
