"""What a reader hands over: a slice as an AnnData, what was recognized, and where its results belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from terrazzo import keys
from terrazzo.slices.geometry import find_geometry
from terrazzo.slices.slice import Slice

if TYPE_CHECKING:
    from terrazzo.images import TissueImage


@dataclass(frozen=True)
class Choices:
    """What can be chosen when a slice is read; None: the reader's default.

    Attributes
    ----------
    bins
        Visium HD: side in micrometers ("8"). Stereo-seq: spots along a side ("50"), or "cell".
    image
        Name of a picture that lies in the folder or SpatialData.
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
    """A slice that was found and read, before it is checked.

    Attributes
    ----------
    adata
        n cells x g genes, with coordinates in ``obsm["spatial"]``: what models see.
    format
        What it was recognized as, in words: "Xenium", "Visium HD, 8 um bins".
    name
        The slice's, from the name of its file or folder.
    image
        A picture that stays where it is, None where there is none (one in memory is in ``uns["spatial"]``).
    notes
        What there is to say: features left out, choices made, pictures that could be had.
    known
        Arguments of :meth:`terrazzo.Slice.from_anndata` that follow from the format.
    home
        The table that results are written to, where that is not ``adata``.
    rows
        int64 (n,): rows of ``home`` that the cells are; None: all.
    table, store
        Of a SpatialData: name of the table; folder, None in memory.
    native
        float64 (n, 2): where ``adata`` has other coordinates than the vendor's, those: what is known of a platform's
        units is known of them.
    """

    adata: AnnData
    format: str
    name: str
    image: TissueImage | None = None
    notes: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    home: AnnData | None = None
    rows: NDArray[np.int64] | None = None
    table: str | None = None
    store: Path | None = None
    native: NDArray[np.float64] | None = None

    def to_slice(self, **options: Any) -> Slice:
        """Check it and freeze it; ``options`` (of :meth:`terrazzo.Slice.from_anndata`) go before what is known."""
        tissue = Slice.from_anndata(self.adata, **self.arguments(**options))
        return replace(tissue, origin="; ".join([self.format, *self.notes]))

    def arguments(self, **options: Any) -> dict[str, Any]:
        """Return what :meth:`terrazzo.Slice.from_anndata` is to be told of ``adata``: what is known, and options."""
        elsewhere = (
            options.get("spatial_key", keys.SPATIAL) != keys.SPATIAL
        )  # what is known is not known of those
        given = {
            "name": self.name,
            "image": self.image,
            **({} if elsewhere else self.known),
            **options,
        }
        unsaid = given.get("unit") is None and given.get("microns_per_unit") is None
        if self.native is not None and unsaid and not elsewhere:
            given["microns_per_unit"] = self._microns(self.native, given.get("technology"))
        return {key: value for key, value in given.items() if value is not None}

    def bring_home(self) -> AnnData:
        """Carry what was written to ``adata`` (obsm, obs, uns) over to the table that it belongs to, and return that.

        Rows of the table that the slice does not have keep what they had, else NaN, False or nothing.
        """
        home = self.home
        if home is None or home is self.adata:
            return self.adata
        rows = np.arange(home.n_obs) if self.rows is None else self.rows
        for key, values in self.adata.obsm.items():
            if key != keys.SPATIAL:
                home.obsm[key] = _set_rows(home.obsm.get(key), values, rows, home.n_obs)
        for column in self.adata.obs.columns:
            old, new = home.obs.get(column), self.adata.obs[column]
            if old is None or not _same_values(old.iloc[rows], new):
                home.obs[column] = _set_column(old, new, rows, home.obs_names)
        for key, held in self.adata.uns.items():
            home.uns[key] = {**dict(home.uns.get(key, {})), **held} if key == keys.UNS else held
        return home

    def _microns(self, native: NDArray[np.float64], technology: str | None) -> float | None:
        """Micrometers in a unit of the coordinates, from what is known of the vendor's; None where that is unknown."""
        vendor = find_geometry(self.adata, native, None, None, technology)
        mapped = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
        spread, before = (
            float(np.sqrt(np.var(xy[:, :2], axis=0).sum())) for xy in (mapped, native)
        )
        if vendor.unit != "um":
            return None
        return vendor.scale * before / spread if spread > 0 and before > 0 else vendor.scale


def _set_rows(old: Any, new: Any, rows: NDArray[np.int64], n: int) -> Any:
    """Return values of all rows of a table: the new ones, and beside them the old ones, or NaN."""
    if len(rows) == n or not isinstance(new, np.ndarray):
        return new if len(rows) == n else old
    kind = new.dtype if new.dtype.kind == "f" else np.dtype(np.float64)
    fits = isinstance(old, np.ndarray) and old.shape == (n, *new.shape[1:])
    out = np.array(old, dtype=kind) if fits else np.full((n, *new.shape[1:]), np.nan, dtype=kind)
    out[rows] = new
    return out


def _same_values(old: pd.Series, new: pd.Series) -> bool:
    a, b = old.astype(object).to_numpy(), new.astype(object).to_numpy()
    return bool(np.all((a == b) | (pd.isna(a) & pd.isna(b))))


def _set_column(old: Any, new: pd.Series, rows: NDArray[np.int64], names: pd.Index) -> pd.Series:
    if len(rows) == len(names):
        return pd.Series(new.array, index=names)
    if isinstance(new.dtype, pd.CategoricalDtype) or new.dtype == object:
        kept = pd.Series(None, index=names, dtype=object) if old is None else old.astype(object)
        kept.iloc[rows] = new.astype(object).to_numpy()
        return kept.astype("category") if isinstance(new.dtype, pd.CategoricalDtype) else kept
    if old is None:
        empty: Any = False if new.dtype == bool else np.nan
        kept = pd.Series(empty, index=names, dtype=bool if new.dtype == bool else float)
    else:
        kept = old.copy()
    kept.iloc[rows] = new.to_numpy()
    return kept
