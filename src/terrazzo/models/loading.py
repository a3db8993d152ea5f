"""Load a checkpoint of any system, and convert published weights to one."""

from __future__ import annotations

from pathlib import Path

from terrazzo.errors import CheckpointError, ConfigError, did_you_mean
from terrazzo.files import exists
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.base import FoundationModel
from terrazzo.models.hub import locate
from terrazzo.systems import registry

__all__ = ["convert", "load"]


def load(
    source: str | Path, *, revision: str | None = None, device: str | None = None
) -> FoundationModel:
    """Load a checkpoint with the class that it names.

    Parameters
    ----------
    source, revision, device
        As for :meth:`~terrazzo.models.base.FoundationModel.from_pretrained`.

    Raises
    ------
    CheckpointError
        As :meth:`~terrazzo.models.base.FoundationModel.from_pretrained`; or a kind of model that no installed system
        has.
    """
    place = locate(source, revision)
    files = (ckpt.CONFIG, ckpt.WEIGHTS, ckpt.VOCABULARY)
    if not exists(place.folder) or not all((place.folder / name).is_file() for name in files):
        ckpt.read(place.folder)  # raises an error that names the missing file
    model_type = ckpt.read_header(place.folder)["model_type"]
    model_class = registry.model_class(model_type)
    if model_class is None:
        known: list[str] = []
        for system in registry.systems().values():
            known.extend(system.models)
        raise CheckpointError(
            f"{source} holds a {model_type!r} model; this version knows {', '.join(known)}."
        )
    model: FoundationModel = model_class.from_located(place, source, device)
    return model


def convert(
    kind: str,
    published: str | Path,
    out: str | Path,
    *,
    gene_dictionaries: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert published weights to a checkpoint folder; nothing of them is unpickled or run.

    Parameters
    ----------
    kind
        Whose weights: ``"stofm"``, ``"geneformer"``, ``"scgpt"``, or ``"uni"`` (an image encoder for ST-Align).
    published
        Folder as it was published.
    out
        Folder to write.
    gene_dictionaries
        Folder with Geneformer's dictionaries (``.pkl``); SToFM and Geneformer need it.
    overwrite
        Replace an existing checkpoint.

    Returns
    -------
    The folder; :func:`terrazzo.load` takes it.

    Raises
    ------
    ConfigError
        No such kind; dictionaries that are needed and not passed.
    CheckpointError
        A file is missing, damaged or not what it should be.
    OutputError
        The folder exists already, or cannot be written.
    """
    known: dict[str, str] = {}
    for system in registry.systems().values():
        known.update(system.converters)
    if kind not in known:
        hint = did_you_mean(kind, known, f"There are {', '.join(known)}.")
        raise ConfigError(f"there are no published weights {kind!r} that can be converted.{hint}")
    dictionaries = None if gene_dictionaries is None else Path(gene_dictionaries)
    convert_kind = registry.resolve(known[kind])
    folder: Path = convert_kind(
        Path(published), Path(out), gene_dictionaries=dictionaries, overwrite=overwrite
    )
    return folder
