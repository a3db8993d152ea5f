"""One tissue slice: counts, genes and positions, checked once and frozen."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from terrazzo import keys
from terrazzo.errors import ConfigError, InputError, TerrazzoWarning, shortened
from terrazzo.genes.names import (
    GeneNames,
    merge_plan,
    parse_organism,
    read_gene_names,
    warn_merged,
)
from terrazzo.genes.organism import OrganismFound, find_organism
from terrazzo.slices.counts import CountsFound, find_counts, warn_found
from terrazzo.slices.geometry import (
    find_geometry,
    find_image,
    image_in_units,
    read_coords,
)
from terrazzo.slices.lattices import nearest_distance
from terrazzo.slices.parts import section_labels, takes_all
from terrazzo.slices.places import check_places
from terrazzo.slices.sections import check_sections
from terrazzo.sparse import merge_columns

if TYPE_CHECKING:
    from terrazzo.images import TissueImage
    from terrazzo.slices.opened import Opened

__all__ = ["Slice", "stated"]

_HASH_VALUES = 2**20  # values hashed at a time


@dataclass(frozen=True, eq=False)
class Slice:
    """One tissue slice: counts, genes and positions, checked; n cells in, n rows out, in the same order.

    Attributes
    ----------
    counts
        CSR (n_cells, n_genes), float32 (float64 where a value exceeds 2**24); sorted, no duplicates, no explicit zeros.
    gene_ids, gene_symbols
        str (n_genes,): Ensembl id without version, and symbol; "" where unknown.
    coords
        float64 (n_cells, 2), x and y in ``unit``: micrometers where the platform is known, else as they were.
    unit
        "um", "pixel", "array" or "unknown".
    coord_scale
        ``coords = native * coord_scale``, native being what ``obsm`` holds.
    lattice
        int64 (n_cells, 2), (row, col) on the array, or None.
    lattice_kind
        "visium" (hexagonal, columns in steps of two), "st", or None.
    image
        Histology or None; its ``scale`` belongs to *native* coordinates (see :attr:`native_coords`).
    name, technology, organism
        Free text, "unknown" where not known; organism is "human", "mouse", "mixed" or "unknown".
    obs_names
        str (n_cells,).
    is_counts
        False only where normalized values were explicitly allowed.
    source
        Where the values were found: "X", "raw.X" or "layers['...']".
    origin
        What a path or a SpatialData was recognized as, with the notes of its reader; "" for an AnnData in memory.
    sections
        Where ``obs`` tells parts apart that do not overlap (fields of view): which, and that all are this slice.
    unit_evidence
        How sure the unit is ("stated", "sure", "likely", "guess" or "unknown"), and why; "" where nobody asked.
    notes
        What was decided on the counts: features left out as they are not genes, matrices passed over.
    organism_from
        What says the organism: evidence in a few words.
    """

    counts: sp.csr_matrix
    gene_ids: np.ndarray
    gene_symbols: np.ndarray
    coords: np.ndarray
    obs_names: np.ndarray
    unit: str = "unknown"
    coord_scale: float = 1.0
    lattice: np.ndarray | None = None
    lattice_kind: str | None = None
    image: TissueImage | None = None
    name: str = "slice"
    technology: str = "unknown"
    organism: str = "unknown"
    is_counts: bool = True
    source: str = "X"
    origin: str = ""
    sections: str = ""
    unit_evidence: str = ""
    notes: tuple[str, ...] = ()
    organism_from: str = ""

    @property
    def n_cells(self) -> int:
        """Number of cells (or spots, beads, bins)."""
        return int(self.counts.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes after duplicates were summed."""
        return int(self.counts.shape[1])

    @cached_property
    def total_counts(self) -> np.ndarray:
        """Sum over all genes, float64 (n_cells,)."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64)).ravel()

    @property
    def empty(self) -> np.ndarray:
        """True for cells without any count, bool (n_cells,)."""
        return self.total_counts == 0

    @cached_property
    def spacing(self) -> float:
        """Median distance to the nearest cell at another position, in ``unit``; 1.0 where there is no other."""
        return nearest_distance(self.coords)

    @property
    def native_coords(self) -> np.ndarray:
        """Coordinates as they were in ``obsm``, float64 (n_cells, 2): what ``image.crop`` takes."""
        return self.coords / self.coord_scale

    def __repr__(self) -> str:
        """Describe the slice in one line."""
        return (
            f"Slice({self.name!r}, {self.n_cells} cells x {self.n_genes} genes, {self.organism}, "
            f"technology={self.technology!r}, unit={self.unit!r}, image={'yes' if self.image is not None else 'no'})"
        )

    def content_hash(self) -> str:
        """Return the sha256 (hex) of counts, gene names and coordinates; independent of dtype widths and of names."""
        digest = hashlib.sha256(f"terrazzo-slice-1 {self.n_cells} {self.n_genes}".encode())
        arrays = (
            (self.counts.indptr, "<i8"),
            (self.counts.indices, "<i8"),
            (self.counts.data, "<f8"),
            (self.coords.ravel() + 0.0, "<f8"),
        )
        for array, dtype in arrays:
            for start in range(0, len(array), _HASH_VALUES):
                digest.update(array[start : start + _HASH_VALUES].astype(dtype).tobytes())
        for texts in (self.gene_ids, self.gene_symbols):
            digest.update(json.dumps(texts.tolist()).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what is in the slice as a JSON-able dict (the facts that ``terrazzo info`` prints)."""
        genes_detected = np.diff(self.counts.indptr)
        extent = np.ptp(self.coords, axis=0)
        image_shape = None
        if self.image is not None:
            image_shape = [int(side) for side in self.image.pixels.shape[:2]]
        facts = {
            "name": self.name,
            "recognized_as": "; ".join([self.origin or "AnnData in memory", *self.notes]),
            "technology": self.technology,
            "organism": self.organism,
            "organism_from": self.organism_from,
            "n_cells": self.n_cells,
            "n_genes": self.n_genes,
            "n_ensembl_ids": int((self.gene_ids != "").sum()),
            "n_symbols": int((self.gene_symbols != "").sum()),
            "n_empty_cells": int(self.empty.sum()),
            "median_total_counts": float(np.median(self.total_counts)),
            "median_genes_detected": float(np.median(genes_detected)),
            "is_counts": self.is_counts,
            "counts_from": self.source,
            "unit": self.unit,
            "unit_evidence": self.unit_evidence,
            "coord_scale": float(self.coord_scale),
            "extent": [float(extent[0]), float(extent[1])],
            "spacing": float(self.spacing),
            "lattice_kind": self.lattice_kind,
            "image": image_shape,
        }
        if self.sections:
            facts["sections"] = self.sections
        return facts

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        layer: str | None = None,
        spatial_key: str = keys.SPATIAL,
        unit: str | None = None,
        microns_per_unit: float | None = None,
        technology: str | None = None,
        organism: str | None = None,
        name: str | None = None,
        image: TissueImage | None = None,
        allow_normalized: bool = False,
        slice_key: str | None = None,
    ) -> Slice:
        """Check an AnnData (in memory, backed or lazy) and freeze it. The AnnData is never modified.

        Parameters
        ----------
        adata
            n cells x g genes, with coordinates in ``obsm[spatial_key]``, (n, 2) or more columns.
        layer
            Layer with raw counts ("X", "raw" force those). None: of ``layers["counts"]``, ``raw.X`` and ``X`` the first
            that holds counts of these cells. Columns that are not genes (antibodies, guides, control probes, blanks,
            spike-ins) are left out, with a warning.
        unit, microns_per_unit
            "um", "pixel", "array" or "unknown"; micrometers per native unit. None: from the data.
        technology, organism
            E.g. "Visium", "Xenium" (None: ``uns["technology"]``, or from the lattice); "human", "mouse", "mixed" or
            "unknown" (None: from ``uns``, ``obs`` or the genes).
        name, image
            Used in messages; histology with a ``scale`` for native coordinates (None: from ``uns["spatial"]``).
        allow_normalized
            Accept non-negative values that are not counts (``is_counts`` is then False), with a warning.
        slice_key
            "none": the cells are one slice, whatever tells them apart. A column of ``obs`` that tells sections apart
            must have one value here; :meth:`each_from_anndata` takes several.

        Raises
        ------
        InputError
            No cells, genes, counts or usable coordinates; NaN, negative or non-count values; several sections that
            overlap.
        ConfigError
            An unknown unit or organism, or an impossible ``microns_per_unit``.
        """
        texts = {
            "layer": layer,
            "spatial_key": spatial_key,
            "unit": unit,
            "technology": technology,
            "organism": organism,
            "name": name,
        }
        _check_arguments(texts, microns_per_unit, image)
        found = _checked_counts(adata, layer, allow_normalized)
        given_organism = None if organism is None else parse_organism(organism)
        coords = read_coords(adata, spatial_key)
        sections = _one_section(adata, coords, slice_key)
        geometry = find_geometry(adata, coords, unit, microns_per_unit, technology)
        check_places(geometry.coords, f"obsm[{spatial_key!r}], in {geometry.unit},")
        counts, names = _one_column_a_gene(found)
        if given_organism is None:
            found_organism = find_organism(adata.obs, adata.uns, names)
        else:
            found_organism = OrganismFound(given_organism, "as stated")
        if image is None:
            image = find_image(adata, geometry)
        else:
            image = image_in_units(image, geometry)
        return cls(
            counts=counts,
            gene_ids=names.gene_ids,
            gene_symbols=names.gene_symbols,
            coords=geometry.coords,
            obs_names=np.asarray(adata.obs_names.astype(str), dtype=np.str_),
            unit=geometry.unit,
            coord_scale=geometry.scale,
            lattice=geometry.lattice,
            lattice_kind=geometry.lattice_kind,
            image=image,
            name="slice" if name is None else name,
            technology=geometry.technology,
            organism=found_organism.name,
            is_counts=found.is_counts,
            source=found.source,
            sections=sections,
            unit_evidence=geometry.evidence,
            notes=found.notes,
            organism_from=found_organism.evidence,
        )

    @classmethod
    def each_from_anndata(cls, adata: AnnData, *, slice_key: str, **options: Any) -> list[Slice]:
        """Check the sections of an AnnData and freeze each: one slice for each value of a column of ``obs``.

        Parameters
        ----------
        adata, **options
            As in :meth:`from_anndata`.
        slice_key
            The column that tells sections apart; "none": one slice of all cells.

        Raises
        ------
        InputError
            No such column; cells without a section; or as :meth:`from_anndata`, with the section in front.
        """
        from terrazzo.slices.opened import Opened

        opened = Opened(
            adata, "AnnData in memory", options.pop("name", "slice"), slice_key=slice_key
        )
        return opened.each(lambda one: cls.from_anndata(one.adata, **one.arguments(**options)))

    @classmethod
    def from_spatialdata(
        cls,
        sdata: Any,
        *,
        table: str | None = None,
        region: str | None = None,
        coordinate_system: str | None = None,
        image: TissueImage | str | None = None,
        **kwargs: Any,
    ) -> Slice:
        """Check a table of a SpatialData, with the places of what it annotates, and freeze it.

        The coordinates are the centers of the circles, polygons, labels or points that the rows annotate, mapped into
        the coordinate system; ``obsm["spatial"]`` of the table where it annotates nothing that is there.

        Parameters
        ----------
        sdata
            A SpatialData, or the path of its store; the package spatialdata must be installed.
        table
            Name of the table; None where there is only one.
        region
            Name of the shapes, labels or points; None where the table annotates only one.
        coordinate_system
            None: "global", else the only one, else that in which the region has its own coordinates.
        image
            Name of an image, or an image; None: the only one in red, green and blue that belongs to the cells.
        **kwargs
            As in :meth:`from_anndata`. Without them the unit is micrometers where the axes of the coordinate system, or
            its name, say so; else what is known of the platform, of whose own coordinates those in ``obsm["spatial"]``
            of the table are taken.

        Raises
        ------
        InputError
            Not a SpatialData, no table, several tables or regions and none named, a name that is not there, rows that
            annotate nothing that is there; a damaged or unsafe store; the package is not installed; and as
            :meth:`from_anndata`.
        """
        from terrazzo.slices.opened import Choices
        from terrazzo.slices.spatialdata import open_spatialdata

        choices = Choices(table=table, region=region, coordinate_system=coordinate_system)
        if isinstance(image, str):
            choices = replace(choices, image=image)
        elif image is not None:
            kwargs["image"] = image
        return cls.from_opened(open_spatialdata(sdata, choices), **kwargs)

    @classmethod
    def from_opened(cls, opened: Opened, **options: Any) -> Slice:
        """Check and freeze what a reader returned; ``options`` (of :meth:`from_anndata`) go before what it knows."""
        tissue = cls.from_anndata(opened.adata, **opened.arguments(**options))
        evidence = opened.evidence(**options) or tissue.unit_evidence
        return replace(
            tissue, origin="; ".join([opened.format, *opened.notes]), unit_evidence=evidence
        )


