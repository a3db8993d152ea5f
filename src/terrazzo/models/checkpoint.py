"""Checkpoint folders on disk: config.json, model.safetensors, vocab.parquet, README.md; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrazzo import files, parsing
from terrazzo._version import __version__
from terrazzo.errors import CheckpointError, OutputError, shortened
from terrazzo.files import exists
from terrazzo.genes import Vocabulary
from terrazzo.safe_files import check_inside

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT",
    "VOCABULARY",
    "WEIGHTS",
    "Checkpoint",
    "check_free",
    "check_tensors",
    "fingerprint",
    "has_only",
    "is_checkpoint",
    "read",
    "read_header",
    "read_json",
    "read_tensors",
    "whole_folder",
    "write",
]

FORMAT = 1

CONFIG = "config.json"

WEIGHTS = "model.safetensors"

VOCABULARY = "vocab.parquet"

CARD = "README.md"

# files of published checkpoints, and how to convert them
PUBLISHED = {
    "se2transformer.pth": " It looks like SToFM's published layout: run `terrazzo convert stofm` first.",
    "best_model.pt": " It looks like scGPT's published layout: run `terrazzo convert scgpt` first.",
}

_LAYOUT = (
    f"a folder with {CONFIG}, {WEIGHTS} and {VOCABULARY}, as `terrazzo pretrain` and `terrazzo convert` write, or "
    "organization/name on the hub"
)

_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

KEYS = {"format", "model_type", "library_version", "model", "provenance", "vocabulary_sha256"}


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint folder.

    Attributes
    ----------
    model_type
        Which system, e.g. ``"stofm"``.
    model
        Its hyperparameters, a plain nested dict.
    state
        Its tensors by name.
    vocabulary
        Its genes.
    provenance
        Where the weights come from, a flat dict.
    """

    model_type: str
    model: dict[str, Any]
    state: dict[str, Tensor]
    vocabulary: Vocabulary
    provenance: dict[str, Any] = field(default_factory=dict)


def write(
    checkpoint: Checkpoint, folder: str | Path, *, card: str, overwrite: bool = False
) -> Path:
    """Write a checkpoint folder, all of it or nothing.

    Raises
    ------
    OutputError
        The folder exists (and ``overwrite`` is False, or it is not a checkpoint of terrazzo), or cannot be written.
    """
    from safetensors.torch import save_file

    with whole_folder(folder, overwrite=overwrite, is_replaceable=is_checkpoint) as draft:
        header = {
            "format": FORMAT,
            "model_type": checkpoint.model_type,
            "library_version": __version__,
            "model": checkpoint.model,
            "provenance": checkpoint.provenance,
            "vocabulary_sha256": checkpoint.vocabulary.content_hash(),
        }
        text = json.dumps(header, indent=2)
        (draft / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        (draft / CARD).write_text(card, encoding="utf-8")
        checkpoint.vocabulary.to_parquet(draft / VOCABULARY)
        tensors = {}
        for name, tensor in checkpoint.state.items():
            tensors[name] = tensor.detach().cpu().contiguous()
        save_file(tensors, str(draft / WEIGHTS))
    return Path(folder)


@contextlib.contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool, is_replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """Yield a draft folder that becomes ``folder`` when all of it is written, and is removed otherwise.

    Parameters
    ----------
    folder
        The folder to write.
    overwrite
        Replace an existing folder, if ``is_replaceable`` returns True for it, when the new one is complete.
    is_replaceable
        Returns True for a folder that terrazzo wrote, and to which nothing was added.

    Raises
    ------
    OutputError
        The folder exists already (or terrazzo did not write it), or cannot be written.
    """
    from safetensors import SafetensorError

    target = Path(folder)
    check_free(target, overwrite=overwrite, is_replaceable=is_replaceable)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{target.parent} cannot be written ({error.strerror or error})."
        ) from error
    try:
        with files.whole_folder(target) as draft:
            yield draft
    except (OSError, SafetensorError) as error:  # the second is safetensors' for a full disk
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"The checkpoint could not be written to {target} ({error}); nothing was kept."
        ) from error


def check_free(target: Path, *, overwrite: bool, is_replaceable: Callable[[Path], bool]) -> None:
    """Refuse a folder that has files already, unless it is a checkpoint that may be overwritten.

    Raises
    ------
    OutputError
        As :func:`whole_folder`.
    """
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if not target.exists() or is_empty_folder:
        return
    if not is_replaceable(target):
        raise OutputError(
            f"{target} exists already and is not empty: choose another folder (it has other files, and is not just a "
            "checkpoint that terrazzo wrote)."
        )
    if not overwrite:
        raise OutputError(
            f"{target} exists already and is not empty: pass overwrite=True (--overwrite)."
        )


def is_checkpoint(folder: Path) -> bool:
    """Return True if a folder is a checkpoint that terrazzo wrote, whole, with nothing added to it.

    Other libraries have a ``config.json``, too.
    """
    if not has_only(folder, (CONFIG, WEIGHTS, VOCABULARY, CARD)):
        return False
    try:
        header = read_json(folder / CONFIG)
    except CheckpointError:
        return False
    return set(header) >= KEYS


def has_only(folder: Path, names: Collection[str]) -> bool:
    """Return True if a folder has files of all of these names, and nothing else."""
    if not folder.is_dir():
        return False
    present = list(folder.iterdir())
    are_files = all(path.is_file() and not path.is_symlink() for path in present)
    return are_files and {path.name for path in present} == set(names)


