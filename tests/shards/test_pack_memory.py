"""A worker's memory is bounded by the size of a packed shard, whatever the data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s3 import serving
from tests.shards.packing import dataset, files, pairs

_MEASURED = """
import sys
from shards.pack import pack
from shards.pack_plan import make_plan
from shards.pack_work import perform
from shards.storage import Storage

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

plan = make_plan([sys.argv[1]], int(sys.argv[2]), 0)
before = peak()
pack(plan, Storage.open(sys.argv[3]), lambda tasks: (perform(task) for task in tasks), lambda done, of: None)
print(peak() - before, plan.nbytes)
"""


def grown(where: str, size: int, out: str, **environment: str) -> tuple[int, int]:
    """By how many bytes a process grows that packs, and the bytes that it packs."""
    run = subprocess.run(
        [sys.executable, "-c", _MEASURED, where, str(size), out],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    more, data = map(int, run.stdout.split())
    return more, data


@pytest.mark.parametrize("large", [0, pytest.param(600, marks=pytest.mark.slow)])
def test_on_a_disk(tmp_path: Path, large: int) -> None:
    """All memory of the process counts. An input shard that is larger than `size` is mapped as a whole."""
    size = 8_000_000
    shards = [*pairs(80, 25, size=60_000), *pairs(int(large > 0), large, "z", size=60_000)]
    more, data = grown(dataset(tmp_path / "in", shards), size, str(tmp_path / "out"))
    assert data > 130_000_000
    assert more < 2 * size + large * 70_000 + 10_000_000


@pytest.mark.slow
def test_on_an_object_store(tmp_path: Path) -> None:
    """Two shards, and what 16 requests and the allocator hold; no third one stays from task to task."""
    size = 40_000_000
    dataset(tmp_path / "in", pairs(60, 75, size=60_000))
    with serving() as store:
        bucket = store.bucket()
        store.put(bucket, files(tmp_path))
        more, data = grown(f"s3://{bucket}/in", size, f"s3://{bucket}/out", **store.environment())
    assert data > 300_000_000
    assert more < 2 * size + 70_000_000
