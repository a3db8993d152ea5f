"""What a reader returns: a slice as an AnnData, what was recognized, and the table that its results belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.slices.geometry import find_geometry

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = ["Choices", "Opened"]


@dataclass(frozen=True)
class Choices:
    """What can be chosen when a slice is read; None: the reader's default.

    Attributes
    ----------
    bins
        Visium HD: side in micrometers ("8"). Stereo-seq: spots along a side ("50"), or "cell".
    image
        Name of an image in the folder or SpatialData.
    table, region, coordinate_system
        Of a SpatialData.
    """

    bins: str | None = None
    image: str | None = None
    table: str | None = None
    region: str | None = None
    coordinate_system: str | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """A slice that was recognized and read, before it is checked.

    Attributes
    ----------
    adata
        n cells x g genes, with coordinates in ``obsm["spatial"]``: what models see.
    format
        What it was recognized as, in words: "Xenium", "Visium HD, 8 um bins".
    name
        The slice's, from the name of its file or folder.
    image
        An image that stays in its file, None where there is none (one in memory is in ``uns["spatial"]``).
    notes
        What to report: features left out, choices made, images that could be named.
    known
        Arguments of :meth:`terrazzo.Slice.from_anndata` that follow from the format.
    source_table
        The table of a SpatialData that results are written to, where that is not ``adata``.
    source_rows
        int64 (n,): rows of ``source_table`` that the cells are; None: all.
    table_name, store
        Of a SpatialData: name of the table; folder, None in memory.
    vendor_coords
        float64 (n, 2): the vendor's coordinates, where ``adata`` has others: what is known of a platform's units holds
        for these.
    """

    adata: AnnData
    format: str
    name: str
    image: TissueImage | None = None
    notes: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    source_table: AnnData | None = None
    source_rows: Ints | None = None
    table_name: str | None = None
    store: Path | None = None
    vendor_coords: Floats | None = None

    def arguments(self, **options: Any) -> dict[str, Any]:
        """Return arguments of :meth:`terrazzo.Slice.from_anndata` for ``adata``: options go before what is known."""
        arguments: dict[str, Any] = {"name": self.name, "image": self.image}
        uses_coords = options.get("spatial_key", keys.SPATIAL) == keys.SPATIAL
        if uses_coords:  # what is known is not known of other coordinates
            arguments.update(self.known)
        arguments.update(options)
        has_unit = any(arguments.get(key) is not None for key in ("unit", "microns_per_unit"))
        if uses_coords and not has_unit:
            arguments["microns_per_unit"] = self._microns_per_unit(arguments.get("technology"))
        return {key: value for key, value in arguments.items() if value is not None}

    def copy_results_to_table(self) -> AnnData:
        """Copy what was written to ``adata`` (obsm, obs, uns) to the table that it belongs to, and return that.

        Rows of the table that the slice does not have keep what they had, else NaN, False or nothing.
        """
        table = self.source_table
        if table is None or table is self.adata:
            return self.adata
        rows = np.arange(table.n_obs) if self.source_rows is None else self.source_rows
        for key, values in self.adata.obsm.items():
            if key != keys.SPATIAL:
                table.obsm[key] = _set_rows(table.obsm.get(key), values, rows, table.n_obs)
        for name in self.adata.obs.columns:
            old = table.obs.get(name)
            new = self.adata.obs[name]
            if old is None or not _same_values(old.iloc[rows], new):
                table.obs[name] = _set_column(old, new, rows, table.obs_names)
        for key, value in self.adata.uns.items():
            if key == keys.UNS:
                before = table.uns.get(key, {})
                value = {**before, **value} if isinstance(before, Mapping) else value
            table.uns[key] = value
        return table

    def _microns_per_unit(self, technology: str | None) -> float | None:
        """Return micrometers in a unit of the coordinates, by the vendor's coordinates; None where that is unknown."""
        if self.vendor_coords is None:
            return None
        vendor = find_geometry(self.adata, self.vendor_coords, None, None, technology)
        if vendor.unit != "um":
            return None
        coords = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
        spread = _spread(coords)
        vendor_spread = _spread(self.vendor_coords)
        if spread > 0 and vendor_spread > 0:
            return vendor.scale * vendor_spread / spread
        return vendor.scale


def _spread(coords: Floats) -> float:
    """Return the standard deviation of positions in the plane."""
    variances = np.var(coords[:, :2], axis=0)
    return float(np.sqrt(variances.sum()))


def _set_rows(old: Any, new: Any, rows: Ints, n: int) -> Any:
    """Return values of all rows of a table: the new ones, and beside them the old ones, or NaN."""
    if len(rows) == n:
        return new
    if not isinstance(new, np.ndarray):
        return old
    shape = (n, *new.shape[1:])
    dtype = new.dtype if new.dtype.kind == "f" else np.dtype(np.float64)
    if isinstance(old, np.ndarray) and old.shape == shape:
        out = np.array(old, dtype=dtype)
    else:
        out = np.full(shape, np.nan, dtype=dtype)
    out[rows] = new
    return out


def _same_values(old: pd.Series, new: pd.Series) -> bool:
    a = old.astype(object).to_numpy()
    b = new.astype(object).to_numpy()
    both_missing = pd.isna(a) & pd.isna(b)
    return bool(np.all((a == b) | both_missing))


def _set_column(old: Any, new: pd.Series, rows: Ints, names: pd.Index) -> pd.Series:
    """Return a column of all rows of a table: the new values, and beside them the old ones, or nothing."""
    if len(rows) == len(names):
        return pd.Series(new.array, index=names)
    is_category = isinstance(new.dtype, pd.CategoricalDtype)
    if is_category or new.dtype == object:
        empty = pd.Series(None, index=names, dtype=object)
        column = empty if old is None else old.astype(object)
        column.iloc[rows] = new.astype(object).to_numpy()
        return column.astype("category") if is_category else column
    if old is not None:
        column = old.copy()
    elif new.dtype == bool:
        column = pd.Series(False, index=names, dtype=bool)
    else:
        column = pd.Series(np.nan, index=names, dtype=float)
    column.iloc[rows] = new.to_numpy()
    return column
