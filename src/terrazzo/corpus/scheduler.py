"""Scheduler of tasks: this process, local processes, or a Dask scheduler's workers; and the lock of a build."""

from __future__ import annotations

import errno
import functools
import multiprocessing.connection
import os
import queue
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from terrazzo.errors import ConfigError, CorpusError, TerrazzoWarning

try:
    import fcntl
except ImportError:  # not on Windows: builds are not guarded against each other there
    fcntl = None  # type: ignore[assignment]


__all__ = ["LOCK", "alone", "run_tasks"]

T = TypeVar("T")

LOCK = ".lock"


def run_tasks(
    task: Callable[[T], Any],
    jobs: Sequence[T],
    scheduler: str | None = None,
    workers: int | None = None,
) -> Iterator[Any]:
    """Yield the result of ``task(job)`` for every job, in the order in which they are done.

    Parameters
    ----------
    task
        Importable function.
    jobs
        Its arguments, picklable.
    scheduler
        None or "processes": local processes; "synchronous": this process; "threads"; else the address of a
        ``dask.distributed`` scheduler.
    workers
        Local processes (or threads); None: one a core.

    Raises
    ------
    ConfigError
        An unknown scheduler, or fewer than one worker.
    CorpusError
        The scheduler cannot be reached; a process died.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    n_workers = min(workers or os.cpu_count() or 1, max(1, len(jobs)))
    if scheduler is not None and "://" in scheduler:
        yield from _distributed(task, jobs, scheduler)
    elif scheduler not in (None, "processes", "threads", "synchronous"):
        raise ConfigError(
            f"scheduler {scheduler!r} is not known; give an address such as tcp://host:8786, or leave it out"
        )
    elif scheduler == "synchronous" or (scheduler is None and n_workers == 1):
        yield from map(task, jobs)
    else:
        yield from _local(task, jobs, scheduler or "processes", n_workers)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder for one build; the system lets go of the lock with the process, however that ends.

    Raises
    ------
    CorpusError
        Another build has the lock.
    """
    path = folder / LOCK
    file = _lock(path)
    try:
        yield
    finally:
        if file is not None:
            # before the lock is let go of: whoever gets it then sees that the file is gone
            path.unlink(missing_ok=True)
            os.close(file)


def _lock(path: Path) -> int | None:
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
            holder = os.pread(file, 200, 0).decode("utf-8", "replace") or "another process"
            os.close(file)
            raise CorpusError(
                f"{path.parent} is being built by {holder}: wait until that is done, or stop it, and run it again; or "
                "choose another --out."
            ) from None
        except FileNotFoundError:  # the build that had it has just finished and removed it
            pass
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            break
        os.close(file)
    if fcntl is not None:
        warnings.warn(
            f"the file system of {path.parent} has no locks: make sure that only one build writes there",
            TerrazzoWarning,
            stacklevel=5,
        )
    return None


def _start_worker() -> None:
    """Prepare a local process: Ctrl-C stops its task, not its waiting for one, and it ends when the build is killed.

    Otherwise it would print a traceback of its own, and write beside the next build, or wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """Wait for a process to end, and end this one."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _stoppable(task: Callable[[T], Any], job: T) -> Any:
    """Do a task in a local process; Ctrl-C, which a terminal sends to it as well, stops it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return task(job)
    finally:
        signal.signal(signal.SIGINT, before)


def _local(
    task: Callable[[T], Any], jobs: Sequence[T], scheduler: str, n_workers: int
) -> Iterator[Any]:
    """Yield results of this machine's processes or threads as they come; Dask computes in a thread."""
    from concurrent.futures.process import BrokenProcessPool

    import dask
    from dask.callbacks import Callback

    options: dict[str, Any] = {"num_workers": n_workers, "chunksize": 1, "optimize_graph": False}
    if scheduler == "processes":
        options["initializer"] = _start_worker
        task = functools.partial(_stoppable, task)
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def posttask(key: Any, result: Any, *rest: Any) -> None:
        if stop.is_set():
            raise _Stopped
        results.put(result)

    def compute() -> None:
        try:
            with Callback(posttask=posttask):
                dask.compute(*tasks, scheduler=scheduler, **options)
            results.put(_Done(None))
        except BaseException as error:
            results.put(_Done(error))

    tasks = [dask.delayed(task, pure=False)(job) for job in jobs]
    runner = threading.Thread(target=compute, daemon=True)
    runner.start()
    try:
        while not isinstance(result := results.get(), _Done):
            yield result
    finally:
        stop.set()
        runner.join()
    if isinstance(result.error, BrokenProcessPool):
        raise CorpusError(
            "a process of the build died, most likely because memory ran out: run it again with fewer --workers; what "
            "is finished is kept"
        ) from result.error
    if result.error is not None:
        raise result.error


class _Stopped(Exception):
    """Nobody waits for more results."""


class _Done:
    """All tasks are done, or one of them failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _distributed(task: Callable[[T], Any], jobs: Sequence[T], address: str) -> Iterator[Any]:
    """Yield results of a Dask scheduler's workers as they come."""
    from distributed import Client, as_completed

    try:
        client = Client(address, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise CorpusError(
            f"the scheduler {address} cannot be reached ({error or type(error).__name__})"
        ) from error
    with client:
        futures = client.map(task, jobs, pure=False)
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()
        finally:
            client.cancel(futures)
