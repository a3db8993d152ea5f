"""Small SpatialData for the tests, made and written by the package itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import scipy.sparse as sp
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, Labels3DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, Scale, set_transformation

__all__ = ["circles", "image", "labels", "make", "points", "polygons", "scale", "set_unit", "table"]


def scale(factor: float, factor_y: float | None = None) -> Scale:
    """A scale of x and y."""
    return Scale([factor, factor if factor_y is None else factor_y], axes=("x", "y"))


def _placed(element: Any, systems: dict[str, Any]) -> Any:
    set_transformation(element, systems or {"global": Identity()}, set_all=True)
    return element


def circles(xy: Any, index: Sequence[Any] | None = None, **systems: Any) -> Any:
    """Circles around positions; ``systems``: coordinate system -> transformation, else "global" -> identity."""
    geometry = shapely.points(np.asarray(xy, dtype=float))
    return polygons(geometry, index, radius=np.ones(len(geometry)), **systems)


def polygons(
    geometry: Sequence[Any], index: Sequence[Any] | None = None, radius: Any = None, **systems: Any
) -> Any:
    """Shapes of any geometry."""
    frame = geopandas.GeoDataFrame(geometry=list(geometry), index=index)
    if radius is not None:
        frame["radius"] = radius
    return _placed(ShapesModel.parse(frame), systems)


def points(xy: Any, n_parts: int = 1, **systems: Any) -> Any:
    """Points, in several files."""
    element = PointsModel.parse(np.asarray(xy, dtype=float))
    return _placed(element.repartition(npartitions=n_parts), systems)


def labels(array: Any, **options: Any) -> Any:
    """Labels of two or three axes; ``scale_factors`` and ``chunks`` are the package's, the rest coordinate systems."""
    is_flat = np.ndim(array) == 2
    model, dims = (Labels2DModel, ("y", "x")) if is_flat else (Labels3DModel, ("z", "y", "x"))
    return _raster(model, array, dims, options)


def image(array: Any, channels: Sequence[str] = "rgb", **options: Any) -> Any:
    """An image with its channels first; options as of :func:`labels`."""
    return _raster(Image2DModel, array, ("c", "y", "x"), {"c_coords": list(channels), **options})


def _raster(model: Any, array: Any, dims: tuple[str, ...], options: dict[str, Any]) -> Any:
    names = ("scale_factors", "chunks", "c_coords")
    parsed = model.parse(
        np.asarray(array), dims=dims, **{k: v for k, v in options.items() if k in names}
    )
    return _placed(parsed, {k: v for k, v in options.items() if k not in names})


def table(
    region: str | Sequence[str] | None,
    instances: Sequence[Any],
    *,
    obsm: Any = None,
    counts: AnnData | None = None,
    seed: int = 0,
) -> AnnData:
    """A table of counts; ``region``: one name, or one a row. ``counts``: of another AnnData, else drawn."""
    n = len(instances)
    if counts is None:
        drawn = np.random.default_rng(seed).poisson(2.0, (n, 30)).astype(np.float32)
        adata = AnnData(
            sp.csr_matrix(drawn), var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(30)])
        )
        adata.obs_names = [f"row{i}" for i in range(n)]
    else:
        adata = AnnData(counts.X, obs=pd.DataFrame(index=counts.obs_names), var=counts.var)
    if region is not None:
        names = [region] * n if isinstance(region, str) else list(region)
        adata.obs["region"] = pd.Categorical(names)
        adata.obs["instance"] = list(instances)
        adata.uns["spatialdata_attrs"] = {
            "region": region if isinstance(region, str) else sorted(set(names)),
            "region_key": "region",
            "instance_key": "instance",
        }
    if obsm is not None:
        adata.obsm["spatial"] = np.asarray(obsm, dtype=float)
    return adata


def make(
    path: Path | None = None, *, zarr_format: int = 3, consolidated: bool = True, **kinds: Any
) -> Any:
    """A SpatialData of ``shapes={name: element}`` and so on, or the path of its store, if one is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in ome-zarr; tables without their elements
        from spatialdata._io.format import SpatialDataContainerFormatV01

        sdata = SpatialData(**kinds)
        if path is None:
            return sdata
        formats = {2: [SpatialDataContainerFormatV01()], 3: None}[zarr_format]
        path.parent.mkdir(parents=True, exist_ok=True)
        sdata.write(path, sdata_formats=formats, consolidate_metadata=consolidated)
    return path


def set_unit(store: Path, kind: str, name: str, unit: str = "micrometer") -> None:
    """State the unit of the axes of all coordinate systems of an element; the package has no way to."""
    path = store / kind / name / "zarr.json"
    content = json.loads(path.read_text())
    attributes = content["attributes"]
    holder = attributes["ome"]["multiscales"][0] if "ome" in attributes else attributes
    for record in holder["coordinateTransformations"]:
        for axis in record["output"]["axes"]:
            axis["unit"] = unit
    path.write_text(json.dumps(content))
