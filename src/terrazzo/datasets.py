"""Public datasets by name: what they are, where their slices lie on this machine, and where they come from."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from anndata import AnnData

from terrazzo import keys
from terrazzo.config import from_dict
from terrazzo.downloads import NOTE, cache_folder, noted, retrieve
from terrazzo.errors import ConfigError, DataMissing, DownloadError, InputError, did_you_mean
from terrazzo.images import TissueImage
from terrazzo.slices.reading import read_anndata

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA_VARIABLE, SHARED_VARIABLE = "TERRAZZO_DATA", "TERRAZZO_SHARED"
SUFFIXES = (".h5ad", ".zarr")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
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
        Hexadecimal sum and bytes by path, of the files that somebody has checked.
    """

    repo: str
    commit: str
    files: list[str]
    slices: list[str] = field(default_factory=list)
    sha256: dict = field(default_factory=dict)
    size: dict = field(default_factory=dict)


@dataclass(frozen=True)
class SourceFile:
    """One public file: its path in the repository, its address, and sum and size where they are known."""

    file: str
    url: str
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset, that is a folder with one ``.h5ad`` or ``.zarr`` a slice.

    Attributes
    ----------
    title
        What it is.
    slices
        Names of the slices that are known; a folder may hold more.
    technology, organism
        Platform and species.
    labels
        Columns of ``obs`` or keys of ``obsm`` that hold annotation.
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
        out = []
        for source in self.sources:
            for template in source.files:
                names = (source.slices or self.slices) if "{slice}" in template else [""]
                for path in (template.replace("{slice}", name) for name in names):
                    url = f"{RAW}/{source.repo}/{source.commit}/{path}"
                    out.append(
                        SourceFile(path, url, source.sha256.get(path), source.size.get(path))
                    )
        return tuple(out)


@cache
def registry() -> Mapping[str, Dataset]:
    """Return every dataset by name, as ``datasets.yaml`` has them."""
    text = (resources.files("terrazzo") / "datasets.yaml").read_text(encoding="utf-8")
    return {
        k: from_dict(Dataset, {**v, "name": k}, f"datasets.yaml: {k}")
        for k, v in yaml.safe_load(text).items()
    }


def info(dataset: str) -> Dataset:
    """Return what is known of a dataset.

    Raises
    ------
    ConfigError
        No such dataset; the nearest is named.
    """
    known = registry()
    if dataset not in known:
        raise ConfigError(
            f"there is no dataset {dataset!r}.{did_you_mean(dataset, known)} Known: {', '.join(known)}."
        )
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
    stated = data if data is not None else os.environ.get(DATA_VARIABLE)
    if stated:
        return Path(stated).expanduser()
    shared = Path(os.environ.get(SHARED_VARIABLE) or Path("..") / "shared").expanduser()
    return shared if shared.name == "data" and not (shared / "data").is_dir() else shared / "data"


def find(dataset: str, slice: str, data: str | os.PathLike[str] | None = None) -> Path:
    """Return where a slice lies: ``<folder>/<dataset>/<slice>.h5ad``, or ``.zarr``.

    Parameters
    ----------
    dataset, slice
        Names; they need not be in the registry.
    data
        Folder of the datasets; see :func:`folder`.

    Raises
    ------
    DataMissing
        It is not there; says what to put where, and where to get it.
    ConfigError
        A name that is a path.
    """
    for what, name in (("dataset", dataset), ("slice", slice)):
        if not _is_plain(name):
            raise ConfigError(
                f"{name!r} cannot be the name of a {what}: a name holds no / or \\ and is not empty."
            )
    base = folder(data)
    places = [base / dataset / f"{slice}{suffix}" for suffix in SUFFIXES]
    for place in places:
        if place.exists():
            return place
    raise DataMissing(_missing(dataset, slice, base, places[0]))


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
        Read the picture beside the slice too, where one lies there: ``<slice>.json`` names it and holds ``scale``
        (``image_xy = obsm["spatial"] * scale``, both ways). It becomes ``uns["spatial"][slice]["images"]["hires"]``,
        where scanpy and :class:`terrazzo.Slice` look first, whatever its resolution.

    Raises
    ------
    DataMissing, ConfigError
        As :func:`find`.
    InputError
        A slice or a picture that cannot be read; a picture that is too large.
    """
    path = find(dataset, slice, data)
    adata = read_anndata(path)
    known = registry().get(dataset)
    if known is not None and known.sources:
        adata.uns.setdefault(keys.TECHNOLOGY, known.technology)
        if known.microns_per_unit is not None:
            factors = _library(adata, slice)["scalefactors"]
            factors.setdefault("microns_per_pixel", known.microns_per_unit)
    if image and (sheet := path.with_name(f"{slice}.json")).is_file():
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

    A file that is there with the right sum is kept, and nothing is asked of the network; one with another sum, such as
    a part of one, is downloaded again. A download that is cut short or has another sum leaves what was there before.

    Parameters
    ----------
    dataset
        Name.
    file
        Path in the repository, one of ``info(dataset).files``.
    folder
        Where to; None: :func:`terrazzo.downloads.cache_folder`. The file goes to ``<folder>/<dataset>/<file>``.
    sha256
        The sum that is expected, needed where the registry has none.
    unchecked
        Take a file whose sum nobody has checked. Its sum is noted beside it, ``<file>.sha256``, and holds from then on.
    progress
        Show a bar; None: only on a terminal.

    Raises
    ------
    ConfigError
        No such dataset or file; a sum that is none, or not the registry's.
    DownloadError
        No sum is known; the download failed, which says what to put where by hand; another sum.
    OutputError
        The folder cannot be written.
    """
    known = {f.file: f for f in info(dataset).files}
    if file not in known:
        listed = ", ".join(list(known)[:5]) or "none: it is supplied by the user"
        raise ConfigError(
            f"{dataset} has no public file {file!r}.{did_you_mean(file, known)} Its files: {listed}."
        )
    target = (
        (Path(folder) if folder is not None else cache_folder()) / dataset / PurePosixPath(file)
    )
    note = target.with_name(f"{target.name}{NOTE}")
    wanted = _expected(known[file], sha256, note, unchecked)
    return retrieve(
        known[file].url, target, wanted, note=note, size=known[file].size, progress=progress
    )