def stated(adata: AnnData, names: Sequence[str]) -> str:
    """Return what the first of these columns of ``obs`` holds, several values joined by "|"; else the first of ``uns``.

    "" where neither has it.
    """
    columns = [adata.obs[name] for name in names if name in adata.obs.columns]
    if columns:
        values = {str(value).strip() for value in columns[0].dropna().unique()}
        text = "|".join(sorted(values))
        if text:
            return text
    for name in names:
        value = adata.uns.get(name)
        if isinstance(value, str | np.str_):
            return str(value).strip()
    return ""


def _check_arguments(
    texts: Mapping[str, Any], microns_per_unit: Any, image: TissueImage | None
) -> None:
    """Refuse arguments of another type: they may come from a table or a notebook."""
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} must be a text, not {shortened(value)}")
    if microns_per_unit is not None and not _is_length(microns_per_unit):
        raise ConfigError(
            f"microns_per_unit must be a positive number, not {shortened(microns_per_unit)}"
        )
    if image is not None and not hasattr(image, "pixels"):
        raise ConfigError(f"image must be a TissueImage, not {shortened(image)}")


def _is_length(value: Any) -> bool:
    """Say whether a value is a positive finite number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return 0 < float(value) < np.inf
    except OverflowError:
        return False


def _checked_counts(adata: AnnData, layer: str | None, allow_normalized: bool) -> CountsFound:
    if not isinstance(adata, AnnData):
        raise InputError(
            f"from_anndata takes an AnnData, not {type(adata).__name__}; for a file use terrazzo.read"
        )
    if adata.n_obs == 0:
        raise InputError("the AnnData has zero cells; check the filter that made it")
    _check_names(adata.obs, "obs")
    if not adata.obs_names.is_unique:
        n_repeated = int(adata.obs_names.duplicated().sum())
        _warn(
            f"{n_repeated} cell names repeat an earlier one; all cells are kept, distinguished by their position"
        )
    _check_names(adata.var, "var")
    if adata.raw is not None:
        _check_names(adata.raw.var, "raw.var")
    found = find_counts(adata, layer, allow_normalized)
    warn_found(found, stacklevel=5)
    if not found.is_counts:
        _warn(
            f"{found.source} holds normalized values, not counts; only models that use ranks may take them"
        )
    return found


def _one_section(adata: AnnData, coords: np.ndarray, slice_key: str | None) -> str:
    """Check that the cells are of one section; return a line on parts that do not overlap, "" where there are none."""
    if slice_key is None:
        return check_sections(adata, coords)
    if takes_all(slice_key):
        return ""
    labels = section_labels(adata.obs, slice_key)
    if len(labels) > 1:
        raise InputError(
            f"obs[{slice_key!r}] tells {len(labels)} sections apart ({labels.in_words()}), and this makes one slice: "
            "take one of them, or all by terrazzo.read(path, slice_key=) or Slice.each_from_anndata(adata, slice_key=)"
        )
    return ""


def _check_names(table: pd.DataFrame, which: str) -> None:
    """Refuse names of several levels, and columns of one name: no file can hold them, and which is meant is unclear."""
    for axis, what in ((table.index, f"{which}_names"), (table.columns, f"{which}.columns")):
        if isinstance(axis, pd.MultiIndex):
            raise InputError(
                f"{what} has {axis.nlevels} levels (a MultiIndex); make one text of each name: "
                f'["_".join(map(str, name)) for name in adata.{what}]'
            )
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        name = shortened(repeated[0])
        raise InputError(f"adata.{which} has the column {name} more than once; rename or drop one")


def _one_column_a_gene(found: CountsFound) -> tuple[sp.csr_matrix, GeneNames]:
    names = read_gene_names(found.var)
    column, first = merge_plan(names)
    if len(first) == len(column):
        return found.matrix, names
    warn_merged(names, column, first)
    return merge_columns(found.matrix, column, len(first)), names.take(first)


def _warn(message: str) -> None:
    warnings.warn(message, TerrazzoWarning, stacklevel=4)
