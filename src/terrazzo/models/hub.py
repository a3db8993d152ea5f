"""Checkpoints on the Hugging Face hub: fetched at one commit, which is recorded; pushed with their card."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terrazzo._version import __version__
from terrazzo.errors import (
    CheckpointError,
    OutputError,
    TerrazzoError,
    TerrazzoWarning,
    shortened,
)
from terrazzo.files import exists
from terrazzo.models import checkpoint as ckpt
from terrazzo.models import shipped

__all__ = ["COMMIT", "HUB", "SHIPPED", "Located", "is_hub_name", "locate", "push"]

FILES = (ckpt.CONFIG, ckpt.WEIGHTS, ckpt.VOCABULARY, ckpt.CARD)

# keys of the provenance
HUB = "hub"

COMMIT = "hub_commit"

SHIPPED = "shipped"

LONGEST = 300  # characters of a foreign message

_REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*")
_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Located:
    """A checkpoint's local folder.

    Attributes
    ----------
    folder
        The folder.
    origin
        ``{"hub": "organization/name", "hub_commit": hash}`` where it came from the hub, ``{"shipped": name}`` where it
        came with terrazzo, else empty.
    """

    folder: Path
    origin: Mapping[str, str] = field(default_factory=dict)


def is_hub_name(source: str | Path) -> bool:
    """Return True for ``organization/name``, or with ``@revision``, that is not a local path."""
    name = str(source)
    if _NAME.fullmatch(name) is None or name.startswith("."):
        return False
    return not exists(Path(source))


def locate(source: str | Path, revision: str | None = None) -> Located:
    """Return the local folder of a checkpoint: a folder, weights that come with terrazzo, or fetched from the hub.

    Weights that come with terrazzo are checked by their checksums, and nothing is asked of the network. A name with a
    revision is the hub's; so is one of terrazzo that did not come with it, after a warning that says which did. What is
    in the hub's cache already is not fetched again; with ``HF_HUB_OFFLINE=1`` only the cache is read.

    Parameters
    ----------
    source
        A folder, or ``"organization/name"``, or ``"organization/name@revision"``.
    revision
        Branch, tag or commit on the hub; None: the main branch.

    Raises
    ------
    CheckpointError
        Not a folder, and not available from the hub; a repository without a checkpoint of terrazzo; two revisions;
        weights that ship, and are damaged.
    """
    if not is_hub_name(source):
        return Located(Path(source))
    name, _, stated = str(source).partition("@")
    if shipped.belongs(name) and not stated and revision is None:
        shipped_folder = shipped.checked_folder(name)
        if shipped_folder is not None:
            return Located(shipped_folder, {SHIPPED: name})
        message = f"{shipped.not_shipped(name)} Looking for it on the hub."
        warnings.warn(message, TerrazzoWarning, stacklevel=3)
    if stated and revision and stated != revision:
        raise CheckpointError(
            f"{source} names the revision {stated!r}, and revision= another one, {revision!r}."
        )
    revision = stated or revision
    if revision is not None and not _REVISION.fullmatch(revision):
        raise CheckpointError(f"{shortened(revision)} is not a revision: a branch, tag or commit.")
    from huggingface_hub import snapshot_download

    what = f"{source} is not a local folder, and could not be fetched from the hub"
    with _readable_errors(name, revision, what):
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(FILES),
            library_name="terrazzo",
            library_version=__version__,
        )
    folder = Path(path)
    missing = [file for file in FILES[:3] if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{source} on the hub is not a terrazzo checkpoint: it lacks {', '.join(missing)}."
        )
    commit = folder.name  # the cache stores each commit in a folder of its name
    return Located(folder, {HUB: name, COMMIT: commit})


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
    """Upload a checkpoint to the hub; see :meth:`terrazzo.models.base.FoundationModel.push_to_hub`."""
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise OutputError(
            f"{repo_id!r} is not a name on the hub; it is organization/name, or your user name/name."
        )
    if message is None:
        message = f"A {checkpoint.model_type} checkpoint of terrazzo {__version__}"
    api = HfApi(library_name="terrazzo", library_version=__version__, token=token)
    with (
        tempfile.TemporaryDirectory(prefix="terrazzo-") as work,
        _readable_errors(
            repo_id, revision, f"{repo_id} could not be written on the hub", OutputError
        ),
    ):
        folder = ckpt.write(checkpoint, Path(work) / "model", card=card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message,
        )
    return f"{repo_id}@{commit.oid}"


@contextmanager
def _readable_errors(
    name: str, revision: str | None, what: str, kind: type[TerrazzoError] = CheckpointError
) -> Iterator[None]:
    """Raise an error of terrazzo, in one line, in place of the hub's."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # the error of whichever HTTP client the hub's library uses
    transport: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except TerrazzoError:
        raise
    except (HfHubHTTPError, transport, OSError, ValueError) as error:
        if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set"
            if kind is CheckpointError:
                checkpoint = f"{name} at revision {revision}" if revision else name
                reason += (
                    f", and {checkpoint} is not complete in the cache ({constants.HF_HUB_CACHE}): "
                )
                reason += "load it once with the network"
            reason += "."
        else:
            reason = _reason(error, name, revision)
        raise kind(f"{what}: {reason}") from error


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Return what is wrong and how to fix it, from an error of the hub's library."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    text = " ".join(str(error).split())[:LONGEST] or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return f"its owners ask you to accept their terms first: {hub}/{name}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; its branches and tags are at {hub}/{name}."
    if status == 403:
        return f"your token may not do that with {name}; `hf auth whoami` shows whose it is."
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return f"{name} is not on {hub}, or is private; check the name, or log in with `hf auth login`."
    if isinstance(error, errors.LocalEntryNotFoundError):
        files = ", ".join(FILES[:3])
        return (
            f"{hub} cannot be reached, and the cache ({constants.HF_HUB_CACHE}) does not have it. Check the network, "
            f"or fetch {files} elsewhere and pass their folder."
        )
    if isinstance(error, ValueError) and status is None:  # refused before anything was sent
        return text
    return f"{hub} returned an error ({type(error).__name__}: {text}). Try again later."
