"""Packs data sets as Ray tasks: the work of `shards.pack`, on a cluster.

The one decision: the driver does what `python -m shards pack` does, under a lease, and a task is Ray's to try again
where its worker dies. What a task says of its data or its disk ends the pack: nothing of a data set may be missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from curation import lease
from curation.cluster import JobError, cluster
from curation.plan import RunError
from curation.progress import say
from curation.resources import Node
from curation.tasks import spread
from shards.pack import Packed, pack, whole
from shards.pack_plan import PackError, Plan
from shards.pack_work import Done, Task, perform
from shards.storage import NotFound, Storage

# What a worker holds besides shards, bytes.
WORKER_BYTES = 256 << 20


def pack_on_ray(plan: Plan, out: Storage, address: str | None, told: Callable[[int, int], None]) -> Packed:
    """Does what is left of a pack on `address`, RAY_ADDRESS or a Ray of this machine's own.

    Raises `RunError` for a mistake in the call, `JobError` where a task, Ray or another driver ends it, `StorageError`.
    """
    out.must_answer()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if packed := whole(plan, out):  # before there is a lease in a folder of others, and a Ray for nothing
            return packed
        with lease.hold(out, say) as held, cluster(address) as nodes:
            memory = _memory(plan, nodes)

            def run(tasks: Iterable[Task]) -> Generator[Done]:
                with closing(spread(perform, tasks, address, 1, memory=memory)) as ends:
                    for ended in ends:
                        if error := held.lost or ended.error:
                            raise JobError(error)
                        assert ended.value is not None
                        yield ended.value

            return pack(plan, out, run, told)
    except PackError as error:
        raise RunError(str(error)) from error
    except NotFound as error:
        if not out.is_local:
            raise
        raise JobError(f"{error} (on more than one machine, --out is a folder that all share, or s3://)") from error


def _memory(plan: Plan, nodes: Sequence[Node]) -> int | None:
    """Bytes that a task asks for: two output shards, and no more than the largest node has: it must start."""
    there = [node["memory"] for node in nodes if node.get("memory") and node.get("CPU")]
    return int(min(2 * plan.size + WORKER_BYTES, max(there))) if there else None
