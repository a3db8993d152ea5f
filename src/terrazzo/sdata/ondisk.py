"""SpatialData stores on disk, zarr v2 and v3, by zarr and pyarrow alone; the room says which versions are followed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.sdata import centers
from terrazzo.sdata.container import ATTRS, Container, Element
from terrazzo.sdata.opening import TABLES, refuse_code
from terrazzo.sdata.rasters import boxes, check_chunks
from terrazzo.sdata.transforms import System, from_records

_BATCH = 2**16  # geometries at once
_SMALL = 2**26  # bytes: read without asking whether they can be there
_MOST_INFLATED = 2000  # bytes in memory for one on disk
_GEOARROW = {"point": 0, "polygon": 2, "multipolygon": 3}  # levels of lists


def open_store(path: Path) -> Container:
    """Open a store; its elements are found by the names of their folders and read when they are asked for.

    Raises
    ------
    InputError
        No such folder; a damaged store, or one with pickled arrays.
    """
    if not path.is_dir():
        raise InputError(f"{path} does not exist, or is no folder")
    refuse_code(path)
    regions: dict[str, Callable[[], Element]] = {}
    for kind, opener in (("shapes", _shapes), ("labels", _labels), ("points", _points)):
        for name in _inside(path / kind):
            regions[name] = partial(opener, path / kind / name, f"{kind} {name!r} of {path}")
    images = {
        name: partial(_image, path / "images" / name, f"image {name!r} of {path}")
        for name in _inside(path / "images")
    }
    folder = table_folder(path)
    tables = {name: partial(read_table, folder / name) for name in _inside(folder)}
    return Container(str(path), path.stem, tables, regions, images, path)


def table_folder(path: Path) -> Path:
    """Return the folder of a store that holds its tables."""
    return next((path / name for name in TABLES if (path / name).is_dir()), path / TABLES[0])


def read_table(path: Path) -> AnnData:
    """Read a table into memory.

    Raises
    ------
    InputError
        It is damaged.
    """
    import anndata

    with _reading(f"table {path.name!r} of {path.parents[1]}"):
        return anndata.read_zarr(path)


def read_annotation(path: Path) -> AnnData:
    """Read of a table what it annotates and its ``obs``, without its counts.

    Raises
    ------
    InputError
        It is damaged.
    """
    from anndata.io import read_elem

    with _reading(f"table {path.name!r} of {path.parents[1]}"):
        group = _group(path)
        told = {ATTRS: read_elem(group["uns"][ATTRS])} if ATTRS in group["uns"] else {}
        return AnnData(obs=read_elem(group["obs"]), uns=told)


def _inside(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")
    )


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what readers of damaged stores raise, which is almost anything, into an error that says where."""
    import warnings

    try:
        with warnings.catch_warnings():  # what matters is checked, and said, by Slice
            warnings.simplefilter("ignore")
            yield
    except (MemoryError, InputError):
        raise
    except Exception as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{where} cannot be read; it is damaged or of an unknown layout ({detail})"
        ) from error


def _group(path: Path) -> Any:
    import zarr

    return zarr.open_group(path, mode="r", use_consolidated=False)


def _whole(group: Any, name: str, path: Path, where: str) -> NDArray[Any]:
    """Read an array into memory, after its size was compared with what lies on disk."""
    array = group[name]
    size, held = (
        int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize,
        sum(file.stat().st_size for file in (path / name).rglob("*") if file.is_file()),
    )
    if size > _SMALL and size > _MOST_INFLATED * held:
        raise InputError(
            f"{where}: {name} claims {size:,} bytes, more than its {held:,} on disk can hold"
        )
    check_chunks(array, where)
    return np.asarray(array[...])


