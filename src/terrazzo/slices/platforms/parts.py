"""What the readers of vendor folders share: files found by pattern, tables and matrices checked as they are read.

A vendor's file is foreign: it is never unpickled, its sizes are looked at before it is loaded, and what is missing is
named. Every fault is an ``InputError`` with the file in front.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from terrazzo.errors import InputError, TerrazzoError
from terrazzo.slices.opened import Choices, Opened

BLOCK = 2**24  # bytes of a wide table that are parsed at a time; a line must fit
_MOST_JSON = 2**24  # bytes
_MOST_INFLATED = 2000  # bytes in memory for one on disk; deflate itself cannot do more than 1,032
_SMALL = 2**26  # bytes that are read without asking
_GENERIC = {"outs", "output", "binned_outputs", "feature_expression", "data"}
_LEAST_PLACED = 0.5  # share of cells of the counts that must have a position


@dataclass(frozen=True)
class Platform:
    """One vendor's layout on disk.

    Attributes
    ----------
    name
        As messages and ``technology`` have it.
    marks
        Patterns relative to a folder, any of which says that the folder is this platform's.
    locate
        ``(folder or file, choices) -> {role: file}``; raises ``InputError`` that names what is missing.
    read
        ``(files, name, choices) -> Opened``.
    takes
        Choices that mean something here.
    suffix
        Of a single file that is this platform's; "" where it always is a folder.
    """

    name: str
    marks: tuple[str, ...]
    locate: Callable[[Path, Choices], dict[str, Path]]
    read: Callable[[dict[str, Path], str, Choices], Opened]
    takes: tuple[str, ...] = ()
    suffix: str = ""

    def matches(self, path: Path) -> bool:
        """Say whether a path looks like this platform's, complete or not."""
        if path.is_dir():
            return any(next(path.glob(mark), None) is not None for mark in self.marks)
        return bool(self.suffix) and path.name.lower().endswith(self.suffix)


def name_of(path: Path) -> str:
    """Name a slice after its file or folder; after the folder above where the name says nothing ("outs")."""
    if path.is_file():
        return path.stem
    full = path.resolve()
    return (
        full.parent.name
        if full.name.lower() in _GENERIC or full.name.startswith("square_")
        else full.name
    )


