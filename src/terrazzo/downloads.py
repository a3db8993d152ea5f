"""Download one file, checked by its sha256 before it takes its place, with a progress bar and help when offline."""

from __future__ import annotations

import os
import re
from pathlib import Path

from terrazzo.errors import DownloadError, OutputError
from terrazzo.progress import BYTES, Progress, Stage

__all__ = ["CACHE_VARIABLE", "NOTE", "cache_folder", "noted_sha256", "retrieve"]

CACHE_VARIABLE = "TERRAZZO_CACHE"
NOTE = (
    ".sha256"  # appended to a file's name: a file with the sha256 that it had when none was known
)
CHUNK = 2**16  # bytes between two steps of the bar
LONGEST = 160  # characters of another library's message that are shown


def cache_folder() -> Path:
    """Return the folder that downloads go to: ``$TERRAZZO_CACHE``, else the system's cache folder for terrazzo."""
    import pooch

    stated = os.environ.get(CACHE_VARIABLE)
    if stated:
        return Path(stated).expanduser()
    return Path(pooch.os_cache("terrazzo"))


def noted_sha256(note: Path) -> str | None:
    """Return the sha256 that :func:`retrieve` noted for a file of which none was known; None where there is none."""
    if not note.is_file():
        return None
    words = note.read_text(encoding="utf-8").split()
    if words and re.fullmatch(r"[0-9a-f]{64}", words[0]):
        return words[0]
    return None


def retrieve(
    url: str,
    target: Path,
    sha256: str | None,
    *,
    note: Path,
    size: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Download to another name, check, and rename; an existing file with the right sha256 is kept.

    Parameters
    ----------
    url, target
        From where, and to which file.
    sha256
        What the file must have; None: any, which is then written to ``note``.
    note
        Where a sha256 that was not known is written.
    size
        In bytes, where it is known before the server tells it.
    progress
        Show a bar; None: only on a terminal.

    Raises
    ------
    DownloadError
        No network, a download that was cut short, or another sha256. An existing file is left as it was.
    OutputError
        The folder cannot be written.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it prints to standard error what the bar shows already
    known_hash = None if sha256 is None else f"sha256:{sha256}"
    with Progress(progress).stage(f"download {target.name}", size or 0, BYTES) as stage:
        downloader = pooch.HTTPDownloader(progressbar=_Bar(stage), chunk_size=CHUNK)
        try:
            pooch.retrieve(
                url,
                known_hash,
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
            if sha256 is None:
                own_hash = pooch.file_hash(target)
                note.write_text(f"{own_hash}  {target.name}\n", encoding="utf-8")
        except ValueError as error:  # pooch's error for a wrong hash
            raise DownloadError(
                f"{url} does not have the sha256 {sha256}; nothing was kept. It is not the file that was checked, or "
                "something on the way changed it."
            ) from error
        except PermissionError as error:
            raise OutputError(
                f"{target.parent} cannot be written ({error.strerror}): choose another folder, or set {CACHE_VARIABLE}."
            ) from error
        except OSError as error:  # errors of requests are OSErrors too
            message = " ".join(str(error).split())
            kind = type(error).__name__
            raise DownloadError(
                f"{url} could not be downloaded ({kind}: {message[:LONGEST]}). Without a network: download it "
                f"elsewhere and put it at {target}; it is then checked and kept."
            ) from error
    return target


class _Bar:
    """Progress bar for pooch, with the methods of tqdm that it calls."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._is_complete = False

    @property
    def total(self) -> int:
        """Always 0; it is only ever set."""
        return 0

    @total.setter
    def total(self, value: int) -> None:
        self._stage.of(value)

    def update(self, amount: int) -> None:
        """Count so many bytes more."""
        if not self._is_complete:
            self._stage(amount)

    def reset(self) -> None:
        """Stop counting: pooch calls this at the end, and then counts the whole file once more."""
        self._is_complete = True

    def close(self) -> None:
        """Do nothing: the stage closes itself."""
