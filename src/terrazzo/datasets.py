"""Public datasets by name: what they are, where their slices are on this machine, and where they come from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from terrazzo import keys
from terrazzo.config import from_dict
from terrazzo.downloads import NOTE, cache_folder, noted_sha256, retrieve
from terrazzo.errors import (
    ConfigError,
    DataMissing,
    DownloadError,
    did_you_mean,
    shortened,
)
from terrazzo.images import TissueImage
from terrazzo.parsing import parse_yaml
from terrazzo.safe_files import is_plain_name
from terrazzo.slices.histology import read_sheet, sheet_image, sheet_of
from terrazzo.slices.reading import read_anndata

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DATA_VARIABLE",
    "SHARED_VARIABLE",
    "Dataset",
    "Source",
    "SourceFile",
    "fetch",
    "find",
    "folder",
    "info",
    "load",
    "picture",
    "registry",
    "table",
]

DATA_VARIABLE = "TERRAZZO_DATA"
SHARED_VARIABLE = "TERRAZZO_SHARED"
SUFFIXES = (".h5ad", ".zarr")
RAW = "https://raw.githubusercontent.com"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """Public files at one commit of a GitHub repository.

    Attributes
    ----------
    repo, commit
        ``owner/name``, and the full hash.
    files
        Paths in it; ``{slice}`` stands for each slice.
    slices
        Which slices; all of the dataset where empty.
    sha256, size
        Hexadecimal sha256 and number of bytes by path, of the files that somebody has checked.
    """

    repo: str
    commit: str
    files: list[str]
    slices: list[str] = field(default_factory=list)
    sha256: dict = field(default_factory=dict)
    size: dict = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFile:
    """One public file: its path in the repository, its address, and sha256 and size where they are known."""

    file: str
    url: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset: a folder with one ``.h5ad`` or ``.zarr`` a slice.

    Attributes
    ----------
    title
        What it is.
    slices
        Names of the slices that are known; a folder may hold more.
    technology, organism
        Platform and species.
    labels
        Columns of ``obs`` or keys of ``obsm`` with annotations.
    citation, license
        Whom to cite; what the source says about use.
    where
        Where to get it, in words.
    sources
        Public files behind it; empty: supplied by the user.
    microns_per_unit
        Of the coordinates, where it is known and ``technology`` does not say it.
    name
        Of the folder.
    """

    title: str
    slices: list[str]
    technology: str
    organism: str
    citation: str
    license: str
    where: str
    labels: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    microns_per_unit: float | None = None
    name: str = ""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every public file behind the dataset."""
        files = []
        for source in self.sources:
            names = source.slices or self.slices
            for template in source.files:
                paths = [template.replace("{slice}", name) for name in names]
                if "{slice}" not in template:
                    paths = [template]
                for path in paths:
                    url = f"{RAW}/{source.repo}/{source.commit}/{path}"
                    sha256 = source.sha256.get(path)
                    files.append(SourceFile(path, url, sha256, source.size.get(path)))
        return tuple(files)


@cache
def registry() -> Mapping[str, Dataset]:
    """Return every dataset by name, as ``datasets.yaml`` has them."""
    file = resources.files("terrazzo") / "datasets.yaml"
    content = parse_yaml(file.read_bytes(), "datasets.yaml")
    datasets = {}
    for name, fields in content.items():
        where = f"datasets.yaml: {name}"
        datasets[name] = from_dict(Dataset, {**fields, "name": name}, where)
    return datasets


def info(dataset: str) -> Dataset:
    """Return what is known of a dataset.

    Raises
    ------
    ConfigError
        No such dataset; the nearest is named.
    """
    known = registry()
    if dataset not in known:
        hint = did_you_mean(dataset, known)
        names = ", ".join(known)
        raise ConfigError(f"there is no dataset {dataset!r}.{hint} Known: {names}.")
    return known[dataset]


def table() -> pd.DataFrame:
    """Return one row a dataset, for documents."""
    rows = [
        {
            "dataset": d.name,
            "what": d.title,
            "slices": ", ".join(d.slices),
            "technology": d.technology,
            "organism": d.organism,
            "labels": ", ".join(d.labels),
            "citation": d.citation,
            "license": d.license,
            "where": d.where,
            "public files": len(d.files),
        }
        for d in registry().values()
    ]
    return pd.DataFrame(rows)


def folder(data: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds the datasets: ``data``, else ``$TERRAZZO_DATA``, else that of the shared files.

    The last is ``data/`` in ``$TERRAZZO_SHARED`` (which may name that folder itself), or in ``../shared``. It is not
    checked that the folder exists.
    """
    if data is None:
        data = os.environ.get(DATA_VARIABLE)
    if data:
        return Path(data).expanduser()
    shared = Path(os.environ.get(SHARED_VARIABLE) or "../shared").expanduser()
    inner = shared / "data"
    if shared.name == "data" and not inner.is_dir():
        return shared
    return inner


