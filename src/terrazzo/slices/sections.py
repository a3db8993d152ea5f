"""Find several sections in one AnnData: what tells them apart, and whether they overlap."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.arrays import Floats
from terrazzo.errors import InputError, TerrazzoWarning
from terrazzo.sdata import annotation_of
from terrazzo.slices.lattices import numbers_of
from terrazzo.slices.overlap import (
    Labels,
    Shared,
    column_labels,
    equal_names,
    equal_points,
    mixing,
    sharing,
)

__all__ = ["NO_KEY", "Sections", "check_sections", "find_sections", "refuse_overlap"]

NO_KEY = "none"  # slice_key= that takes all as one slice

_FEWEST_CELLS = 5  # of a section, on average, that names of cells tell apart
_SHOWN = 5  # libraries in a message
_MIXED = 0.02  # of a section's cells, that lie among another's: from there on they overlap
_MIXED_TILES = 0.1  # the same of fields of view, whose margins may overlap
_WELL_MIXED = 0.3  # the same, for columns whose name says little
_REPEATED = 0.2  # of the cells, whose name comes again in another section
_MOSTLY = 0.9  # of the cells that share a place, whose sharing a column must explain
_MOST_PARTS = 100  # that endings of names tell apart
_SEPARATORS = ("-", "_")
_LOOKED_AT = 2000  # names, before all are
_ARRAY = "a place of the array"
_FEW_NUMBERS = 20  # values of a column of whole numbers that could be labels

# words of the names of columns: of sections, of the tiles of one, and of what is the same in all of a section
_SECTION = re.compile(
    "library|lib|sample|batch|slice|section|slide|donor|patient|subject|individual|participant|case|animal|mouse|rat|"
    "embryo|specimen|biopsy|organoid|replicate|rep|puck|chip|bregma|dataset|experiment|run|roi|core|tma|plate|well|"
    "lane|gem|ident|capture|image|cohort|study|gsm|accession|acquisition|block"
)
_TILE = re.compile("fov|tile|field")
_DESIGN = re.compile(
    "condition|treatment|group|timepoint|time|day|stage|age|sex|genotype|strain|disease|dose"
)
_FILLER = re.compile(
    "ids?|names?|key|label|number|no|nr|num|numeric|index|idx|code|tissue|brain|orig|spatial|visium|xenium|merfish|"
    "10x|tenx|sequencing|seq|of|view|area|technical|biological|uid|order"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+[a-z]*")
_ANNOTATION = re.compile(
    "cell|type|celltype|celltypes|cluster|clusters|leiden|louvain|annotation|annotations|region|regions|domain|"
    "domains|layer|layers|class|subclass|niche|phase|state|truth|ground|duplicate"
)
_ENDINGS = ("ids", "id", "name", "number", "no", "key", "s")  # of words written together: sampleid
_NEVER = (keys.ARRAY_ROW, keys.ARRAY_COL, "in_tissue", keys.EMPTY)


@dataclass(frozen=True)
class Sections:
    """Several sections in one AnnData.

    Attributes
    ----------
    source
        What tells them apart, in words: "obs['library_id'] tells 2 sections apart (A, B)".
    column
        The column of ``obs``; None where it is something else.
    example
        One of its values.
    overlap
        In words by what they overlap; "" where they do not.
    is_tiling
        They are fields of view: side by side they are one section.
    """

    source: str
    column: str | None = None
    example: str = ""
    overlap: str = ""
    is_tiling: bool = False

    @classmethod
    def of(cls, candidate: _Candidate, overlap: str = "") -> Sections:
        """Describe the sections that a column tells apart."""
        name = candidate.name
        labels = candidate.labels
        what = "parts" if candidate.kind == "tile" else "sections"
        source = f"obs[{name!r}] tells {len(labels)} {what} apart ({labels.in_words()})"
        return cls(source, name, labels.values[0], overlap, candidate.kind == "tile")

    def refusal(self) -> str:
        """Return the line that refuses to take all as one slice."""
        why = f"{self.source}, and they overlap: {self.overlap}. A slice is one section"
        if self.column is None:
            return (
                f"{why}: add a column of obs that says which cells are of which, and pass it as slice_key= "
                f"(--slice-key); slice_key={NO_KEY!r} takes all as one"
            )
        choose = f"adata[adata.obs[{self.column!r}].astype(str) == {self.example!r}]"
        return (
            f"{why}: pass slice_key={self.column!r} (--slice-key {self.column}) to take each by itself, or choose one "
            f"({choose}); slice_key={NO_KEY!r} takes all as one"
        )

    def note(self) -> str:
        """Return the line that says that all are taken as one slice."""
        text = f"{self.source}, which do not overlap: taken as one slice"
        return f"{text}; slice_key={self.column!r} takes each by itself"


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A column that may tell sections apart; ``kind``: "section", "tile", "design" or "other", by its name."""

    name: str
    labels: Labels
    kind: str


