"""Write a table back into a SpatialData store: in place, or into a copy of the store; whole or not at all."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anndata import AnnData

from terrazzo.errors import InputError, OutputError
from terrazzo.files import whole_folder, why_not
from terrazzo.marks import ATTRIBUTE, Mark
from terrazzo.safe_zarr import refuse_links
from terrazzo.sdata import TABLES, check_source, choose_table, read_annotation

__all__ = ["copy_with_table", "write_table"]

_BLOCK = 2**30  # bytes that are copied by one call
_ENCODING = ("encoding-type", "encoding-version")  # attributes that anndata sets


def write_table(store: str | Path, adata: AnnData, table: str | None = None) -> Path:
    """Put a table back into its store, in place: what ``embed`` wrote to it, for example.

    The table is written beside the old one and then takes its name; nothing else of the store is touched but its
    consolidated metadata, where it has some.

    Parameters
    ----------
    store
        Folder of a SpatialData.
    adata
        The table, as ``embed`` returned it of this store, or as it was read from there; all of it is written.
    table
        Its name; None where there is only one.

    Returns
    -------
    The folder of the table.

    Raises
    ------
    InputError
        No such store or table; other rows than the table has.
    OutputError
        It cannot be written; the old table is still there.
    """
    path, where = check_source(Path(store))
    name = choose_table(path, table, where)
    folder = path / TABLES / name
    names = read_annotation(path, name).obs_names.astype(str)
    if not names.equals(adata.obs_names.astype(str)):
        raise InputError(
            f"the AnnData has {adata.n_obs} rows that are not the {len(names)} of {folder}; pass the table as it was "
            "read from there, with the same rows in the same order"
        )
    with _reporting(folder):
        with whole_folder(folder) as draft:
            _write(draft, adata, like=folder)
        _consolidate(path)
    return folder


def copy_with_table(
    store: Path, target: Path, name: str, adata: AnnData, mark: Mark | None = None
) -> None:
    """Write a copy of a store in which one table is another, beside the target, then rename it.

    Parameters
    ----------
    store
        Folder of a SpatialData; it is only read.
    target
        The copy; an older one is replaced.
    name, adata
        The table that is another.
    mark
        Which result the copy is, for its table's attributes.

    Raises
    ------
    InputError
        Links in the store that lead outside.
    OutputError
        It cannot be written; nothing half-written stays, and what was there before is still there.
    """
    refuse_links(store)
    tables = str(store / TABLES)
    with _reporting(target), whole_folder(target) as draft:
        shutil.copytree(
            store,
            draft,
            dirs_exist_ok=True,
            copy_function=_copy_file,
            ignore=lambda folder, names: [name] if folder == tables else [],
        )
        _write(draft / TABLES / name, adata, like=store / TABLES / name, mark=mark)
        _consolidate(draft)


def _copy_file(source: str, target: str) -> str:
    """Copy a file within the kernel, where file systems can share its blocks; else byte by byte."""
    with suppress(AttributeError, OSError), open(source, "rb") as old, open(target, "wb") as new:
        while os.copy_file_range(old.fileno(), new.fileno(), _BLOCK):
            pass
        if os.fstat(old.fileno()).st_size == os.fstat(new.fileno()).st_size:
            return target
    return str(shutil.copyfile(source, target))


def _write(folder: Path, adata: AnnData, like: Path, mark: Mark | None = None) -> None:
    """Write a table as spatialdata does, by anndata, with the zarr format and the attributes of another."""
    import zarr
    from anndata.io import write_elem

    old = zarr.open_group(like, mode="r", use_consolidated=False)
    attributes = {key: value for key, value in old.attrs.asdict().items() if key not in _ENCODING}
    attributes.pop(ATTRIBUTE, None)  # of the source, where that is a result, too
    if mark is not None:
        attributes[ATTRIBUTE] = mark.text()
    group = zarr.open_group(folder, mode="w", zarr_format=old.metadata.zarr_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts to come
        write_elem(group, "/", adata)
    written = zarr.open_group(folder, mode="r+", use_consolidated=False)
    written.attrs.update(attributes)


def _consolidate(store: Path) -> None:
    """Renew the consolidated metadata of a store that has some; they would hide what is new."""
    import zarr

    metadata = zarr.open_group(store, mode="r").metadata
    if metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Parquet files are not zarr
            zarr.consolidate_metadata(store, zarr_format=metadata.zarr_format)


@contextmanager
def _reporting(target: Path) -> Iterator[None]:
    """Report plainly why something could not be written."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        raise OutputError(
            f"{target} could not be written: {why_not(error)}. Nothing of it was kept."
        ) from error
