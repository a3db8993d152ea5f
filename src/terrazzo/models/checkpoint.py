"""Checkpoint folders on disk: config.json, model.safetensors, vocab.parquet, README.md; nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from terrazzo._version import __version__
from terrazzo.errors import CheckpointError, OutputError
from terrazzo.genes import Vocabulary

FORMAT = 1
CONFIG, WEIGHTS, VOCABULARY, CARD = "config.json", "model.safetensors", "vocab.parquet", "README.md"
PUBLISHED = {
    "se2transformer.pth": " It looks like SToFM's published layout: run `terrazzo convert stofm` first.",
    "best_model.pt": " It looks like scGPT's published layout: run `terrazzo convert scgpt` first.",
}
_IT_IS = (
    f"a folder with {CONFIG}, {WEIGHTS} and {VOCABULARY}, as `terrazzo pretrain` and `terrazzo convert` write, or "
    "organization/name on the hub"
)
KEYS = {"format", "model_type", "library_version", "model", "provenance", "vocabulary_sha256"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds.

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
        The folder exists (and ``overwrite`` is not given, or it is no checkpoint of terrazzo), or cannot be written.
    """
    from safetensors.torch import save_file

    with whole_folder(folder, overwrite=overwrite, ours=is_ours) as draft:
        header = {
            "format": FORMAT,
            "model_type": checkpoint.model_type,
            "library_version": __version__,
            "model": checkpoint.model,
            "provenance": checkpoint.provenance,
            "vocabulary_sha256": checkpoint.vocabulary.content_hash(),
        }
        (draft / CONFIG).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        (draft / CARD).write_text(card, encoding="utf-8")
        checkpoint.vocabulary.to_parquet(draft / VOCABULARY)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in checkpoint.state.items()},
            str(draft / WEIGHTS),
        )
    return Path(folder)


@contextlib.contextmanager
def whole_folder(
    folder: str | Path, *, overwrite: bool, ours: Callable[[Path], bool]
) -> Iterator[Path]:
    """Give a draft folder that becomes ``folder`` when all of it is written, and vanishes otherwise.

    Parameters
    ----------
    folder
        Where it goes.
    overwrite
        Replace a folder that is there already, if ``ours`` says that terrazzo wrote it.

    Raises
    ------
    OutputError
        The folder is there already (or is not ours), or cannot be written.
    """
    from safetensors import SafetensorError

    target = Path(folder)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        replaceable = ours(target)
        if not overwrite or not replaceable:
            other = "choose another folder (it holds other files, and no checkpoint that terrazzo wrote)"
            mend = "pass overwrite=True (--overwrite)" if replaceable else other
            raise OutputError(f"{target} exists already and is not empty: {mend}.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(
            f"{target.parent} cannot be written ({error.strerror or error})."
        ) from error
    try:
        yield draft
        draft.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    except (
        OSError,
        SafetensorError,
    ) as error:  # safetensors has an error of its own for a full disk
        raise OutputError(
            f"The checkpoint could not be written to {target} ({error}); nothing was kept."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def is_ours(folder: Path) -> bool:
    """Say whether a folder is a checkpoint that terrazzo wrote; other libraries have a ``config.json``, too."""
    try:
        held = read_json(folder / CONFIG)
    except CheckpointError:
        return False
    return {"format", "model_type", "model"} <= set(held)


def read(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises
    ------
    CheckpointError
        A file is missing, truncated or of another kind, or the config does not say what it must.
    """
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise CheckpointError(f"{path} {what}; it must be a checkpoint: {_IT_IS}.")
    absent = [name for name in (CONFIG, WEIGHTS, VOCABULARY) if not (path / name).is_file()]
    if absent:
        hint = next((PUBLISHED[name] for name in PUBLISHED if (path / name).exists()), "")
        raise CheckpointError(
            f"{path} lacks {', '.join(absent)}.{hint or f' It must be a checkpoint: {_IT_IS}.'}"
        )
    header = read_header(path)
    vocabulary = Vocabulary.from_parquet(path / VOCABULARY)
    if header.get("vocabulary_sha256", vocabulary.content_hash()) != vocabulary.content_hash():
        raise CheckpointError(
            f"{path / VOCABULARY} is not the vocabulary that this checkpoint was saved with."
        )
    tensors = read_tensors(path / WEIGHTS)
    return Checkpoint(
        header["model_type"], header["model"], tensors, vocabulary, header.get("provenance", {})
    )


def read_header(path: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a checkpoint folder."""
    header = read_json(path / CONFIG)
    unknown = set(header) - KEYS
    if "model_type" not in header or "model" not in header:
        raise CheckpointError(
            f"{path / CONFIG} is not a terrazzo config: it must name `model_type` and `model`."
        )
    if unknown:
        raise CheckpointError(f"{path / CONFIG} has unknown keys: {', '.join(sorted(unknown))}.")
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / CONFIG} has format {header.get('format')!r}; this version reads {FORMAT}. Upgrade terrazzo?"
        )
    return header


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a :class:`CheckpointError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; anything else is a :class:`CheckpointError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}). Download or convert it again."
        ) from error


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Check that the tensors are those of the model, by name and shape.

    Raises
    ------
    CheckpointError
        Names the first few that are missing, left over or of another shape.
    """
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    shapes = [
        f"{k}: {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(set(wanted) & set(found))
        if wanted[k].shape != found[k].shape
    ]
    for label, names in (
        ("lacks", missing),
        ("has foreign tensors", extra),
        ("has tensors of another shape", shapes),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            shown = "; ".join(names[:3]) + more
            raise CheckpointError(
                f"{where} {label}: {shown}. It belongs to another model or config."
            )


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a sha256 of what decides the outputs: hyperparameters, tensors and vocabulary."""
    digest = hashlib.sha256(
        json.dumps([checkpoint.model_type, checkpoint.model], sort_keys=True).encode()
    )
    for name in sorted(checkpoint.state):
        tensor = checkpoint.state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    digest.update(checkpoint.vocabulary.content_hash().encode())
    return digest.hexdigest()
