"""A slice out of a SpatialData: which table, which region, where its cells lie in a coordinate system, which image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.errors import InputError
from terrazzo.sdata import Container, Element, centers_in, choose_system, open_container
from terrazzo.sdata.container import annotated
from terrazzo.sdata.ondisk import read_annotation, table_folder
from terrazzo.slices.geometry import UM_WORDS
from terrazzo.slices.opened import Choices, Opened

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

TAKES = ("table", "region", "coordinate_system", "image")


def open_spatialdata(source: Any, choices: Choices | None = None) -> Opened:
    """Choose a table and the region that its cells are, and place them.

    Parameters
    ----------
    source
        A SpatialData, or the path of its store.
    choices
        ``table``, ``region``, ``coordinate_system`` and ``image`` by name.

    Returns
    -------
    The slice; its ``home`` is the table, ``rows`` those of the region. ``obsm["spatial"]`` holds the centers of the
    region's shapes, labels or points in the coordinate system; where the table annotates nothing that is there, it is
    that of the table.

    Raises
    ------
    InputError
        No table; several tables or regions and none named; a name that is not there; rows that annotate nothing that
        is there; a damaged store.
    """
    held, choices = open_container(source), choices or Choices()
    table_name = held.table_name(choices.table)
    table = held.tables[table_name]()
    if not isinstance(table, AnnData):
        raise InputError(
            f"table {table_name!r} of {held.where} is no AnnData, but {type(table).__name__}"
        )
    region, rows, instance_key = _choose_region(table, table_name, choices.region, held)
    notes = [f"table {table_name}" + (f", region {region}" if region is not None else "")]
    if rows is not None:
        notes.append(f"{len(rows):,} of its {table.n_obs:,} rows are of this region")
    known: dict[str, Any] = {}
    element = native = None
    if region is None or region not in held.regions:
        adata, more = _unplaced(table, rows, region, held, choices)
        system = "global"
    else:
        if instance_key is None or instance_key not in table.obs.columns:
            raise InputError(
                f"table {table_name!r} of {held.where} has no column of instances ({instance_key!r})"
            )
        element = held.regions[region]()
        system = choose_system(element, choices.coordinate_system)
        adata, native, known, more = _placed(table, rows, element, system, instance_key)
    image, said = _picture(held, choices.image, element, system)
    return Opened(
        adata,
        "SpatialData",
        held.name,
        image,
        (*notes, *more, *said),
        known,
        home=table,
        rows=rows,
        table=table_name,
        store=held.path,
        native=native,
    )


def content_of(path: Path, choices: Choices) -> list[Path]:
    """Return the folders of a store that a slice's content is in: its table, what that annotates, and the images."""
    held = open_container(path)
    name = held.table_name(choices.table)
    region = _choose_region(read_annotation(table_folder(path) / name), name, choices.region, held)[
        0
    ]
    folders = [path / kind / str(region) for kind in ("shapes", "labels", "points")]
    images = [path / "images" / one for one in held.images if choices.image in (None, one)]
    return sorted(
        [table_folder(path) / name, *(one for one in (*folders, *images) if one.is_dir())]
    )


def _choose_region(
    table: AnnData, name: str, wanted: str | None, held: Container
) -> tuple[str | None, NDArray[np.int64] | None, str | None]:
    """Return the region, the rows that are of it (None: all), and the column of instances."""
    where = f"table {name!r} of {held.where}"
    names, region_key, instance_key = annotated(table)
    if not names:
        if wanted is not None:
            raise InputError(f"{where} annotates nothing, so region={wanted!r} cannot be chosen")
        return None, None, None
    if region_key is None or region_key not in table.obs.columns:
        raise InputError(f"{where} has no column of regions ({region_key!r})")
    column = (
        table.obs[region_key].astype(object).map(lambda one: None if pd.isna(one) else str(one))
    )
    used = [one for one in dict.fromkeys(column.tolist()) if one is not None]
    if wanted is None and len(used) > 1:
        raise InputError(
            f"{where} annotates {len(used)} regions: pass region= one of {', '.join(sorted(used))}"
        )
    if wanted is not None and wanted not in used:
        raise InputError(
            f"{where} has no rows of the region {wanted!r}; regions: {', '.join(sorted(used)) or 'none'}"
        )
    if not used:
        raise InputError(f"{where} has no row that says its region (obs[{region_key!r}])")
    region = used[0] if wanted is None else wanted
    rows = np.flatnonzero(column == region)
    return region, None if len(rows) == table.n_obs else rows, instance_key


