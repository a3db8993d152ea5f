"""A slice out of a SpatialData: which table, which region, where its cells are in a coordinate system, which image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError
from terrazzo.safe_zarr import read_attributes
from terrazzo.sdata import (
    CELL_KINDS,
    TABLES,
    Element,
    annotation_of,
    check_source,
    choose_name,
    choose_system,
    choose_table,
    get_cells,
    get_element,
    is_identity,
    open_elements,
    read_annotation,
    read_table,
    reading,
    subfolders,
)
from terrazzo.slices.opened import Choices, Opened
from terrazzo.slices.parts import takes_all
from terrazzo.slices.units import UM_WORDS

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = ["CHOICES", "content_of", "open_spatialdata"]

CHOICES = ("table", "region", "coordinate_system", "image")  # fields of Choices
_MAX_CHUNK = 2**30  # bytes of labels that are decoded at once
_MAX_PIXELS = 2**36  # of labels: 262,144 on a side
_TILE = 4096  # side of the piece of labels that is counted at once


@dataclass(frozen=True)
class _Region:
    """The element that rows of a table annotate, the rows (None: all), and their column of identifiers."""

    name: str | None = None
    rows: Ints | None = None
    instance_key: str | None = None


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
    The slice; results go to ``source_table``, rows ``source_rows``. ``obsm["spatial"]`` holds the centers of the
    region's shapes, labels or points in the coordinate system; where the table annotates nothing that is there, it is
    that of the table.

    Raises
    ------
    InputError
        No table; several tables or regions and none named; a name that is not there; rows that annotate nothing that
        is there; a damaged or unsafe store; the package spatialdata is not installed.
    """
    choices = choices or Choices()
    source, where = check_source(source)
    table_name = choose_table(source, choices.table, where)
    table = read_table(source, table_name)
    named = _Table(source, table_name, table, where)
    if choices.region is None and not takes_all(choices.slice_key):
        names = _used_regions(table, named.label)
        if len(names) > 1:
            return _open_regions(named, names, choices)
    return _open_region(named, choices)


@dataclass(frozen=True, eq=False)
class _Table:
    """A table of a SpatialData: the source, or the path of its store; name and content; the source for messages."""

    source: Any
    name: str
    table: AnnData
    where: str

    @property
    def label(self) -> str:
        return f"table {self.name!r} of {self.where}"

    @property
    def store(self) -> Path | None:
        return self.source if isinstance(self.source, Path) else None


def _open_regions(named: _Table, names: list[str], choices: Choices) -> Opened:
    """Place the cells of all regions of a table, each by its own region; they are slices by themselves."""
    opened = [_open_region(named, replace(choices, region=name)) for name in names]
    table = named.table
    rows = np.concatenate([np.asarray(one.source_rows) for one in opened])
    coords = np.concatenate([one.adata.obsm[keys.SPATIAL][:, :2] for one in opened])
    order = np.argsort(rows)
    used = rows[order]
    adata = _rows_of(table, None if len(used) == table.n_obs else used)
    adata.obsm[keys.SPATIAL] = coords[order]
    regions = []
    for one in opened:
        own_rows = np.searchsorted(used, np.asarray(one.source_rows))
        without_cells = AnnData(obs=one.adata.obs[[]])
        regions.append(replace(one, adata=without_cells, source_table=None, source_rows=own_rows))
    listed = ", ".join(names)
    return replace(
        opened[0],
        adata=adata,
        image=None,
        known={},
        notes=(f"table {named.name}, regions {listed}, each with its own places",),
        source_table=table,
        source_rows=None if len(used) == table.n_obs else used,
        vendor_coords=None,
        slice_key=choices.slice_key,
        regions=tuple(regions),
    )


