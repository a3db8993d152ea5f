"""A SpatialData, in memory or on disk: stores are checked and opened, elements come with their transformations.

The package spatialdata reads elements; it is imported when a SpatialData is first opened. Tables are read by anndata,
one by one: spatialdata would read all of them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from terrazzo.arrays import Floats
from terrazzo.errors import InputError, shortened
from terrazzo.safe_tables import check_parquet
from terrazzo.safe_zarr import MARKS, read_attributes, refuse_code, refuse_links, refuse_sizes
from terrazzo.sparse import check_anndata

__all__ = [
    "CELL_KINDS",
    "TABLES",
    "Element",
    "annotation_of",
    "check_source",
    "choose_name",
    "choose_system",
    "choose_table",
    "get_cells",
    "get_element",
    "is_identity",
    "is_store",
    "open_elements",
    "read_annotation",
    "read_table",
    "reading",
    "subfolders",
]

CELL_KINDS = ("shapes", "labels", "points")  # elements that a table can annotate
TABLES = "tables"  # folder of a store
_ATTRS = "spatialdata_attrs"  # uns of a table: what it annotates
_XY = ("x", "y")


@dataclass(frozen=True, eq=False)
class Element:
    """Shapes, labels, points or an image, as spatialdata has its ``data``; ``where`` is its name for messages.

    ``matrices`` are float64 (3, 3), by coordinate system: from the element's own x, y, 1 to those of the system.
    """

    kind: str
    name: str
    where: str
    data: Any
    matrices: Mapping[str, Floats]


def is_store(path: Path) -> bool:
    """Say whether a folder is a whole SpatialData store; neither a table of one nor an AnnData is."""
    if not path.is_dir() or (path / "obs").is_dir():
        return False
    if not any((path / mark).is_file() for mark in MARKS):
        return False
    attributes = read_attributes(path)
    if str(attributes.get("encoding-type", "")) == "anndata":
        return False
    kinds = (TABLES, "shapes", "labels")
    return _ATTRS in attributes or any((path / kind).is_dir() for kind in kinds)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones; [] where it does not exist."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())


def check_source(source: Any) -> tuple[Any, str]:
    """Check a SpatialData before it is used; return it, or the ``Path`` of its store, and the name for messages.

    Raises
    ------
    InputError
        Neither a SpatialData nor a folder; pickles, or links that lead outside; the package is not installed.
    """
    is_path = isinstance(source, str | os.PathLike)
    where = str(source) if is_path else "the SpatialData"
    if is_path:
        source = Path(source)
        if not source.is_dir():
            raise InputError(f"{source} does not exist, or is not a folder")
        refuse_links(source)
        refuse_code(source)
    elif not hasattr(source, "tables"):
        raise InputError(f"not a SpatialData, nor the path of one, but {type(source).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations among its own dependencies
            from spatialdata import SpatialData
    except ImportError as error:
        raise InputError(
            f"{where} needs the package spatialdata ({error}): pip install 'terrazzo[spatialdata]'"
        ) from error
    if not is_path and not isinstance(source, SpatialData):
        raise InputError(f"not a SpatialData, nor the path of one, but {type(source).__name__}")
    return source, where


def choose_table(source: Any, wanted: str | None, where: str) -> str:
    """Choose a table by its name; the only one where none is named."""
    is_store = isinstance(source, Path)
    names = subfolders(source / TABLES) if is_store else list(source.tables)
    if not names:
        raise InputError(f"{where} has no table, so no counts; aggregate its points or add a table")
    hint = f", or the path of one, {source / TABLES}/NAME" if is_store else ""
    return choose_name(names, wanted, "table", where, hint)


def read_table(source: Any, name: str) -> AnnData:
    """Read a table of a store, or take it from an object."""
    if not isinstance(source, Path):
        check_anndata(source.tables[name], f"table {name!r}")
        return source.tables[name]
    import anndata

    with reading(f"table {name!r} of {source}"):
        refuse_sizes(source / TABLES / name)
        table = anndata.read_zarr(source / TABLES / name)
        check_anndata(table, f"table {name!r} of {source}")
        return table


def read_annotation(source: Any, name: str) -> AnnData:
    """Read what a table annotates and its ``obs``, without its counts."""
    if not isinstance(source, Path):
        return source.tables[name]
    import zarr
    from anndata.io import read_elem

    with reading(f"table {name!r} of {source}"):
        group: Any = zarr.open_group(source / TABLES / name, mode="r", use_consolidated=False)
        table = AnnData(obs=read_elem(group["obs"]))
        if _ATTRS in group["uns"]:
            table.uns[_ATTRS] = read_elem(group["uns"][_ATTRS])
        return table


def annotation_of(table: AnnData) -> tuple[list[str], str | None, str | None]:
    """Return the elements that a table annotates, and its columns of elements and of identifiers."""
    attributes = table.uns.get(_ATTRS)
    if not isinstance(attributes, Mapping):
        return [], None, None
    regions = attributes.get("region")
    names = [] if regions is None else [str(name) for name in np.ravel(regions)]
    return names, attributes.get("region_key"), attributes.get("instance_key")


def open_elements(source: Any, region: str | None, image: str | None) -> Any:
    """Return an object; of a store, one with its images and the kind of elements of which the region is.

    Raises
    ------
    InputError
        The region or the image of that name is damaged; others that are damaged are left out.
    """
    if not isinstance(source, Path):
        return source
    from spatialdata import read_zarr

    needed = [(kind, region) for kind in CELL_KINDS if region in subfolders(source / kind)]
    if image in subfolders(source / "images"):
        needed.append(("images", image))
    kinds = {"images", *(kind for kind, _ in needed)}
    names = ", ".join(f"{kind} {name!r}" for kind, name in needed)
    with reading(f"{names} of {source}"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind, name in needed:
            if kind in ("shapes", "points"):
                check_parquet(source / kind / str(name))
        try:
            sdata = read_zarr(source, selection=tuple(sorted(kinds)), on_bad_files="warn")
        except MemoryError as error:  # of sizes that no file has
            raise ValueError(str(error)) from error
        if any(name not in getattr(sdata, kind) for kind, name in needed):
            raise ValueError("; ".join(str(warning.message) for warning in caught))
    return sdata


def get_element(sdata: Any, kind: str, name: str, where: str) -> Element:
    """Return an element with its transformations.

    Raises
    ------
    InputError
        A transformation that is not affine in x and y, or cannot be inverted.
    """
    from spatialdata.transformations import get_transformation

    where = f"{kind} {name!r} of {where}"
    data = getattr(sdata, kind)[name]
    matrices = {}
    try:
        for system, transformation in get_transformation(data, get_all=True).items():
            affine = transformation.to_affine_matrix(input_axes=_XY, output_axes=_XY)
            matrix = np.asarray(affine, dtype=np.float64)
            if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-300:
                raise ValueError(f"that to {system!r} cannot be inverted")
            matrices[str(system)] = matrix
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its transformations cannot be used ({error})") from error
    return Element(kind, name, where, data, matrices)


def get_cells(sdata: Any, name: str | None, where: str) -> Element | None:
    """Return the shapes, labels or points of a name; None where there are none."""
    for kind in CELL_KINDS:
        if name is not None and name in getattr(sdata, kind):
            return get_element(sdata, kind, name, where)
    return None


def choose_name(
    names: Sequence[str], wanted: str | None, what: str, where: str, hint: str = ""
) -> str:
    """Choose one by its name; the only one where none is named."""
    listed = ", ".join(names)
    if not names:
        raise InputError(f"{where} has no {what}")
    if wanted is None and len(names) > 1:
        raise InputError(f"{where} has {len(names)} {what}s: pass {what}= one of {listed}{hint}")
    if wanted is not None and wanted not in names:
        raise InputError(f"{where} has no {what} {wanted!r}; {what}s: {listed}")
    return names[0] if wanted is None else wanted


def choose_system(element: Element, wanted: str | None) -> str:
    """Choose a coordinate system of an element: "global", else the only one, else the element's own."""
    names = list(element.matrices)
    own = [name for name in names if is_identity(element.matrices[name])]
    listed = ", ".join(names) or "none"
    if wanted is not None and wanted not in names:
        raise InputError(
            f"{element.where} has no coordinate system {wanted!r}; there are: {listed}"
        )
    if wanted is not None:
        return wanted
    if "global" in names:
        return "global"
    if len(names) != 1 and not own:
        raise InputError(
            f"{element.where} is in the coordinate systems {listed}: pass coordinate_system= one of them"
        )
    return names[0] if len(names) == 1 else own[0]


def is_identity(matrix: Floats) -> bool:
    """Say whether a transformation changes nothing."""
    return bool(np.allclose(matrix, np.eye(3), rtol=0, atol=1e-12))


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever readers raise on damaged stores into an InputError that says where, and keep them quiet."""
    logger = logging.getLogger("ome_zarr")  # warns of every label image without a parent
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Slice checks what matters
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where} needs more memory than there is") from error
    except Exception as error:
        detail = shortened(error, 300, quoted=False) or type(error).__name__
        raise InputError(
            f"{where} cannot be read; it is damaged or of an unknown layout ({detail})"
        ) from error
    finally:
        logger.setLevel(level)