def _shapes(path: Path, where: str) -> Element:
    with _reading(where):
        attributes = _group(path).attrs.asdict()
        systems = from_records(attributes["coordinateTransformations"], where)
        version = str(dict(attributes.get("spatialdata_attrs") or {}).get("version", "0.1"))
    read = (
        partial(_ragged, path, where)
        if version == "0.1"
        else partial(_geoparquet, path / "shapes.parquet", where)
    )
    return Element("shapes", path.name, where, systems, read)


def _ragged(path: Path, where: str) -> tuple[pd.Index, NDArray[np.float64]]:
    """Shapes 0.1: ``coords``, ``Index`` and, of polygons, ``offset0``, ``offset1``, ... from the innermost."""
    with _reading(where):
        group = _group(path)
        names = sorted(
            (n for n in group.array_keys() if re.fullmatch(r"offset\d+", n)),
            key=lambda n: int(n[6:]),
        )
        offsets = [_whole(group, name, path, where).ravel().astype(np.int64) for name in names]
        places = centers.of_ragged(
            _whole(group, "coords", path, where)[:, :2].astype(np.float64), offsets
        )
        index = pd.Index(_whole(group, "Index", path, where))
    return _same(index, places, where)


def _geoparquet(path: Path, where: str) -> tuple[pd.Index, NDArray[np.float64]]:
    """Shapes 0.2 and 0.3: one GeoParquet file, its geometry in WKB or GeoArrow."""
    import pyarrow.parquet as pq

    with _reading(where), pq.ParquetFile(path) as file:
        about = json.loads((file.schema_arrow.metadata or {})[b"geo"])
        column = str(about["primary_column"])
        encoding = str(about["columns"][column]["encoding"]).lower()
        if encoding != "wkb" and encoding not in _GEOARROW:
            raise InputError(
                f"{where}: geometry encoded as {encoding!r}; WKB and {', '.join(_GEOARROW)} are read"
            )
        keys, at = _index_columns(file.schema_arrow), 0
        names: list[Any] = []
        places = [np.zeros((0, 2))]
        for batch in file.iter_batches(_BATCH, columns=[column, *keys.columns]):
            geometry = batch.column(batch.schema.get_field_index(column))
            geometry = getattr(
                geometry, "storage", geometry
            )  # where geoarrow's types are registered
            places.append(
                centers.of_wkb(geometry.to_pylist())
                if encoding == "wkb"
                else _geoarrow(geometry, encoding)
            )
            names.append(keys.of(batch, at))
            at += len(batch)
        index = pd.Index([]) if not names else names[0].append(names[1:])
    return _same(index, np.concatenate(places), where)


def _geoarrow(geometry: Any, encoding: str) -> NDArray[np.float64]:
    import pyarrow as pa

    if geometry.null_count:
        raise ValueError("geometries that are missing")
    offsets: list[NDArray[np.int64]] = []
    for _ in range(_GEOARROW[encoding]):
        sizes = geometry.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        offsets.insert(0, np.concatenate([[0], np.cumsum(sizes)]))
        geometry = geometry.flatten()
    if pa.types.is_struct(geometry.type):
        xy = np.stack(
            [geometry.field(axis).to_numpy(zero_copy_only=False) for axis in ("x", "y")], axis=1
        )
    else:
        xy = (
            geometry.flatten()
            .to_numpy(zero_copy_only=False)
            .reshape(-1, geometry.type.list_size)[:, :2]
        )
    return centers.of_ragged(xy, offsets)


def _points(path: Path, where: str) -> Element:
    with _reading(where):
        systems = from_records(_group(path).attrs.asdict()["coordinateTransformations"], where)
    return Element(
        "points", path.name, where, systems, partial(_point_files, path / "points.parquet", where)
    )