def _of(table: AnnData, rows: NDArray[np.int64] | None) -> AnnData:
    """Return a table of the rows that can be given other coordinates without changing the table itself."""
    return AnnData(**_parts(table)) if rows is None else table[rows].copy()


def _parts(table: AnnData) -> dict[str, Any]:
    kept: dict[str, Any] = {
        name: dict(getattr(table, name)) for name in ("uns", "obsm", "varm", "layers", "obsp")
    }
    raw = None if table.raw is None else {"X": table.raw.X, "var": table.raw.var}
    return {"X": table.X, "obs": table.obs.copy(), "var": table.var.copy(), "raw": raw, **kept}


def _placed(
    table: AnnData, rows: NDArray[np.int64] | None, element: Element, system: str, instance_key: str
) -> tuple[AnnData, NDArray[np.float64] | None, dict[str, Any], list[str]]:
    """Return the slice with its places in the system, its vendor's coordinates, what is known, and what to say."""
    adata = _of(table, rows)
    own = centers_in(element, adata.obs[instance_key])
    found = element.systems[system]
    vendor = _vendor(adata)
    adata.obsm[keys.SPATIAL] = found.apply(own)
    notes = [f"coordinates: centers of {element.kind} {element.name!r} in {system!r}"]
    if found.unit.lower() in UM_WORDS or system.lower() in UM_WORDS:
        return adata, None, {"unit": "um"}, notes
    if vendor is None and element.kind == "labels" and keys.ARRAY_ROW not in adata.obs.columns:
        unit = "pixel" if found.is_identity else "unknown"
        return adata, None, {"unit": unit}, notes  # no platform's unit is the pixel of its labels
    return adata, own if vendor is None else vendor, {}, notes


def _vendor(adata: AnnData) -> NDArray[np.float64] | None:
    """Return the coordinates that the table brings along, which are the vendor's; None where they are no such."""
    held = adata.obsm.get(keys.SPATIAL)
    try:
        xy = np.asarray(held, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    usable = xy.ndim == 2 and xy.shape[1] >= 2 and np.isfinite(xy).all()
    return xy[:, :2] if usable and np.ptp(xy[:, :2], axis=0).max(initial=0.0) > 0 else None


def _unplaced(
    table: AnnData,
    rows: NDArray[np.int64] | None,
    region: str | None,
    held: Container,
    choices: Choices,
) -> tuple[AnnData, list[str]]:
    """Return the slice with the coordinates of its table, where there is no element to take them from."""
    lost = "annotates nothing" if region is None else f"annotates {region!r}, which is not there"
    if choices.coordinate_system is not None:
        raise InputError(f"the table of {held.where} {lost}, so no coordinate system can be chosen")
    if keys.SPATIAL not in table.obsm:
        raise InputError(
            f"the table of {held.where} {lost}, and has no obsm[{keys.SPATIAL!r}] (obsm has: "
            f"{', '.join(table.obsm) or 'nothing'}); its cells have no place. Add the element, or the coordinates."
        )
    return _of(table, rows), [f"the table {lost}: coordinates are its obsm[{keys.SPATIAL!r}]"]


def _picture(
    held: Container, wanted: str | None, cells: Element | None, system: str
) -> tuple[TissueImage | None, list[str]]:
    """Return the image that is named, or the only one in colors that belongs to the cells; and which there are."""
    from terrazzo.images.spatialdata import in_colors, placed

    if wanted is not None:
        return placed(held.image(wanted), cells, system), [f"image {wanted}"]
    usable: dict[str, TissueImage] = {}
    for name, opener in held.images.items() if cells is not None else ():
        try:
            element = opener()
            if in_colors(element):
                usable[name] = placed(element, cells, system)
        except InputError:
            continue  # of an image that nobody asked for
    if len(usable) == 1:
        return next(iter(usable.values())), [f"image {next(iter(usable))}"]
    said = f"images, taken if named (image=): {', '.join(held.images)}"
    return None, [said] if held.images else []
