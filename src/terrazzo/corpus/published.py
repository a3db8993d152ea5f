"""Published corpora: what their papers say of them, and which files of a folder of downloads belong to them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo import keys
from terrazzo.config import from_dict
from terrazzo.corpus.quality import QualityControl
from terrazzo.corpus.sources import Source, name_sources, walk
from terrazzo.errors import ConfigError, CorpusError, InputError, did_you_mean
from terrazzo.genes.names import parse_organism
from terrazzo.parsing import parse_yaml, read_text
from terrazzo.progress import Progress
from terrazzo.safe_hdf5 import open_file
from terrazzo.safe_zarr import refuse_code, refuse_links

__all__ = [
    "CorpusPlan",
    "Expected",
    "Header",
    "PlannedFile",
    "PublishedCorpus",
    "PublishedSource",
    "load_published",
    "plan_corpus",
    "planned_sources",
    "published_names",
    "read_header",
]

_ASSAY = "assay"  # obs column in which CELLxGENE has the technology
_SUFFIX = ".yaml"
_MAX_SHOWN = 20  # files in one message


@dataclass(frozen=True)
class PublishedSource:
    """One source of a published corpus.

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
    files: list[str] = field(default_factory=list)
    url: str = ""
    technologies: list[str] = field(default_factory=list)
    organisms: list[str] = field(default_factory=list)
    min_cells: int = 1
    slices: int | None = None
    cells: int | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files must name at least one pattern")
        for organism in self.organisms:
            parse_organism(organism)

    def taken_organisms(self) -> tuple[str, ...]:
        """Return the organisms that are taken, by their standard names; () for any."""
        return tuple(parse_organism(organism) for organism in self.organisms)


@dataclass(frozen=True)
class Expected:
    """What the paper counts in the whole corpus, None where it does not say; ``rounded``: a round number of cells."""

    slices: int | None = None
    cells: int | None = None
    technologies: int | None = None
    rounded: bool = False