def find(dataset: str, slice: str, data: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a slice: ``<folder>/<dataset>/<slice>.h5ad``, or ``.zarr``.

    Parameters
    ----------
    dataset, slice
        Names; they need not be in the registry.
    data
        Folder of the datasets; see :func:`folder`.

    Raises
    ------
    DataMissing
        There is no such file; the message says what to put where, and where to get it.
    ConfigError
        A name that is a path.
    """
    for kind, name in (("dataset", dataset), ("slice", slice)):
        if not is_plain_name(name):
            raise ConfigError(
                f"{shortened(name)} cannot be the name of a {kind}: a name has no / or \\ and is not empty."
            )
    base = folder(data)
    for suffix in SUFFIXES:
        place = base / dataset / f"{slice}{suffix}"
        if place.exists():
            return place
    raise DataMissing(_missing(dataset, slice, base))


def load(
    dataset: str, slice: str, data: str | os.PathLike[str] | None = None, *, image: bool = False
) -> AnnData:
    """Read a slice, with what the registry knows of it.

    ``uns["technology"]`` is set where the file lacks it and the dataset has public sources.

    Parameters
    ----------
    dataset, slice, data
        As in :func:`find`.
    image
        Read the image beside the slice too, if there is one: ``<slice>.json`` has its file name and ``scale``
        (``image_xy = obsm["spatial"] * scale``, along both axes). It becomes
        ``uns["spatial"][slice]["images"]["hires"]``, where scanpy and :class:`terrazzo.Slice` look first, whatever its
        resolution.

    Raises
    ------
    DataMissing, ConfigError
        As :func:`find`.
    InputError
        A slice or an image that cannot be read; an image that is too large.
    """
    path = find(dataset, slice, data)
    adata = read_anndata(path)
    known = registry().get(dataset)
    if known is not None and known.sources:
        adata.uns.setdefault(keys.TECHNOLOGY, known.technology)
        if known.microns_per_unit is not None:
            factors = _library(adata, slice)["scalefactors"]
            factors.setdefault("microns_per_pixel", known.microns_per_unit)
    sheet = path.with_name(f"{slice}.json")
    if image and sheet.is_file():
        _add_image(adata, slice, sheet)
    return adata


def fetch(
    dataset: str,
    file: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    sha256: str | None = None,
    unchecked: bool = False,
    progress: bool | None = None,
) -> Path:
    """Download one of the public files behind a dataset, checked by its sha256; it is neither opened nor unpacked.

    An existing file with the right sha256 is kept, without any use of the network; one with another sha256, such as a
    part of the file, is downloaded again. A download that is cut short or has another sha256 changes nothing.

    Parameters
    ----------
    dataset
        Name.
    file
        Path in the repository, one of ``info(dataset).files``.
    folder
        Where to; None: :func:`terrazzo.downloads.cache_folder`. The file goes to ``<folder>/<dataset>/<file>``.
    sha256
        The expected sha256, needed where the registry has none.
    unchecked
        Take a file whose sha256 nobody has checked. It is noted beside the file, in ``<file>.sha256``, and is the
        expected one from then on.
    progress
        Show a bar; None: only on a terminal.

    Raises
    ------
    ConfigError
        No such dataset or file; a sha256 that is not one, or not the registry's.
    DownloadError
        No sha256 is known; the download failed (the message says what to put where by hand); another sha256.
    OutputError
        The folder cannot be written.
    """
    files = {public.file: public for public in info(dataset).files}
    if file not in files:
        hint = did_you_mean(file, files)
        first_files = ", ".join(list(files)[:5]) or "none: it is supplied by the user"
        raise ConfigError(f"{dataset} has no public file {file!r}.{hint} Its files: {first_files}.")
    public = files[file]
    base = cache_folder() if folder is None else Path(folder)
    target = base / dataset / PurePosixPath(file)
    note = target.with_name(f"{target.name}{NOTE}")
    expected = _expected(public, sha256, note, unchecked)
    return retrieve(public.url, target, expected, note=note, size=public.size, progress=progress)


def _expected(public: SourceFile, stated: str | None, note: Path, unchecked: bool) -> str | None:
    """Return the sha256 that a file must have; None: any, which is to be noted."""
    known = public.sha256
    if stated is not None:
        sha256 = stated.strip().lower()
        if not _SHA256.fullmatch(sha256):
            raise ConfigError(f"sha256 is {stated!r}; it must be 64 hexadecimal digits.")
        if known is not None and sha256 != known:
            raise ConfigError(f"sha256 of {public.file} is {known}, not {sha256}.")
        return sha256
    expected = known or noted_sha256(note)
    if expected is None and not unchecked:
        raise DownloadError(
            f"nobody has checked the sha256 of {public.url}, and a file without one is not downloaded: "
            "pass sha256= of the file that you expect, or unchecked=True, which notes that of the file that comes."
        )
    return expected


def _missing(dataset: str, slice: str, base: Path) -> str:
    """Say where a slice is expected, what is there instead, and where to get it."""
    known = registry().get(dataset)
    parent = base / dataset
    names = [f"{slice}{suffix}" for suffix in SUFFIXES]
    text = (
        f"slice {slice!r} of dataset {dataset!r} is missing: put it at {parent / names[0]} (or {names[1]}), or pass "
        f"the folder of your data with data=, --data or {DATA_VARIABLE}."
    )
    if not base.is_dir():
        text = f"{text} The folder {base} does not exist."
    elif parent.is_dir():
        present = sorted({path.stem for path in parent.iterdir() if path.suffix in SUFFIXES})
        is_known = known is not None and slice in known.slices
        hint = "" if is_known else did_you_mean(slice, present)
        text = f"{text} Slices there: {', '.join(present) or 'none'}.{hint}"
    elif known is None:
        folders = {path.name for path in base.iterdir() if path.is_dir()}
        text = text + did_you_mean(dataset, sorted(folders | set(registry())))
    if known is None:
        return text
    description = known.technology
    if known.labels:
        description = f"{description}, labels: {', '.join(known.labels)}"
    return f"{text} It is {known.title} ({description}); get it from {known.where}."


def _library(adata: AnnData, name: str) -> dict[str, Any]:
    """Return the entry of ``uns["spatial"]`` that belongs to the slice, made where it is missing."""
    spatial = adata.uns.get(keys.SPATIAL)
    if not isinstance(spatial, dict):
        spatial = {}
        adata.uns[keys.SPATIAL] = spatial
    own_name = next(iter(spatial)) if len(spatial) == 1 else name
    entry = spatial.get(own_name)
    if not isinstance(entry, dict):
        entry = {}
        spatial[name] = entry
    for part in ("images", "scalefactors"):
        entry.setdefault(part, {})
    return entry


def picture(path: str | os.PathLike[str]) -> TissueImage | None:
    """Return the image beside the file of a slice, None where there is none.

    Parameters
    ----------
    path
        Of the slice, ``<name>.h5ad`` or ``.zarr``. ``<name>.json`` beside it has the name of the image, a file of the
        same folder, and ``scale`` and, where pixels are not square, ``scale_y``: ``image_xy = obsm["spatial"] *
        scale``.

    Raises
    ------
    InputError
        A JSON file or an image that cannot be read; an image that is too large.
    """
    sheet = sheet_of(Path(path))
    if not sheet.is_file():
        return None
    return sheet_image(sheet, read_sheet(sheet))


def _add_image(adata: AnnData, name: str, sheet: Path) -> None:
    """Put the image beside a slice into its ``uns``."""
    content = read_sheet(sheet)
    image = sheet_image(sheet, content)
    entry = _library(adata, name)
    factors = entry["scalefactors"]
    entry["images"] = {**entry["images"], "hires": np.asarray(image.pixels)}
    factors["tissue_hires_scalef"] = image.scale
    if image.scale_y is not None:
        factors["tissue_hires_scalef_y"] = image.scale_y
    diameter = content.get("spot_diameter_fullres")
    if isinstance(diameter, int | float) and diameter > 0:
        factors.setdefault("spot_diameter_fullres", float(diameter))
