"""Load a checkpoint of any system."""

from __future__ import annotations

from pathlib import Path

from terrazzo.errors import CheckpointError
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.base import FoundationModel
from terrazzo.models.hub import locate
from terrazzo.systems import registry

__all__ = ["load"]


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
    if not all((place.folder / name).is_file() for name in files):
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
