"""Work on the processes of one machine: a function, many tasks, each result as it ends.

The one decision behind this module: a process that dies ends the work with a line that names what it may have been at.
Which task it was nobody can say, and what killed it once (memory, a disk) would most likely do so again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

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
    """Yields `function(task)` of every task as it ends; one worker: in this process, in order.

    Tasks are taken from their iterable as they are needed; function, tasks and results must be picklable. What a
    function raises is raised here. Whoever stops early, or is interrupted, leaves no process behind: those at work are
    ended at once. Raises `PoolError` where one died by itself; `name` is what it calls a task.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting = iter(tasks)
    running: dict[Future[Done], str] = {}
    # Object stores' clients do not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        while True:
            for task in islice(waiting, _AHEAD * workers - len(running)):
                running[pool.submit(function, task)] = name(task)
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
            # Before the pool is shut: that forgets who they are.
            for process in list((pool._processes or {}).values()):
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Ctrl-C is the parent's to answer; and nobody works on for a parent that was killed, beside its successor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