def _open_region(named: _Table, choices: Choices) -> Opened:
    """Place the cells of the region that is chosen, or the only one."""
    source = named.source
    table = named.table
    where = named.where
    store = named.store
    region = _choose_region(table, named.label, choices.region)
    sdata = open_elements(source, region.name, choices.image)
    cells = get_cells(sdata, region.name, where)
    label = f"table {named.name}"
    if region.name is not None:
        label += f", region {region.name}"
    notes = [label]
    if region.rows is not None:
        notes.append(f"{len(region.rows):,} of its {table.n_obs:,} rows are of this region")

    adata = _rows_of(table, region.rows)
    known: dict[str, Any] = {}
    vendor_coords = None
    system = "global"
    if cells is None:
        notes.append(_own_coordinates(table, region.name, where, choices))
    else:
        system = choose_system(cells, choices.coordinate_system)
        notes.append(f"coordinates: centers of {cells.kind} {cells.name!r} in {system!r}")
        own = _places(cells, adata.obs, region.instance_key)
        vendor = _vendor_coordinates(adata)
        matrix = cells.matrices[system]
        adata.obsm[keys.SPATIAL] = own @ matrix[:2, :2].T + matrix[:2, 2]
        unit = _unit(cells, system, store, adata, vendor)
        if unit is not None:
            known["unit"] = unit
        elif vendor is not None:
            vendor_coords = vendor
        else:
            vendor_coords = own
    image, note = _choose_image(sdata, choices.image, cells, system, where)
    if note:
        notes.append(note)
    return Opened(
        adata,
        "SpatialData",
        "spatialdata" if store is None else store.stem,
        image,
        tuple(notes),
        known,
        source_table=table,
        source_rows=region.rows,
        table_name=named.name,
        store=store,
        vendor_coords=vendor_coords,
        slice_key=choices.slice_key,
    )


def content_of(store: Path, choices: Choices) -> list[Path]:
    """Return the folders of a store that a slice's content is in: its table, what that annotates, and the images."""
    store, where = check_source(store)
    table_name = choose_table(store, choices.table, where)
    table = read_annotation(store, table_name)
    label = f"table {table_name!r} of {where}"
    regions = [] if takes_all(choices.slice_key) else _used_regions(table, label)
    if choices.region is not None or len(regions) < 2:
        regions = [str(_choose_region(table, label, choices.region).name)]
    folders = [store / TABLES / table_name]
    for kind in CELL_KINDS:
        for name in subfolders(store / kind):
            if name in regions:
                folders.append(store / kind / name)
    for name in subfolders(store / "images"):
        if choices.image in (None, name):
            folders.append(store / "images" / name)
    return sorted(folders)


def _choose_region(table: AnnData, where: str, wanted: str | None) -> _Region:
    """Choose the region that is named, or the only one that rows of a table are of."""
    names, region_key, instance_key = annotation_of(table)
    if not names:
        if wanted is not None:
            raise InputError(f"{where} annotates nothing, so region={wanted!r} cannot be chosen")
        return _Region()
    used = _used_regions(table, where)
    listed = ", ".join(used) or "none"
    if wanted is None and len(used) > 1:
        raise InputError(
            f"{where} annotates {len(used)} regions: pass region= one of {listed}, or slice_key={region_key!r} to take "
            "each by itself"
        )
    if wanted is not None and wanted not in used:
        raise InputError(f"{where} has no rows of the region {wanted!r}; regions: {listed}")
    if not used:
        raise InputError(f"{where} has no row that says its region (obs[{region_key!r}])")
    name = used[0] if wanted is None else wanted
    column = table.obs[region_key].astype(object)
    rows = np.flatnonzero(column.map(str, na_action="ignore") == name)
    return _Region(name, None if len(rows) == table.n_obs else rows, instance_key)


def _used_regions(table: AnnData, where: str) -> list[str]:
    """Return the names of the regions that rows of a table are of, sorted; [] where it annotates nothing."""
    names, region_key, _ = annotation_of(table)
    if not names:
        return []
    if region_key not in table.obs.columns:
        raise InputError(f"{where} has no column of regions ({region_key!r})")
    column = table.obs[region_key].astype(object)
    return sorted({str(name) for name in column.dropna()})


