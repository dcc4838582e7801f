"""Work on the processes of one machine: a function, many tasks, each result as it ends.

The one decision behind this module: a process that dies ends the work with a line that names what it may have been at.
Which task it was nobody can say, and what killed it once (memory, a disk) would most likely do so again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any, Self, TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")

# Tasks that wait ready for each process.
_AHEAD = 4
_NAMED = 8


class PoolError(Exception):
    """A process of the pool died: one line with the tasks that were running."""


def worked(
    function: Callable[[Task], Done], tasks: Iterable[Task], workers: int, name: Callable[[Task], str] = str
) -> Generator[Done]:
    """What `Pool.worked` gives, of a pool for these tasks alone."""
    with Pool(workers) as pool:
        yield from pool.worked(function, tasks, name)


class Pool:
    """Processes that are started when they are first needed, and gone at the end; one worker is this process itself."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: ProcessPoolExecutor | None = None
        self._running: dict[Future[Any], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def worked(
        self, function: Callable[[Task], Done], tasks: Iterable[Task], name: Callable[[Task], str] = str
    ) -> Generator[Done]:
        """Yields `function(task)` of every task as it ends; one worker: in order.

        Tasks are taken from their iterable as they are needed; function, tasks and results must be picklable. What a
        function raises is raised here. Whoever stops early, or is interrupted, ends those at work at once. Raises
        `PoolError` where a process died by itself; `name` is what it calls a task.
        """
        if self._workers == 1:
            yield from map(function, tasks)
            return
        waiting, running = iter(tasks), self._running
        try:
            while True:
                for task in islice(waiting, _AHEAD * self._workers - len(running)):
                    with _interrupt_kept_back():
                        future = self._start().submit(function, task)
                    running[future] = name(task)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool as error:
            names = ", ".join(list(running.values())[:_NAMED])
            raise PoolError(
                f"a process died while it worked on one of {names}: out of memory, or a disk that cannot be read? "
                "Try --workers 1"
            ) from error
        finally:
            if running:
                self._end()

    def _start(self) -> ProcessPoolExecutor:
        if self._processes is None:
            # Object stores' clients do not survive a fork.
            spawn = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_begin)
        return self._processes

    def _end(self) -> None:
        pool, self._processes = self._processes, None
        if pool is None:
            return
        if self._running:
            self._running.clear()
            # Before the pool is shut: that forgets who they are.
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupt_kept_back() -> Iterator[None]:
    """From this thread, and from processes that it starts until they know what Ctrl-C is to them (`_begin`)."""
    resource_tracker.ensure_running()  # it would be started with the first process, and let interrupts in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Ctrl-C is the parent's to answer; and nobody works on for a parent that was killed, beside its successor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
