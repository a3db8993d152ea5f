"""Readers of foreign tables, Parquet and CSV, that look at their sizes before they take memory."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pandas as pd

from terrazzo.errors import InputError, TerrazzoError
from terrazzo.safe_files import SMALL, check_claim, check_memory

__all__ = ["MAX_LINE", "check_parquet", "first_line", "open_csv", "read_csv", "read_parquet"]

MAX_LINE = 2**24
"""Longest line of a table, in bytes."""

_GZIP_INFLATION = 200  # bytes of a table's text for one on disk; of tables of cells it is 3 to 30
_VALUE = 8  # bytes of a value in memory, at least


def check_parquet(path: Path, error: type[TerrazzoError] = InputError) -> None:
    """Check the sizes that a Parquet file, or a folder of such, states.

    Raises
    ------
    error
        They are far more than the file can hold, or than this machine's memory.
    ArrowException, OSError
        It is not a Parquet file.
    """
    import pyarrow.parquet as pq

    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*.parquet")) if file.is_file()]
    claimed = 0
    stored = 0
    for file in files:
        metadata = pq.read_metadata(file)
        n_bytes = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            n_values = group.num_rows * max(group.num_columns, 1)
            n_bytes += max(group.total_byte_size, n_values * _VALUE)
        n_values = metadata.num_rows * max(metadata.num_columns, 1)
        claimed += max(n_bytes, n_values * _VALUE)
        stored += file.stat().st_size
    check_claim(claimed, stored, str(path), error)
    check_memory(claimed, str(path), error)


def read_parquet(path: Path, error: type[TerrazzoError] = InputError) -> pd.DataFrame:
    """Read a Parquet file into memory; errors as :func:`check_parquet`."""
    import pyarrow.parquet as pq

    check_parquet(path, error)
    return pq.read_table(path).to_pandas()


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Read a ``.csv`` or ``.csv.gz`` into memory; ``options`` as of :func:`pandas.read_csv`.

    Raises
    ------
    InputError
        Its first line is too long, or it is far larger than its file.
    ValueError
        As of :func:`pandas.read_csv`.
    """
    first_line(path)
    with open_csv(path) as stream:
        return pd.read_csv(stream, compression=None, **options)


def first_line(path: Path) -> list[str]:
    """Return the fields of the first line of a ``.csv`` or ``.csv.gz``, [] of an empty file.

    Raises
    ------
    InputError
        The line does not end within 16 MB.
    """
    with open_csv(path) as stream:
        line = stream.readline(MAX_LINE + 1)
    if len(line) > MAX_LINE:
        raise InputError(f"{path}: its first line does not end within {MAX_LINE:,} bytes")
    text = line.decode("utf-8-sig")
    return next(csv.reader([text]), [])


@contextmanager
def open_csv(path: Path) -> Iterator[IO[bytes]]:
    """Open a ``.csv`` or ``.csv.gz`` for reading, not farther than a table of its size can be.

    Raises
    ------
    InputError
        As it is read: it inflates to far more than a table does.
    """
    most = max(SMALL, _GZIP_INFLATION * path.stat().st_size)
    with path.open("rb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        with gzip.open(file, "rb") as stream:
            yield io.BufferedReader(_Bounded(stream, most, path), 2**18)


class _Bounded(io.RawIOBase):
    """A stream that may not be longer than this."""

    def __init__(self, stream: gzip.GzipFile, most: int, path: Path) -> None:
        super().__init__()
        self._stream = stream
        self._left = most
        self._path = path

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        content = self._stream.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            size = self._path.stat().st_size
            raise InputError(
                f"{self._path} inflates to far more than its {size:,} bytes can hold; it is no table of cells"
            )
        buffer[: len(content)] = content
        return len(content)
