"""Shared by the readers of vendors' folders: files found by pattern, tables and matrices checked as they are read.

A vendor's file is foreign: it is never unpickled, its sizes are checked before it is loaded, and what is missing is
named. Every fault is an ``InputError`` with the file in front.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from terrazzo.arrays import Ints
from terrazzo.errors import InputError, TerrazzoError, shortened
from terrazzo.parsing import read_object
from terrazzo.safe_tables import MAX_LINE, open_csv, read_csv, read_parquet
from terrazzo.slices.opened import Choices, Opened
from terrazzo.sparse import check_arrays

__all__ = [
    "Platform",
    "WideTable",
    "as_counts",
    "check_columns",
    "compressed",
    "dataset",
    "first_line",
    "first_match",
    "name_of",
    "numbers_in",
    "one_file",
    "place",
    "plain_columns",
    "read_json",
    "read_table",
    "read_wide",
    "reading",
    "sample_name",
    "texts",
    "unplaced",
]

_BLOCK = 2**24  # bytes of a wide table that are parsed at a time; a line must fit
_MAX_INFLATION = 2000  # bytes in memory for one on disk; deflate itself cannot do more than 1,032
_SMALL = 2**26  # bytes that are read without a check
_GENERIC = {
    "outs",
    "out",
    "output",
    "outputs",
    "binned_outputs",
    "segmented_outputs",
    "feature_expression",
    "data",
    "filtered_feature_bc_matrix",
    "raw_feature_bc_matrix",
    "cell_feature_matrix",
    "spatial",
    "results",
}
# parts of a sample, whose names are the same for every sample
_PART = re.compile(r"square_\d+um|(region|fov|section)[_-]?\d+", re.IGNORECASE)
# names of files that are the same for every sample, in lower case without endings
_GENERIC_FILES = {
    *_GENERIC,
    "adata",
    "anndata",
    "counts",
    "embedded",
    "filtered",
    "input",
    "matrix",
    "processed",
    "raw",
    "sample",
    "sdata",
    "slice",
    "spatialdata",
    "st",
    "table",
    "visium",
    "xenium",
}
_MIN_PLACED = 0.5  # share of cells of the counts that must have a position


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
        Choices that belong to this platform.
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
    """Name a slice after its file or folder; after the folder above where the name is generic ("outs")."""
    if path.is_file():
        return path.stem
    path = path.resolve()
    while _is_generic(path.name) and path.parent.name:
        path = path.parent
    return path.name


def _is_generic(name: str) -> bool:
    return name.lower() in _GENERIC or name.startswith("square_")


def sample_name(path: Path, *, of_files: bool = False) -> str:
    """Name the result of a slice after its sample; a part of a sample ("region_0") after both.

    Parameters
    ----------
    path
        File or folder of a slice.
    of_files
        Name files with generic names ("slice.h5ad"), too, after the folder above.
    """
    if path.is_dir() and path.suffix.lower() != ".zarr":
        place = path.resolve()
        name = name_of(path)
        if _PART.fullmatch(place.name) and place.parent.name:
            sample = name_of(place.parent)
            name = f"{sample}_{place.name}"
        return name
    parent = path.resolve().parent
    is_generic = path.stem.lower() in _GENERIC_FILES or _PART.fullmatch(path.stem) is not None
    if of_files and is_generic and parent.name:
        return name_of(parent)
    return path.stem


def one_file(folder: Path, patterns: Sequence[str], what: str) -> Path:
    """Return the only file below ``folder`` that fits one of the patterns.

    Raises
    ------
    InputError
        None, or several.
    """
    found: set[Path] = set()
    for pattern in patterns:
        found.update(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise InputError(f"{folder}: {what} is missing; it should be {' or '.join(patterns)}")
    if len(found) > 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in sorted(found))
        raise InputError(
            f"{folder}: more than one file could be {what}: {names}. Give each slice a folder of its own"
        )
    return found.pop()


def first_match(folder: Path, patterns: Sequence[Sequence[str]], what: str) -> Path:
    """Return the only file that fits the first of these groups of patterns of which there is one.

    Raises
    ------
    InputError
        None (the first group is named), or several.
    """
    for group in patterns:
        if any(path.is_file() for pattern in group for path in folder.glob(pattern)):
            return one_file(folder, group, what)
    return one_file(folder, patterns[0], what)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser of a foreign file raises into an ``InputError`` that names the file."""
    try:
        yield
    except TerrazzoError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is") from error
    except Exception as error:  # parsers of damaged files raise almost anything
        detail = shortened(error, 300, quoted=False) or type(error).__name__
        raise InputError(
            f"{path} cannot be read; it is damaged, truncated or of another kind ({detail})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a small JSON object."""
    return read_object(path, InputError)


def numbers_in(content: dict[str, Any]) -> dict[str, float]:
    """Return the entries of a JSON object that are finite numbers."""
    numbers = {}
    for name, value in content.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and np.isfinite(value):
            numbers[name] = float(value)
    return numbers


def read_table(
    path: Path,
    needed: Sequence[str],
    ids: Sequence[str] = (),
    names: Sequence[str] = (),
    separator: str = ",",
) -> pd.DataFrame:
    """Read a ``.csv``, ``.csv.gz`` or ``.parquet`` table with one row a cell.

    Parameters
    ----------
    path
        The file.
    needed
        Columns that must be there; those not in ``ids`` must hold numbers.
    ids
        Columns that are read as text, whatever they look like: an 18-digit number is not a float.
    names
        Column names of a file without a header.
    separator
        Between the fields of a text file.

    Raises
    ------
    InputError
        Damaged; a column is missing or holds no numbers.
    """
    with reading(path):
        if path.suffix == ".parquet":
            table = read_parquet(path)
        else:
            types: Any = dict.fromkeys(ids, str)
            header = None if names else 0
            table = read_csv(path, sep=separator, header=header, names=names or None, dtype=types)
    check_columns(table, needed, ids, path)
    for name in ids:
        if name in table.columns:
            table[name] = [_text(value) for value in table[name]]
    return table


def check_columns(
    table: pd.DataFrame, needed: Sequence[str], ids: Sequence[str], path: Path
) -> None:
    """Refuse a table in which a column is missing, or holds no numbers though it is not of ids."""
    missing = [name for name in needed if name not in table.columns]
    if missing:
        columns = [shortened(name, 40, quoted=False) for name in table.columns[:12]]
        if len(table.columns) > 12:
            columns.append("...")
        plural = "s" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: column{plural} {', '.join(missing)} missing; it has {', '.join(columns)}"
        )
    for name in needed:
        if name not in ids and not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{path}: column {name} does not hold numbers")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class WideTable:
    """A table with a column a gene (or a cell): its leading text columns, the names of the others, their values."""

    ids: pd.DataFrame
    names: NDArray[np.str_]
    values: sp.csr_matrix


