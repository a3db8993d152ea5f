"""What a SpatialData holds, wherever it is: its tables, the elements that they annotate, its images; and choosing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo.errors import InputError
from terrazzo.sdata.transforms import System

GLOBAL = "global"
ATTRS = "spatialdata_attrs"  # uns of a table: what it annotates


@dataclass(frozen=True, eq=False)
class Element:
    """Shapes, points, labels or an image.

    Attributes
    ----------
    kind
        "shapes", "points", "labels" or "images".
    name, where
        Its name; how to call it in messages.
    systems
        How it lies in each coordinate system.
    centers
        Of shapes, points and labels: reads the identifiers and the places (n, 2), in its own coordinates.
    levels
        Of an image: arrays that are read when they are sliced, finest first, (c, y, x).
    channels
        Of an image: what its channels are called; empty where nothing says it.
    """

    kind: str
    name: str
    where: str
    systems: Mapping[str, System]
    centers: Callable[[], tuple[pd.Index, NDArray[np.float64]]] | None = None
    levels: tuple[Any, ...] = ()
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Container:
    """A SpatialData, opened; nothing of it is read before it is asked for.

    Attributes
    ----------
    where, name
        What to call it in messages; the name of its folder, "spatialdata" in memory.
    tables, regions, images
        By name, what reads it; ``regions`` are shapes, points and labels.
    path
        Its folder, None in memory.
    """

    where: str
    name: str
    tables: Mapping[str, Callable[[], AnnData]]
    regions: Mapping[str, Callable[[], Element]] = field(default_factory=dict)
    images: Mapping[str, Callable[[], Element]] = field(default_factory=dict)
    path: Path | None = None

    def table_name(self, wanted: str | None) -> str:
        """Choose a table.

        Raises
        ------
        InputError
            There is none; several and none named; no such table.
        """
        if not self.tables:
            raise InputError(
                f"{self.where} has no table, so no counts; aggregate its points or add a table"
            )
        return self._one(self.tables, wanted, "table")

    def image(self, wanted: str | None) -> Element:
        """Open an image.

        Raises
        ------
        InputError
            There is none; several and none named; no such image; it cannot be read.
        """
        if not self.images:
            raise InputError(f"{self.where} has no image")
        return self.images[self._one(self.images, wanted, "image")]()

    def region(self, name: str) -> Element:
        """Open shapes, points or labels.

        Raises
        ------
        InputError
            There are none of this name; they cannot be read.
        """
        if name not in self.regions:
            held = ", ".join(self.regions) or "none"
            raise InputError(
                f"{self.where} has no shapes, labels or points {name!r}; there are: {held}"
            )
        return self.regions[name]()

    def _one(self, held: Mapping[str, Any], wanted: str | None, what: str) -> str:
        names = ", ".join(held)
        if wanted is None and len(held) > 1:
            by_path = (
                ""
                if what != "table" or self.path is None
                else ", or the path of one, x.zarr/tables/NAME"
            )
            raise InputError(
                f"{self.where} has {len(held)} {what}s: pass {what}= one of {names}{by_path}"
            )
        if wanted is not None and wanted not in held:
            raise InputError(f"{self.where} has no {what} {wanted!r}; {what}s: {names}")
        return next(iter(held)) if wanted is None else wanted


def choose_system(element: Element, wanted: str | None) -> str:
    """Choose a coordinate system of an element: "global", else the only one, else the element's own.

    Raises
    ------
    InputError
        The element does not lie in the one that is named; it lies in several, none of which goes before the others.
    """
    systems, names = element.systems, ", ".join(element.systems) or "none"
    if wanted is not None and wanted not in systems:
        raise InputError(f"{element.where} has no coordinate system {wanted!r}; there are: {names}")
    own = [name for name, system in systems.items() if system.is_identity]
    first = [name for name in (wanted, GLOBAL) if name in systems]
    found = first or (list(systems) if len(systems) == 1 else own)
    if not found:
        raise InputError(
            f"{element.where} lies in the coordinate systems {names}: pass coordinate_system= one of them"
        )
    return str(found[0])


def annotated(table: AnnData) -> tuple[list[str], str | None, str | None]:
    """Return the regions that a table says it annotates, and its columns of regions and of instances."""
    attributes = table.uns.get(ATTRS)
    attributes = dict(attributes) if isinstance(attributes, Mapping) else {}
    region = attributes.get("region")
    names = [str(one) for one in np.ravel(region)] if region is not None else []
    keys = [
        None if attributes.get(key) is None else str(attributes[key])
        for key in ("region_key", "instance_key")
    ]
    return names, keys[0], keys[1]


def centers_in(element: Element, instances: pd.Series) -> NDArray[np.float64]:
    """Return where the things lie that rows of a table annotate, (n, 2) in the element's own coordinates.

    Parameters
    ----------
    element
        Shapes, points or labels.
    instances
        Their identifiers, one a row; rows keep their order.

    Raises
    ------
    InputError
        Identifiers that the element does not have, or has twice; things without a place.
    """
    if element.centers is None:
        raise InputError(f"{element.where} is no element of cells")
    index, places = element.centers()
    wanted: pd.Index = pd.Index(instances)
    if not (pd.api.types.is_numeric_dtype(index) and pd.api.types.is_numeric_dtype(wanted)):
        index, wanted = index.astype(str), wanted.astype(str)
    twice = index[index.duplicated()]
    if len(twice) and twice.isin(wanted).any():
        again = twice[twice.isin(wanted)][0]
        raise InputError(
            f"{element.where} has {again!r} more than once, so a row of the table means several of it"
        )
    at = (
        index.get_indexer(wanted)
        if index.is_unique
        else index.drop_duplicates().get_indexer(wanted)
    )
    places = places if index.is_unique else places[~index.duplicated()]
    lost = at < 0
    if lost.any():
        raise InputError(
            f"{int(lost.sum())} of {len(at)} rows of the table annotate what {element.where} does not have (first: "
            f"{wanted[int(np.argmax(lost))]!r}). Nothing is dropped silently: leave these rows out of the table first "
            "(spatialdata.match_table_to_element), or mend their instance_key."
        )
    found = places[at]
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise InputError(
            f"{element.where}: {int(bad.sum())} of {len(at)} annotated things have no place (first: "
            f"{wanted[int(np.argmax(bad))]!r}); mend their geometry, or leave them out of the table."
        )
    return found
