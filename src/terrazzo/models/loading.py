"""Load a checkpoint of any system."""

from __future__ import annotations

from pathlib import Path

from terrazzo.errors import CheckpointError
from terrazzo.models import checkpoint as ckpt
from terrazzo.models.base import FoundationModel
from terrazzo.models.hub import locate
from terrazzo.systems.scgpt.model import ScGPT
from terrazzo.systems.stalign.model import STAlign
from terrazzo.systems.stimage.model import STImage
from terrazzo.systems.stofm.cell_model import CellModel
from terrazzo.systems.stofm.model import SToFM


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
        As there; or a kind of model that this version does not know.
    """
    place = locate(source, revision)
    folder = place.folder
    if not all((folder / name).is_file() for name in (ckpt.CONFIG, ckpt.WEIGHTS, ckpt.VOCABULARY)):
        ckpt.read(folder)  # says what is missing
    kind = ckpt.read_header(folder)["model_type"]
    kinds = (SToFM, STImage, STAlign, CellModel, ScGPT)
    classes: dict[str, type[FoundationModel]] = {c.model_type: c for c in kinds}
    if kind not in classes:
        raise CheckpointError(
            f"{source} holds a {kind!r} model; this version knows {', '.join(classes)}."
        )
    return classes[kind].from_located(place, source, device)
