"""Slices from files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from anndata import AnnData

from terrazzo.errors import InputError
from terrazzo.slices.slice import Slice

_SUPPORTED = ".h5ad (AnnData) and .zarr (AnnData, or a table of a SpatialData store)"


@overload
def read(path: str | os.PathLike[str], **kwargs: Any) -> Slice: ...
@overload
def read(path: Iterable[str | os.PathLike[str]], **kwargs: Any) -> list[Slice]: ...
def read(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], **kwargs: Any) -> Slice | list[Slice]:
    """Read one slice, or a list of them.

    Parameters
    ----------
    path
        ``.h5ad`` file, AnnData ``.zarr`` folder, or table folder of a SpatialData store (``x.zarr/tables/table``).
    **kwargs
        As in :meth:`Slice.from_anndata`; ``name`` is the file's name without suffix unless given.

    Raises
    ------
    InputError
        As :func:`read_anndata` and :meth:`Slice.from_anndata`, with the path in front.
    """
    if not isinstance(path, str | os.PathLike):
        if isinstance(path, AnnData) or not isinstance(path, Iterable):
            raise InputError(f"read takes a path or a list of paths, not {type(path).__name__}; see Slice.from_anndata")
        return [read(one, **kwargs) for one in path]
    adata = read_anndata(path)
    kwargs.setdefault("name", Path(path).stem)
    try:
        return Slice.from_anndata(adata, **kwargs)
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def read_anndata(path: str | os.PathLike[str]) -> AnnData:
    """Read an AnnData from ``.h5ad`` or zarr into memory.

    Raises
    ------
    InputError
        Missing, unreadable or truncated file; a kind of file that is not supported; a whole SpatialData store.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; terrazzo reads {_SUPPORTED}")
    is_zarr = path.is_dir() and any((path / mark).is_file() for mark in ("zarr.json", ".zgroup", ".zattrs"))
    if is_zarr:
        _refuse_spatialdata(path)
    elif path.is_dir() or path.suffix.lower() != ".h5ad":
        raise InputError(f"{path} is not a kind of slice that terrazzo reads; it reads {_SUPPORTED}")
    import anndata

    with warnings.catch_warnings():  # what matters is checked, and said, by Slice
        warnings.simplefilter("ignore")
        try:
            return anndata.read_zarr(path) if is_zarr else anndata.read_h5ad(path)
        except MemoryError:
            raise
        except Exception as error:  # readers of damaged files raise almost anything
            detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{path} cannot be read; it is damaged, truncated or not an AnnData file ({detail}). "
                f"terrazzo reads {_SUPPORTED}"
            ) from error


def _refuse_spatialdata(path: Path) -> None:
    for mark in ("zarr.json", ".zattrs"):
        try:
            content = json.loads((path / mark).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        attributes = content.get("attributes", content) if isinstance(content, dict) else {}
        if isinstance(attributes, dict) and "spatialdata_attrs" in attributes and not (path / "obs").is_dir():
            folder = path / "tables"
            tables = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
            shown = " or ".join(str(folder / table) for table in tables) or f"{folder / 'table'}"
            raise InputError(
                f"{path} is a whole SpatialData store; pass the path of its table: {shown} "
                "(or open it with spatialdata and use Slice.from_spatialdata)"
            )
