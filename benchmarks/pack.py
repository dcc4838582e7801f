"""Packing beside what people do instead, on one data set of small shards, in one run.

`python -m benchmarks.pack`: a copy of the files, a loop over members with tarfile, one over samples with webdataset's
reader, shuffle buffer and writer, and `shards pack` with one process and with two. Every round does each of them once,
so that other load on the machine meets all alike; the best round counts. Ratios carry over to other machines, absolute
numbers hardly do. Then it plans the pack of a billion samples, for the requests that an object store would see.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from shards.index import write_shard
from shards.manifest import DatasetManifest, ShardEntry, write_manifest
from shards.pack import pack
from shards.pack_left import Standing, tasks_left
from shards.pack_plan import make_plan
from shards.pack_work import Gather, Merge, perform
from shards.pool import Pool
from shards.storage import Storage
from shards.tar import group, scan

# An image of the web: about 40 KB, its size spread as a log-normal's.
IMAGE_BYTES, SPREAD = 40_000, 0.5
BUFFER = 1000  # samples in webdataset's shuffle, as its documentation has it


def make(folder: Path, shards: int, samples: int) -> int:
    """A data set of random images; gives its bytes."""
    storage, chance, entries = Storage.open(str(folder)), random.Random(0), []
    for number in range(shards):
        batch = []
        for row in range(samples):
            key = f"{number:06d}-{row:06d}"
            size = int(IMAGE_BYTES * chance.lognormvariate(-(SPREAD**2) / 2, SPREAD))
            about = json.dumps({"key": key, "url": f"https://example.org/{key}.jpg"}).encode()
            batch.append((key, [("jpg", chance.randbytes(size)), ("txt", b"a caption " * 8), ("json", about)]))
        entries.append(write_shard(storage, f"shards/{number:06d}.tar", batch))
    write_manifest(storage, DatasetManifest(name="benchmark", shards=entries))
    return sum(entry.bytes for entry in entries)


def flush(path: Path) -> None:
    """What a pack does too: its shards are on the disk when it says so."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def warm(folder: Path, size: int) -> None:
    """Takes memory and gives it back: a virtual machine's free memory is slow at first use, whoever uses it."""
    path, piece = folder / "warm", bytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(piece)
    path.unlink()


def copied(inputs: list[Path], out: Path, size: int) -> None:
    """The files as they are: no larger, not shuffled, not looked at."""
    for path in inputs:
        shutil.copyfile(path, out / path.name)
        flush(out / path.name)


def retarred(inputs: list[Path], out: Path, size: int) -> None:
    """Members from many tars to few with the standard library: not shuffled."""
    number, writer = 0, None
    for path in inputs:
        with tarfile.open(path) as reader:
            for member in reader:
                if writer is None or (writer.offset >= size and member.name.endswith(".jpg")):
                    if writer is not None:
                        writer.close()
                    writer = tarfile.open(out / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
                    number += 1
                writer.addfile(member, reader.extractfile(member))
    if writer is not None:
        writer.close()
    for path in out.iterdir():
        flush(path)


def rewritten(inputs: list[Path], out: Path, size: int) -> None:
    """webdataset's reader, shuffle buffer and ShardWriter: shuffled as far as the buffer reaches."""
    import webdataset

    reader = webdataset.WebDataset([str(path) for path in inputs], shardshuffle=len(inputs), seed=0).shuffle(BUFFER)
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=10**9, maxsize=size, verbose=0, mtime=0) as writer:
        for sample in reader:
            writer.write(sample)
    for path in out.iterdir():
        flush(path)


def packing(workers: int) -> Callable[[list[Path], Path, int], None]:
    def packed(inputs: list[Path], out: Path, size: int) -> None:
        plan = make_plan([str(inputs[0].parent.parent)], size, 0)
        with Pool(workers) as pool:
            pack(plan, Storage.open(str(out)), lambda tasks: pool.worked(perform, tasks), lambda done, of: None)

    return packed


def looked_at(out: Path) -> str:
    """Counts and sizes of the shards, and how often two neighbours come from one input shard."""
    sizes, counts, same = [], [], 0
    for path in sorted(out.glob("*.tar")):
        origins = [sample.key.partition("-")[0] for sample in group(scan(path.read_bytes()))]
        sizes.append(path.stat().st_size)
        counts.append(len(origins))
        same += sum(one == other for one, other in pairwise(origins))
    neighbours = sum(counts) - len(counts)
    mean = sum(sizes) / len(sizes)
    return (
        f"{len(counts)} shards of {min(counts):,} to {max(counts):,} samples, {min(sizes) / mean - 1:+.1%} to "
        f"{max(sizes) / mean - 1:+.1%} of their mean size; {same / neighbours:.1%} of neighbours from one input shard"
    )


