"""What a check gathers, and the processes that it works with."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from shards.check_files import Checked, Fault, ShardTask
from shards.check_unit import UnitTask

# One more process for so many bytes: starting one takes about a second.
_BYTES_A_WORKER = 1 << 28
Told = Callable[[int, int], None]  # done, of how many
Task = TypeVar("Task", UnitTask, ShardTask)
Done = TypeVar("Done", bound=Checked)


class CheckError(Exception):
    """There is nothing that could be checked: one line."""


@dataclass
class Report:
    """What a check found. `faults`: where the data set is not what its manifests say; `notes`: worth knowing."""

    where: str
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    units: int = 0
    shards: int = 0
    samples: int = 0
    rows: int = 0
    bytes: int = 0


def work(
    report: Report,
    check: Callable[[Task], Done],
    tasks: Iterator[Task],
    count: int,
    size: int,
    workers: int | None,
    told: Told,
) -> Iterator[Done]:
    """Checks tasks in this process or in others, adds what was found to the report, and yields each as it ends.

    count, size: how many tasks there are, and about how many bytes they will read.
    """
    if workers is None:
        workers = max(1, min(len(os.sched_getaffinity(0)), count, size // _BYTES_A_WORKER))
    told(0, count)
    for number, done in enumerate(map(check, tasks) if workers == 1 else _pooled(check, tasks, workers), 1):
        report.faults += done.faults
        report.samples += done.samples
        report.rows += done.rows
        report.bytes += done.size
        told(number, count)
        yield done


def _pooled(check: Callable[[Task], Done], tasks: Iterator[Task], workers: int) -> Iterator[Done]:
    # Object stores' clients do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[Done], str] = {}
        try:
            while True:
                for task in islice(tasks, 4 * workers - len(running)):
                    running[pool.submit(check, task)] = task.name
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool as error:
            names = ", ".join(sorted(running.values())[:8])
            raise CheckError(
                f"a process died while it checked one of {names}: out of memory, or a disk that cannot be read? "
                "Try --workers 1"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
