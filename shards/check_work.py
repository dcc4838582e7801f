"""What a check gathers, and how many processes it works with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from shards.check_files import Checked, Fault, ShardTask
from shards.check_unit import UnitTask
from shards.pool import PoolError, worked

# One more process for so many bytes: starting one takes about a second.
BYTES_A_WORKER = 1 << 28
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
        workers = max(1, min(len(os.sched_getaffinity(0)), count, size // BYTES_A_WORKER))
    told(0, count)
    try:
        for number, done in enumerate(worked(check, tasks, workers, lambda task: task.name), 1):
            report.faults += done.faults
            report.samples += done.samples
            report.rows += done.rows
            report.bytes += done.size
            told(number, count)
            yield done
    except PoolError as error:
        raise CheckError(str(error)) from error