def read(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder; float16 and bfloat16 of its tensors become float32.

    Raises
    ------
    CheckpointError
        A file is missing, truncated or of another kind, or the config lacks a key.
    """
    path = Path(folder)
    if not exists(path) or not path.is_dir():
        problem = "is a file" if exists(path) else "does not exist"
        shown = shortened(str(path), 300, quoted=False)
        raise CheckpointError(f"{shown} {problem}; it must be a checkpoint: {_LAYOUT}.")
    missing = [name for name in (CONFIG, WEIGHTS, VOCABULARY) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}.{_layout_hint(path)}")
    for name in (CONFIG, WEIGHTS, VOCABULARY):
        check_inside(path / name, path, CheckpointError)
    header = read_header(path)
    vocabulary = Vocabulary.from_parquet(path / VOCABULARY)
    vocabulary_sha256 = vocabulary.content_hash()
    if header.get("vocabulary_sha256", vocabulary_sha256) != vocabulary_sha256:
        raise CheckpointError(
            f"{path / VOCABULARY} is not the vocabulary that this checkpoint was saved with."
        )
    return Checkpoint(
        model_type=header["model_type"],
        model=header["model"],
        state=_in_float32(read_tensors(path / WEIGHTS)),
        vocabulary=vocabulary,
        provenance=header.get("provenance", {}),
    )


def _layout_hint(path: Path) -> str:
    """Return what to do with a folder that lacks files of a checkpoint."""
    for name, hint in PUBLISHED.items():
        if (path / name).exists():
            return hint
    return f" It must be a checkpoint: {_LAYOUT}."


def read_header(path: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a checkpoint folder."""
    header = read_json(path / CONFIG)
    unknown = set(header) - KEYS
    if "model_type" not in header or "model" not in header:
        raise CheckpointError(
            f"{path / CONFIG} is not a terrazzo config: it must name `model_type` and `model`."
        )
    if unknown:
        names = shortened(", ".join(sorted(unknown)), 200, quoted=False)
        raise CheckpointError(f"{path / CONFIG} has unknown keys: {names}.")
    if header.get("format") != FORMAT:
        shown = shortened(header.get("format"))
        raise CheckpointError(
            f"{path / CONFIG} has format {shown}; this version reads {FORMAT}. Upgrade terrazzo?"
        )
    kinds: dict[str, type] = {"model_type": str, "model": dict, "provenance": dict}
    for name, kind in kinds.items():
        if name in header and not isinstance(header[name], kind):
            shown = shortened(header[name])
            raise CheckpointError(f"{path / CONFIG}: {name} is {shown}; it is damaged.")
    return header


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a :class:`CheckpointError`."""
    return parsing.read_object(path, CheckpointError)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; anything else, and values that are not finite, are a :class:`CheckpointError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        reason = shortened(error, 200, quoted=False)
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({reason}). Download or convert it again."
        ) from error
    not_finite = [name for name in sorted(state) if not _is_finite(state[name])]
    if not_finite:
        names = shortened(", ".join(not_finite), 200, quoted=False)
        raise CheckpointError(f"{path} holds values that are not finite: {names}.")
    return state


def _in_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those of half precision in float32, the type that models compute with."""
    converted = {}
    for name, tensor in state.items():
        is_half = tensor.dtype in (torch.float16, torch.bfloat16)
        converted[name] = tensor.float() if is_half else tensor
    return converted


def _is_finite(tensor: Tensor) -> bool:
    """Say whether all values are finite; those of a type that cannot be anything else are."""
    if not tensor.dtype.is_floating_point:
        return True
    return bool(tensor.float().isfinite().all())


def check_tensors(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Check that tensors are those of the model, by name, shape and kind of numbers.

    Raises
    ------
    CheckpointError
        Names the first few that are missing, left over, of another shape, or of another kind of numbers.
    """
    missing = sorted(set(expected) - set(tensors))
    foreign = sorted(set(tensors) - set(expected))
    reshaped = []
    retyped = []
    for name in sorted(set(expected) & set(tensors)):
        shape = tuple(tensors[name].shape)
        expected_shape = tuple(expected[name].shape)
        if shape != expected_shape:
            reshaped.append(f"{name}: {shape} instead of {expected_shape}")
        dtype = tensors[name].dtype
        expected_dtype = expected[name].dtype
        if _kind(dtype) != _kind(expected_dtype):
            retyped.append(f"{name}: {dtype} instead of {expected_dtype}")
    problems = {
        "lacks": missing,
        "has foreign tensors": foreign,
        "has tensors of another shape": reshaped,
        "has tensors of another type": retyped,
    }
    for problem, names in problems.items():
        if names:
            shown = "; ".join(shortened(name, 200, quoted=False) for name in names[:3])
            if len(names) > 3:
                shown = f"{shown} and {len(names) - 3} more"
            raise CheckpointError(
                f"{where} {problem}: {shown}. It belongs to another model or config."
            )


def _kind(dtype: torch.dtype) -> str:
    """Return the kind of numbers of a type; real numbers may be stored with half the digits."""
    return "real" if dtype in _REAL else str(dtype)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 of all that decides the vectors: hyperparameters, tensors and vocabulary."""
    settings = json.dumps([checkpoint.model_type, checkpoint.model], sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    for name in sorted(checkpoint.state):
        tensor = checkpoint.state[name].detach().cpu().contiguous()
        shape = tuple(tensor.shape)
        digest.update(f"{name}{shape}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    digest.update(checkpoint.vocabulary.content_hash().encode())
    return digest.hexdigest()
