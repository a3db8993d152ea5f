"""Read slices from files, stores and vendors' folders: recognize what a path is, and open it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from anndata import AnnData

from terrazzo.errors import ConfigError, InputError, shortened
from terrazzo.files import exists
from terrazzo.safe_files import check_inside
from terrazzo.safe_hdf5 import check_file
from terrazzo.safe_zarr import MARKS, check_folder
from terrazzo.sdata import TABLES, is_store
from terrazzo.slices.hdf5 import require_filters
from terrazzo.slices.histology import beside
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.platforms import PLATFORMS, Platform, name_of
from terrazzo.slices.platforms.parts import reading
from terrazzo.slices.slice import Slice
from terrazzo.slices.spatialdata import CHOICES, content_of, open_spatialdata
from terrazzo.sparse import check_anndata

__all__ = [
    "SUPPORTED",
    "content_files",
    "open_slice",
    "read",
    "read_anndata",
    "recognize",
    "split_choices",
    "store_of",
]

SUPPORTED = (
    ".h5ad and .zarr (AnnData, SpatialData, or a table of one), and the output folders of "
    f"{', '.join(platform.name for platform in PLATFORMS)}"
)
_HINTS = (
    ((".gz", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst"), "unpack it first"),
    ((".h5", ".mtx", ".csv", ".tsv", ".txt"), "give the folder that the vendor's software wrote"),
    ((".rds", ".rda", ".rdata", ".h5seurat", ".loom", ".h5mu"), "convert it to .h5ad first"),
)
_CHOICES = tuple(field.name for field in dataclasses.fields(Choices))
_OF_ALL = ("slice_key",)  # choices that belong to every kind of slice


def split_choices(options: dict[str, Any]) -> tuple[Choices, dict[str, Any]]:
    """Separate what is chosen when a slice is read from the arguments of :meth:`terrazzo.Slice.from_anndata`.

    ``image`` is a choice where it is the name of an image, an argument where it is one.
    """
    choices = {}
    arguments = {}
    for name, value in options.items():
        is_image = hasattr(value, "pixels")
        if name not in _CHOICES or is_image:
            arguments[name] = value
        elif value is not None:
            choices[name] = str(value)
    return Choices(**choices), arguments


@overload
def read(path: str | os.PathLike[str], *, slice_key: str, **options: Any) -> list[Slice]: ...
@overload
def read(path: str | os.PathLike[str], **options: Any) -> Slice: ...
@overload
def read(path: Iterable[str | os.PathLike[str]], **options: Any) -> list[Slice]: ...
def read(
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **options: Any
) -> Slice | list[Slice]:
    """Read one slice, or a list of them.

    With ``slice_key=``, the column of ``obs`` that tells sections apart, a file is a list of slices: its sections.
    ``slice_key="none"`` takes all cells as one slice, whatever tells them apart.

    Parameters
    ----------
    path
        ``.h5ad`` file, AnnData ``.zarr`` folder, SpatialData ``.zarr`` store or object, folder of one table of a store
        (``x.zarr/tables/table``), or output of Space Ranger (Visium, Visium HD), Xenium, MERSCOPE, CosMx, Stereo-seq
        (also one ``.gef``), Slide-seq.
    **options
        Of :class:`terrazzo.slices.Choices` (``bins="16"``, ``image="morphology_focus"``, ``table="cells"``), and as in
        :meth:`Slice.from_anndata`; ``name`` is the file's or folder's unless given.

    Raises
    ------
    InputError
        As :func:`open_slice` and :meth:`Slice.from_anndata`, with the path in front.
    """
    choices, arguments = split_choices(options)
    if hasattr(path, "tables"):  # SpatialData, without importing it
        return _slices(open_spatialdata(path, choices), arguments)
    if not isinstance(path, str | os.PathLike):
        if isinstance(path, AnnData) or not isinstance(path, Iterable):
            raise InputError(
                f"read takes a path or a list of paths, not {type(path).__name__}; see Slice.from_anndata"
            )
        return _flat(read(one, **options) for one in path)
    opened = open_slice(path, choices)
    try:
        return _slices(opened, arguments)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def _slices(opened: Opened, arguments: dict[str, Any]) -> Slice | list[Slice]:
    """Return the slice, or by its ``slice_key`` the list of its sections."""
    if not opened.is_split:
        return Slice.from_opened(opened, **arguments)
    return opened.each(lambda one: Slice.from_opened(one, **arguments))


def _flat(slices: Iterable[Slice | list[Slice]]) -> list[Slice]:
    """Return slices and lists of them as one list."""
    flat: list[Slice] = []
    for one in slices:
        flat += [one] if isinstance(one, Slice) else one
    return flat


def read_anndata(path: str | os.PathLike[str], **choices: str | None) -> AnnData:
    """Read a slice as an AnnData in memory.

    Raises
    ------
    InputError, ConfigError
        As :func:`open_slice`.
    """
    return open_slice(path, Choices(**choices)).adata


def open_slice(path: str | os.PathLike[str], choices: Choices | None = None) -> Opened:
    """Recognize what a path is, and read it into memory.

    Raises
    ------
    InputError
        Missing, unreadable, truncated or incomplete; a kind that is not supported; several tables or regions of a
        SpatialData and none chosen.
    ConfigError
        A choice that does not belong to this kind, or that the data do not have.
    """
    path = Path(path)
    choices = choices or Choices()
    platform = recognize(path)
    store = store_of(path) if platform is None else None
    _check_choices(path, platform, store, choices)
    if platform is not None:
        files = platform.locate(path, choices)
        if path.is_dir():
            for file in files.values():
                check_inside(file, _root_of(path))
        with reading(path):  # what its files hold, one by one, is checked by the reader
            opened = platform.read(files, name_of(path), choices)
        return dataclasses.replace(opened, slice_key=choices.slice_key)
    if store is None:
        found = beside(path)
        return Opened(
            _read_anndata(path),
            "AnnData",
            path.stem,
            found.image,
            (found.note,) if found.note else (),
            slice_key=choices.slice_key,
        )
    if store != path:
        choices = dataclasses.replace(choices, table=path.name)
    return open_spatialdata(store, choices)


def _root_of(folder: Path) -> Path:
    """Return the folder that links may lead into: of one of Space Ranger's bins all of its output."""
    whole = folder.resolve()
    return whole.parents[1] if whole.parent.name == "binned_outputs" else whole


