"""One function on many items: in processes of this machine, or as tasks of a Ray cluster.

The one decision: what the function raises is one item's end, in words, and the others go on; only a process of this
machine that dies ends the work, since nobody can say which item it was at. A cluster tries such an item again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from curation.cluster import JobError, cluster
from curation.termination import Terminated
from curation.unit import in_words
from shards.pool import PoolError, worked

Item = TypeVar("Item")
Value = TypeVar("Value")

# Tries of an item whose worker died, on a cluster.
MAX_ATTEMPTS = 3
# What ends a process on purpose. All else is the item's failure: Rust's panics, for one, are no `Exception`.
_LEAVE = (SystemExit, KeyboardInterrupt, GeneratorExit, Terminated)


@dataclass(frozen=True)
class Ended(Generic[Item, Value]):
    """How an item ended: with a value, or with an error of one line."""

    item: Item
    value: Value | None = None
    error: str | None = None


def spread(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    address: str | None,
    workers: int,
    *,
    cpus: float = 1.0,
    memory: int | None = None,
    name: Callable[[Item], str] = str,
) -> Generator[Ended[Item, Value]]:
    """Yields every item's end, in the order in which they end. Function and items must be picklable.

    address: a Ray cluster; without it (and without RAY_ADDRESS) `workers` processes of this machine; one worker is
    this process. cpus, memory (bytes): what a task asks of the cluster. name: what messages call an item. Whoever stops
    early closes it, so that nobody works on. Raises `JobError` where the work cannot go on.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    guarded = partial(_guarded, function)
    if not address:
        try:
            yield from worked(guarded, items, workers, name)
        except PoolError as error:
            raise JobError(f"{error} (what is done stays: the same command goes on)") from error
        return
    with cluster(address):
        yield from _on_ray(guarded, items, cpus, memory)


def usual_workers(items: int, items_a_worker: int = 1) -> int:
    """Processes for so many items: the CPUs, and fewer where starting one is not worth it."""
    return max(1, min(len(os.sched_getaffinity(0)), items // items_a_worker))


def _guarded(function: Callable[[Item], Value], item: Item) -> Ended[Item, Value]:
    try:
        return Ended(item, value=function(item))
    except _LEAVE:
        raise
    except BaseException as error:  # noqa: BLE001  the item fails with its reason, the others go on
        return Ended(item, error=in_words(error))


def _on_ray(
    guarded: Callable[[Item], Ended[Item, Value]], items: Iterable[Item], cpus: float, memory: int | None
) -> Iterator[Ended[Item, Value]]:
    import ray

    task = ray.remote(guarded_call).options(num_cpus=cpus, memory=memory, max_retries=MAX_ATTEMPTS - 1)
    shared = ray.put(guarded)
    waiting = iter(items)
    running: dict[object, Item] = {}
    while True:
        # Twice what the cluster runs at once, asked anew each time: it may grow.
        room = max(2, int(2 * ray.cluster_resources().get("CPU", 1) / cpus))
        for item in islice(waiting, max(0, room - len(running))):
            running[task.remote(shared, item)] = item
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            item = running.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.WorkerCrashedError:
                yield Ended(item, error=f"its worker died {MAX_ATTEMPTS} times; see Ray's logs")
            except ray.exceptions.RayError as error:
                yield Ended(item, error=in_words(error))


def guarded_call(guarded: Callable[[Item], Ended[Item, Value]], item: Item) -> Ended[Item, Value]:
    """What a Ray task runs: named, so that Ray's own pages show it."""
    return guarded(item)
