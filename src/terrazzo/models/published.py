"""Functions that all converters of published weights share: files that must exist, tensors without unpickling."""

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

__all__ = ["filled", "need", "provenance", "read_pickled_tensors"]


def filled(model: Any, state: dict[str, Tensor], root: Path) -> Any:
    """Load tensors into a model, and return it; those that it does not have are left out with a warning.

    Raises
    ------
    CheckpointError
        A tensor is missing, or of another shape.
    """
    expected = model.module.state_dict()
    foreign = sorted(set(state) - set(expected))
    if foreign:
        shown = ", ".join(foreign[:3])
        warnings.warn(
            f"{root}: {len(foreign)} tensors have no place in the model and are left out: {shown}.",
            TerrazzoWarning,
            stacklevel=3,
        )
    known = {name: tensor for name, tensor in state.items() if name in expected}
    ckpt.check_tensors(expected, known, str(root))
    model.module.load_state_dict(known)
    return model


def provenance(what: str, root: Path) -> dict[str, Any]:
    """Return the provenance of converted weights."""
    return {"weights": "imported", "source": what, "folder": root.resolve().name}


def need(*files: Path) -> None:
    """Raise :class:`CheckpointError` where one of the published files is missing."""
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"The published checkpoint is incomplete: {', '.join(missing)} is missing."
        )


def read_pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.pth`` / ``.bin`` state dict as tensors only.

    Raises
    ------
    CheckpointError
        The file is damaged, or contains anything but tensors in plain containers (it is not executed).
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
        lines = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is truncated or not a PyTorch file ({lines[0]}).") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict (tensor by name).")
    tensors = {}
    for name, tensor in state.items():
        tensors[str(name)] = tensor.float() if tensor.is_floating_point() else tensor
    return tensors