def one_file(folder: Path, patterns: Sequence[str], what: str) -> Path:
    """Return the only file below ``folder`` that fits one of the patterns.

    Raises
    ------
    InputError
        None, or several.
    """
    found = sorted(
        {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    )
    if not found:
        raise InputError(f"{folder}: {what} is missing; it should be {' or '.join(patterns)}")
    if len(found) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found)
        raise InputError(
            f"{folder}: more than one file could be {what}: {names}. Give each slice a folder of its own"
        )
    return found[0]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser of a foreign file raises into an ``InputError`` that names the file."""
    try:
        yield
    except (TerrazzoError, MemoryError):
        raise
    except Exception as error:  # parsers of damaged files raise almost anything
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} cannot be read; it is damaged, truncated or of another kind ({detail})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object."""
    with reading(path):
        if path.stat().st_size > _MOST_JSON:
            raise InputError(
                f"{path} has {path.stat().st_size:,} bytes; that is no file of settings"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def numbers_in(content: dict[str, Any]) -> dict[str, float]:
    """Return the entries of a JSON object that are finite numbers."""
    plain = {
        k: v for k, v in content.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
    return {name: float(value) for name, value in plain.items() if np.isfinite(value)}


def read_table(
    path: Path, needed: Sequence[str], ids: Sequence[str] = (), names: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a ``.csv``, ``.csv.gz`` or ``.parquet`` table with one row a cell.

    Parameters
    ----------
    path
        The file.
    needed
        Columns that must be there; those not in ``ids`` must hold numbers.
    ids
        Columns that are read as text, whatever they look like: an 18-digit number is no float.
    names
        Column names of a file without a header.

    Raises
    ------
    InputError
        Damaged; a column is missing or holds no numbers.
    """
    with reading(path):
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path).to_pandas()
        else:
            text: Any = dict.fromkeys(ids, str)
            table = pd.read_csv(path, header=None if names else 0, names=names or None, dtype=text)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise InputError(
            f"{path}: column{'s' if len(missing) > 1 else ''} {', '.join(missing)} missing; it has "
            f"{', '.join(map(str, table.columns[:12]))}{', ...' if len(table.columns) > 12 else ''}"
        )
    for name in ids:
        if name in table.columns:
            table[name] = [_text(value) for value in table[name]]
    for name in needed:
        if name not in ids and not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{path}: column {name} does not hold numbers")
    return table


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Wide:
    """A table with a column a gene (or a cell): its leading text columns, the names of the others, their values."""

    ids: pd.DataFrame
    names: NDArray[np.str_]
    values: sp.csr_matrix


def read_wide(path: Path, ids: Sequence[str] | int) -> Wide:
    """Read a wide ``.csv`` or ``.csv.gz`` of counts by pieces, so that it is never dense in memory.

    Parameters
    ----------
    path
        The file; its first line names the columns.
    ids
        Names of columns that are no counts (those that are there), or how many come first.

    Raises
    ------
    InputError
        Damaged, no rows, no columns of counts, or values that are no numbers.
    """
    header = first_line(path)
    leading = (
        list(range(ids))
        if isinstance(ids, int)
        else [i for i, name in enumerate(header) if name in ids]
    )
    counted = sorted(set(range(len(header))) - set(leading))
    if not leading or not counted:
        raise InputError(
            f"{path}: the first line must name the cells' columns and those of the counts"
        )
    texts, blocks = [], []
    with reading(path), _stream(path, len(header), leading) as pieces:
        for piece in pieces:
            texts.append(
                pd.DataFrame(
                    {header[i]: piece.column(i).to_pylist() for i in leading}, dtype=object
                )
            )
            numbers = np.stack(
                [piece.column(i).to_numpy(zero_copy_only=False) for i in counted], axis=1
            )
            blocks.append(as_counts(sp.csr_matrix(numbers)))
    if not blocks:
        raise InputError(f"{path} has no rows below its first line")
    names = np.array([header[i] for i in counted], dtype=np.str_)
    return Wide(
        pd.concat(texts, ignore_index=True), names, sp.csr_matrix(sp.vstack(blocks, format="csr"))
    )


def _stream(path: Path, n_columns: int, text: Sequence[int]) -> Any:
    """Parse a ``.csv`` or ``.csv.gz`` below its first line by pieces: some columns as text, all others as numbers."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    columns = [str(i) for i in range(n_columns)]  # names of the file may repeat
    types = {name: pa.string() if int(name) in text else pa.float64() for name in columns}
    return arrow.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=arrow.ReadOptions(column_names=columns, skip_rows=1, block_size=BLOCK),
        convert_options=arrow.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def as_counts(block: sp.csr_matrix) -> sp.csr_matrix:
    """Return values as float32 where that is exact."""
    narrow = block.astype(np.float32)
    return narrow if np.array_equal(narrow.data, block.data, equal_nan=True) else block


def first_line(path: Path) -> list[str]:
    """Return the fields of the first line of a ``.csv`` or ``.csv.gz``, [] of an empty file."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with reading(path), opener(path, "rt", encoding="utf-8-sig") as stream:
        return next(csv.reader(stream), [])


def place(
    counted: Sequence[str], placed: pd.DataFrame, key: str, where: str
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Join counts and positions of cells by their id.

    Parameters
    ----------
    counted
        Ids of the rows of the counts.
    placed
        Table of positions with the column ``key``.
    where
        The two files, for messages.

    Returns
    -------
    Rows of the counts whose id is in the table, ascending, and the table's rows for them in that order.

    Raises
    ------
    InputError
        Ids repeat; fewer than half of the counts' ids are in the table, so the files are of different runs.
    """
    index = pd.Index(placed[key])
    for ids, which in ((pd.Index(counted), "counts"), (index, "positions")):
        if not ids.is_unique:
            raise InputError(
                f"{where}: cell ids of the {which} repeat (e.g. {ids[ids.duplicated()][0]})"
            )
    at = index.get_indexer(pd.Index(counted))
    rows = np.flatnonzero(at >= 0)
    if len(rows) < _LEAST_PLACED * len(counted) or not len(rows):
        raise InputError(
            f"{where}: only {len(rows):,} of {len(counted):,} cells of the counts have a position "
            f"(counts: {', '.join(map(str, counted[:2]))}; positions: {', '.join(map(str, index[:2]))}); the files do "
            "not belong together"
        )
    return rows.astype(np.int64), placed.iloc[at[rows]].reset_index(drop=True)


def unplaced(counted: int, placed: int) -> str:
    """Say how many cells of the counts have no position ("" for none)."""
    return (
        f"{counted - placed:,} of {counted:,} cells have counts but no position; left out"
        if placed < counted
        else ""
    )


def plain_columns(table: pd.DataFrame, without: Sequence[str] = ()) -> pd.DataFrame:
    """Return the columns that any file format can hold: numbers, flags and text."""
    kept = {}
    for name in table.columns:
        column = table[name]
        if name in without or str(name) in kept:
            continue
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            kept[str(name)] = column.to_numpy()
        else:
            kept[str(name)] = np.array([_text(value) for value in column], dtype=object)
    return pd.DataFrame(kept)


def dataset(file: Any, name: str, kinds: str, path: Path) -> NDArray[Any]:
    """Read a dataset of an HDF5 file into memory.

    Parameters
    ----------
    file
        Open h5py file or group.
    name
        Path in it.
    kinds
        Allowed kinds of numpy: "iu" for whole numbers, "SO" for text, "V" for records.
    path
        The file, for messages.

    Raises
    ------
    InputError
        Not there, not one-dimensional, of another kind, or far larger than its file could hold.
    """
    import h5py

    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path}: dataset {file.name.rstrip('/')}/{name} is missing")
    if found.ndim != 1 or found.dtype.kind not in kinds:
        raise InputError(
            f"{path}: dataset {found.name} is {found.dtype} {found.shape}, not what belongs there"
        )
    size = found.size * found.dtype.itemsize
    if size > _SMALL and size > _MOST_INFLATED * path.stat().st_size:
        raise InputError(
            f"{path}: dataset {found.name} claims {size:,} bytes, more than the file can hold"
        )
    return np.asarray(found[:])


def texts(values: NDArray[Any]) -> NDArray[np.str_]:
    """Decode an array of bytes or objects; what follows a NUL is padding."""
    return np.array([_text(value).split("\0")[0] for value in values.tolist()], dtype=np.str_)


def compressed(
    data: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    shape: tuple[int, int],
    where: str,
) -> sp.csr_matrix:
    """Make compressed rows out of foreign arrays, checked so that no index leads out of the matrix.

    Raises
    ------
    InputError
        Arrays that do not belong together.
    """
    steps = np.diff(indptr.astype(np.int64))
    fits = len(indptr) == shape[0] + 1 and len(data) == len(indices)
    if not fits or indptr[0] != 0 or indptr[-1] != len(indices) or (len(steps) and steps.min() < 0):
        raise InputError(
            f"{where}: data, indices and indptr do not belong together (shape {shape})"
        )
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= shape[1]):
        raise InputError(f"{where}: an index leads out of the matrix (shape {shape})")
    wide = data.astype(np.float64)
    return as_counts(
        sp.csr_matrix((wide, indices.astype(np.int64), indptr.astype(np.int64)), shape=shape)
    )