def recognize(path: Path) -> Platform | None:
    """Return the vendor's layout that a path is, None for AnnData and SpatialData.

    Raises
    ------
    InputError
        It does not exist, or is nothing that terrazzo reads.
    """
    shown = shortened(str(path), 300, quoted=False)
    if not exists(path):
        raise InputError(f"{shown} does not exist; terrazzo reads {SUPPORTED}")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{shown} has a name that is not text in UTF-8, which no result could hold; rename it"
        ) from error
    is_zarr = path.is_dir() and any((path / mark).is_file() for mark in MARKS)
    if is_zarr or (path.is_file() and path.suffix.lower() == ".h5ad"):
        return None
    for platform in PLATFORMS:
        if platform.matches(path):
            return platform
    hint = _hint(path)
    raise InputError(
        f"{path} is not a kind of slice that terrazzo reads{hint}; it reads {SUPPORTED}"
    )


def _hint(path: Path) -> str:
    """Say what to do with a file that is nearly a slice; "" where nothing is known."""
    name = path.name.lower()
    if path.is_dir():
        inner = [one.name for one in sorted(path.iterdir()) if one.suffix.lower() == ".h5ad"]
        return f" (it holds {len(inner)} .h5ad files: give one of these)" if inner else ""
    for endings, hint in _HINTS:
        if name.endswith(endings):
            return f" ({hint})"
    return ""


def content_files(path: Path, choices: Choices | None = None) -> list[Path]:
    """Return the files and folders that a slice's content is in: what it would be read from.

    Raises
    ------
    InputError, ConfigError
        As :func:`open_slice`; no counts are read.
    """
    choices = choices or Choices()
    platform = recognize(path)
    if platform is not None:
        return sorted(platform.locate(path, choices).values())
    store = store_of(path)
    if store is None:
        return [path]
    if store != path:
        choices = dataclasses.replace(choices, table=path.name)
    return content_of(store, choices)


def store_of(path: Path) -> Path | None:
    """Return the SpatialData store that a path is, or is a table of; None for all else."""
    if is_store(path):
        return path
    if path.parent.name == TABLES and path.is_dir() and is_store(path.parents[1]):
        return path.parents[1]
    return None


def _check_choices(
    path: Path, platform: Platform | None, store: Path | None, choices: Choices
) -> None:
    """Refuse choices that do not belong to the kind of slice that a path is."""
    if platform is not None:
        kind = platform.name
        possible = platform.takes
    elif store is not None:
        kind = "a SpatialData"
        possible = CHOICES
    else:
        kind = "an AnnData"
        possible = ()
    for name in _CHOICES:
        if getattr(choices, name) is not None and name not in (*possible, *_OF_ALL):
            raise ConfigError(f"{name}= does not belong to {path}, which is {kind}")
    if store not in (None, path) and choices.table not in (None, path.name):
        raise ConfigError(f"{path} is a table already; table={choices.table!r} is another")


def _read_anndata(path: Path) -> AnnData:
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Slice checks what matters
        try:
            if path.is_dir():
                check_folder(path)
                adata = anndata.read_zarr(path)
            else:
                require_filters(path)
                check_file(path)
                adata = anndata.read_h5ad(path)
            check_anndata(adata, str(path))
            return adata
        except InputError:
            raise
        except MemoryError as error:
            raise InputError(f"{path} needs more memory than there is") from error
        except Exception as error:  # readers of damaged files raise almost anything
            detail = shortened(error, 300, quoted=False) or type(error).__name__
            raise InputError(
                f"{path} cannot be read; it is damaged, truncated or not an AnnData file ({detail}). "
                f"terrazzo reads {SUPPORTED}"
            ) from error
