"""What converters of published weights share: files that must be there, tensors read without unpickling."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrazzo.errors import CheckpointError, TerrazzoWarning
from terrazzo.models import checkpoint as ckpt


def filled(model: Any, state: dict[str, Tensor], root: Path) -> Any:
    """Put the tensors into a model, and return it; those without a place in it are left out with a warning.

    Raises
    ------
    CheckpointError
        A tensor is missing, or of another shape.
    """
    wanted = model.module.state_dict()
    foreign = sorted(set(state) - set(wanted))
    if foreign:
        warnings.warn(
            f"{root}: {len(foreign)} tensors have no place in the model and are left out: {', '.join(foreign[:3])}.",
            TerrazzoWarning,
            stacklevel=3,
        )
    kept = {k: v for k, v in state.items() if k in wanted}
    ckpt.check_tensors(wanted, kept, str(root))
    model.module.load_state_dict(kept)
    return model


def provenance(what: str, root: Path) -> dict[str, Any]:
    """Return where converted weights come from, as a checkpoint keeps it."""
    return {"weights": "imported", "source": what, "folder": root.resolve().name}


def need(*files: Path) -> None:
    """Raise :class:`CheckpointError` where one of the published files is missing."""
    absent = [str(f) for f in files if not f.is_file()]
    if absent:
        raise CheckpointError(
            f"The published checkpoint is incomplete: {', '.join(absent)} is missing."
        )


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.pth`` / ``.bin`` state dict as tensors only.

    Raises
    ------
    CheckpointError
        The file is damaged, or holds anything but tensors in plain containers (it is not executed).
    """
    try:
        with warnings.catch_warnings():  # torch warns of what it then refuses
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds more than tensors (it may try to run code). Nothing was run."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is truncated or no PyTorch file ({detail}).") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict (tensor by name).")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in state.items()}
