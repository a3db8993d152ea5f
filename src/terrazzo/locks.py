"""Locks on folders: one run at a time writes there, and a second one is told which process does."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terrazzo.errors import OutputError, TerrazzoError, TerrazzoWarning

try:
    import fcntl
except ImportError:  # not on Windows: runs are not guarded against each other there
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "alone"]

LOCK = ".lock"

_UNKNOWN = "another process"


@contextmanager
def alone(
    folder: Path,
    what: str = "written",
    *,
    name: str = LOCK,
    error: type[TerrazzoError] = OutputError,
) -> Iterator[None]:
    """Lock a folder for one run; the system lets go of the lock with the process, however that ends.

    Parameters
    ----------
    folder
        It exists.
    what
        What a run does to it, for the message: "is being ...".
    name
        Of the file of the lock; several runs may have locks of several names.
    error
        Class of the error.

    Raises
    ------
    OutputError
        Another run has the lock; the message has its process. Or ``error``, where that is another class.
    """
    path = folder / name
    file = _lock(path, what, error)
    try:
        yield
    finally:
        if file is not None:
            # before the lock is let go of: whoever gets it then sees that the file is gone
            path.unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path, what: str, error: type[TerrazzoError]) -> int | None:
    """Return an open, locked file; None where the file system has no locks."""
    while fcntl is not None:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                os.truncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return file
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace") or _UNKNOWN
            os.close(file)
            raise error(
                f"{path.parent} is being {what} by {holder}: wait until that is done, or stop it, and run it again; or "
                "choose another --out."
            ) from None
        except FileNotFoundError:  # the run that had it has just finished and removed it
            pass
        except OSError as failure:
            os.close(file)
            if failure.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            break
        os.close(file)
    if fcntl is not None:
        warnings.warn(
            f"the file system of {path.parent} has no locks: make sure that only one run writes there",
            TerrazzoWarning,
            stacklevel=5,
        )
    return None
