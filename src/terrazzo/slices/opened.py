"""What a reader returns: a slice as an AnnData, what was recognized, and the table that its results belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Floats, Ints
from terrazzo.errors import InputError
from terrazzo.slices.geometry import find_geometry
from terrazzo.slices.parts import (
    SLICE_KEY,
    Part,
    each_part,
    section_labels,
    take_part,
    takes_all,
)
from terrazzo.slices.sections import refuse_overlap

if TYPE_CHECKING:
    from terrazzo.images import TissueImage

__all__ = ["Choices", "Opened"]

T = TypeVar("T")


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
    slice_key
        Column of ``obs`` that tells sections apart (of a SpatialData also regions), each of which is a slice. "none":
        all cells are one slice, whatever tells them apart.
    """

    bins: str | None = None
    image: str | None = None
    table: str | None = None
    region: str | None = None
    coordinate_system: str | None = None
    slice_key: str | None = None


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
        An image that stays in its file, None where there is none (one in memory is in ``uns["spatial"]``); of an
        AnnData the one that the JSON file beside it names.
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
    slice_key
        As in :class:`Choices`: what tells sections apart, or "none".
    section
        Of one of several sections: its label.
    regions
        The regions of a SpatialData by themselves, where ``adata`` is of several; their ``source_rows`` are its rows.
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
    slice_key: str | None = None
    section: str | None = None
    regions: tuple[Opened, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether its sections are slices, each by itself."""
        return not takes_all(self.slice_key)

    def each(self, work: Callable[[Opened], T]) -> list[T]:
        """Call a function for each slice: this one, or by ``slice_key`` its sections, one after the other.

        What the function writes to the ``adata`` of a section (obsm, obs, uns) is put into that of the whole at the
        end, rows in their places; nothing is, if one of them cannot be used.

        Raises
        ------
        InputError
            No such column; cells without a section; or as the function, with the section in front.
        """
        if not self.is_split:
            return [work(self)]
        source = self._without_ambiguous_image()
        return each_part(self.adata, str(self.slice_key), lambda part: work(source.of_part(part)))

    def of_section(self, value: str) -> Opened:
        """Return the section of one label as a slice of its own.

        Raises
        ------
        InputError
            No such column, or no such section.
        """
        labels = section_labels(self.adata.obs, str(self.slice_key))
        if value not in labels.values:
            raise InputError(
                f"obs[{self.slice_key!r}] has no section {value!r}; it has {labels.in_words()}"
            )
        part = take_part(self.adata, labels, labels.values.index(value))
        return self._without_ambiguous_image().of_part(part)

    def _without_ambiguous_image(self) -> Opened:
        """Return it without an image where its sections overlap: that is of one of them, and nothing says of which."""
        if self.image is None:
            return self
        try:
            refuse_overlap(self.adata)
        except InputError:
            note = "the image is not taken: it cannot belong to several sections that overlap"
            return replace(self, image=None, notes=(*self.notes, note))
        return self

    def check_sections(self) -> str:
        """Check that it is one slice, or that its sections are known; return a line on parts that do not overlap.

        Raises
        ------
        InputError
            Several sections that overlap, and no ``slice_key``; or one that tells none apart.
        """
        if self.is_split:
            section_labels(self.adata.obs, str(self.slice_key))
            return ""
        return "" if self.slice_key else refuse_overlap(self.adata)

    def of_part(self, part: Part) -> Opened:
        """Return a section of it as a slice of its own, which belongs to no table."""
        own = replace(
            self,
            adata=part.adata,
            name=f"{self.name}_{part.value}",
            source_table=None,
            source_rows=None,
            slice_key=None,
            section=part.value,
            regions=(),
        )
        source = self
        rows = part.rows
        for region in self.regions:
            region_rows = np.asarray(region.source_rows)
            if np.isin(part.rows, region_rows).all():
                source = region
                rows = np.searchsorted(region_rows, part.rows)
        vendor_coords = source.vendor_coords
        if vendor_coords is not None:
            vendor_coords = vendor_coords[rows]
        return replace(own, image=source.image, known=source.known, vendor_coords=vendor_coords)

    def arguments(self, **options: Any) -> dict[str, Any]:
        """Return arguments of :meth:`terrazzo.Slice.from_anndata` for ``adata``: options go before what is known."""
        arguments: dict[str, Any] = {"name": self.name, SLICE_KEY: self.slice_key}
        uses_coords = options.get("spatial_key", keys.SPATIAL) == keys.SPATIAL
        if uses_coords:  # what is known is not known of other coordinates
            arguments["image"] = self.image
            arguments.update(self.known)
        arguments.update(options)
        has_unit = any(arguments.get(key) is not None for key in ("unit", "microns_per_unit"))
        if uses_coords and not has_unit:
            arguments["microns_per_unit"] = self._microns_per_unit(arguments.get("technology"))
        return {key: value for key, value in arguments.items() if value is not None}

    def evidence(self, **options: Any) -> str:
        """Return how the unit is known, where that is by the vendor's coordinates; else "" (it is not known here)."""
        uses_coords = options.get("spatial_key", keys.SPATIAL) == keys.SPATIAL
        arguments = {**self.known, **options}
        has_unit = any(arguments.get(key) is not None for key in ("unit", "microns_per_unit"))
        if self.vendor_coords is None or not uses_coords or has_unit:
            return ""
        technology = arguments.get("technology")
        vendor = find_geometry(self.adata, self.vendor_coords, None, None, technology, check=False)
        if vendor.unit != "um":
            return ""
        return f"{vendor.evidence}; of the vendor's coordinates, and carried over"

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
