"""A quick way into one long array: stretches of a sharded zarr v3 array, decoded without zarr's own machinery.

zarr takes about a millisecond for any read, however small, which is more than a sub-slice's rows take to decode. What
is read here is the plain case that a corpus is written in; anything else is left to zarr.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from terrazzo.errors import CorpusError

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


class KeptChunks:
    """Decoded chunks that were asked for last, in the narrowest type that holds them; several threads may share it.

    Counts and columns mostly fit one and two bytes, so that a little memory holds many slices.

    Parameters
    ----------
    most
        Bytes that are kept.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._held: OrderedDict[tuple[FlatArray, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, array: FlatArray, chunk: int) -> NDArray[Any] | None:
        """Return a chunk, None where it is not held."""
        with self._lock:
            found = self._held.get((array, chunk))
            if found is not None:
                self._held.move_to_end((array, chunk))
            return found

    def put(self, array: FlatArray, chunk: int, values: NDArray[Any]) -> None:
        """Keep a copy of a chunk, in place of those that were not asked for longest."""
        small = values.astype(_narrowest(values))
        with self._lock:
            old = self._held.pop((array, chunk), None)
            self._held[array, chunk] = small
            self.bytes += small.nbytes - (0 if old is None else old.nbytes)
            while self.bytes > self.most:
                self.bytes -= self._held.popitem(last=False)[1].nbytes


def _narrowest(values: NDArray[Any]) -> np.dtype[Any]:
    if values.dtype.kind not in "iu" or values.min() < 0:
        return values.dtype.newbyteorder("=")
    return np.min_scalar_type(values.max())


class FlatArray:
    """Stretches of a one-dimensional sharded array; made by :func:`open_flat`.

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
        self.shape: tuple[int] = (int(about["shape"][0]),)
        shard = int(about["chunk_grid"]["configuration"]["chunk_shape"][0])
        sharding = about["codecs"][0]["configuration"]
        self._chunk = int(sharding["chunk_shape"][0])
        self._chunks = shard // self._chunk  # in a shard
        self._unpack = _UNPACK["".join(codec["name"] for codec in sharding["codecs"][1:])]
        self._index: dict[int, NDArray[np.uint64]] = {}

    def __getitem__(self, where: slice) -> NDArray[Any]:
        start, stop, _ = where.indices(self.shape[0])
        return self.gather(
            np.array([start]), np.array([max(start, stop)]), self.dtype.newbyteorder("=")
        )

    def gather(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        dtype: Any,
        kept: KeptChunks | None = None,
    ) -> NDArray[Any]:
        """Return stretches ``start:stop``, one after the other; no chunk is decoded twice where they are sorted.

        Parameters
        ----------
        starts, stops, dtype
            Stretches, and what they are read as.
        kept
            Where chunks are looked for, and left; None: each is decoded, straight to its place where that can be.

        Raises
        ------
        CorpusError
            A file of the array is damaged or gone.
        """
        out = np.empty(int((stops - starts).sum()), dtype=dtype)
        scratch, direct = (
            np.empty(self._chunk, dtype=self.dtype),
            out.dtype == self.dtype and kept is None,
        )
        at, held, chunk = 0, -1, scratch
        with _Shards(self) as shards:
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                while start < stop:
                    number = start // self._chunk
                    first = number * self._chunk
                    end = min(stop, first + self._chunk)
                    piece = out[at : at + end - start]
                    if direct and len(piece) == self._chunk:
                        shards.read(number, piece)
                    else:
                        if number != held:
                            found = None if kept is None else kept.get(self, number)
                            if found is None:
                                shards.read(number, scratch)
                                if kept is not None:
                                    kept.put(self, number, scratch)
                            held, chunk = number, scratch if found is None else found
                        piece[:] = chunk[start - first : end - first]
                    at, start = at + end - start, end
        return out


class _Shards:
    """The files of an array, one of them open at a time.

    Members are written with every chunk, also of zeros: one that is absent was lost, and must not read as zeros.
    """

    def __init__(self, array: FlatArray) -> None:
        self._array, self._number, self._file, self._size = array, -1, -1, 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, chunk: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with a whole chunk."""
        array = self._array
        shard, number = divmod(chunk, array._chunks)
        try:
            if shard != self._number:
                self._open(shard)
            offset, length = array._index[shard][number].tolist()
            if offset + length > self._size:  # also where the index says that there is none
                raise ValueError("a chunk is missing, or ends behind the file's end")
            array._unpack(os.pread(self._file, length, offset), out)
        except (
            OSError,
            RuntimeError,
            ValueError,
            IndexError,
        ) as error:  # RuntimeError: from the decompressor
            path = array.path / "c" / str(shard)
            raise CorpusError(
                f"{path} is damaged or cannot be read ({error}); `terrazzo corpus verify` says more."
            ) from error

    def _open(self, shard: int) -> None:
        """Open a shard, and read its index where that is not known: offset and length of each chunk."""
        if self._file >= 0:
            os.close(self._file)
        self._number = self._file = -1
        self._file = os.open(self._array.path / "c" / str(shard), os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        if shard not in self._array._index:
            size = _ENTRY * self._array._chunks
            content = os.pread(self._file, size, max(0, self._size - size - _CHECKSUM))
            self._array._index[shard] = np.frombuffer(content, dtype="<u8").reshape(-1, 2)
        self._number = shard


def gather(
    array: FlatArray | zarr.Array,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    dtype: Any,
    kept: KeptChunks | None = None,
) -> NDArray[Any]:
    """Return stretches of an array, one after the other, as this type; ``kept`` as in :meth:`FlatArray.gather`."""
    if isinstance(array, FlatArray):
        return array.gather(starts, stops, dtype, kept)
    parts = [
        np.asarray(array[start:stop])
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    return np.concatenate([np.empty(0, dtype=dtype), *parts]).astype(dtype, copy=False)


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
    return (
        FlatArray(path, about)
        if plain and hasattr(os, "pread")
        else zarr.open_array(path, mode="r")
    )


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
        and sharding["name"] == "sharding_indexed"
        and inner["codecs"][0] == _LITTLE
        and len(inner["codecs"]) <= 2
        and "".join(packed) in _UNPACK
        and inner.get("index_location", "end") == "end"
        and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        and about.get("storage_transformers", []) == []
    )
