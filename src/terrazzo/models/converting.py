"""Conversion of published weights of any system to a checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from terrazzo.errors import ConfigError, did_you_mean
from terrazzo.systems import registry

__all__ = ["convert"]


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