def check_sections(adata: AnnData, coords: Floats) -> str:
    """Refuse several sections that overlap; return a line on those that do not, "" where there is one section.

    Parameters
    ----------
    adata
        Source of ``obs``, ``uns`` and the cell names.
    coords
        float64 (n, 2), finite.

    Raises
    ------
    InputError
        The line names the column, its values, and what to do.
    """
    sections = find_sections(adata, coords)
    if sections is None:
        return ""
    if sections.overlap:
        raise InputError(sections.refusal())
    note = sections.note()
    if not sections.is_tiling:
        warnings.warn(note, TerrazzoWarning, stacklevel=4)
    return note


def refuse_overlap(adata: AnnData, spatial_key: str = keys.SPATIAL) -> str:
    """Do as :func:`check_sections` without a warning; nothing where there are no coordinates that can be used."""
    try:
        coords = np.array(adata.obsm.get(spatial_key), dtype=np.float64)
    except (TypeError, ValueError):
        return ""
    if coords.ndim != 2 or coords.shape[1] < 2 or not np.isfinite(coords).all():
        return ""
    sections = find_sections(adata, coords[:, :2])
    if sections is None:
        return ""
    if sections.overlap:
        raise InputError(sections.refusal())
    return sections.note()


def find_sections(adata: AnnData, coords: Floats) -> Sections | None:
    """Find what tells several sections apart, the coarsest that leaves none overlapping; None for one section.

    A column with a name of sections (library_id, sample, batch, fov, ...), or whose values are the libraries of
    ``uns["spatial"]``, is judged by where its cells are: sections overlap where cells of one lie among those of
    another. Any other column of labels counts only if it says why many cells share a place of the array, coordinates
    or names: cells of one section have their own. So labels within a section (types, regions) do not count.
    """
    if len(coords) < 2:
        return None
    names = _Names(adata)
    places = _shared_places(adata, coords)
    overlapping = []
    apart = []
    for candidate in _candidates(adata):
        overlap = _overlap(candidate, coords, places, names)
        if overlap:
            overlapping.append((candidate, overlap))
        elif candidate.kind in ("section", "tile"):
            apart.append(candidate)
    if overlapping:
        return _coarsest(overlapping, coords, places)
    sections = _without_column(coords, places, names, _libraries(adata))
    if sections is not None:
        return sections
    if not apart:
        return None
    return Sections.of(min(apart, key=_rank))


def _libraries(adata: AnnData) -> set[str]:
    """Return the names of the libraries in ``uns["spatial"]``."""
    spatial = adata.uns.get(keys.SPATIAL)
    if not isinstance(spatial, Mapping):
        return set()
    return {str(name) for name, entry in spatial.items() if isinstance(entry, Mapping)}