def _expected(source: SourceFile, stated: str | None, note: Path, unchecked: bool) -> str | None:
    """Return the sum that a file must have; None: it is to be noted."""
    said = stated.strip().lower() if stated is not None else None
    if said is not None and not _SHA256.fullmatch(said):
        raise ConfigError(f"sha256 is {stated!r}; it must be 64 hexadecimal digits.")
    if said is not None and source.sha256 is not None and said != source.sha256:
        raise ConfigError(f"sha256 of {source.file} is {source.sha256}, not {said}.")
    if (wanted := said or source.sha256 or noted(note)) is None and not unchecked:
        raise DownloadError(
            f"nobody has checked the sha256 of {source.url}, and a file without one is not downloaded: "
            "pass sha256= of the file that you expect, or unchecked=True, which notes the sum of what comes."
        )
    return wanted


def _is_plain(name: Any) -> bool:
    return (
        isinstance(name, str)
        and bool(name.strip())
        and not set(name) & set("/\\\0")
        and name not in (".", "..")
    )


def _missing(dataset: str, slice: str, base: Path, place: Path) -> str:
    known = registry().get(dataset)
    other = place.with_suffix(SUFFIXES[1]).name
    text = (
        f"slice {slice!r} of dataset {dataset!r} is not here: put it at {place} (or {other}), or say where your data "
        f"lie with data=, --data or {DATA_VARIABLE}."
    )
    if not base.is_dir():
        text = f"{text} The folder {base} does not exist."
    elif place.parent.is_dir():
        there = sorted(
            {p.name.removesuffix(p.suffix) for p in place.parent.iterdir() if p.suffix in SUFFIXES}
        )
        hint = "" if known and slice in known.slices else did_you_mean(slice, there)
        text = f"{text} Slices there: {', '.join(there) or 'none'}.{hint}"
    elif known is None:
        text = text + did_you_mean(
            dataset, sorted({*registry(), *(p.name for p in base.iterdir() if p.is_dir())})
        )
    if known is None:
        return text
    labels = f", labels: {', '.join(known.labels)}" if known.labels else ""
    return f"{text} It is {known.title} ({known.technology}{labels}); to be had from {known.where}."


def _library(adata: AnnData, name: str) -> dict[str, Any]:
    """Return the entry of ``uns["spatial"]`` that belongs to the slice, made where it is not there."""
    spatial = adata.uns.get(keys.SPATIAL)
    if not isinstance(spatial, dict):
        adata.uns[keys.SPATIAL] = spatial = {}
    entry = next(iter(spatial.values())) if len(spatial) == 1 else spatial.get(name)
    if not isinstance(entry, dict):
        spatial[name] = entry = {}
    for part in ("images", "scalefactors"):
        entry.setdefault(part, {})
    return entry


def picture(path: str | os.PathLike[str]) -> TissueImage | None:
    """Return the picture that lies beside the file of a slice, None where there is none.

    Parameters
    ----------
    path
        Of the slice, ``<name>.h5ad`` or ``.zarr``. ``<name>.json`` beside it names the picture, a file of the same
        folder, and holds ``scale`` and, where pixels are no squares, ``scale_y``: ``image_xy = obsm["spatial"] *
        scale``.

    Raises
    ------
    InputError
        A sheet or a picture that cannot be read; a picture that is too large.
    """
    sheet = Path(path).with_suffix(".json")
    return _pictured(sheet, _said(sheet)) if sheet.is_file() else None


def _said(sheet: Path) -> dict[str, Any]:
    try:
        said = json.loads(sheet.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{sheet} is not readable JSON ({error}); it describes the image beside the slice."
        ) from error
    return said if isinstance(said, dict) else {}


def _pictured(sheet: Path, said: Mapping[str, Any]) -> TissueImage:
    name = said.get("image", "")
    if not _is_plain(name) or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(
            f"{sheet}: image is {name!r}; it must name a file of the same folder ({kinds})."
        )
    return TissueImage.from_file(
        sheet.with_name(name), scale=said.get("scale", 0.0), scale_y=said.get("scale_y")
    )


def _add_image(adata: AnnData, name: str, sheet: Path) -> None:
    said = _said(sheet)
    image = _pictured(sheet, said)
    entry = _library(adata, name)
    entry["images"] = {**entry["images"], "hires": image.pixels}
    entry["scalefactors"]["tissue_hires_scalef"] = image.scale
    if image.scale_y is not None:
        entry["scalefactors"]["tissue_hires_scalef_y"] = image.scale_y
    diameter = said.get("spot_diameter_fullres")
    if isinstance(diameter, int | float) and diameter > 0:
        entry["scalefactors"].setdefault("spot_diameter_fullres", float(diameter))