@dataclass(frozen=True, repr=False)
class PublishedCorpus:
    """A corpus as its paper describes it.

    Attributes
    ----------
    name, paper
        What it is called, and where it is described.
    sources
        In this order; a file belongs to the first source that has a pattern for its path.
    quality
        Quality control.
    exclude
        Patterns of the paths of slices that are used for evaluation, and must stay out.
    expected
        Totals.
    """

    name: str
    sources: list[PublishedSource]
    paper: str = ""
    quality: QualityControl = field(default_factory=QualityControl)
    exclude: list[str] = field(default_factory=list)
    expected: Expected = field(default_factory=Expected)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must not be empty")

    def __repr__(self) -> str:
        return f"PublishedCorpus({self.name!r}, {len(self.sources)} sources)"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain nested dict."""
        return dataclasses.asdict(self)


def _descriptions() -> Traversable:
    """Return the folder of the descriptions that come with the library."""
    return resources.files("terrazzo") / "corpus" / "published_corpora"


def published_names() -> list[str]:
    """Return the names of the published corpora that come with the library."""
    files = [Path(entry.name) for entry in _descriptions().iterdir()]
    return sorted(file.stem for file in files if file.suffix == _SUFFIX)


def load_published(name: str | os.PathLike[str]) -> PublishedCorpus:
    """Read the description of a published corpus; a misspelled key is an error that names the nearest valid one.

    Parameters
    ----------
    name
        One of :func:`published_names`, or the path of a YAML file.

    Raises
    ------
    ConfigError
        An unknown name; a missing or broken file, unknown or missing keys, values of the wrong kind.
    """
    path = _find_description(name)
    text = read_text(path) if isinstance(path, Path) else path.read_text(encoding="utf-8")
    content = parse_yaml(text, str(path))
    return from_dict(PublishedCorpus, content, str(path))


def _find_description(name: str | os.PathLike[str]) -> Traversable:
    """Return the file of a description: a path has a folder or a suffix, a name has neither."""
    path = Path(name)
    is_path = isinstance(name, os.PathLike) or len(path.parts) > 1
    if is_path or path.suffix.lower() in (_SUFFIX, ".yml"):
        return path
    names = published_names()
    if name not in names:
        listed = ", ".join(names)
        otherwise = f"There are {listed}; a file of your own must end in {_SUFFIX}."
        hint = did_you_mean(name, names, otherwise)
        raise ConfigError(f"there is no published corpus {name!r}.{hint}")
    return _descriptions() / f"{name}{_SUFFIX}"


@dataclass(frozen=True)
class Header:
    """Size of a slice, and what its file states; None where it states nothing."""

    n_cells: int
    n_genes: int
    technology: str | None = None
    organism: str | None = None


def read_header(path: Path) -> Header:
    """Read the header of an ``.h5ad`` file or AnnData ``.zarr`` folder; no counts are read.

    Raises
    ------
    CorpusError
        It is damaged, or not an AnnData.
    """
    try:
        if path.is_dir():
            import zarr

            refuse_links(path)
            refuse_code(path)
            return _header(zarr.open_group(path, mode="r"))
        with open_file(path) as file:
            return _header(file)
    except InputError as error:
        raise CorpusError(str(error)) from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise CorpusError(
            f"it is damaged or not an AnnData file ({type(error).__name__})"
        ) from error


def _header(root: Any) -> Header:
    obs = root["obs"]
    uns = root.get("uns", {})
    technology = _text(uns, keys.TECHNOLOGY) or _only_category(obs, _ASSAY)
    organism = _text(uns, keys.ORGANISM) or _only_category(obs, keys.ORGANISM)
    if organism is not None:
        try:
            organism = parse_organism(organism)
        except ConfigError:
            organism = None
    return Header(_n_rows(obs), _n_rows(root["var"]), technology, organism)


def _n_rows(table: Any) -> int:
    """Return the number of rows of ``obs`` or ``var``."""
    if not hasattr(table, "keys"):  # a structured array, as old files have it
        return int(table.shape[0])
    name = _decoded(table.attrs["_index"])
    return int(table[name].shape[0])


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _text(group: Any, name: str) -> str | None:
    """Return a single text of a group, None where it has none of this name."""
    if name not in group:
        return None
    element = group[name]
    if getattr(element, "shape", None) != ():
        return None
    value = element[()]
    if hasattr(value, "item"):
        value = value.item()
    return _decoded(value) if isinstance(value, str | bytes) else None


def _only_category(table: Any, name: str) -> str | None:
    """Return the only category of a column, None where it has several."""
    if not hasattr(table, "keys") or name not in table:
        return None
    column = table[name]
    if not hasattr(column, "keys"):
        return None
    categories = column["categories"]
    if categories.shape != (1,):
        return None
    (value,) = categories[:]
    return _decoded(value)


@dataclass(frozen=True)
class PlannedFile:
    """One file of the user's, and what becomes of it.

    Attributes
    ----------
    path
        The file.
    verdict
        "match", "excluded" (evaluation), "filtered", "unclear" (it does not state its technology), "unreadable",
        "unmatched".
    source
        Name of the source of the published corpus, "" for none.
    n_cells, technology
        From its header.
    reason
        Why it does not match.
    """

    path: Path
    verdict: str
    source: str = ""
    n_cells: int = 0
    technology: str | None = None
    reason: str = ""


@dataclass(frozen=True, repr=False)
class CorpusPlan:
    """Which files of a folder of downloads belong to a published corpus."""

    published: PublishedCorpus
    files: list[PlannedFile]

    def __repr__(self) -> str:
        name = self.published.name
        n_matched = len(self.of("match"))
        return f"CorpusPlan({name!r}, {n_matched} of {len(self.files)} files match)"

    def of(self, verdict: str) -> list[PlannedFile]:
        """Return the files of one verdict."""
        return [file for file in self.files if file.verdict == verdict]

    def _matched(self, source: PublishedSource) -> list[PlannedFile]:
        return [file for file in self.of("match") if file.source == source.name]

    def table(self) -> pd.DataFrame:
        """Return one row a source, and a total.

        Columns: source, technologies, slices_expected, slices_found, slices_missing, cells_expected, cells_found;
        cells are counted before quality control; ``pd.NA`` where the paper does not say.
        """
        rows = []
        for source in self.published.sources:
            technologies = ", ".join(source.technologies)
            files = self._matched(source)
            rows.append(_row(source.name, technologies, source, files))
        files = self.of("match")
        found = {file.technology for file in files if file.technology}
        technologies = f"{len(found)} found"
        rows.append(_row("total", technologies, self.published.expected, files))
        may_lack = ("slices_expected", "slices_missing", "cells_expected")
        return pd.DataFrame(rows).astype(dict.fromkeys(may_lack, "Int64"))

    def missing(self) -> list[str]:
        """Return one line for each source that is not complete."""
        lines = []
        for source in self.published.sources:
            n_found = len(self._matched(source))
            n_missing = _n_missing(source.slices, n_found)
            if n_found and not n_missing:
                continue
            amount = "slices"
            if n_missing is not None:
                amount = f"{n_missing} of {source.slices} slices"
            where = f" from {source.url}" if source.url else ""
            patterns = ", ".join(source.files)
            lines.append(f"{source.name}: {amount} missing{where}; looked for {patterns}")
        return lines


def _n_missing(n_expected: int | None, n_found: int) -> int | None:
    return None if n_expected is None else max(0, n_expected - n_found)


def _row(
    name: str, technologies: str, expected: PublishedSource | Expected, files: list[PlannedFile]
) -> dict[str, Any]:
    """Return a row of the plan's table."""
    n_found = len(files)
    return {
        "source": name,
        "technologies": technologies,
        "slices_expected": expected.slices,
        "slices_found": n_found,
        "slices_missing": _n_missing(expected.slices, n_found),
        "cells_expected": expected.cells,
        "cells_found": sum(file.n_cells for file in files),
    }


