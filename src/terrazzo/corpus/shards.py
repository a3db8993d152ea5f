"""Rows of a member, read from sharded zarr arrays in memory that does not grow with the corpus."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc, zstd
from numpy.typing import NDArray
from scipy import sparse

from terrazzo.arrays import Ints
from terrazzo.errors import CorpusError, shortened
from terrazzo.parsing import read_object
from terrazzo.sparse import check_arrays

__all__ = ["ChunkCache", "FlatArray", "RowReader", "gather", "open_flat"]

_AGAIN = "run the same `terrazzo corpus build` again"
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_ENTRY_BYTES = 16  # of a chunk in a shard's index: offset and length
_CHECKSUM_BYTES = 4  # crc32c of the index


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


_DECODERS = {"": _from_bytes, "zstd": _from_zstd, "blosc": _from_blosc}


class ChunkCache:
    """Cache of the chunks decoded last, each in the narrowest type that fits; several threads may share it.

    Counts and columns mostly fit one and two bytes, so that a little memory holds many slices.

    Parameters
    ----------
    max_bytes
        Size of the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._chunks: OrderedDict[tuple[FlatArray, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        n_chunks = len(self._chunks)
        return f"ChunkCache({n_chunks} chunks, {self.bytes:,} of {self.max_bytes:,} bytes)"

    def get(self, array: FlatArray, number: int) -> NDArray[Any] | None:
        """Return a chunk of an array, None where it is not in the cache."""
        key = (array, number)
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, array: FlatArray, number: int, values: NDArray[Any]) -> None:
        """Add a copy of a chunk; those that were not used for longest are dropped for it."""
        key = (array, number)
        chunk = values.astype(_narrowest(values))
        with self._lock:
            old = self._chunks.pop(key, None)
            if old is not None:
                self.bytes -= old.nbytes
            self._chunks[key] = chunk
            self.bytes += chunk.nbytes
            while self.bytes > self.max_bytes:
                _, dropped = self._chunks.popitem(last=False)
                self.bytes -= dropped.nbytes


def _narrowest(values: NDArray[Any]) -> np.dtype[Any]:
    """Return the smallest unsigned type for whole numbers from 0, else their own type."""
    if values.dtype.kind not in "iu" or values.min() < 0:
        return values.dtype.newbyteorder("=")
    return np.min_scalar_type(values.max())


class FlatArray:
    """Stretches of a one-dimensional sharded array; made by :func:`open_flat`.

    Only the shards' indices stay in memory, and no file stays open.

    Parameters
    ----------
    path
        Folder of the array.
    metadata
        Its ``zarr.json``.
    """

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        (size,) = metadata["shape"]
        (shard_size,) = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        sharding = metadata["codecs"][0]["configuration"]
        (chunk_size,) = sharding["chunk_shape"]
        data_type = np.dtype(metadata["data_type"])
        self.path = path
        self.dtype = data_type.newbyteorder("<")
        self.shape: tuple[int] = (size,)
        self._chunk_size: int = chunk_size
        self._chunks_a_shard: int = shard_size // self._chunk_size
        if min(size, chunk_size - 1, self._chunks_a_shard - 1) < 0:
            raise ValueError(f"a chunk of {chunk_size} in a shard of {shard_size}")
        self._decode = _DECODERS[_compressor(sharding)]
        self._index: dict[int, NDArray[np.uint64]] = {}

    def __repr__(self) -> str:
        path = str(self.path)
        (size,) = self.shape
        return f"FlatArray({path!r}, {size:,} values, {self.dtype.name})"

    def __getitem__(self, where: slice) -> NDArray[Any]:
        (size,) = self.shape
        start, stop, _ = where.indices(size)
        starts = np.array([start])
        stops = np.array([max(start, stop)])
        native = self.dtype.newbyteorder("=")
        return self.gather(starts, stops, native)

    def gather(
        self, starts: Ints, stops: Ints, dtype: Any, cache: ChunkCache | None = None
    ) -> NDArray[Any]:
        """Return stretches ``start:stop``, one after the other; no chunk is decoded twice where they are sorted.

        Parameters
        ----------
        starts, stops, dtype
            Stretches, and what they are read as.
        cache
            Where chunks are looked for, and left; None: each is decoded, straight to its place where that can be.

        Raises
        ------
        CorpusError
            A file of the array is damaged or missing.
        """
        n_values = int((stops - starts).sum())
        out = np.empty(n_values, dtype=dtype)
        scratch = np.empty(self._chunk_size, dtype=self.dtype)
        direct = out.dtype == self.dtype and cache is None
        done = 0  # values of `out`
        current = -1  # number of the chunk in `chunk`
        chunk = scratch
        with _Shards(self) as shards:
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                while start < stop:
                    number = start // self._chunk_size
                    first = number * self._chunk_size
                    end = min(stop, first + self._chunk_size)
                    after = done + end - start
                    part = out[done:after]
                    if direct and len(part) == self._chunk_size:
                        shards.read(number, part)
                    else:
                        if number != current:
                            chunk = shards.decoded(number, scratch, cache)
                            current = number
                        part[:] = chunk[start - first : end - first]
                    done = after
                    start = end
        return out


class _Shards:
    """The files of an array, one of them open at a time.

    Members are written with every chunk, also of zeros: one that is absent was lost, and must not read as zeros.
    """

    def __init__(self, array: FlatArray) -> None:
        self._array = array
        self._number = -1  # of the open file
        self._file = -1
        self._size = 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the open file, if any."""
        if self._file >= 0:
            os.close(self._file)
        self._number = -1
        self._file = -1

    def decoded(self, number: int, scratch: NDArray[Any], cache: ChunkCache | None) -> NDArray[Any]:
        """Return a whole chunk, from the cache where it is there; ``scratch`` is overwritten where it is not."""
        if cache is None:
            self.read(number, scratch)
            return scratch
        chunk = cache.get(self._array, number)
        if chunk is not None:
            return chunk
        self.read(number, scratch)
        cache.put(self._array, number, scratch)
        return scratch

    def read(self, number: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with a whole chunk."""
        array = self._array
        shard, place = divmod(number, array._chunks_a_shard)
        try:
            if shard != self._number:
                self._open(shard)
            offset, length = array._index[shard][place].tolist()
            if offset + length > self._size:  # also where the index says that there is none
                raise ValueError("a chunk is missing, or ends behind the file's end")
            content = os.pread(self._file, length, offset)
            array._decode(content, out)
        except (OSError, RuntimeError, ValueError, IndexError, MemoryError, OverflowError) as error:
            # a RuntimeError comes from the decompressor
            raise CorpusError(
                f"{self._path(shard)} is damaged or cannot be read ({error}); `terrazzo corpus verify` says more."
            ) from error

    def _path(self, shard: int) -> Path:
        return self._array.path / "c" / str(shard)

    def _open(self, shard: int) -> None:
        """Open a shard, and read its index where that is not known: offset and length of each chunk."""
        array = self._array
        self.close()
        self._file = os.open(self._path(shard), os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        if shard not in array._index:
            n_bytes = _ENTRY_BYTES * array._chunks_a_shard
            start = max(0, self._size - n_bytes - _CHECKSUM_BYTES)
            content = os.pread(self._file, n_bytes, start)
            index = np.frombuffer(content, dtype="<u8")
            array._index[shard] = index.reshape(-1, 2)
        self._number = shard


def gather(
    array: FlatArray | zarr.Array,
    starts: Ints,
    stops: Ints,
    dtype: Any,
    cache: ChunkCache | None = None,
) -> NDArray[Any]:
    """Return stretches of an array, one after the other, as this type; ``cache`` as in :meth:`FlatArray.gather`."""
    if isinstance(array, FlatArray):
        return array.gather(starts, stops, dtype, cache)
    parts = [np.empty(0, dtype=dtype)]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        parts.append(np.asarray(array[start:stop]))
    return np.concatenate(parts).astype(dtype, copy=False)


def open_flat(path: str | os.PathLike[str]) -> FlatArray | zarr.Array:
    """Open an array to read stretches of it; zarr's own array where it is not stored in the plain way.

    Parameters
    ----------
    path
        Folder of an array on disk.
    """
    path = Path(path)
    file = path / "zarr.json"
    try:
        metadata = read_object(file, CorpusError, finite=False)
        plain = _is_plain(metadata)
    except (CorpusError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        plain = False
    try:
        if plain and hasattr(os, "pread"):
            return FlatArray(path, metadata)
        return zarr.open_array(path, mode="r")
    except Exception as error:  # zarr raises almost anything of damaged metadata
        reason = shortened(error, 200, quoted=False)
        raise CorpusError(
            f"{path} is damaged ({type(error).__name__}: {reason}); {_AGAIN}"
        ) from error


def _compressor(sharding: dict[str, Any]) -> str:
    """Return the name of the compressor of the chunks in a shard, "" for none."""
    return "".join(codec["name"] for codec in sharding["codecs"][1:])


def _is_plain(metadata: dict[str, Any]) -> bool:
    """Return whether an array is one-dimensional numbers, sharded as :class:`FlatArray` reads it."""
    (sharding,) = metadata["codecs"]
    if sharding["name"] != "sharding_indexed":
        return False
    return _has_plain_layout(metadata) and _has_plain_shards(sharding["configuration"])


def _has_plain_layout(metadata: dict[str, Any]) -> bool:
    """Return whether an array is one-dimensional numbers, in files named in the usual way."""
    data_type = metadata["data_type"]
    return (
        len(metadata["shape"]) == 1
        and isinstance(data_type, str)
        and np.dtype(data_type).kind in "iuf"
        and metadata["chunk_grid"]["name"] == "regular"
        and metadata["chunk_key_encoding"] == _CHUNK_KEYS
        and metadata.get("storage_transformers", []) == []
    )


def _has_plain_shards(sharding: dict[str, Any]) -> bool:
    """Return whether shards end in an index with a checksum, and their chunks have a known compressor."""
    codecs = sharding["codecs"]
    index_codecs = [codec["name"] for codec in sharding["index_codecs"]]
    return (
        codecs[0] == _LITTLE_ENDIAN
        and len(codecs) <= 2
        and _compressor(sharding) in _DECODERS
        and index_codecs == ["bytes", "crc32c"]
        and sharding.get("index_location", "end") == "end"
    )


POINTER_ROWS = 2**14  # rows whose places are read at a time
CACHED_POINTERS = (
    512  # of these pieces stay in memory: at most 64 MB, whatever the size of the corpus
)
CACHED_BYTES = 2**28  # of decoded chunks; windows of a slice overlap, and come again in every epoch
OPEN_MEMBERS = 4096  # each with the places of its chunks, 32 bytes a chunk of 16,384 counts


@dataclass(frozen=True)
class _Matrix:
    """Open arrays of one member."""

    data: FlatArray | zarr.Array
    indices: FlatArray | zarr.Array
    indptr: FlatArray | zarr.Array
    n_genes: int
    has_doubles: bool  # a count exceeds 2**24


class RowReader:
    """Reader of rows of any member of a corpus; several threads may share it.

    Parameters
    ----------
    locate
        From a member's id to the folder of its matrix and its number of genes.
    """

    def __init__(self, locate: Callable[[str], tuple[Path, int]]) -> None:
        self._locate = locate
        self._chunks = ChunkCache(CACHED_BYTES)
        self._open = lru_cache(OPEN_MEMBERS)(self._open_member)
        self._pointers = lru_cache(CACHED_POINTERS)(self._read_pointers)

    def take(self, id: str, rows: Ints, *, once: bool = False) -> sparse.csr_matrix:
        """Return rows of a member in the order of ``rows``; see :meth:`terrazzo.corpus.Corpus.take`.

        ``once``: a pass over many rows, of which nothing is cached for the next time.
        """
        steps = np.diff(rows)
        if (steps <= 0).any():
            unique, position = np.unique(rows, return_inverse=True)
            return self.take(id, unique, once=once)[position]
        matrix = self._open(id)
        cache = None if once else self._chunks
        first, last = self._bounds(id, rows)
        starts, stops = _stretches(first, last)
        data_type = np.float64 if matrix.has_doubles else np.float32
        data = gather(matrix.data, starts, stops, data_type, cache)
        indices = gather(matrix.indices, starts, stops, np.int32, cache)
        pointer_type = np.int32 if len(data) < 2**31 else np.int64
        indptr = np.zeros(len(rows) + 1, dtype=pointer_type)
        np.cumsum(last - first, out=indptr[1:])
        shape = (len(rows), matrix.n_genes)
        where = f"slice {id}"
        check_arrays(data, indices, indptr, shape, where, CorpusError)
        if len(data) and not 0 <= data.min() <= data.max() < np.inf:
            raise CorpusError(f"{where} holds counts that are negative or not finite; {_AGAIN}")
        out = sparse.csr_matrix((data, indices, indptr), shape=shape, copy=False)
        out.has_sorted_indices = True
        out.has_canonical_format = True
        return out

    def _bounds(self, id: str, rows: Ints) -> tuple[Ints, Ints]:
        """Return where the values of sorted rows start and stop."""
        first = np.empty(len(rows), dtype=np.int64)
        last = np.empty(len(rows), dtype=np.int64)
        pieces = rows // POINTER_ROWS
        done = 0
        while done < len(rows):
            piece = int(pieces[done])
            stop = int(np.searchsorted(pieces, piece, side="right"))
            part = slice(done, stop)
            local = rows[part] - piece * POINTER_ROWS
            indptr = self._pointers(id, piece)
            if int(local.max()) + 1 >= len(indptr):
                raise CorpusError(f"slice {id} has fewer row pointers than cells; {_AGAIN}")
            first[part] = indptr[local]
            last[part] = indptr[local + 1]
            done = stop
        size = min(self._open(id).data.shape[0], self._open(id).indices.shape[0])
        if (first < 0).any() or (last < first).any() or (last > size).any():
            raise CorpusError(f"slice {id}: its row pointers lead out of its counts; {_AGAIN}")
        return first, last

    def _read_pointers(self, id: str, piece: int) -> Ints:
        """Return the row pointers of a piece of a member, and the one behind it."""
        indptr = self._open(id).indptr
        start = piece * POINTER_ROWS
        stop = start + POINTER_ROWS + 1
        return np.asarray(indptr[start:stop], dtype=np.int64)

    def _open_member(self, id: str) -> _Matrix:
        path, n_genes = self._locate(id)
        data = open_flat(path / "data")
        indices = open_flat(path / "indices")
        indptr = open_flat(path / "indptr")
        kinds = {"data": (data, "iuf"), "indices": (indices, "iu"), "indptr": (indptr, "iu")}
        for name, (array, kind) in kinds.items():
            if len(array.shape) != 1 or array.dtype.kind not in kind:
                raise CorpusError(f"{path / name} is {array.dtype} {array.shape}; {_AGAIN}")
        return _Matrix(
            data=data,
            indices=indices,
            indptr=indptr,
            n_genes=n_genes,
            has_doubles=data.dtype == np.float64,
        )


def _stretches(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return starts and stops of the values of rows; rows that follow each other on disk are one stretch."""
    if not len(first):
        return first, last
    follows = first[1:] == last[:-1]
    new = np.flatnonzero(~follows)
    starts = np.append(first[0], first[new + 1])
    stops = np.append(last[new], last[-1])
    return starts, stops
