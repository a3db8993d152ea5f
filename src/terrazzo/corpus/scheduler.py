"""Scheduler of tasks: this process, local processes, or a Dask scheduler's workers."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from terrazzo.errors import ConfigError, CorpusError
from terrazzo.processes import accept_interrupts, interrupts_held

__all__ = ["WorkerDied", "run_tasks"]

T = TypeVar("T")


def run_tasks(
    task: Callable[[T], Any],
    jobs: Sequence[T],
    scheduler: str | None = None,
    workers: int | None = None,
    *,
    apart: bool = False,
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
    apart
        Take a process of its own for one worker, too, so that a crash does not end this one.

    Raises
    ------
    ConfigError
        An unknown scheduler, or fewer than one worker.
    CorpusError
        The scheduler cannot be reached.
    WorkerDied
        A local process died; what was done before was yielded.
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
    elif scheduler == "synchronous" or (scheduler is None and n_workers == 1 and not apart):
        yield from map(task, jobs)
    else:
        yield from _local(task, jobs, scheduler or "processes", n_workers)


def _start_worker() -> None:
    """Prepare a local process: Ctrl-C stops its task, not its waiting for one, and it ends when the build is killed.

    Otherwise it would print a traceback of its own, and write beside the next build, or wait for ever.
    """
    signal.signal(signal.SIGINT, _note_interrupt)
    accept_interrupts()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


_interrupted = threading.Event()  # in a local process: Ctrl-C came between two tasks


def _note_interrupt(*arguments: object) -> None:
    _interrupted.set()


def _end_with(sentinel: int) -> None:
    """Wait for a process to end, and end this one."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _stoppable(task: Callable[[T], Any], job: T) -> Any:
    """Do a task in a local process; Ctrl-C, which a terminal sends to it as well, stops it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if _interrupted.is_set():
            raise KeyboardInterrupt
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
            with Callback(posttask=posttask), interrupts_held():
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
    except KeyboardInterrupt:
        _interrupt_workers()
        raise
    finally:
        stop.set()
        runner.join()
    if isinstance(result.error, BrokenProcessPool):
        raise WorkerDied(
            "a process of the build died, most likely because memory ran out: run it again with fewer --workers; what "
            "is finished is kept"
        ) from result.error
    if result.error is not None:
        raise result.error


class WorkerDied(CorpusError):
    """A local process died in the middle of its task."""


def _interrupt_workers() -> None:
    """Send Ctrl-C to the local processes: what stopped this one, e.g. SIGTERM, may not have come to them."""
    for process in multiprocessing.active_children():
        if process.pid is not None and process.is_alive():
            with suppress(OSError):
                os.kill(process.pid, signal.SIGINT)


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
