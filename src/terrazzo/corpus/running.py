"""Where tasks run: this process, local processes, or the workers of a Dask scheduler; results as they come."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from terrazzo.errors import ConfigError, CorpusError

T = TypeVar("T")


def run_tasks(
    task: Callable[[T], Any], jobs: Sequence[T], scheduler: str | None = None, workers: int | None = None
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


def _local(task: Callable[[T], Any], jobs: Sequence[T], scheduler: str, n_workers: int) -> Iterator[Any]:
    from concurrent.futures.process import BrokenProcessPool

    import dask
    from dask.callbacks import Callback

    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def posttask(key: Any, result: Any, *rest: Any) -> None:
        if stop.is_set():
            raise _Stopped
        results.put(result)

    def compute() -> None:
        try:
            with Callback(posttask=posttask):
                dask.compute(*tasks, scheduler=scheduler, num_workers=n_workers, chunksize=1, optimize_graph=False)
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
            "a process of the build died, most likely for want of memory: run it again with fewer --workers; what is "
            "finished is kept"
        ) from result.error
    if result.error is not None:
        raise result.error


class _Stopped(Exception):
    """The consumer wants no more."""


class _Done:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _distributed(task: Callable[[T], Any], jobs: Sequence[T], address: str) -> Iterator[Any]:
    from distributed import Client, as_completed

    try:
        client = Client(address, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise CorpusError(f"the scheduler {address} cannot be reached ({error or type(error).__name__})") from error
    with client:
        futures = client.map(task, jobs, pure=False)
        try:
            for future in as_completed(futures, loop=client.loop):
                yield future.result()
        finally:
            client.cancel(futures)
