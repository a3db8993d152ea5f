"""Cache of arrays on disk, named after a hash of all that decides them.

A file is a ``.npy`` with a trailer: a CRC of every byte before it, checked when the file is opened. It is written whole
or not at all, by one rename: a killed writer leaves nothing that reads as finished, and two writers of one array do not
disturb each other.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from terrazzo.errors import OutputError, TerrazzoWarning
from terrazzo.files import hash_json, whole_file

__all__ = ["FeatureCache", "NewArray"]

FORMAT = 1

_MARK = b"terrazzo"

_TRAILER = struct.Struct("<8sIQ")  # mark, crc32 and number of the bytes before

_PIECE = 2**24  # bytes read at a time


@dataclass(frozen=True)
class NewArray:
    """An array to be stored.

    Attributes
    ----------
    shape, dtype
        Of the whole array.
    blocks
        Its rows, some at a time; read once.
    """

    shape: tuple[int, ...]
    dtype: Any
    blocks: Iterable[NDArray[Any]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> NewArray:
        """Return an array that is in memory, in one block."""
        return cls(array.shape, array.dtype, [array])


class FeatureCache:
    """A folder of arrays that can be computed again.

    Parameters
    ----------
    folder
        Created on the first write; may be shared by models, runs and processes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._checked: set[Path] = set()

    def path(self, key: Any) -> Path:
        """Return the file of an array; ``key`` is all that decides it, JSON-able."""
        name = hash_json([FORMAT, key])[:32]
        return self.folder / f"{name}.npy"

    def find(self, key: Any) -> NDArray[Any] | None:
        """Return a stored array, read-only and memory-mapped, None where there is none.

        Every byte is checked when this process first opens it.

        Warns
        -----
        TerrazzoWarning
            The file is cut off or damaged; it is removed.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            return self._open(path)
        except (OSError, ValueError, struct.error) as error:
            warnings.warn(
                f"{path} is cut off or damaged ({error}); its array is computed again.",
                TerrazzoWarning,
                stacklevel=2,
            )
            path.unlink(missing_ok=True)
            return None

    def array(self, key: Any, make: Callable[[], NewArray]) -> NDArray[Any]:
        """Return a stored array; compute and store it first where there is none.

        Parameters
        ----------
        key
            As in :meth:`path`.
        make
            Called where there is none.

        Raises
        ------
        OutputError
            It cannot be written, for instance on a full disk.
        """
        stored = self.find(key)
        if stored is None:
            self._write(self.path(key), make())
            stored = self.find(key)
        if stored is None:
            raise OutputError(
                f"{self.path(key)} changed while it was read; is another program writing to it?"
            )
        return stored

    def _write(self, path: Path, array: NewArray) -> None:
        dtype = np.dtype(array.dtype)
        header = {
            "descr": npy.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": array.shape,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as draft, draft.open("w+b") as stream:
                npy.write_array_header_1_0(stream, header)
                for block in array.blocks:
                    rows = np.ascontiguousarray(block, dtype=dtype)
                    stream.write(rows.data)
                size = stream.tell()
                stream.flush()
                trailer = _TRAILER.pack(_MARK, _crc(draft, size), size)
                stream.write(trailer)
        except OSError as error:
            raise OutputError(
                f"features cannot be written to {path} ({error}); choose another folder."
            ) from error

    def _open(self, path: Path) -> NDArray[Any]:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END) - _TRAILER.size
            stream.seek(max(end, 0))
            trailer = stream.read()
            mark, crc, size = _TRAILER.unpack(trailer)
            if mark != _MARK or size != end:
                raise ValueError("it does not end as it was written")
            stream.seek(0)
            npy.read_magic(stream)
            shape, _, dtype = npy.read_array_header_1_0(stream)
            start = stream.tell()
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if start + n_bytes != size:
            raise ValueError("it has more or fewer bytes than its header states")
        if path not in self._checked:
            if _crc(path, size) != crc:
                raise ValueError("its checksum differs")
            self._checked.add(path)
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape)


def _crc(path: Path, size: int) -> int:
    """Return the CRC of the first bytes of a file."""
    value = 0
    with path.open("rb") as stream:
        while size > 0 and (piece := stream.read(min(_PIECE, size))):
            value = zlib.crc32(piece, value)
            size -= len(piece)
    return value