def _candidates(adata: AnnData) -> Iterator[_Candidate]:
    """Yield the columns of ``obs`` that may tell sections apart."""
    libraries = _libraries(adata)
    region_key = str(annotation_of(adata)[1])  # of a SpatialData
    most = max(2, adata.n_obs // 2)
    for position, name in enumerate(map(str, adata.obs.columns)):
        column = adata.obs.iloc[:, position]
        kind = "section" if name == region_key else _kind(name)
        if name in _NEVER or not _may_be_labels(column, kind):
            continue
        labels = column_labels(column)
        if labels is None or not 2 <= len(labels) <= most:
            continue
        if len(libraries.intersection(labels.values)) >= 2:
            kind = "section"
        if kind != "annotation" and not _is_measure(column, len(labels), kind):
            yield _Candidate(name, labels, kind)


def _is_measure(column: pd.Series, n_values: int, kind: str) -> bool:
    """Return whether a column of numbers has more values than one of labels has."""
    if kind in ("section", "tile"):
        return column.dtype.kind == "f" and n_values > _MOST_PARTS
    return column.dtype.kind in "iu" and n_values > _FEW_NUMBERS


def _may_be_labels(column: pd.Series, kind: str) -> bool:
    """Return whether a column could name sections; numbers with fractions only by the column's name."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return True
    if column.dtype.kind == "b":  # a flag
        return False
    if column.dtype.kind in "fc":
        return kind == "section"
    return column.dtype.kind not in "mM"


def _kind(name: str) -> str:
    """Return what the name of a column says of its values."""
    words = [_known_word(word.lower()) for word in re.findall(_WORD, name)]
    telling = [word for word in words if not word.isdigit() and not _FILLER.fullmatch(word)]
    if any(_ANNOTATION.fullmatch(word) for word in telling):
        return "annotation"
    if not telling:
        return "other"
    if all(_TILE.fullmatch(word) for word in telling):
        return "tile"
    if all(_DESIGN.fullmatch(word) for word in telling):
        return "design"
    if all(_SECTION.fullmatch(word) or _DESIGN.fullmatch(word) for word in telling):
        return "section"
    return "other"


def _known_word(word: str) -> str:
    """Return a word without an ending such as "id", if that leaves a known one."""
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if _SECTION.fullmatch(stem) or _TILE.fullmatch(stem):
            return stem
    return word


def _shared_places(adata: AnnData, coords: Floats) -> list[Shared]:
    """Return shared places of the array and shared coordinates, those that matter."""
    shared = []
    if keys.ARRAY_ROW in adata.obs.columns and keys.ARRAY_COL in adata.obs.columns:
        columns = [numbers_of(adata.obs[name]) for name in (keys.ARRAY_ROW, keys.ARRAY_COL)]
        array = np.stack(columns, axis=1)
        if np.isfinite(array).all():
            shared.append(sharing(_ARRAY, equal_points(array)))
    shared.append(sharing("coordinates", equal_points(coords)))
    return [one for one in shared if one.matters]


class _Names:
    """Names of cells, looked at where they are needed."""

    def __init__(self, adata: AnnData) -> None:
        self._names = adata.obs_names

    @cached_property
    def repeated(self) -> bool:
        """Whether many cells have the name of another."""
        if self._names.is_unique:
            return False
        return _are_many(self._whole())

    @cached_property
    def halves(self) -> list[_Halves]:
        """Beginnings and endings that some cells have in common, as :func:`anndata.concat` adds them to names."""
        probe = self._names[:: -(-len(self._names) // _LOOKED_AT)].astype(str)
        halves = []
        for separator in _SEPARATORS:
            if not all(separator in name for name in probe):
                continue
            endings = {name.rpartition(separator)[2] for name in probe}
            beginnings = {name.partition(separator)[0] for name in probe}
            if 2 <= len(endings) <= _MOST_PARTS:
                parts = self._texts.str.rpartition(separator)
                halves.append(
                    _Halves(column_labels(parts[2]), sharing("names", equal_names(parts[0])))
                )
            if 2 <= len(beginnings) <= _MOST_PARTS:
                parts = self._texts.str.partition(separator)
                halves.append(
                    _Halves(column_labels(parts[0]), sharing("names", equal_names(parts[2])))
                )
        return [one for one in halves if _are_many(one.rest)]

    def explained(self, labels: Labels) -> bool:
        """Return whether a column says why cells share names: each name comes once with each value."""
        shared = [one.rest for one in self.halves]
        if self.repeated:
            shared.append(self._whole())
        return any(one.explained(labels) == 1.0 for one in shared)

    def parts(self) -> Labels | None:
        """Return the endings or beginnings of names by which AnnDatas were joined; None where there are none."""
        found = []
        for half in self.halves:
            labels = half.labels
            if labels is None or not labels.in_blocks():
                continue
            if len(labels) * _FEWEST_CELLS > len(self._names):  # numbers of cells, not of sections
                continue
            if half.rest.explained(labels) == 1.0:
                found.append(labels)
        return min(found, key=lambda labels: len(labels.values[0]), default=None)

    @cached_property
    def _texts(self) -> pd.Series:
        return pd.Series(self._names.astype(str))

    def _whole(self) -> Shared:
        return sharing("names", equal_names(self._names))


@dataclass(frozen=True, eq=False)
class _Halves:
    """One half of the cells' names as labels, and which cells share the other."""

    labels: Labels | None
    rest: Shared


def _are_many(names: Shared) -> bool:
    return bool(names.shares.mean() >= _REPEATED)


def _overlap(candidate: _Candidate, coords: Floats, places: list[Shared], names: _Names) -> str:
    """Return in words by what the sections of a column overlap; "" where they do not, or where it tells none apart."""
    labels = candidate.labels
    is_named = candidate.kind in ("section", "tile")
    for shared in places:
        explained = shared.explained(labels)
        if is_named and explained >= _MOSTLY:
            return shared.in_words()
        if explained == 1.0 and 2 * shared.largest() >= len(labels) and shared.is_no_chance(labels):
            return shared.in_words()
    if is_named:
        least = _MIXED_TILES if candidate.kind == "tile" else _MIXED
        return mixing(coords, labels, least)
    if not labels.in_blocks():
        return ""
    if candidate.kind == "design":
        return mixing(coords, labels, _WELL_MIXED)
    if names.explained(labels):
        return mixing(coords, labels, _MIXED)
    return ""


def _coarsest(
    overlapping: list[tuple[_Candidate, str]], coords: Floats, places: list[Shared]
) -> Sections:
    """Return the column with the fewest sections within which no other column tells overlapping ones apart."""
    ranked = sorted(overlapping, key=lambda one: _rank(one[0]))
    for candidate, overlap in ranked:
        others = [other for other, _ in ranked if len(other.labels) > len(candidate.labels)]
        is_explained = all(shared.explained(candidate.labels) >= _MOSTLY for shared in places)
        if is_explained and not any(_mixes_within(candidate, other, coords) for other in others):
            return Sections.of(candidate, overlap)
    candidate, overlap = ranked[-1]
    return Sections.of(candidate, overlap)


def _rank(candidate: _Candidate) -> tuple[bool, int, bool, bool]:
    """Return what candidates are sorted by, the one to name first."""
    is_tile = candidate.kind == "tile"
    is_other = candidate.kind in ("design", "other")
    return is_tile, len(candidate.labels), is_other, candidate.name != keys.LIBRARY


def _mixes_within(parent: _Candidate, child: _Candidate, coords: Floats) -> bool:
    """Return whether sections of one column overlap that are in the same section of another."""
    has_both = (parent.labels.codes >= 0) & (child.labels.codes >= 0)
    n_values = len(child.labels)
    code = parent.labels.codes * n_values + child.labels.codes
    joint = column_labels(pd.Series(np.where(has_both, code, -1)))
    if joint is None:
        return False
    parents = np.array([int(value) // n_values for value in joint.values])
    least = _MIXED_TILES if child.kind == "tile" else _MIXED
    return bool(mixing(coords, joint, least, parents))


def _without_column(
    coords: Floats, places: list[Shared], names: _Names, libraries: set[str]
) -> Sections | None:
    """Find overlapping sections that no column tells apart: by the cells' names, libraries, or order."""
    parts = names.parts()
    if parts is not None:
        overlap = mixing(coords, parts, _MIXED)
        for shared in places:
            if shared.explained(parts) >= _MOSTLY:
                overlap = shared.in_words()
        if overlap:
            source = f"the cells' names tell {len(parts)} sections apart ({parts.in_words()})"
            return Sections(source, overlap=overlap)
    for shared in places:
        if len(libraries) > 1:
            listed = ", ".join(sorted(libraries)[:_SHOWN])
            source = f"uns['spatial'] has {len(libraries)} libraries ({listed}), and no column of obs names them"
        elif names.repeated:
            source = "several sections were joined, as cells' names repeat, and no column of obs tells them apart"
        elif shared.what == _ARRAY and shared.in_rounds:
            source = "several sections were joined, one below the other, and no column of obs tells them apart"
        else:
            continue
        return Sections(source, overlap=shared.in_words())
    return None
