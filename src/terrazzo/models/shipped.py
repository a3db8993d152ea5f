"""Weights that come with terrazzo: checkpoint folders inside the package, found by name and checked by checksum."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from terrazzo.config import from_dict
from terrazzo.errors import CheckpointError, ConfigError, did_you_mean
from terrazzo.files import hash_file
from terrazzo.models import checkpoint as ckpt

__all__ = [
    "ABOUT",
    "CHECKED",
    "ORGANIZATION",
    "About",
    "DataSource",
    "Shipped",
    "all_shipped",
    "belongs",
    "checked_folder",
    "list_models",
    "not_shipped",
    "root",
]

ORGANIZATION = "terrazzo/"  # of the names; on the hub, too

ABOUT = "about.json"

CHECKED = (ckpt.WEIGHTS, ckpt.VOCABULARY, ckpt.CONFIG)  # files whose checksums are stated

DIGITS = 12  # of a checksum in a message

COLUMNS = (
    "name",
    "system",
    "purpose",
    "quality",
    "size_mb",
    "parameters",
    "genes",
    "organism",
    "data",
    "licenses",
)


@dataclass(frozen=True)
class DataSource:
    """Data that weights were trained on: name, where it comes from, and its license."""

    name: str
    source: str
    license: str


@dataclass(frozen=True)
class About:
    """Content of ``about.json`` beside weights that ship.

    Attributes
    ----------
    system
        Title of the system, e.g. ``"SToFM"``.
    purpose, quality
        What they are for, and how good they are: a line each; numbers are from a results file.
    parameters, genes
        Number of weights, and of genes in the vocabulary.
    organism
        Of the vocabulary.
    data
        What they were trained on.
    trained_by
        The command.
    steps
        Of training, all stages together.
    dtype
        Of the numbers on disk.
    loss_of_rounding
        Relative difference of vectors before and after rounding to it, the largest of the slices.
    sha256
        Of weights, vocabulary and config: file name to hexadecimal digits.
    """

    system: str
    purpose: str
    quality: str
    parameters: int
    genes: int
    organism: str
    data: list[DataSource]
    trained_by: str
    steps: int
    dtype: str
    loss_of_rounding: float
    sha256: dict[str, str]


@dataclass(frozen=True)
class Shipped:
    """Weights that ship: the name that :func:`terrazzo.load` takes, their folder, and what is stated of them."""

    name: str
    folder: Path
    about: About

    def row(self) -> dict[str, Any]:
        """Return the row of :func:`list_models`."""
        content = asdict(self.about)
        content["name"] = self.name
        n_bytes = sum(file.stat().st_size for file in self.folder.iterdir())
        content["size_mb"] = round(n_bytes / 1e6, 1)
        content["data"] = ", ".join(one.name for one in self.about.data)
        licenses = dict.fromkeys(one.license for one in self.about.data)
        content["licenses"] = "; ".join(licenses)
        return {column: content[column] for column in COLUMNS}


def root() -> Path:
    """Return the folder of the weights that ship, which may be absent."""
    return Path(str(resources.files("terrazzo") / "weights"))


def all_shipped() -> list[Shipped]:
    """Return all weights that ship, by name.

    Raises
    ------
    CheckpointError
        A damaged ``about.json``.
    """
    base = root()
    if not base.is_dir():
        return []
    folders = sorted(path.parent for path in base.glob(f"*/{ABOUT}"))
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Shipped:
    name = f"{ORGANIZATION}{folder.name}"
    path = folder / ABOUT
    content = ckpt.read_json(path)
    try:
        about = from_dict(About, content, str(path))
    except ConfigError as error:
        raise CheckpointError(f"{name} is damaged ({error}); install terrazzo again.") from error
    return Shipped(name, folder, about)


def belongs(name: str) -> bool:
    """Return True for a name in the organization of terrazzo, shipped or not."""
    return name.startswith(ORGANIZATION)


def checked_folder(name: str) -> Path | None:
    """Return the folder of weights that ship, once its checksums are right; None for another name.

    Raises
    ------
    CheckpointError
        A file is missing or is not the one that was shipped.
    """
    for shipped in all_shipped():
        if shipped.name == name:
            _check(shipped)
            return shipped.folder
    return None


def _check(shipped: Shipped) -> None:
    for file in CHECKED:
        path = shipped.folder / file
        if not path.is_file():
            raise CheckpointError(
                f"weights of {shipped.name} are damaged (no {file}); install terrazzo again."
            )
        digest = hash_file(path)
        expected = shipped.about.sha256.get(file, "none")
        if digest != expected:
            raise CheckpointError(
                f"weights of {shipped.name} are damaged (sha256 of {file} is {digest[:DIGITS]}... where "
                f"{expected[:DIGITS]}... is expected); install terrazzo again."
            )


def not_shipped(name: str) -> str:
    """Return a line for a name of terrazzo that does not ship: which names do."""
    known = [shipped.name for shipped in all_shipped()]
    if not known:
        return f"{name} does not come with this version of terrazzo: no weights do."
    names = ", ".join(known)
    hint = did_you_mean(name, known, f"Those that do: {names}.", cutoff=0.8)  # all begin alike
    return f"{name} does not come with this version of terrazzo.{hint}"


def list_models() -> pd.DataFrame:
    """Return the weights that come with terrazzo, for :func:`terrazzo.load` and ``--model``.

    Returns
    -------
    One row a model, none where no weights come with this version: name, system, purpose, quality, size_mb (of its
    folder, in 1e6 bytes), parameters, genes, organism, data, licenses.

    Raises
    ------
    CheckpointError
        The installation is damaged.
    """
    rows = [shipped.row() for shipped in all_shipped()]
    return pd.DataFrame(rows, columns=list(COLUMNS))
