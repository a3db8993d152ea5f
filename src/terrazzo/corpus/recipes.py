"""What a slice's file says of itself before it is loaded: cells, genes, technology, organism."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from terrazzo import keys
from terrazzo.config import from_dict
from terrazzo.corpus.sources import QualityControl, Source, name_sources, walk
from terrazzo.errors import ConfigError, CorpusError
from terrazzo.genes.names import parse_organism
from terrazzo.progress import Progress

_ASSAY = "assay"  # obs column in which CELLxGENE has the technology


@dataclass(frozen=True)
class Header:
    """Size of a slice, and what it states; None where it states nothing."""

    n_cells: int
    n_genes: int
    technology: str | None = None
    organism: str | None = None


def read_header(path: Path) -> Header:
    """Read the header of an ``.h5ad`` file or AnnData ``.zarr`` folder; no counts are read.

    Raises
    ------
    CorpusError
        It is damaged, or no AnnData.
    """
    try:
        if path.is_dir():
            import zarr

            return _header(zarr.open_group(path, mode="r"))
        import h5py

        with h5py.File(path, "r") as file:
            return _header(file)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CorpusError(f"it is damaged or no AnnData file ({type(error).__name__})") from error


def _header(root: Any) -> Header:
    sizes = [_length(root[axis]) for axis in ("obs", "var")]
    uns = root.get("uns", {})
    organism = _text(uns, keys.ORGANISM) or _single(root["obs"], keys.ORGANISM)
    try:
        organism = None if organism is None else parse_organism(organism)
    except ConfigError:
        organism = None
    technology = _text(uns, keys.TECHNOLOGY) or _single(root["obs"], _ASSAY)
    return Header(sizes[0], sizes[1], technology, organism)


def _length(table: Any) -> int:
    if not hasattr(table, "keys"):  # a structured array, as old files have it
        return int(table.shape[0])
    index = table.attrs["_index"]
    return int(table[index.decode() if isinstance(index, bytes) else str(index)].shape[0])


def _text(group: Any, name: str) -> str | None:
    if name not in group or getattr(group[name], "shape", None) != ():
        return None
    value = group[name][()]
    value = value.item() if hasattr(value, "item") else value
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text if isinstance(text, str) else None


def _single(table: Any, name: str) -> str | None:
    """Return the only category of a column, None where it has several."""
    if not hasattr(table, "keys") or name not in table or not hasattr(table[name], "keys"):
        return None
    categories = table[name]["categories"]
    if categories.shape != (1,):
        return None
    value = categories[:][0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class RecipeSource:
    """One source of a corpus.

    Attributes
    ----------
    name, url
        What it is called, and where a person finds it.
    files
        Patterns of the paths below the folder of downloads, e.g. ``vizgen/*``; ``*`` also spans folders.
    technologies, organisms
        What is taken from it; empty: anything. A file that does not state its technology (``uns["technology"]``) has
        the one whose name is in its path, or the only one there is.
    min_cells
        Cells or spots that a slice needs in the file.
    slices, cells
        What the paper counts in this source; None where it does not say.
    """

    name: str
    files: list = field(default_factory=list)
    url: str = ""
    technologies: list = field(default_factory=list)
    organisms: list = field(default_factory=list)
    min_cells: int = 1
    slices: int | None = None
    cells: int | None = None

    def __post_init__(self) -> None:
        for name in ("files", "technologies", "organisms"):
            if not all(isinstance(item, str) for item in getattr(self, name)):
                raise ValueError(f"{name} must be a list of texts")
        if not self.files:
            raise ValueError("files must name at least one pattern")
        for organism in self.organisms:
            parse_organism(organism)


@dataclass(frozen=True)
class Expected:
    """What the paper counts in the whole corpus, None where it does not say; ``rounded``: a round number of cells."""

    slices: int | None = None
    cells: int | None = None
    technologies: int | None = None
    rounded: bool = False


@dataclass(frozen=True)
class Recipe:
    """A corpus as its paper describes it.

    Attributes
    ----------
    name, paper
        What it is called, and where it is described.
    sources
        :class:`RecipeSource`, in this order; a file belongs to the first whose patterns it meets.
    quality
        Quality control.
    exclude
        Patterns of the paths of slices that are used for evaluation, and must stay out.
    expected
        Totals.
    """

    name: str
    sources: list
    paper: str = ""
    quality: QualityControl = field(default_factory=QualityControl)
    exclude: list = field(default_factory=list)
    expected: Expected = field(default_factory=Expected)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dict."""
        return dataclasses.asdict(self)


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from YAML; a misspelled key is an error that names the nearest valid one.

    Raises
    ------
    ConfigError
        A missing or broken file, unknown or missing keys, values of the wrong kind.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    recipe = from_dict(Recipe, content, str(path))
    sources = [
        from_dict(RecipeSource, one, f"{path}.sources[{i}]") for i, one in enumerate(recipe.sources)
    ]
    if not sources or not all(isinstance(pattern, str) for pattern in recipe.exclude):
        raise ConfigError(f"{path}: sources must not be empty, and exclude must be a list of texts")
    return dataclasses.replace(recipe, sources=sources)


@dataclass(frozen=True)
class PlannedFile:
    """One file of the user's, and what the recipe says of it.

    Attributes
    ----------
    path
        The file.
    verdict
        "match", "excluded" (evaluation), "filtered", "unclear" (its technology is not told), "unreadable", "unmatched".
    source
        Name of the recipe's source, "" for none.
    n_cells, technology
        From its header.
    reason
        Why it is no match.
    """

    path: Path
    verdict: str
    source: str = ""
    n_cells: int = 0
    technology: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """How a folder of downloads meets a recipe."""

    recipe: Recipe
    files: list[PlannedFile]

    def of(self, verdict: str) -> list[PlannedFile]:
        """Return the files of one verdict."""
        return [file for file in self.files if file.verdict == verdict]

    def table(self) -> pd.DataFrame:
        """Return one row a source, and a total.

        Columns: source, technologies, slices_expected, slices_found, slices_missing, cells_expected, cells_found;
        cells are counted before quality control; ``pd.NA`` where the paper does not say.
        """
        matched = self.of("match")
        rows = []
        for source in self.recipe.sources:
            mine = [file for file in matched if file.source == source.name]
            rows.append(
                _row(source.name, ", ".join(source.technologies), source.slices, source.cells, mine)
            )
        expected = self.recipe.expected
        told = sorted({file.technology for file in matched if file.technology})
        rows.append(_row("total", f"{len(told)} found", expected.slices, expected.cells, matched))
        whole = dict.fromkeys(("slices_expected", "slices_missing", "cells_expected"), "Int64")
        return pd.DataFrame(rows).astype(whole)

    def missing(self) -> list[str]:
        """Return one line for each source that is not there in full."""
        table, lines = self.table(), []
        urls = {source.name: source.url for source in self.recipe.sources}
        patterns = {source.name: ", ".join(source.files) for source in self.recipe.sources}
        for row in table[table["source"] != "total"].to_dict("records"):
            lacks = row["slices_missing"]
            if row["slices_found"] and (pd.isna(lacks) or lacks <= 0):
                continue
            what = "slices" if pd.isna(lacks) else f"{lacks} of {row['slices_expected']} slices"
            where = f" from {urls[row['source']]}" if urls[row["source"]] else ""
            lines.append(
                f"{row['source']}: {what} missing{where}; looked for {patterns[row['source']]}"
            )
        return lines


def _row(
    name: str, technologies: str, slices: int | None, cells: int | None, mine: list[PlannedFile]
) -> dict[str, Any]:
    return {
        "source": name,
        "technologies": technologies,
        "slices_expected": slices,
        "slices_found": len(mine),
        "slices_missing": None if slices is None else max(0, slices - len(mine)),
        "cells_expected": cells,
        "cells_found": sum(file.n_cells for file in mine),
    }


def plan(
    recipe: Recipe | str | os.PathLike[str],
    folders: str | os.PathLike[str] | Iterable[Any],
    *,
    progress: bool | None = None,
) -> Plan:
    """Say which files of a folder a recipe takes, from their headers; no counts are read.

    Parameters
    ----------
    recipe, folders
        A recipe or its file; folders of downloaded slices.
    progress
        Show a bar; None: on a terminal.

    Raises
    ------
    ConfigError
        A broken recipe.
    CorpusError
        A folder that is not there.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe
    found = []
    for folder in [folders] if isinstance(folders, str | os.PathLike) else list(folders):
        if not Path(folder).is_dir():
            raise CorpusError(f"{folder} is no folder; a recipe takes folders of downloaded slices")
        found += [(path, path.relative_to(folder).as_posix()) for path in walk(Path(folder))]
    files = []
    with Progress(progress).stage("headers", len(found), "files") as advance:
        for path, name in found:
            files.append(_judge(recipe, path, name))
            advance(1)
    return Plan(recipe, files)


def _judge(recipe: Recipe, path: Path, name: str) -> PlannedFile:
    source = next(
        (s for s in recipe.sources if any(_fits(name, pattern) for pattern in s.files)), None
    )
    if source is None:
        return PlannedFile(path, "unmatched", reason="no source of the recipe has such a path")
    pattern = next((p for p in recipe.exclude if _fits(name, p)), None)
    if pattern is not None:
        return PlannedFile(path, "excluded", source.name, reason=f"used for evaluation ({pattern})")
    try:
        header = read_header(path)
    except CorpusError as error:
        return PlannedFile(path, "unreadable", source.name, reason=str(error))
    technology = _technology(source, header, name)
    told = (path, source.name, header.n_cells, technology)
    if technology is None and source.technologies:
        return _planned(
            *told, "unclear", f"which of {', '.join(source.technologies)}? Set uns['technology']"
        )
    if source.technologies and _plain(str(technology)) not in map(_plain, source.technologies):
        return _planned(
            *told,
            "filtered",
            f"technology {technology} is none of {', '.join(source.technologies)}",
        )
    organisms = [parse_organism(one) for one in source.organisms]
    if organisms and header.organism is not None and header.organism not in organisms:
        return _planned(
            *told, "filtered", f"organism {header.organism} is none of {', '.join(organisms)}"
        )
    least = max(source.min_cells, recipe.quality.min_cells)
    if header.n_cells < least:
        return _planned(
            *told, "filtered", f"{header.n_cells} cells or spots; at least {least} are needed"
        )
    return _planned(*told, "match", "")


def _planned(
    path: Path, source: str, n_cells: int, technology: str | None, verdict: str, reason: str
) -> PlannedFile:
    return PlannedFile(path, verdict, source, n_cells, technology, reason)


def _technology(source: RecipeSource, header: Header, name: str) -> str | None:
    """Return the technology that a file states, else the one named in its path, else the only one there is."""
    if header.technology is not None:
        return header.technology
    named = [technology for technology in source.technologies if _plain(technology) in _plain(name)]
    if len(named) == 1:
        return named[0]
    return source.technologies[0] if len(source.technologies) == 1 else None


def _plain(text: str) -> str:
    """Return a technology's name without case, signs and maker: "10x Xenium" is "xenium", MERSCOPE is MERFISH."""
    name = re.sub(r"[^a-z0-9]", "", text.lower()).replace("merscope", "merfish")
    return name.removeprefix("10x").removeprefix("vizgen").removesuffix("v2")


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())


def planned_sources(recipe: Recipe, folders: Any) -> list[Source]:
    """Return the sources of a build that follows a recipe.

    Raises
    ------
    CorpusError
        No file matches, or files whose technology is unclear, or that cannot be read.
    """
    found = plan(recipe, folders)
    bad = found.of("unclear") + found.of("unreadable")
    if bad:
        lines = "".join(f"\n  {file.path}: {file.reason}" for file in bad[:20])
        raise CorpusError(f"{len(bad)} files cannot be placed in recipe {recipe.name!r}:{lines}")
    matched = found.of("match")
    if not matched:
        raise CorpusError(
            f"no file matches recipe {recipe.name!r}. Missing:"
            + "".join(f"\n  {line}" for line in found.missing())
        )
    takes: Mapping[str, list[str]] = {source.name: source.organisms for source in recipe.sources}
    rows = []
    for file in matched:
        organisms = tuple(parse_organism(one) for one in takes[file.source])
        rows.append(
            (
                file.path,
                {"technology": file.technology, "origin": file.source, "organisms": organisms},
            )
        )
    return name_sources(rows)
