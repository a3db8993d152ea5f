"""Data of a caller as a list of checked slices, and what is written to them put back where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from terrazzo import keys, records
from terrazzo.errors import ConfigError, InputError
from terrazzo.models.inputs import open_data
from terrazzo.slices import Opened, Slice
from terrazzo.slices.parts import Part, put_back, split
from terrazzo.slices.slice import stated

__all__ = ["Data", "Piece", "open_all"]


@dataclass(frozen=True, eq=False)
class Piece:
    """One slice.

    Attributes
    ----------
    tissue
        Checked.
    adata
        What is written to.
    name, donor
        The name differs from those of the others; the donor is the name where nothing states one.
    """

    tissue: Slice
    adata: AnnData
    name: str
    donor: str


@dataclass(frozen=True, eq=False)
class Source:
    """One thing that was passed: an AnnData, a SpatialData or a file, with its sections."""

    opened: Opened
    path: Path | None
    parts: list[Part]


@dataclass(frozen=True, eq=False)
class Data:
    """Everything that was passed.

    Attributes
    ----------
    pieces
        The slices.
    sources
        What they came from.
    """

    pieces: list[Piece]
    sources: list[Source] = field(default_factory=list)

    @property
    def slices(self) -> list[Slice]:
        """The checked slices."""
        return [piece.tissue for piece in self.pieces]

    @property
    def adatas(self) -> list[AnnData]:
        """What is written to, of each slice."""
        return [piece.adata for piece in self.pieces]

    @property
    def names(self) -> list[str]:
        """Name of each slice."""
        return [piece.name for piece in self.pieces]

    @property
    def donors(self) -> list[str]:
        """Donor of each slice."""
        return [piece.donor for piece in self.pieces]

    @property
    def notes(self) -> list[str]:
        """What was decided while reading, each with the name of its file or slice in front."""
        lines = []
        for source in self.sources:
            where = source.path or source.opened.name
            lines += [f"{where}: {note}" for note in source.opened.notes]
        for piece in self.pieces:
            if piece.tissue.sections:
                lines.append(f"{piece.name}: {piece.tissue.sections}")
        return lines

    def check_columns(self, key: str, suffix: str, tasks: Sequence[str]) -> None:
        """Refuse to replace columns of ``obs`` that are not of an earlier run.

        Parameters
        ----------
        key, suffix
            The columns are ``key`` and ``key + suffix``.
        tasks
            That may have written them.

        Raises
        ------
        InputError
            There is such a column.
        """
        for piece in self.pieces:
            record = records.records_of(piece.adata).get(key, {})
            if str(record.get("task", "")) in tasks:
                continue
            for column in (key, key + suffix):
                if column in piece.adata.obs:
                    raise InputError(
                        f"{piece.name} has a column obs[{column!r}] that terrazzo did not write; pass key_added= for "
                        "another name."
                    )

    def check_counts(self) -> None:
        """Refuse a slice without any count.

        Raises
        ------
        InputError
            There is one.
        """
        for piece in self.pieces:
            if piece.tissue.counts.nnz == 0:
                raise InputError(f"{piece.name} has no counts: all its cells are empty.")

    def check_places(self) -> None:
        """Refuse a slice whose cells are all at one place.

        Raises
        ------
        InputError
            There is one.
        """
        for piece in self.pieces:
            if piece.tissue.n_cells > 1 and np.ptp(piece.tissue.coords, axis=0).max() == 0:
                raise InputError(
                    f"all cells of {piece.name} are at one place, and regions need places; types do not."
                )

    def empty(self, meaning: str) -> list[str]:
        """Return a note for each slice that has cells without counts; ``meaning``: what is found of them."""
        notes = []
        for piece in self.pieces:
            n_empty = int(piece.tissue.empty.sum())
            if n_empty:
                notes.append(
                    f"{piece.name}: {n_empty:,} of {piece.tissue.n_cells:,} cells have no counts; they have {meaning}."
                )
        return notes

    def put_back(self) -> None:
        """Put what was written to sections into the AnnData that they are of, and into the table of a SpatialData."""
        for source in self.sources:
            if source.parts:
                put_back(source.opened.adata, str(source.opened.slice_key), source.parts)
            source.opened.copy_results_to_table()


def open_all(data: Any, donor_key: str | None, slice_options: dict[str, Any]) -> Data:
    """Open and check everything that :meth:`embed` takes.

    Parameters
    ----------
    data
        AnnData, SpatialData, path, or a list of these; or what was opened before, which is returned.
    donor_key
        Column of ``obs`` or entry of ``uns`` with the donor; None: as anywhere else.
    slice_options
        Of :meth:`terrazzo.Slice.from_anndata` and :class:`terrazzo.slices.Choices`.

    Raises
    ------
    InputError
        Nothing, or a slice that cannot be used.
    """
    if isinstance(data, Data):
        return data
    is_many = isinstance(data, Sequence) and not isinstance(data, str | bytes)
    items = list(data) if is_many else [data]
    if not items:
        raise InputError("there is no slice.")
    if slice_options.get("image") is not None and len(items) > 1:
        raise ConfigError(f"one image cannot belong to {len(items)} slices.")
    pieces: list[Piece] = []
    sources = []
    for number, item in enumerate(items):
        where = str(item) if isinstance(item, str | Path) else f"slice {number + 1}"
        try:
            source = _open(item, slice_options, donor_key, pieces)
        except InputError as error:
            if len(items) == 1 and not isinstance(item, str | Path):
                raise
            if str(error).startswith(where):
                raise
            raise type(error)(f"{where}: {error}") from error
        sources.append(source)
    return Data(pieces, sources)


def _open(
    item: Any, slice_options: dict[str, Any], donor_key: str | None, pieces: list[Piece]
) -> Source:
    """Open one item, and add its slices to ``pieces``."""
    opened, options = open_data(item, slice_options)
    parts: list[Part] = []
    wholes = [opened]
    if opened.is_split:
        parts = split(opened.adata, str(opened.slice_key))
        wholes = [opened.of_part(part) for part in parts]
    for one in wholes:
        tissue = Slice.from_opened(one, **options)
        name = _free_name(one.name, [piece.name for piece in pieces])
        pieces.append(Piece(tissue, one.adata, name, _donor(one.adata, donor_key, name)))
    path = Path(item) if isinstance(item, str | Path) else None
    return Source(opened, path, parts)


def _free_name(name: str, taken: list[str]) -> str:
    """Return a name that no other slice has."""
    free = name
    number = 2
    while free in taken:
        free = f"{name}-{number}"
        number += 1
    return free


def _donor(adata: AnnData, donor_key: str | None, name: str) -> str:
    if donor_key is not None and donor_key not in adata.obs and donor_key not in adata.uns:
        raise InputError(f"{name} has no obs column and no uns entry {donor_key!r} with its donor.")
    names = keys.DONOR if donor_key is None else (donor_key,)
    donor = stated(adata, names)
    return donor or name
