"""What several tests of packing pack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shards.packing import SIZE, dataset, pack_of, pairs


@pytest.fixture(scope="session")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two data sets of small shards, and a shard that is larger than a packed one."""
    folder = tmp_path_factory.mktemp("inputs")
    first = [samples[: 3 + number % 5] for number, samples in enumerate(pairs(20, 8, "a"))]
    return [
        dataset(folder / "a", first, "one"),
        dataset(folder / "b", [*pairs(3, 7, "b"), pairs(1, 60, "c")[0]], "two"),
    ]


@pytest.fixture(scope="session")
def two_packed(two_sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packed into one, in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_of(two_sets, out, SIZE)
    return out