def plan_corpus(
    published: PublishedCorpus | str | os.PathLike[str],
    folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    progress: bool | None = None,
) -> CorpusPlan:
    """Find out which files belong to a published corpus, from their headers; no counts are read.

    Parameters
    ----------
    published
        A published corpus, its name, or a YAML file that describes it.
    folders
        Folders of downloaded slices.
    progress
        Show a bar; None: on a terminal.

    Raises
    ------
    ConfigError
        An unknown name, or a broken description.
    CorpusError
        A folder that does not exist.
    """
    if not isinstance(published, PublishedCorpus):
        published = load_published(published)
    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    named: list[tuple[Path, str]] = []  # file, and its path below the folder of downloads
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CorpusError(
                f"{folder} is not a folder; a published corpus is made from folders of downloaded slices"
            )
        for path in walk(folder):
            name = path.relative_to(folder).as_posix()
            named.append((path, name))
    files = []
    with Progress(progress).stage("headers", len(named), "files") as advance:
        for path, name in named:
            files.append(_judge(published, path, name))
            advance(1)
    return CorpusPlan(published, files)


def _judge(published: PublishedCorpus, path: Path, name: str) -> PlannedFile:
    """Return what becomes of a file; ``name``: its path below the folder of downloads."""
    source = _find_source(published, name)
    if source is None:
        reason = "no source of the published corpus has such a path"
        return PlannedFile(path, "unmatched", reason=reason)
    for pattern in published.exclude:
        if _fits(name, pattern):
            reason = f"used for evaluation ({pattern})"
            return PlannedFile(path, "excluded", source.name, reason=reason)
    try:
        header = read_header(path)
    except CorpusError as error:
        return PlannedFile(path, "unreadable", source.name, reason=str(error))
    technology = _find_technology(source, header, name)
    min_cells = max(source.min_cells, published.quality.min_cells)
    verdict, reason = _compare(source, header, technology, min_cells)
    return PlannedFile(path, verdict, source.name, header.n_cells, technology, reason)


def _find_source(published: PublishedCorpus, name: str) -> PublishedSource | None:
    for source in published.sources:
        if any(_fits(name, pattern) for pattern in source.files):
            return source
    return None


def _compare(
    source: PublishedSource, header: Header, technology: str | None, min_cells: int
) -> tuple[str, str]:
    """Return verdict and reason for a file of a source."""
    if source.technologies:
        listed = ", ".join(source.technologies)
        if technology is None:
            return "unclear", f"which of {listed}? Set uns['technology']"
        taken = [_plain(known) for known in source.technologies]
        if _plain(technology) not in taken:
            return "filtered", f"technology {technology} is none of {listed}"
    organisms = source.taken_organisms()
    if organisms and header.organism is not None and header.organism not in organisms:
        listed = ", ".join(organisms)
        return "filtered", f"organism {header.organism} is none of {listed}"
    if header.n_cells < min_cells:
        return "filtered", f"{header.n_cells} cells or spots; at least {min_cells} are needed"
    return "match", ""


def _find_technology(source: PublishedSource, header: Header, name: str) -> str | None:
    """Return the technology that a file states, else the one named in its path, else the only one there is."""
    if header.technology is not None:
        return header.technology
    plain_name = _plain(name)
    in_name = [known for known in source.technologies if _plain(known) in plain_name]
    for candidates in (in_name, source.technologies):
        if len(candidates) == 1:
            return candidates[0]
    return None


def _plain(text: str) -> str:
    """Return a technology's name without case, signs and maker: "10x Xenium" is "xenium", MERSCOPE is MERFISH."""
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    name = name.replace("merscope", "merfish")
    return name.removeprefix("10x").removeprefix("vizgen").removesuffix("v2")


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())


def planned_sources(
    published: PublishedCorpus, folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> list[Source]:
    """Return the sources of a build of a published corpus.

    Raises
    ------
    CorpusError
        No file matches, or files whose technology is unclear, or that cannot be read.
    """
    plan = plan_corpus(published, folders)
    unusable = plan.of("unclear") + plan.of("unreadable")
    if unusable:
        some = [f"{file.path}: {file.reason}" for file in unusable[:_MAX_SHOWN]]
        lines = "\n  ".join(some)
        raise CorpusError(
            f"{len(unusable)} files cannot be placed in the published corpus {published.name!r}:\n  {lines}"
        )
    matched = plan.of("match")
    if not matched:
        lines = "\n  ".join(plan.missing())
        raise CorpusError(
            f"no file matches the published corpus {published.name!r}. Missing:\n  {lines}"
        )
    organisms = {source.name: source.taken_organisms() for source in published.sources}
    named: list[tuple[Path, dict[str, Any]]] = []
    for file in matched:
        facts: dict[str, Any] = {
            "technology": file.technology,
            "origin": file.source,
            "organisms": organisms[file.source],
        }
        named.append((file.path, facts))
    return name_sources(named)