def _point_files(path: Path, where: str) -> tuple[pd.Index, NDArray[np.float64]]:
    """Points 0.1 and 0.2: a folder of Parquet files as dask writes it, ``part.0.parquet``, ..."""
    import pyarrow.parquet as pq

    names: list[Any] = []
    places = [np.zeros((0, 2))]
    with _reading(where):
        files = [path] if path.is_file() else sorted(path.glob("*.parquet"), key=_by_number)
        for one in files:
            with pq.ParquetFile(one) as file:
                keys = _index_columns(file.schema_arrow)
                table = file.read(columns=["x", "y", *keys.columns])
            names.append(keys.of(table, 0))
            places.append(
                np.stack(
                    [table.column(axis).to_numpy().astype(np.float64) for axis in ("x", "y")],
                    axis=1,
                )
            )
        index = pd.Index([]) if not names else names[0].append(names[1:])
    return _same(index, np.concatenate(places), where)


def _by_number(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


class _index_columns:
    """Where a Parquet file keeps the index of its data frame: in a column, or as a range in its metadata."""

    def __init__(self, schema: Any) -> None:
        stated = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        self.columns = [one for one in stated if isinstance(one, str)]
        ranges = [one for one in stated if isinstance(one, dict)]
        self.start, self.step = (
            (int(ranges[0]["start"]), int(ranges[0]["step"])) if ranges else (0, 1)
        )
        if len(self.columns) > 1:
            raise ValueError("an index of several columns")

    def of(self, batch: Any, at: int) -> pd.Index:
        """Return the index of some rows, the first of which is row ``at`` of the file."""
        if self.columns:
            return pd.Index(batch.column(batch.schema.get_field_index(self.columns[0])).to_pandas())
        return pd.Index(self.start + self.step * np.arange(at, at + batch.num_rows))


def _same(
    index: pd.Index, places: NDArray[np.float64], where: str
) -> tuple[pd.Index, NDArray[np.float64]]:
    if len(index) != len(places):
        raise InputError(f"{where} has {len(index)} names for {len(places)} places; it is damaged")
    return index, places


def _raster(path: Path, where: str) -> tuple[list[Any], dict[str, System], tuple[str, ...], Any]:
    """Return arrays of a pyramid, finest first, its coordinate systems, axes, and all that is said of it."""
    group = _group(path)
    attributes = group.attrs.asdict()
    about = attributes.get("ome", attributes)  # OME-NGFF 0.5; 0.4
    (pyramid,) = about["multiscales"]
    axes = tuple(str(axis["name"] if isinstance(axis, dict) else axis) for axis in pyramid["axes"])
    levels = [group[str(one["path"])] for one in pyramid["datasets"]]
    for level in levels:
        if not hasattr(level, "chunks") or level.ndim != len(axes):
            raise InputError(
                f"{where}: a level of its pyramid is no picture with the axes {', '.join(axes)}"
            )
        check_chunks(level, where)
    return (
        levels,
        from_records(pyramid["coordinateTransformations"], where),
        axes,
        (about, attributes),
    )


def _labels(path: Path, where: str) -> Element:
    with _reading(where):
        levels, systems, axes, _ = _raster(path, where)

    def found() -> tuple[pd.Index, NDArray[np.float64]]:
        with _reading(where):
            labels, places = centers.of_labels(levels[0], boxes(levels[0], where))
        return pd.Index(labels), places

    if axes not in (("y", "x"), ("z", "y", "x")):
        raise InputError(f"{where} has the axes {', '.join(axes)}; they must be y and x")
    return Element("labels", path.name, where, systems, found)


def _image(path: Path, where: str) -> Element:
    with _reading(where):
        levels, systems, axes, (about, attributes) = _raster(path, where)
        held: Sequence[Any] = dict(
            about.get("omero") or attributes.get("channels_metadata") or {}
        ).get("channels", ())
        named = dict(attributes.get("spatialdata_attrs") or {}).get("channel_names")
        channels = tuple(map(str, named or [one.get("label", "") for one in held]))
    if axes != ("c", "y", "x"):
        raise InputError(f"{where} must have the axes c, y and x; it has {', '.join(axes)}")
    return Element("images", path.name, where, systems, None, tuple(levels), channels)
