"""Writing a table back into a SpatialData store: into a copy of it, or in place; whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anndata import AnnData

from terrazzo.errors import InputError, OutputError
from terrazzo.files import why_not
from terrazzo.sdata.ondisk import read_annotation, table_folder
from terrazzo.sdata.opening import open_container

_BLOCK = 2**30  # bytes that are copied by one call
_OWN = ("encoding-type", "encoding-version")  # attributes that writing a table sets


def write_table(store: str | Path, adata: AnnData, table: str | None = None) -> Path:
    """Put a table back into its store, in place: what ``embed`` wrote to it, for example.

    The table is written beside the old one and then takes its name; nothing else of the store is touched but its
    consolidated metadata, where there is such.

    Parameters
    ----------
    store
        Folder of a SpatialData.
    adata
        The table, as :func:`terrazzo.read` or ``embed`` had it from there; all of it is written.
    table
        Its name; None where there is only one.

    Returns
    -------
    The folder of the table.

    Raises
    ------
    InputError
        No such store or table; another number of rows than the table has.
    OutputError
        It cannot be written; the old table is still there.
    """
    path = Path(store)
    held = open_container(path)
    name = held.table_name(table)
    folder = table_folder(path) / name
    _check_rows(folder, adata)
    with _said(folder):
        _replace_table(path, name, adata)
        _consolidate(path)
    return folder


def copy_with_table(store: Path, target: Path, name: str, adata: AnnData) -> None:
    """Write a copy of a store in which one table is another, beside the target, then rename it.

    Parameters
    ----------
    store
        Folder of a SpatialData; it is only read.
    target
        The copy; replaced where it is there.
    name, adata
        The table that is another.

    Raises
    ------
    OutputError
        It cannot be written; nothing half-written stays, and what was there before is still there.
    """
    with _said(target):
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            kept = table_folder(store) / name
            shutil.copytree(
                store,
                draft,
                dirs_exist_ok=True,
                copy_function=_copy,
                ignore=lambda folder, names: _no_data(Path(folder), names, kept),
            )
            _replace_table(draft, name, adata)
            _consolidate(draft)
            draft.chmod(0o755)
            _swap(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _no_data(folder: Path, names: list[str], table: Path) -> list[str]:
    """Leave out of a copy what is written anew: the arrays of the table, not its description."""
    return [one for one in names if (folder / one).is_dir()] if folder == table else []


def _copy(source: str, target: str) -> str:
    """Copy a file within the kernel, where file systems can share its blocks; else byte by byte."""
    with suppress(AttributeError, OSError), open(source, "rb") as old, open(target, "wb") as new:
        while os.copy_file_range(old.fileno(), new.fileno(), _BLOCK):
            pass
        if os.fstat(old.fileno()).st_size == os.fstat(new.fileno()).st_size:
            return target
    return str(shutil.copyfile(source, target))


def _replace_table(store: Path, name: str, adata: AnnData) -> None:
    """Write a table beside the old one, with its attributes, then let it take the name."""
    import zarr
    from anndata.io import write_elem

    parent = table_folder(store)
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
    try:
        old = zarr.open_group(parent / name, mode="r", use_consolidated=False)
        kept = {key: value for key, value in old.attrs.asdict().items() if key not in _OWN}
        root = zarr.open_group(draft, mode="w", zarr_format=old.metadata.zarr_format)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layouts to come
            write_elem(root, name, adata)
        root[name].attrs.update(kept)
        (draft / name).chmod(0o755)
        _swap(draft / name, parent / name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, target: Path) -> None:
    """Let a folder take the place of another; if that fails, the other is back."""
    if not target.exists():
        draft.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(aside / target.name)
    try:
        draft.rename(target)
    except BaseException:
        (aside / target.name).rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _consolidate(store: Path) -> None:
    """Renew the consolidated metadata of a store that has such; they would hide what is new."""
    import zarr

    root: Any = zarr.open_group(store, mode="r+", use_consolidated=False)
    described = zarr.open_group(store, mode="r").metadata.consolidated_metadata is not None
    if described or (store / ".zmetadata").is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Parquet files are not of zarr's making
            zarr.consolidate_metadata(root.store)


def _check_rows(folder: Path, adata: AnnData) -> None:
    names = read_annotation(folder).obs_names
    if len(names) != adata.n_obs or (names.astype(str) != adata.obs_names.astype(str)).any():
        raise InputError(
            f"the AnnData has {adata.n_obs} rows that are not the {len(names)} of {folder}; pass the table as it was "
            "read from there, with the same rows in the same order"
        )


@contextmanager
def _said(target: Path) -> Iterator[None]:
    """Say in our words why something could not be written."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        raise OutputError(
            f"{target} could not be written: {why_not(error)}. Nothing of it was kept."
        ) from error
