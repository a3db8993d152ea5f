"""Compression filters of HDF5 files: register those that a file needs, or say which package has them."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from terrazzo.errors import InputError

__all__ = ["require_filters"]

PACKAGE = "hdf5plugin"  # has the filters that h5py lacks
_MAX_OBJECTS = 20_000  # that are looked at; an AnnData has some hundred
_NAMES = {  # numbers that the HDF Group gave to filters
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
}


def require_filters(path: Path) -> None:
    """Register the filters that a file is compressed with, from the package ``hdf5plugin`` where h5py lacks them.

    A file that cannot be opened is left to its reader.

    Raises
    ------
    InputError
        A filter is missing; the message names it and the package.
    """
    missing = _missing_filters(path)
    if not missing:
        return
    is_installed = False
    with suppress(ImportError):
        importlib.import_module(PACKAGE)
        is_installed = True
    missing = _missing_filters(path)
    if not missing:
        return
    names = []
    for number in sorted(missing):
        names.append(_NAMES.get(number, f"the HDF5 filter {number}"))
    listed = " and ".join(names)
    if is_installed or not missing <= _NAMES.keys():
        fix = "no package that terrazzo knows reads it here; write the file again with compression='gzip'"
    else:
        fix = f"pip install {PACKAGE}"
    raise InputError(
        f"{path} is not damaged: it is compressed with {listed}, which h5py alone cannot read; {fix}"
    )


def _missing_filters(path: Path) -> set[int]:
    """Return the numbers of the filters of a file's datasets that are not available."""
    import h5py

    missing: set[int] = set()
    n_objects = 0

    def visit(name: str, item: Any) -> bool | None:
        nonlocal n_objects
        n_objects += 1
        if isinstance(item, h5py.Dataset):
            settings = item.id.get_create_plist()
            for index in range(settings.get_nfilters()):
                number = int(settings.get_filter(index)[0])
                if not h5py.h5z.filter_avail(number):
                    missing.add(number)
        return True if n_objects >= _MAX_OBJECTS else None

    with suppress(Exception), h5py.File(path, "r") as file:
        file.visititems(visit)
    return missing
