"""Arrays on disk under a hash of all that decides them: written whole or not at all, checked when they are opened.

A file is a ``.npy`` with a trailer: its sha256's short cousin, a CRC of every byte before it. One file, one rename: a
killed writer leaves nothing that reads as finished, and two writers of one array do not disturb each other.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from terrazzo.errors import OutputError, TerrazzoWarning
from terrazzo.files import hash_json, whole_file

FORMAT = 1


_MARK = b"terrazzo"


_TRAILER = struct.Struct("<8sIQ")  # mark, crc32 and number of the bytes before


_PIECE = 2**24  # bytes looked at at a time


Made = tuple[tuple[int, ...], Any, Iterable[NDArray[Any]]]  # shape, dtype, rows


class FeatureCache:
    """A folder of arrays that can be made again.

    Parameters
    ----------
    folder
        Made on the first write; may be shared by models, runs and processes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._checked: set[Path] = set()

    def path(self, key: Any) -> Path:
        """Return the file of an array; ``key`` is all that decides it, JSON-able."""
        return self.folder / f"{hash_json([FORMAT, key])[:32]}.npy"

    def find(self, key: Any) -> NDArray[Any] | None:
        """Return a stored array, read-only and memory-mapped, None where there is none.

        Every byte is checked when this process first opens it.

        Warns
        -----
        TerrazzoWarning
            The file is cut off or damaged; it is taken away.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            return self._open(path)
        except (OSError, ValueError, struct.error) as error:
            warnings.warn(
                f"{path} is cut off or damaged ({error}); what it held is made again.",
                TerrazzoWarning,
                stacklevel=2,
            )
            path.unlink(missing_ok=True)
            return None

    def array(self, key: Any, make: Callable[[], Made]) -> NDArray[Any]:
        """Return a stored array, made first where there is none.

        Parameters
        ----------
        key
            As in :meth:`path`.
        make
            Called where it must be made: gives shape, dtype and rows, some at a time.

        Raises
        ------
        OutputError
            It cannot be written, for instance on a full disk.
        """
        held = self.find(key)
        if held is None:
            self._write(self.path(key), make())
            held = self.find(key)
        if held is None:
            raise OutputError(
                f"{self.path(key)} changed while it was read; is another program writing there?"
            )
        return held

    def _write(self, path: Path, made: Made) -> None:
        shape, kind, blocks = made
        dtype = np.dtype(kind)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as draft, draft.open("w+b") as stream:
                about = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                npy.write_array_header_1_0(stream, about)
                for block in blocks:
                    stream.write(np.ascontiguousarray(block, dtype=dtype).data)
                size = stream.tell()
                stream.flush()
                stream.write(_TRAILER.pack(_MARK, _crc(draft, size), size))
        except OSError as error:
            raise OutputError(
                f"features cannot be written to {path} ({error}); choose another folder."
            ) from error

    def _open(self, path: Path) -> NDArray[Any]:
        with path.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END) - _TRAILER.size
            stream.seek(max(end, 0))
            mark, crc, size = _TRAILER.unpack(stream.read())
            if mark != _MARK or size != end:
                raise ValueError("it does not end as it was written")
            stream.seek(0)
            npy.read_magic(stream)
            shape, _, dtype = npy.read_array_header_1_0(stream)
            start = stream.tell()
        if start + int(np.prod(shape)) * dtype.itemsize != size:
            raise ValueError("it holds more or fewer bytes than its head says")
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
            value, size = zlib.crc32(piece, value), size - len(piece)
    return value
