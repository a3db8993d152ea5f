"""A quick way into one long array: slices of a sharded zarr v3 array, decoded without zarr's own machinery.

zarr takes about a millisecond for any read, however small, which is more than a sub-slice's rows take to decode. What
is read here is the plain case that a corpus is written in; anything else is left to zarr.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from terrazzo.errors import CorpusError

ABSENT = 2**64 - 1  # offset of a chunk that holds nothing but the fill value
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_ENTRY = 16  # bytes a chunk in a shard's index: offset and length
_CHECKSUM = 4  # bytes of the index's crc32c


def _from_bytes(content: bytes, out: NDArray[Any]) -> None:
    if len(content) != out.nbytes:
        raise ValueError(f"a chunk has {len(content):,} bytes instead of {out.nbytes:,}")
    out[:] = np.frombuffer(content, dtype=out.dtype)


def _from_zstd(content: bytes, out: NDArray[Any]) -> None:
    _from_bytes(zstd.decompress(content), out)


def _from_blosc(content: bytes, out: NDArray[Any]) -> None:
    size = int.from_bytes(content[4:8], "little")  # where every blosc chunk states it
    if size != out.nbytes:
        raise ValueError(f"a chunk has {size:,} bytes instead of {out.nbytes:,}")
    blosc.decompress(content, out)


_UNPACK = {"": _from_bytes, "zstd": _from_zstd, "blosc": _from_blosc}


class FlatArray:
    """Slices ``array[start:stop]`` of a one-dimensional sharded array; made by :func:`open_flat`.

    Only the shards' indices are kept, and no file stays open.

    Parameters
    ----------
    path
        Folder of the array.
    about
        Its ``zarr.json``.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.dtype = path, np.dtype(about["data_type"]).newbyteorder("<")
        self._n = int(about["shape"][0])
        self._shard = int(about["chunk_grid"]["configuration"]["chunk_shape"][0])
        sharding = about["codecs"][0]["configuration"]
        self._chunk = int(sharding["chunk_shape"][0])
        self._unpack = _UNPACK["".join(codec["name"] for codec in sharding["codecs"][1:])]
        self._fill = about["fill_value"]
        self._index: dict[int, NDArray[np.uint64] | None] = {}

    @property
    def shape(self) -> tuple[int]:
        """Number of values."""
        return (self._n,)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, where: slice) -> NDArray[Any]:
        start, stop, _ = where.indices(self._n)
        out = np.empty(max(0, stop - start), dtype=self.dtype)
        for shard in range(start // self._shard, -(-stop // self._shard) if len(out) else 0):
            first = shard * self._shard
            low, high = max(start, first), min(stop, first + self._shard)
            self._read(shard, low - first, high - first, out[low - start : high - start])
        return out.astype(self.dtype.newbyteorder("="), copy=False)

    def _read(self, shard: int, start: int, stop: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with values ``start:stop`` of a shard."""
        path = self.path / "c" / str(shard)
        try:
            if shard not in self._index:
                self._index[shard] = self._read_index(path)
            index = self._index[shard]
            if index is None:
                out[:] = self._fill
                return
            numbers = range(start // self._chunk, -(-stop // self._chunk))
            with path.open("rb") as file:
                for number in numbers:
                    first = number * self._chunk
                    low, high = max(start, first), min(stop, first + self._chunk)
                    self._copy(file.fileno(), index[number], low - first, out[low - start : high - start])
        except (OSError, RuntimeError, ValueError, IndexError) as error:  # RuntimeError: from the decompressor
            raise CorpusError(
                f"{path} is damaged or cannot be read ({error}); `terrazzo corpus verify` says more."
            ) from error

    def _copy(self, file: int, entry: NDArray[np.uint64], start: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with the values of a chunk from ``start`` on."""
        offset, length = int(entry[0]), int(entry[1])
        if offset == ABSENT:
            out[:] = self._fill
            return
        if offset + length > os.fstat(file).st_size:
            raise ValueError("a chunk ends behind the file's end")
        content = os.pread(file, length, offset)
        whole = out if len(out) == self._chunk else np.empty(self._chunk, dtype=self.dtype)
        self._unpack(content, whole)
        if whole is not out:
            out[:] = whole[start : start + len(out)]

    def _read_index(self, path: Path) -> NDArray[np.uint64] | None:
        """Return offset and length of each chunk of a shard; None for a shard that was never written."""
        if not path.exists():
            return None
        size = _ENTRY * (self._shard // self._chunk)
        with path.open("rb") as file:
            file.seek(-size - _CHECKSUM, os.SEEK_END)
            return np.frombuffer(file.read(size), dtype="<u8").reshape(-1, 2)


def open_flat(path: str | os.PathLike[str]) -> FlatArray | zarr.Array:
    """Open an array for slices; zarr's own array where it is not stored in the plain way.

    Parameters
    ----------
    path
        Folder of an array on disk.
    """
    path = Path(path)
    try:
        about = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        plain = _is_plain(about)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        plain = False
    return FlatArray(path, about) if plain and hasattr(os, "pread") else zarr.open_array(path, mode="r")


def _is_plain(about: dict[str, Any]) -> bool:
    """Say whether an array is a plain one: one-dimensional numbers, sharded in a way that is read here."""
    (sharding,) = about["codecs"]
    inner = sharding["configuration"]
    packed = [codec["name"] for codec in inner["codecs"][1:]]
    return (
        len(about["shape"]) == 1
        and about["chunk_grid"]["name"] == "regular"
        and about["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and isinstance(about["data_type"], str)
        and np.dtype(about["data_type"]).kind in "iuf"
        and isinstance(about["fill_value"], int | float)
        and sharding["name"] == "sharding_indexed"
        and inner["codecs"][0] == _LITTLE
        and len(inner["codecs"]) <= 2
        and "".join(packed) in _UNPACK
        and inner.get("index_location", "end") == "end"
        and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        and about.get("storage_transformers", []) == []
    )