def read_wide(path: Path, ids: Sequence[str] | int, separator: str = ",") -> WideTable:
    """Read a wide ``.csv`` or ``.csv.gz`` of counts by pieces, so that it is never dense in memory.

    Parameters
    ----------
    path
        The file; its first line names the columns.
    ids
        Names of columns that are not counts (those that are there), or how many come first.
    separator
        Between the fields.

    Raises
    ------
    InputError
        Damaged, no rows, no columns of counts, or values that are not numbers.
    """
    header, n_comments = _header(path, separator)
    columns = range(len(header))
    if isinstance(ids, int):
        id_columns = list(range(ids))
    else:
        id_columns = [i for i in columns if header[i] in ids]
    count_columns = [i for i in columns if i not in id_columns]
    if not id_columns or not count_columns:
        raise InputError(
            f"{path}: the first line must name the cells' columns and those of the counts"
        )
    id_tables = []
    blocks = []
    with reading(path), _stream(path, len(header), id_columns, separator, n_comments) as pieces:
        for piece in pieces:
            texts_of_piece = {header[i]: piece.column(i).to_pylist() for i in id_columns}
            id_tables.append(pd.DataFrame(texts_of_piece, dtype=object))
            numbers = [piece.column(i).to_numpy(zero_copy_only=False) for i in count_columns]
            block = sp.csr_matrix(np.stack(numbers, axis=1))
            blocks.append(as_counts(block))
    if not blocks:
        raise InputError(f"{path} has no rows below its first line")
    names = np.array([header[i] for i in count_columns], dtype=np.str_)
    values = sp.csr_matrix(sp.vstack(blocks, format="csr"))
    return WideTable(pd.concat(id_tables, ignore_index=True), names, values)