def _rows_of(table: AnnData, rows: Ints | None) -> AnnData:
    """Return rows of a table as an AnnData that can be written to without changing the table; counts are shared."""
    if rows is not None:
        return table[rows].copy()
    return AnnData(
        X=table.X,
        obs=table.obs.copy(),
        var=table.var.copy(),
        uns=dict(table.uns),
        obsm=dict(table.obsm),
        varm=dict(table.varm),
        layers=dict(table.layers),
        obsp=dict(table.obsp),
        raw=None if table.raw is None else {"X": table.raw.X, "var": table.raw.var},
    )


def _own_coordinates(table: AnnData, region: str | None, where: str, choices: Choices) -> str:
    """Check that a table has coordinates, as there is no element to take them from; return a note that says so."""
    lost = "annotates nothing" if region is None else f"annotates {region!r}, which is not there"
    if choices.coordinate_system is not None:
        raise InputError(f"the table of {where} {lost}, so no coordinate system can be chosen")
    if keys.SPATIAL not in table.obsm:
        raise InputError(
            f"the table of {where} {lost}, and has no obsm[{keys.SPATIAL!r}] (obsm has: "
            f"{', '.join(table.obsm) or 'nothing'}); its cells have no place. Add the element, or the coordinates."
        )
    return f"the table {lost}: coordinates are its obsm[{keys.SPATIAL!r}]"


def _places(cells: Element, obs: pd.DataFrame, instance_key: str | None) -> Floats:
    """Return the centers of the things that rows of a table annotate, (n, 2) in the element's own coordinates."""
    where = cells.where
    if instance_key not in obs.columns:
        raise InputError(f"the table has no column of identifiers of {where} ({instance_key!r})")
    with reading(where):
        centers = _label_centers(cells) if cells.kind == "labels" else _vector_centers(cells)
    wanted = pd.Index(obs[instance_key])
    is_number = pd.api.types.is_numeric_dtype
    if not (is_number(centers.index) and is_number(wanted)):
        centers.index = centers.index.astype(str)
        wanted = wanted.astype(str)
    centers = centers[centers.index.isin(wanted)]
    if not centers.index.is_unique:
        twice = centers.index[centers.index.duplicated()][0]
        raise InputError(
            f"{where} has {twice!r} more than once, so a row of the table means several of it"
        )
    missing = wanted[~wanted.isin(centers.index)]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(wanted)} rows of the table annotate what {where} does not have (first: "
            f"{missing[0]!r}). Nothing is dropped silently: leave these rows out of the table first "
            "(spatialdata.match_table_to_element), or fix their instance_key."
        )
    places = centers.loc[wanted].to_numpy(dtype=np.float64)
    nowhere = wanted[~np.isfinite(places).all(axis=1)]
    if len(nowhere):
        raise InputError(
            f"{where}: {len(nowhere)} of {len(wanted)} annotated things have no place (first: {nowhere[0]!r}); "
            "fix their geometry, or leave them out of the table."
        )
    return places


def _vector_centers(cells: Element) -> pd.DataFrame:
    """Return x and y of shapes or points by identifier, as ``spatialdata.get_centroids`` has them."""
    if cells.kind == "points":
        points: pd.DataFrame = cells.data[["x", "y"]].compute()
        return points
    centers = cells.data.geometry.centroid
    return pd.DataFrame({"x": centers.x, "y": centers.y})


