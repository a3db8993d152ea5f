"""SpatialData objects in memory; the package itself is not needed, only objects that look like its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.sdata import centers
from terrazzo.sdata.container import Container, Element
from terrazzo.sdata.rasters import boxes
from terrazzo.sdata.transforms import from_objects

_WHERE = "the SpatialData"


def open_object(sdata: Any) -> Container:
    """Open an object with ``tables``, ``images``, ``shapes``, ``labels`` and ``points`` as SpatialData has them."""
    regions: dict[str, Callable[[], Element]] = {}
    for kind, opener in (("shapes", _shapes), ("labels", _labels), ("points", _points)):
        for name, element in _held(sdata, kind).items():
            regions[str(name)] = partial(opener, str(name), element)
    images = {
        str(name): partial(_image, str(name), element)
        for name, element in _held(sdata, "images").items()
    }
    tables = {str(name): partial(_itself, table) for name, table in _held(sdata, "tables").items()}
    return Container(_WHERE, "spatialdata", tables, regions, images)


def _held(sdata: Any, kind: str) -> dict[str, Any]:
    held = getattr(sdata, kind, None)
    return dict(held) if isinstance(held, Mapping) else {}


def _itself(table: Any) -> Any:
    return table


def _called(kind: str, name: str) -> str:
    return f"{kind} {name!r} of {_WHERE}"


def _systems(element: Any, where: str) -> dict[str, Any]:
    attributes: Any = getattr(element, "attrs", None)
    return from_objects((attributes or {}).get("transform"), where)


def _shapes(name: str, element: Any) -> Element:
    where = _called("shapes", name)

    def found() -> tuple[pd.Index, NDArray[np.float64]]:
        try:
            return pd.Index(element.index), centers.of_wkb(list(element.geometry.to_wkb()))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{where} cannot be read: {error}") from error

    return Element("shapes", name, where, _systems(element, where), found)


def _points(name: str, element: Any) -> Element:
    where = _called("points", name)

    def found() -> tuple[pd.Index, NDArray[np.float64]]:
        table = element[["x", "y"]]
        table = table.compute() if hasattr(table, "compute") else table
        return pd.Index(table.index), table.to_numpy(dtype=np.float64)

    return Element("points", name, where, _systems(element, where), found)


def _labels(name: str, element: Any) -> Element:
    where = _called("labels", name)
    finest = _levels(element, where)[0]

    def found() -> tuple[pd.Index, NDArray[np.float64]]:
        labels, places = centers.of_labels(finest.data, boxes(finest.data, where))
        return pd.Index(labels), places

    if tuple(finest.dims) not in (("y", "x"), ("z", "y", "x")):
        raise InputError(
            f"{where} has the axes {', '.join(map(str, finest.dims))}; they must be y and x"
        )
    return Element("labels", name, where, _systems(finest, where), found)


def _image(name: str, element: Any) -> Element:
    where = _called("image", name)
    levels = _levels(element, where)
    if any(tuple(one.dims) != ("c", "y", "x") for one in levels):
        raise InputError(f"{where} must have the axes c, y and x; it is another kind")
    named = getattr(levels[0], "coords", None)
    channels = (
        tuple(map(str, np.asarray(named["c"]).tolist()))
        if named is not None and "c" in named
        else ()
    )
    systems = _systems(levels[0], where)
    return Element(
        "images", name, where, systems, None, tuple(one.data for one in levels), channels
    )


def _levels(element: Any, where: str) -> list[Any]:
    """Return the data arrays of one picture, finest first: one, or a tree of ``scale0``, ``scale1``, ..."""
    if hasattr(element, "dims") and hasattr(element, "data") and not hasattr(element, "children"):
        return [element]
    parts: dict[Any, Any] = dict(
        getattr(element, "children", element if isinstance(element, Mapping) else {})
    )
    names = sorted(
        (n for n in parts if str(n)[:5] == "scale" and str(n)[5:].isdigit()),
        key=lambda n: int(str(n)[5:]),
    )
    levels = [next(iter(dict(getattr(parts[n], "data_vars", parts[n])).values())) for n in names]
    if not levels:
        raise InputError(f"{where} is neither a picture nor a pyramid of pictures")
    return levels