def _stream(
    path: Path, n_columns: int, text: Sequence[int], separator: str, n_comments: int
) -> Any:
    """Parse a ``.csv`` or ``.csv.gz`` below its header by pieces: some columns as text, all others as numbers."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    columns = [str(i) for i in range(n_columns)]  # names of the file may repeat
    types = {name: pa.string() if int(name) in text else pa.float64() for name in columns}
    return arrow.open_csv(
        pa.input_stream(str(path), compression="detect"),
        read_options=arrow.ReadOptions(
            column_names=columns, skip_rows=n_comments + 1, block_size=_BLOCK
        ),
        parse_options=arrow.ParseOptions(delimiter=separator),
        convert_options=arrow.ConvertOptions(column_types=types, strings_can_be_null=False),
    )


def as_counts(block: sp.csr_matrix) -> sp.csr_matrix:
    """Return values as float32 where that is exact."""
    narrow = block.astype(np.float32)
    is_exact = np.array_equal(narrow.data, block.data, equal_nan=True)
    return narrow if is_exact else block


def first_line(path: Path, separator: str = ",") -> list[str]:
    """Return the fields of the first line of a ``.csv`` or ``.csv.gz``, [] of an empty file."""
    fields, _ = _header(path, separator)
    return fields


def _header(path: Path, separator: str) -> tuple[list[str], int]:
    """Return the fields of the first line that is not a comment ("#"), and how many comments are above it."""
    n_comments = 0
    with reading(path), open_csv(path) as stream:
        while True:
            line = stream.readline(MAX_LINE + 1)
            if len(line) > MAX_LINE:
                raise InputError(f"{path}: a line does not end within {MAX_LINE:,} bytes")
            if not line:
                return [], n_comments
            text = line.decode("utf-8-sig")
            if not text.startswith("#"):
                fields = next(csv.reader([text], delimiter=separator), [])
                return fields, n_comments
            n_comments += 1


def place(
    counted: Sequence[str], placed: pd.DataFrame, key: str, where: str, xy: Sequence[str] = ()
) -> tuple[Ints, pd.DataFrame]:
    """Join counts and positions of cells by their id.

    Parameters
    ----------
    counted
        Ids of the rows of the counts.
    placed
        Table of positions with the column ``key``.
    where
        The two files, for messages.
    xy
        Columns of the position: a cell where one of them is missing (NaN) has none.

    Returns
    -------
    Rows of the counts whose id is in the table, ascending, and the table's rows for them in that order.

    Raises
    ------
    InputError
        Ids repeat; fewer than half of the counts' ids are in the table, so the files are of different runs.
    """
    if xy:
        values = placed[list(xy)].to_numpy(dtype=np.float64)
        placed = placed[np.isfinite(values).all(axis=1)]
    count_ids = pd.Index(counted)
    place_ids = pd.Index(placed[key])
    for ids, which in ((count_ids, "counts"), (place_ids, "positions")):
        if not ids.is_unique:
            example = ids[ids.duplicated()][0]
            raise InputError(f"{where}: cell ids of the {which} repeat (e.g. {shortened(example)})")
    place_rows = place_ids.get_indexer(count_ids)
    rows = np.flatnonzero(place_rows >= 0)
    if len(rows) < _MIN_PLACED * len(counted) or not len(rows):
        some_counts = shortened(", ".join(map(str, counted[:2])), quoted=False)
        some_places = shortened(", ".join(map(str, place_ids[:2])), quoted=False)
        raise InputError(
            f"{where}: only {len(rows):,} of {len(counted):,} cells of the counts have a position "
            f"(counts: {some_counts}; positions: {some_places}); the files do not belong together"
        )
    places = placed.iloc[place_rows[rows]].reset_index(drop=True)
    return rows.astype(np.int64), places


def unplaced(counted: int, placed: int) -> str:
    """Report how many cells of the counts have no position ("" for none)."""
    if placed == counted:
        return ""
    return f"{counted - placed:,} of {counted:,} cells have counts but no position; left out"


def plain_columns(table: pd.DataFrame, without: Sequence[str] = ()) -> pd.DataFrame:
    """Return the columns that any file format can hold: numbers, flags and text."""
    columns = {}
    for name in table.columns:
        if name in without or str(name) in columns:
            continue
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            columns[str(name)] = column.to_numpy()
        else:
            columns[str(name)] = np.array([_text(value) for value in column], dtype=object)
    return pd.DataFrame(columns)


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
        Not there, not one-dimensional, or of another kind.
    """
    import h5py

    values = file.get(name)
    if not isinstance(values, h5py.Dataset):
        raise InputError(f"{path}: dataset {file.name.rstrip('/')}/{name} is missing")
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise InputError(
            f"{path}: dataset {values.name} is {values.dtype} {values.shape}, not what belongs there"
        )
    return np.asarray(values[:])


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
    check_arrays(data, indices, indptr, shape, where)
    if len(data) != len(indices) or indptr[-1] != len(data):
        raise InputError(
            f"{where}: data, indices and indptr do not belong together (shape {shape})"
        )
    arrays = (data.astype(np.float64), indices.astype(np.int64), indptr.astype(np.int64))
    return as_counts(sp.csr_matrix(arrays, shape=shape))
