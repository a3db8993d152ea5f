"""Checkpoints on the Hugging Face hub: fetched at one commit, which is remembered; pushed with their card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terrazzo._version import __version__
from terrazzo.errors import CheckpointError, OutputError, TerrazzoError
from terrazzo.models import checkpoint as ckpt

FILES = (ckpt.CONFIG, ckpt.WEIGHTS, ckpt.VOCABULARY, ckpt.CARD)
HUB, COMMIT = "hub", "hub_commit"  # in the provenance of what came from there
LONGEST = 300  # characters of a foreign message
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Located:
    """Where a checkpoint lies on this machine.

    Attributes
    ----------
    folder
        The folder.
    origin
        ``{"hub": "organization/name", "hub_commit": hash}`` where it came from the hub, else empty.
    """

    folder: Path
    origin: Mapping[str, str] = field(default_factory=dict)


def is_hub_name(source: str | Path) -> bool:
    """Say whether a source means the hub: ``organization/name``, or with ``@revision``, and no folder of that name."""
    return (
        _NAME.fullmatch(str(source)) is not None
        and not str(source).startswith(".")
        and not Path(source).exists()
    )


def locate(source: str | Path, revision: str | None = None) -> Located:
    """Return the local folder of a checkpoint, fetched from the hub where ``source`` names one there.

    What is in the hub's cache already is not fetched again; with ``HF_HUB_OFFLINE=1`` only the cache is read.

    Parameters
    ----------
    source
        A folder, or ``"organization/name"``, or ``"organization/name@revision"``.
    revision
        Branch, tag or commit on the hub; None: the main branch.

    Raises
    ------
    CheckpointError
        Not a folder, and not to be had from the hub; a repository that holds no checkpoint of terrazzo; two revisions.
    """
    if not is_hub_name(source):
        return Located(Path(source))
    name, _, stated = str(source).partition("@")
    if stated and revision and stated != revision:
        raise CheckpointError(
            f"{source} names the revision {stated!r}, and revision= another one, {revision!r}."
        )
    revision = stated or revision
    from huggingface_hub import snapshot_download

    with _told(
        name, revision, f"{source} is neither a folder here nor could it be fetched from the hub"
    ):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(FILES),
                library_name="terrazzo",
                library_version=__version__,
            )
        )
    if absent := [file for file in FILES[:3] if not (folder / file).is_file()]:
        raise CheckpointError(
            f"{source} on the hub is no terrazzo checkpoint: it lacks {', '.join(absent)}."
        )
    return Located(
        folder, {HUB: name, COMMIT: folder.name}
    )  # the cache keeps each commit in a folder of its name


def push(
    checkpoint: ckpt.Checkpoint,
    repo_id: str,
    *,
    card: str,
    private: bool,
    revision: str | None,
    message: str | None,
    token: str | None,
) -> str:
    """Put a checkpoint on the hub; see :meth:`terrazzo.models.base.FoundationModel.push_to_hub`."""
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise OutputError(
            f"{repo_id!r} is no name on the hub; it is organization/name, or your user name/name."
        )
    api = HfApi(library_name="terrazzo", library_version=__version__, token=token)
    with (
        tempfile.TemporaryDirectory(prefix="terrazzo-") as work,
        _told(repo_id, revision, f"{repo_id} could not be written on the hub", OutputError),
    ):
        folder = ckpt.write(checkpoint, Path(work) / "model", card=card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message
            or f"A {checkpoint.model_type} checkpoint of terrazzo {__version__}",
        )
    return f"{repo_id}@{done.oid}"


@contextmanager
def _told(
    name: str, revision: str | None, what: str, kind: type[TerrazzoError] = CheckpointError
) -> Iterator[None]:
    """Turn the hub's errors into one line of ours."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    transport: Any = HfHubHTTPError.__bases__[
        0
    ]  # the error of whichever HTTP client the hub's library uses
    try:
        yield
    except TerrazzoError:
        raise
    except (HfHubHTTPError, transport, OSError, ValueError) as error:
        if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
            wanted = f"{name} at revision {revision}" if revision else name
            here = f"{wanted} is not whole in the cache ({constants.HF_HUB_CACHE}): load it once with the network"
            reason = f"HF_HUB_OFFLINE is set{f', and {here}' if kind is CheckpointError else ''}."
        else:
            reason = _reason(error, name, revision)
        raise kind(f"{what}: {reason}") from error


def _reason(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    hub, status = constants.ENDPOINT, getattr(getattr(error, "response", None), "status_code", None)
    said = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return f"its owners ask you to accept their terms first: {hub}/{name}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; its branches and tags are at {hub}/{name}."
    if status == 403:
        return f"your token may not do that with {name}; `hf auth whoami` says whose it is."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"{name} is not on {hub}, or is private; check the name, or log in with `hf auth login`."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{hub} cannot be reached, and the cache ({constants.HF_HUB_CACHE}) does not have it. Check the network, "
            f"or fetch {', '.join(FILES[:3])} elsewhere and pass their folder."
        )
    if isinstance(error, ValueError) and status is None:  # refused before anything was sent
        return said
    return f"{hub} did not answer as it should ({type(error).__name__}: {said}). Try again later."
