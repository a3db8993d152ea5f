"""One file from the network, checked by its sha256 before it takes its place; a bar, and words that help offline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from terrazzo.errors import DownloadError, OutputError
from terrazzo.progress import BYTES, Progress, Stage

CACHE_VARIABLE = "TERRAZZO_CACHE"
NOTE = ".sha256"  # appended to a file's name: the sum that it had when nobody knew one
CHUNK = 2**16  # bytes between two steps of the bar
LONGEST = 160  # characters of a foreign message


def cache_folder() -> Path:
    """Return the folder that downloads go to: ``$TERRAZZO_CACHE``, else the system's cache folder for terrazzo."""
    import pooch

    stated = os.environ.get(CACHE_VARIABLE)
    return Path(stated).expanduser() if stated else Path(pooch.os_cache("terrazzo"))


def noted(note: Path) -> str | None:
    """Return the sum that :func:`retrieve` noted for a file of unknown sum; None where there is none."""
    words = note.read_text(encoding="utf-8").split() if note.is_file() else []
    return words[0] if words and re.fullmatch(r"[0-9a-f]{64}", words[0]) else None


def retrieve(
    url: str,
    target: Path,
    sha256: str | None,
    *,
    note: Path,
    size: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Download to another name, check, and rename; a file that is there with the right sum is kept.

    Parameters
    ----------
    url, target
        From where, and to which file.
    sha256
        The sum that it must have; None: any, which is then written to ``note``.
    note
        Where a sum that nobody knew is written.
    size
        In bytes, where it is known before the server says it.
    progress
        Show a bar; None: only on a terminal.

    Raises
    ------
    DownloadError
        No network, or a download that was cut short; another sum. What was there before is left as it was.
    OutputError
        The folder cannot be written.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it says on standard error what the bar says already
    with Progress(progress).stage(f"download {target.name}", size or 0, BYTES) as stage:
        get = pooch.HTTPDownloader(progressbar=_Bar(stage), chunk_size=CHUNK)
        options: dict[str, Any] = {"fname": target.name, "path": target.parent, "downloader": get}
        try:
            pooch.retrieve(url, sha256 and f"sha256:{sha256}", **options)
            if sha256 is None:
                note.write_text(f"{pooch.file_hash(target)}  {target.name}\n", encoding="utf-8")
        except ValueError as error:  # pooch's word for a wrong sum
            raise DownloadError(
                f"{url} does not have the sha256 {sha256}; nothing was kept. It is not the file that was checked, or "
                "something on the way changed it."
            ) from error
        except PermissionError as error:
            raise OutputError(
                f"{target.parent} cannot be written ({error.strerror}): choose another folder, or set {CACHE_VARIABLE}."
            ) from error
        except OSError as error:  # errors of requests are OSErrors too
            said = " ".join(str(error).split())[:LONGEST]
            raise DownloadError(
                f"{url} could not be downloaded ({type(error).__name__}: {said}). Without a network: download it "
                f"elsewhere and put it at {target}; it is then checked and kept."
            ) from error
    return target


class _Bar:
    """A stage of ours in the words of tqdm, which pooch speaks."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._done = stage, False

    @property
    def total(self) -> int:
        """Nothing: it is only ever set."""
        return 0

    @total.setter
    def total(self, value: int) -> None:
        self._stage.of(value)

    def update(self, amount: int) -> None:
        """So many bytes more."""
        if not self._done:
            self._stage(amount)

    def reset(self) -> None:
        """Come before the whole is counted once more, which is not done here."""
        self._done = True

    def close(self) -> None:
        """Nothing: the stage closes itself."""
