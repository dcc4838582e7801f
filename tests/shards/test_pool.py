"""A pool: every result as it ends, errors where they happen, and no process left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil
import pytest

from shards.pool import Pool, PoolError, worked


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven is too much")
    return number


def die_at_seven(number: int) -> int:
    if number == 7:
        os._exit(9)
    return number


def sleep_after_one(number: int) -> int:
    if number:
        time.sleep(600)
    return number


def children() -> set[int]:
    """Our workers; multiprocessing's own tracker of resources stays."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_result_comes(workers: int) -> None:
    found = list(worked(square, range(40), workers))
    assert sorted(result for result, _ in found) == [number * number for number in range(40)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)
    assert list(worked(square, [], workers)) == []


def test_tasks_are_taken_as_they_are_needed() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = worked(square, tasks(), 2)
    next(results)
    assert len(taken) < 20
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_here(workers: int) -> None:
    before = children()
    with pytest.raises(ValueError, match="seven is too much"):
        list(worked(fail_at_seven, range(100), workers))
    assert children() == before


def test_a_process_that_dies_is_told_with_the_tasks_that_ran() -> None:
    with pytest.raises(
        PoolError, match=r"^a process died while it worked on one of .*task 7.*: out of memory, or a disk"
    ):
        list(worked(die_at_seven, range(100), 2, lambda number: f"task {number}"))


def test_who_stops_early_leaves_nobody_at_work() -> None:
    before = children()
    results = worked(sleep_after_one, range(10), 2)
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 60
    assert children() == before


def test_a_pool_keeps_its_processes_between_calls() -> None:
    before = children()
    with Pool(2) as pool:
        first = {pid for _, pid in pool.worked(square, range(30))}
        assert {pid for _, pid in pool.worked(square, range(30))} <= children() - before
        with pytest.raises(ValueError, match="seven"):
            list(pool.worked(fail_at_seven, range(30)))
        second = {pid for _, pid in pool.worked(square, range(30))}  # after an error it begins anew
    assert first.isdisjoint(second)
    assert children() == before