def _label_centers(cells: Element) -> pd.DataFrame:
    """Return x and y of labels, as ``spatialdata.get_centroids`` has them, without all pixels in memory."""
    from dask.array.core import slices_from_chunks
    from spatialdata import get_pyramid_levels

    is_pyramid = hasattr(cells.data, "children")
    finest = get_pyramid_levels(cells.data, n=0) if is_pyramid else cells.data
    sides = [max(axis) for axis in finest.chunks]
    size = np.prod(sides, dtype=object) * finest.dtype.itemsize
    if size > _MAX_CHUNK:
        raise InputError(
            f"{cells.where} is stored in pieces of {size:,} bytes; write it again in smaller chunks"
        )
    n_pixels = int(np.prod(finest.shape, dtype=object))
    if n_pixels > _MAX_PIXELS:
        raise InputError(f"{cells.where} has {n_pixels:,} pixels, more than any slice; crop it")
    tiles = finest.chunk({"x": _TILE, "y": _TILE})
    parts = []
    for box in slices_from_chunks(tiles.chunks):
        tile = tiles[box]
        x = np.broadcast_to(tile["x"].to_numpy(), tile.shape)
        y = np.broadcast_to(tile["y"].to_numpy()[:, None], tile.shape)
        label, names = pd.factorize(tile.to_numpy().ravel())
        sums = {
            "x": np.bincount(label, x.ravel()),
            "y": np.bincount(label, y.ravel()),
            "count": np.bincount(label),
        }
        parts.append(pd.DataFrame(sums, index=names))
    total = pd.concat(parts).groupby(level=0).sum()
    total = total[total.index != 0]  # the background
    return total[["x", "y"]].div(total["count"], axis=0)


def _vendor_coordinates(adata: AnnData) -> Floats | None:
    """Return the coordinates that the table brings along, which are the vendor's; None where they are no such."""
    try:
        xy = np.asarray(adata.obsm.get(keys.SPATIAL), dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if xy.ndim != 2 or xy.shape[1] < 2 or not np.isfinite(xy).all():
        return None
    xy = xy[:, :2]
    return xy if np.ptp(xy, axis=0).max(initial=0.0) > 0 else None


def _unit(
    cells: Element, system: str, store: Path | None, adata: AnnData, vendor: Floats | None
) -> str | None:
    """Return the unit of a coordinate system; None where what is known of the platform has to tell."""
    stated = "" if store is None else _axis_unit(store / cells.kind / cells.name, system)
    if stated.lower() in UM_WORDS or system.lower() in UM_WORDS:
        return "um"
    if vendor is None and cells.kind == "labels" and keys.ARRAY_ROW not in adata.obs.columns:
        # no platform's unit is the pixel of its labels
        return "pixel" if is_identity(cells.matrices[system]) else "unknown"
    return None


def _axis_unit(folder: Path, system: str) -> str:
    """Return the unit of x and y that an element on disk states for a coordinate system; spatialdata drops it."""
    attributes = read_attributes(folder)
    raster = attributes.get("ome", attributes)  # where zarr v3 and v2 keep what is said of images
    if "multiscales" in raster:
        attributes = raster["multiscales"][0]
    units = set()
    for record in attributes["coordinateTransformations"]:
        if record["output"]["name"] == system:
            axes = record["output"]["axes"]
            units = {str(axis.get("unit", "")) for axis in axes if axis["name"] in ("x", "y")}
    return units.pop() if len(units) == 1 else ""


def _choose_image(
    sdata: Any, wanted: str | None, cells: Element | None, system: str, where: str
) -> tuple[TissueImage | None, str]:
    """Return the image that is named, or the only histology that belongs to the cells; and a note on the images."""
    from terrazzo.images import TissueImage
    from terrazzo.images.spatialdata import is_histology, place_image

    names = list(sdata.images)
    if wanted is not None:
        name = choose_name(names, wanted, "image", where)
        element = get_element(sdata, "images", name, where)
        placed = place_image(element, cells, system)
        return TissueImage(**vars(placed)), f"image {name}"
    usable = {}
    if cells is not None:
        for name in names:
            try:
                element = get_element(sdata, "images", name, where)
                if is_histology(element):
                    usable[name] = place_image(element, cells, system)
            except InputError:
                continue  # nobody asked for this image
    if len(usable) == 1:
        name, placed = next(iter(usable.items()))
        return TissueImage(**vars(placed)), f"image {name}"
    if not names:
        return None, ""
    return None, f"images, taken if named (image=): {', '.join(names)}"