def measure(folder: Path, shards: int, samples: int, size: int, rounds: int) -> Iterator[str]:
    data = make(folder / "in", shards, samples)
    inputs = sorted((folder / "in" / "shards").glob("*.tar"))
    into = f"into shards of {size / 1e6:,.0f} MB; best of {rounds}"
    yield f"{shards} shards of {samples} samples, {data / 1e6:,.0f} MB, {into}"
    ways = {
        "copy of the files": copied,
        "tarfile loop": retarred,
        "webdataset loop": rewritten,
        "shards pack, 1 process": packing(1),
        "shards pack, 2 processes": packing(2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {name: [] for name in ways}  # CPU seconds, those of ended children too
    looks: dict[str, str] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            out = folder / "out"
            out.mkdir()
            warm(folder, 3 * data)
            started, before = time.perf_counter(), sum(os.times()[:4])
            way(inputs, out, size)
            seconds[name].append(time.perf_counter() - started)
            work[name].append(sum(os.times()[:4]) - before)
            looks[name] = looks.get(name) or looked_at(out)
            shutil.rmtree(out)
    best = {name: min(found) for name, found in seconds.items()}
    least = {name: min(found) for name, found in work.items()}
    count, other, copy = shards * samples, "webdataset loop", "copy of the files"
    for name, took in best.items():
        wall = f"{count / took:,.0f} samples/s ({best[other] / took:.2f} x webdataset, {best[copy] / took:.2f} x copy)"
        cpu = f"{count / least[name]:,.0f} a CPU-second ({least[other] / least[name]:.2f} x webdataset)"
        yield f"{name:25} {data / took / 1e6:,.0f} MB/s, {wall}; {cpu}"
    yield from (f"{name}: {looks[name]}" for name in ("webdataset loop", "shards pack, 1 process"))


def planned(folder: Path, samples: int, size: int) -> Iterator[str]:
    """Requests of a pack of so many images, out of input shards of 1,250 samples."""
    each, shards = 1250, samples // 1250
    entries = [
        ShardEntry(url=f"{number}.tar", nsamples=each, bytes=each * IMAGE_BYTES, sha256=f"{number:064x}")
        for number in range(shards)
    ]
    storage = Storage.open(str(folder))
    write_manifest(storage, DatasetManifest(name="many", shards=entries))
    started = time.perf_counter()
    plan = make_plan([str(folder)], size, 0)
    spills, merges, gathers = tasks_left(plan, storage, Standing(plan, storage))
    took = time.perf_counter() - started
    reading: list[Merge | Gather] = [*merges, *gathers]
    # To open a file is one request, its head and a range of it are two; an input shard is opened and read.
    reads = 2 * plan.nsamples // each + 3 * sum(len(task.files) for task in reading)
    one_step = 3 * plan.nshards * sum(group.parts for group in plan.groups)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    yield (
        f"{plan.nsamples:,} samples of {IMAGE_BYTES // 1000} KB in {shards:,} shards: {plan.nshards:,} shards of "
        f"{size / 1e9:g} GB, {len(spills):,} + {len(merges):,} + {len(gathers):,} tasks, {reads / 1e6:,.1f} M reading "
        f"requests (a read for each sample: {plan.nsamples / 1e6:,.0f} M; without a round of merging: "
        f"{one_step / 1e6:,.0f} M), {max(len(task.files) for task in reading):,} files a task at most; "
        f"planned in {took:.0f} s, {memory:.1f} GB (largest process)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100, help="input shards; default: %(default)s")
    parser.add_argument("--samples", type=int, default=125, help="in each of them; default: %(default)s")
    parser.add_argument("--size", type=int, default=50_000_000, help="bytes of an output shard; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--plan", type=float, default=1e9, help="samples of the plan; 0: none; default: %(default)g")
    parser.add_argument("--folder", help="where the files go (twice the data, and more); default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for line in measure(Path(folder), options.shards, options.samples, options.size, options.rounds):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        if options.plan:
            for line in planned(Path(folder, "plan"), math.floor(options.plan), 10**9):
                sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
