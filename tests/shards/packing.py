"""Data sets of small shards, to be packed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shards.index import write_shard
from shards.manifest import DatasetManifest, write_manifest
from shards.pack import Packed, Told, pack
from shards.pack_plan import Plan, make_plan
from shards.pack_work import perform
from shards.pool import Pool
from shards.storage import Storage
from shards.tar import group, scan

SIZE = 60_000
Sample = tuple[str, list[tuple[str, bytes]]]


def pair(key: str, size: int, rng: random.Random) -> Sample:
    return key, [
        ("jpg", b"\xff\xd8" + rng.randbytes(size)),
        ("txt", f"caption of {key}, 图".encode()),
        ("json", json.dumps({"key": key}).encode()),
    ]


def pairs(shards: int, samples: int, prefix: str = "a", size: int = 3000, seed: int = 0) -> list[list[Sample]]:
    """Shards of samples, of about `size` bytes each with some spread."""
    rng = random.Random(f"{prefix} {seed}")
    return [
        [pair(f"{prefix}{shard:04d}-{row:06d}", int(size * rng.lognormvariate(0, 0.5)), rng) for row in range(samples)]
        for shard in range(shards)
    ]


def dataset(where: Path | str, shards: Sequence[Sequence[Sample]], name: str = "some", complete: bool = True) -> str:
    """Writes shards with index and manifest, as a run leaves them; gives back where."""
    storage = Storage.open(str(where))
    entries = []
    for number, samples in enumerate(shards):
        entries.append(write_shard(storage, f"shards/{number:04d}.tar", samples))
    prints = {"decision_fp": f"{len(name):064x}"}
    write_manifest(storage, DatasetManifest(name=name, complete=complete, shards=entries, fingerprints=prints))
    return str(where)


def packed(plan: Plan, out: Path | str, workers: int = 1, told: Told = lambda done, of: None) -> Packed:
    with Pool(workers) as pool:
        return pack(plan, Storage.open(str(out)), lambda tasks: pool.worked(perform, tasks), told)


def pack_of(given: Sequence[str], out: Path | str, size: int, seed: int = 0, workers: int = 1) -> Packed:
    return packed(make_plan(given, size, seed), out, workers)


def few_large(folder: Path) -> Plan:
    """Three input shards for 90 packed ones: each is laid off into more files than a task of the plan reads from."""
    return replace(make_plan([dataset(folder, pairs(3, 30))], 1, 0), fan=8)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden or not."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples_of(tar: bytes) -> Iterator[Sample]:
    for sample in group(scan(tar)):
        yield sample.key, [(name, tar[part.offset : part.offset + part.size]) for name, part in sample.parts.items()]
