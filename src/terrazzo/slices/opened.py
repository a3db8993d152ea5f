"""What a reader hands over: a slice as an AnnData, what was recognised, and where its results belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
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
        Visium HD: side in micrometres ("8"). Stereo-seq: spots along a side ("50"), or "cell".
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
        What it was recognised as, in words: "Xenium", "Visium HD, 8 um bins".
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
    table
        Name of the table in a SpatialData; None elsewhere.
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
    native: NDArray[np.float64] | None = None

    def to_slice(self, **options: Any) -> Slice:
        """Check it and freeze it; ``options`` (of :meth:`terrazzo.Slice.from_anndata`) go before what is known."""
        elsewhere = options.get("spatial_key", keys.SPATIAL) != keys.SPATIAL  # what is known is not known of those
        given = {"name": self.name, "image": self.image, **({} if elsewhere else self.known), **options}
        unsaid = given.get("unit") is None and given.get("microns_per_unit") is None
        if self.native is not None and unsaid and not elsewhere:
            given["microns_per_unit"] = self._microns(self.native, given.get("technology"))
        return Slice.from_anndata(self.adata, **given)

    def _microns(self, native: NDArray[np.float64], technology: str | None) -> float | None:
        """Micrometres in a unit of the coordinates, from what is known of the vendor's; None where that is unknown."""
        vendor = find_geometry(self.adata, native, None, None, technology)
        mapped = np.asarray(self.adata.obsm[keys.SPATIAL], dtype=np.float64)
        spread, before = (float(np.sqrt(np.var(xy[:, :2], axis=0).sum())) for xy in (mapped, native))
        if vendor.unit != "um":
            return None
        return vendor.scale * before / spread if spread > 0 and before > 0 else vendor.scale
