"""Histology in a corpus: a slice's picture, taken from beside the slice or out of it, stored and read by tile."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from anndata import AnnData
from anndata.io import read_elem
from zarr.codecs import BloscCodec

from terrazzo import keys
from terrazzo.errors import CorpusError
from terrazzo.images import TissueImage
from terrazzo.images.pixels import MAX_PIXELS
from terrazzo.slices.geometry import library_of

__all__ = ["CachedTiles", "left_out", "libraries", "library_entry", "write_image"]

TILE = 512  # pixels on a side of what is read at once
SHARD = 4096  # and of a file, whose tiles are written together
CACHED_BYTES = 2**26  # of decoded tiles of a picture
_COMPRESSOR = BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle")
_SCALE_X = "tissue_hires_scalef"  # where Space Ranger and this library have the picture's scale
_SCALE_Y = "tissue_hires_scalef_y"


def library_entry(adata: AnnData, name: str, image: TissueImage | None) -> dict[str, Any]:
    """Return ``uns["spatial"]`` of a member without its picture: the slice's library, and a place for the picture.

    Parameters
    ----------
    adata
        Source of the slice.
    name
        Of the slice; that of the library where it has none.
    image
        The slice's picture, if any.

    Returns
    -------
    {} where there is neither a library nor a picture.
    """
    library = library_of(adata)
    if library:
        entries = adata.uns[keys.SPATIAL].items()
        name = next((str(key) for key, value in entries if value is library), name)
    entry = dict(library)
    entry.pop("images", None)
    if image is not None:
        factors = entry.get("scalefactors")
        entry["scalefactors"] = _scale_factors(factors, image)
        entry["images"] = {}
    return {name.replace("/", "_").strip(". ") or "slice": entry} if entry else {}


def _scale_factors(factors: Any, image: TissueImage) -> dict[str, Any]:
    """Return a library's scale factors with those of the picture that is stored."""
    out: dict[str, Any] = {}
    if isinstance(factors, Mapping):
        out.update(factors)
    out.pop(_SCALE_Y, None)
    out[_SCALE_X] = image.scale
    if image.scale_y is not None:
        out[_SCALE_Y] = image.scale_y
    return out


def left_out(adata: AnnData, image: TissueImage | None) -> list[str]:
    """Return a note where a slice brings a picture that cannot be used; else no note."""
    images = library_of(adata).get("images")
    if image is not None or not images:
        return []
    return ["the picture in its uns['spatial'] has no scale, or cannot be read, and is left out"]


def write_image(group: Any, image: TissueImage) -> None:
    """Write a picture as ``group["hires"]``, uint8 (H, W, 3), a file's worth at a time: it is never in memory whole.

    Parameters
    ----------
    group
        zarr group ``uns/spatial/<library>/images``.
    image
        The picture; its pixels may be in a file.

    Raises
    ------
    InputError
        A part of it cannot be read.
    """
    height = image.height
    width = image.width
    array = group.create_array(
        "hires",
        shape=(height, width, 3),
        dtype=np.uint8,
        chunks=(TILE, TILE, 3),
        shards=(SHARD, SHARD, 3),
        compressors=_COMPRESSOR,
        fill_value=255,
        config={"write_empty_chunks": True},
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for top in range(0, height, SHARD):
        rows = slice(top, min(top + SHARD, height))
        for left in range(0, width, SHARD):
            columns = slice(left, min(left + SHARD, width))
            part = image.pixels[rows, columns]
            array[rows, columns] = np.asarray(part)


class CachedTiles:
    """A stored picture of which the tiles read last stay decoded: crops of neighboring spots share them.

    Parameters
    ----------
    array
        zarr array (H, W) or (H, W, C).
    """

    def __init__(self, array: zarr.Array) -> None:
        tile = math.prod(array.chunks)
        if array.ndim not in (2, 3) or tile > 4 * MAX_PIXELS:
            raise CorpusError(
                f"{array.path} has tiles of {tile:,} values; it is no picture of a corpus."
            )
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim
        self._array = array
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"CachedTiles({self.shape}, {self.dtype})"

    def __getitem__(self, region: tuple[slice, slice]) -> np.ndarray:
        """Return a region of whole pixels within the picture."""
        height, width = self.shape[:2]
        tile_height, tile_width = self._array.chunks[:2]
        y0, y1, _ = region[0].indices(height)
        x0, x1, _ = region[1].indices(width)
        n_rows = max(y1 - y0, 0)
        n_columns = max(x1 - x0, 0)
        out = np.empty((n_rows, n_columns, *self.shape[2:]), dtype=self.dtype)
        for i in _tiles_of(y0, y1, tile_height):
            to_rows, from_rows = _overlap(y0, y1, i, tile_height)
            for j in _tiles_of(x0, x1, tile_width):
                to_columns, from_columns = _overlap(x0, x1, j, tile_width)
                tile = self._tile(i, j)
                out[to_rows, to_columns] = tile[from_rows, from_columns]
        return out

    def _tile(self, i: int, j: int) -> np.ndarray:
        with self._lock:
            place = (i, j)
            tile = self._tiles.get(place)
            if tile is None:
                tile = self._read_tile(i, j)
                self._tiles[place] = tile
                self._bytes += tile.nbytes
            self._tiles.move_to_end(place)
            while self._bytes > CACHED_BYTES and len(self._tiles) > 1:
                _, dropped = self._tiles.popitem(last=False)
                self._bytes -= dropped.nbytes
            return tile

    def _read_tile(self, i: int, j: int) -> np.ndarray:
        height, width = self._array.chunks[:2]
        top = i * height
        left = j * width
        tile = self._array[top : top + height, left : left + width]
        return np.asarray(tile)


def _tiles_of(start: int, stop: int, size: int) -> range:
    """Return the numbers of the tiles that pixels ``start:stop`` are on, along one axis."""
    return range(start // size, math.ceil(stop / size))


def _overlap(start: int, stop: int, number: int, size: int) -> tuple[slice, slice]:
    """Return where a tile and pixels ``start:stop`` meet, along one axis: within these pixels, and within the tile."""
    first = number * size
    low = max(start, first)
    high = min(stop, first + size)
    return slice(low - start, high - start), slice(low - first, high - first)


def libraries(root: Any, folder: Path) -> dict[str, Any]:
    """Return ``uns["spatial"]`` of an open member: scale factors, and pictures that stay on disk.

    Parameters
    ----------
    root
        zarr group of the member.
    folder
        Where it is.

    Raises
    ------
    CorpusError
        A file of a picture is missing; its pixels would read as white.
    """
    out: dict[str, Any] = {}
    uns = root["uns"]
    if keys.SPATIAL not in uns:
        return out
    for name, group in uns[keys.SPATIAL].groups():
        images = {}
        if "images" in group:
            for key, picture in group["images"].arrays():
                _check_whole(picture, folder)
                images[key] = CachedTiles(picture)
        entry: dict[str, Any] = {"images": images}
        if "scalefactors" in group:
            entry["scalefactors"] = read_elem(group["scalefactors"])
        out[name] = entry
    return out


def _check_whole(picture: zarr.Array, folder: Path) -> None:
    """Check that every file of a picture exists."""
    if picture.shards != (SHARD, SHARD, 3):  # another program's, which may leave out what is empty
        return
    height, width = picture.shape[:2]
    n_expected = math.ceil(height / SHARD) * math.ceil(width / SHARD)
    place = folder / picture.path
    files = [path for path in place.glob("c/**/*") if path.is_file()]
    if len(files) < n_expected:
        raise CorpusError(
            f"{place}: parts of this picture are missing; run the same `terrazzo corpus build` again."
        )
