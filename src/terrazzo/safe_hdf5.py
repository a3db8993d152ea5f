"""Checks of HDF5 files before their content is read: nothing from outside the file, and no claims of absurd sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from terrazzo.errors import InputError, shortened
from terrazzo.safe_files import MAX_INFLATION, SMALL, check_claim, check_memory

__all__ = ["check_content", "check_file", "open_file"]

_MAX_OBJECTS = 200_000  # reached by any path: a link back to a group would never end
_MAX_DEPTH = 64
_SMALL_TOTAL = 16 * SMALL


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading, checked as by :func:`check_file`."""
    with h5py.File(path, "r") as file:
        check_content(file, path)
        yield file


def check_file(path: Path) -> None:
    """Check a file of which all datasets will be read into memory.

    Raises
    ------
    InputError
        External or virtual storage, external links; more objects, deeper groups or larger arrays than it can have;
        more than this machine's memory.
    OSError
        It is not an HDF5 file, or a damaged one.
    """
    with h5py.File(path, "r") as file:
        total = check_content(file, path)
    check_memory(total, str(path))


def check_content(file: h5py.File, path: Path) -> int:
    """Check an open file; errors as :func:`check_file`. Return the bytes of all its datasets in memory."""
    walk = _Walk(path)
    walk.group(file, 0)
    claimed = walk.claimed
    if claimed > _SMALL_TOTAL and claimed > MAX_INFLATION * walk.stored:
        raise InputError(
            f"{path}: its datasets claim {claimed:,} bytes, more than the {walk.stored:,} that are stored can hold"
        )
    return claimed


@dataclass
class _Walk:
    """Walk over all objects of a file, by every path that leads to them."""

    path: Path
    n_objects: int = 0
    claimed: int = 0
    stored: int = 0

    def group(self, group: Any, depth: int) -> None:
        """Check all that is in a group."""
        if depth > _MAX_DEPTH:
            raise InputError(f"{self.path}: groups are nested more than {_MAX_DEPTH} deep")
        for name in group:
            self.n_objects += 1
            if self.n_objects > _MAX_OBJECTS:
                raise InputError(
                    f"{self.path} has more than {_MAX_OBJECTS:,} objects, or a group that contains itself"
                )
            item = self._item(group, name)
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._dataset(item)

    def _item(self, group: Any, name: str) -> Any:
        """Return an object that is in the file itself; None where it cannot be opened, which its reader reports."""
        where = f"{self.path}: {shortened(f'{group.name}/{name}', 200, quoted=False)}"
        try:
            link = group.get(name, getlink=True)
        except TypeError as error:
            raise InputError(f"{where} is a link of an unknown kind; remove it") from error
        if isinstance(link, h5py.ExternalLink):
            target = shortened(link.filename, 200)
            raise InputError(
                f"{where} is a link to another file, {target}; only what is in the file itself is read. "
                "Replace it by what it links to"
            )
        try:
            return group[name]
        except (KeyError, OSError, RuntimeError, ValueError):
            return None

    def _dataset(self, dataset: h5py.Dataset) -> None:
        """Check where the values of a dataset are, and how many they are."""
        where = f"{self.path}: {shortened(dataset.name, 200, quoted=False)}"
        if dataset.external:
            name = shortened(dataset.external[0][0], 200)
            raise InputError(
                f"{where} keeps its values in another file, {name}; only what is in the file itself is read. "
                "Write it again with its values"
            )
        if dataset.is_virtual:
            raise InputError(
                f"{where} takes its values from other files or datasets (a virtual dataset); only what is in the "
                "file itself is read. Write it again with its values"
            )
        stored = dataset.id.get_storage_size()
        claimed = _size_of(dataset)
        check_claim(claimed, stored, where)
        self.claimed += claimed
        self.stored += stored


def _size_of(dataset: h5py.Dataset) -> int:
    """Return how many bytes a dataset takes in memory; 0 for a type that NumPy does not have."""
    try:
        item = dataset.dtype.itemsize
    except (TypeError, ValueError):
        return 0
    return int(dataset.size or 0) * item
