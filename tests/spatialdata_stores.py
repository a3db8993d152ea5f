"""Small SpatialData stores, written as spatialdata 0.7.3 writes them (containers 0.1 and 0.2), without the package."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import write_elem

IDENTITY = {"type": "identity"}
VERSIONS = {
    2: {"container": "0.1", "raster": "0.2", "shapes": "0.2", "points": "0.1", "tables": "0.1"},
    3: {"container": "0.2", "raster": "0.3", "shapes": "0.3", "points": "0.2", "tables": "0.2"},
}


def system(name: str, axes: str, unit: str = "unit") -> dict[str, Any]:
    """A coordinate system as it stands in a record."""
    listed = [
        {"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", "unit": unit}
        for a in axes
    ]
    return {"name": name, "axes": listed}


def records(transformations: Mapping[str, Any], axes: str) -> list[dict[str, Any]]:
    """``coordinateTransformations``: name of a system -> transformation, or (transformation, unit)."""
    out = []
    for name, one in transformations.items():
        how, unit = one if isinstance(one, tuple) else (one, "unit")
        out.append({"output": system(name, axes, unit), "input": system(axes, axes), **how})
    return out


def point(x: float, y: float, order: str = "<") -> bytes:
    """A point as WKB."""
    return struct.pack(f"{order}BI2d", order == "<", 1, x, y)


def polygon(*rings: Sequence[Sequence[float]], order: str = "<") -> bytes:
    """A polygon with its holes as WKB."""
    out = struct.pack(f"{order}BII", order == "<", 3, len(rings))
    for ring in rings:
        out += struct.pack(f"{order}I", len(ring)) + np.asarray(ring, f"{order}f8").tobytes()
    return out


def multipolygon(*polygons: bytes) -> bytes:
    """Several polygons as one, as WKB."""
    return struct.pack("<BII", 1, 6, len(polygons)) + b"".join(polygons)


def square(x: float, y: float, half: float = 1.0) -> list[list[float]]:
    """A closed ring around a point."""
    return [
        [x - half, y - half],
        [x + half, y - half],
        [x + half, y + half],
        [x - half, y + half],
        [x - half, y - half],
    ]


def table(
    region: str | Sequence[str] | None,
    instances: Sequence[Any],
    *,
    obsm: Any = None,
    n_genes: int = 30,
    seed: int = 0,
) -> AnnData:
    """A table of counts; ``region``: one name, or one a row."""
    rng, n = np.random.default_rng(seed), len(instances)
    genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(n_genes)])
    adata = AnnData(sp.csr_matrix(rng.poisson(2.0, (n, n_genes)).astype(np.float32)), var=genes)
    adata.obs_names = [f"row{i}" for i in range(n)]
    if region is not None:
        named = [region] * n if isinstance(region, str) else list(region)
        adata.obs["region"], adata.obs["instance"] = pd.Categorical(named), list(instances)
        about = region if isinstance(region, str) else sorted(set(named))
        adata.uns["spatialdata_attrs"] = {
            "region": about,
            "region_key": "region",
            "instance_key": "instance",
        }
    if obsm is not None:
        adata.obsm["spatial"] = np.asarray(obsm, dtype=float)
    return adata


class Writer:
    """A store, element by element."""

    def __init__(self, path: Path, zarr_format: Any = 3) -> None:
        self.path, self.format, self.versions = path, zarr_format, VERSIONS[zarr_format]
        self.root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        about = {"version": self.versions["container"], "spatialdata_software_version": "0.7.3"}
        self.root.attrs["spatialdata_attrs"] = about

    def _group(self, kind: str, name: str, attributes: Mapping[str, Any]) -> Any:
        group = self.root.require_group(kind).create_group(name)
        group.attrs.update(dict(attributes))
        return group

    def _vector(
        self, kind: str, name: str, how: Mapping[str, Any], version: str, **about: Any
    ) -> Any:
        return self._group(
            kind,
            name,
            {
                "encoding-type": f"ngff:{kind}",
                "axes": ["x", "y"],
                "coordinateTransformations": records(how, "xy"),
                "spatialdata_attrs": {"version": version, **about},
            },
        )

    def shapes(
        self, name: str, index: Sequence[Any], geometry: Sequence[bytes], **how: Any
    ) -> Writer:
        """GeoParquet in WKB."""
        self._vector("shapes", name, how, self.versions["shapes"])
        frame = pd.DataFrame({"geometry": list(geometry)}, index=pd.Index(index))
        self.parquet(
            self.path / "shapes" / name / "shapes.parquet", pa.Table.from_pandas(frame), "WKB"
        )
        return self

    @staticmethod
    def parquet(path: Path, held: pa.Table, encoding: str) -> None:
        """Write a GeoParquet file."""
        geo = {
            "primary_column": "geometry",
            "columns": {"geometry": {"encoding": encoding}},
            "version": "1.1.0",
        }
        pq.write_table(
            held.replace_schema_metadata(
                {**held.schema.metadata, b"geo": json.dumps(geo).encode()}
            ),
            path,
        )

    def ragged(
        self, name: str, kind: str, xy: Any, offsets: Sequence[Any], index: Any, **how: Any
    ) -> Writer:
        """Shapes 0.1: arrays."""
        code = {"POINT": 0, "POLYGON": 3, "MULTIPOLYGON": 6}[kind]
        group = self._vector("shapes", name, how, "0.1", geos={"name": kind, "type": code})
        for key, values in {
            "coords": xy,
            "Index": index,
            **{f"offset{i}": o for i, o in enumerate(offsets)},
        }.items():
            group.create_array(key, data=np.asarray(values))
        return self

    def points(self, name: str, xy: Any, parts: int = 1, **how: Any) -> Writer:
        """A folder of Parquet files."""
        self._vector("points", name, how, self.versions["points"])
        folder = self.path / "points" / name / "points.parquet"
        folder.mkdir()
        index = pd.Index(np.arange(len(xy)), name="__null_dask_index__")
        frame = pd.DataFrame(np.asarray(xy, dtype=float), columns=["x", "y"], index=index)
        for number, piece in enumerate(np.array_split(np.arange(len(xy)), parts)):
            pq.write_table(
                pa.Table.from_pandas(frame.iloc[piece]), folder / f"part.{number}.parquet"
            )
        return self

    def raster(
        self, kind: str, name: str, levels: Sequence[Any], axes: str, chunks: Any, **how: Any
    ) -> Writer:
        """An image or labels, by level."""
        listed = [{"name": a, "type": "channel" if a == "c" else "space"} for a in axes]
        pyramid: dict[str, Any] = {
            "datasets": [{"path": f"s{i}"} for i in range(len(levels))],
            "name": name,
            "axes": listed,
            "coordinateTransformations": records(how, axes),
        }
        channels = [{"label": label} for label in "rgb"] if axes[0] == "c" else []
        about: dict[str, Any] = {"omero": {"channels": channels}} if channels else {}
        if self.format == 3:
            attributes = {
                "ome": {**about, "version": "0.5-dev-spatialdata", "multiscales": [pyramid]}
            }
        else:
            attributes = {**about, "multiscales": [{**pyramid, "version": "0.4-dev-spatialdata"}]}
        attributes["spatialdata_attrs"] = {"version": self.versions["raster"]}
        group = self._group(kind, name, attributes)
        for number, level in enumerate(levels):
            group.create_array(f"s{number}", data=np.asarray(level), chunks=chunks)
        return self

    def image(self, name: str, *levels: Any, chunks: Any = (3, 16, 16), **how: Any) -> Writer:
        """Channels first."""
        return self.raster("images", name, levels, "cyx", chunks, **how)

    def labels(self, name: str, *levels: Any, chunks: Any = (16, 16), **how: Any) -> Writer:
        """Whole numbers."""
        return self.raster("labels", name, levels, "yx", chunks, **how)

    def table(self, name: str, adata: AnnData) -> Writer:
        """A table of counts."""
        tables = self.root.require_group("tables")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_elem(tables, name, adata)
        about = dict(adata.uns.get("spatialdata_attrs", {}))
        stated = {key: about.get(key) for key in ("region", "region_key", "instance_key")}
        stated |= {
            "spatialdata-encoding-type": "ngff:regions_table",
            "version": self.versions["tables"],
        }
        tables[name].attrs.update(stated)
        return self

    def done(self) -> Path:
        """Consolidate the metadata, as spatialdata does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.path)
        return self.path
