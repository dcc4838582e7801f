"""Gives shards to workers: processes of this machine, or img2dataset's Ray task on a cluster.

The one decision: a worker that dies takes its shard only. img2dataset's own distributors wait for ever for the shard of
a killed process, or end with the first one, and hold a reference for every shard there will ever be.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context

from curation.fetch.catalogue import Shard
from curation.fetch.worker import Fetched, Fetcher
from curation.unit import describe

# A shard whose worker died this often is given up.
MAX_ATTEMPTS = 3
# img2dataset gives its processes five shards each, since its image libraries leak; one costs seconds to start.
SHARDS_A_PROCESS = 20
# Heap of a task on a cluster: libraries, and twice 64 bodies of usual size.
TASK_BYTES = 2**30


def on_this_machine(fetcher: Fetcher, shards: Iterable[Shard], processes: int) -> Iterator[Fetched]:
    """Yields every shard's end, in the order in which they end.

    Where a worker dies nobody can say which of the running shards did it: each of them is tried again alone.
    """
    waiting = deque[Shard]()
    more = iter(shards)
    suspects: list[Shard] = []
    deaths: Counter[int] = Counter()
    running: dict[Future[tuple[bool, Fetched]], Shard] = {}
    pool = _pool(processes)
    try:
        while True:
            broken: list[Shard] | None = None
            if suspects:
                chosen = deque([] if running else [suspects.pop()])
            else:
                waiting.extend(islice(more, max(0, processes - len(running) - len(waiting))))
                chosen, waiting = waiting, deque()
            while chosen:
                try:
                    future = pool.submit(fetcher, chosen[0])
                except BrokenProcessPool:  # a worker died while it had nothing to do
                    broken = []
                    waiting.extend(chosen)
                    break
                running[future] = chosen.popleft()
            if not running and broken is None:
                return
            if broken is None:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    shard = running.pop(future)
                    try:
                        ended = future.result()[1]
                    except BrokenProcessPool:
                        broken = [*(broken or []), shard]
                    else:
                        yield ended
            if broken is None:
                continue
            broken += running.values()
            running.clear()
            _end(pool)
            pool = _pool(processes)
            for shard in broken:
                deaths[shard.number] += 1
                if deaths[shard.number] < MAX_ATTEMPTS:
                    suspects.append(shard)
                else:
                    yield Fetched(shard.number, error=f"shard {shard.name}: its worker died {MAX_ATTEMPTS} times")
    finally:
        _end(pool)


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        max_tasks_per_child=SHARDS_A_PROCESS,
        initializer=_begin,
        initargs=(os.getpid(),),
    )


def _begin(driver: int) -> None:
    """Ctrl-C is the driver's to answer; and nobody publishes for a driver that was killed, beside its successor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="driver-watch", daemon=True).start()


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once: what they have not published is fetched again."""
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


def on_ray(fetcher: Fetcher, shards: Iterable[Shard], cpus: float) -> Iterator[Fetched]:
    """The same on the Ray that this process is connected to; `cpus`: what a task asks for."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import ray
    from img2dataset.distributor import ray_download

    task = ray_download.options(num_cpus=cpus, memory=TASK_BYTES, max_retries=MAX_ATTEMPTS)
    shared = ray.put(fetcher)
    waiting = iter(shards)
    running: dict[object, Shard] = {}
    while True:
        # Twice what the cluster runs at once, asked anew each time: it may grow.
        room = max(2, int(2 * ray.cluster_resources().get("CPU", 1) / cpus))
        for shard in islice(waiting, max(0, room - len(running))):
            running[task.remote(shared, shard)] = shard
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            shard = running.pop(reference)
            try:
                yield ray.get(reference)[1]
            except ray.exceptions.RayError as error:
                yield Fetched(shard.number, error=f"shard {shard.name}: {describe(error)}")
