"""A slice's picture in a corpus: taken from beside the slice or out of it, stored by tile, read where it is needed."""

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
from terrazzo.slices.geometry import library_of

TILE, SHARD = (
    512,
    4096,
)  # pixels on a side of what is read at once, and of a file; a file's tiles are written together
KEPT_BYTES = 2**26  # of decoded tiles of a picture
_PACKED = BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle")
_SCALES = ("tissue_hires_scalef", "tissue_hires_scalef_y")  # where Space Ranger, and we, have them


def library_entry(adata: AnnData, name: str, image: TissueImage | None) -> dict[str, Any]:
    """Return ``uns["spatial"]`` of a member without its picture: the slice's library, and where the picture lies.

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
    held = library_of(adata)
    names = (
        [str(key) for key, entry in adata.uns[keys.SPATIAL].items() if entry is held]
        if held
        else [name]
    )
    entry = {key: value for key, value in held.items() if key != "images"}
    if image is not None:
        factors = entry.get("scalefactors", {})
        kept = (
            {k: v for k, v in factors.items() if k not in _SCALES}
            if isinstance(factors, Mapping)
            else {}
        )
        scales = dict(zip(_SCALES, (image.scale, image.scale_y), strict=True))
        entry["scalefactors"] = {**kept, **{k: v for k, v in scales.items() if v is not None}}
        entry["images"] = {}
    return {names[0]: entry} if entry else {}


def left_out(adata: AnnData, image: TissueImage | None) -> list[str]:
    """Say that a slice brings a picture that cannot be used, in a list of at most one note."""
    there = bool(library_of(adata).get("images"))
    return (
        ["the picture in its uns['spatial'] has no scale and is left out"]
        if there and image is None
        else []
    )


def write_image(group: Any, image: TissueImage) -> None:
    """Write a picture as ``group["hires"]``, uint8 (H, W, 3), a file's worth at a time: it is never held whole.

    Parameters
    ----------
    group
        zarr group ``uns/spatial/<library>/images``.
    image
        The picture; its pixels may lie in a file.

    Raises
    ------
    InputError
        A part of it cannot be read.
    """
    height, width = image.height, image.width
    cut = {"chunks": (TILE, TILE, 3), "shards": (SHARD, SHARD, 3)}
    packed = {"compressors": _PACKED, "fill_value": 255, "config": {"write_empty_chunks": True}}
    array = group.create_array("hires", shape=(height, width, 3), dtype=np.uint8, **cut, **packed)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for y in range(0, height, SHARD):
        for x in range(0, width, SHARD):
            part = (slice(y, min(y + SHARD, height)), slice(x, min(x + SHARD, width)))
            array[part] = np.asarray(image.pixels[part])


class CachedTiles:
    """A stored picture of which the tiles read last stay decoded: crops of neighboring spots share them.

    Parameters
    ----------
    array
        zarr array (H, W) or (H, W, C).
    """

    def __init__(self, array: zarr.Array) -> None:
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self._array, self._lock, self._kept = (
            array,
            threading.Lock(),
            OrderedDict[tuple[int, int], np.ndarray](),
        )
        self._bytes = 0

    def __getitem__(self, region: tuple[slice, slice]) -> np.ndarray:
        """Return a region of whole pixels within the picture."""
        (y0, y1, _), (x0, x1, _) = (
            part.indices(side) for part, side in zip(region, self.shape, strict=False)
        )
        out = np.empty((max(y1 - y0, 0), max(x1 - x0, 0), *self.shape[2:]), dtype=self.dtype)
        rows, columns = self._array.chunks[:2]
        for i in range(y0 // rows, -(-y1 // rows)):
            for j in range(x0 // columns, -(-x1 // columns)):
                top, left = i * rows, j * columns
                tile = self._tile(i, j)[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
                y, x = max(top - y0, 0), max(left - x0, 0)
                out[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        return out

    def _tile(self, i: int, j: int) -> np.ndarray:
        with self._lock:
            if (i, j) not in self._kept:
                rows, columns = self._array.chunks[:2]
                read: Any = self._array[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                self._kept[i, j] = np.asarray(read)
                self._bytes += read.nbytes
            self._kept.move_to_end((i, j))
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return self._kept[i, j]


def libraries(root: Any, folder: Path) -> dict[str, Any]:
    """Return ``uns["spatial"]`` of an open member: scale factors, and pictures that stay on disk.

    Parameters
    ----------
    root
        zarr group of the member.
    folder
        Where it lies.

    Raises
    ------
    CorpusError
        A file of a picture is gone; its pixels would read as white.
    """
    found: dict[str, Any] = {}
    for name, group in root["uns"][keys.SPATIAL].groups() if keys.SPATIAL in root["uns"] else ():
        pictures = dict(group["images"].arrays()) if "images" in group else {}
        for picture in pictures.values():
            _check_whole(picture, folder)
        entry: dict[str, Any] = {
            "images": {key: CachedTiles(picture) for key, picture in pictures.items()}
        }
        found[name] = entry | (
            {"scalefactors": read_elem(group["scalefactors"])} if "scalefactors" in group else {}
        )
    return found


def _check_whole(picture: zarr.Array, folder: Path) -> None:
    if picture.shards != (SHARD, SHARD, 3):  # of another hand, which may leave out what is empty
        return
    expected = math.prod(-(-side // SHARD) for side in picture.shape[:2])
    place = folder / picture.path
    if sum(path.is_file() for path in (place / "c").rglob("*")) < expected:
        raise CorpusError(
            f"{place}: parts of this picture are missing; run the same `terrazzo corpus build` again."
        )
