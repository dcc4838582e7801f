"""The plan of a pack: a permutation of all samples, cut evenly; the same for the same inputs, size and seed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.manifest import DatasetManifest, ManifestError, ShardEntry, write_manifest
from shards.pack_order import Permutation
from shards.pack_plan import PackError, Plan, make_plan, parse_size
from shards.storage import NotFound, Storage
from tests.shards.packing import dataset, pairs

SEEDS = st.integers(0, 2**64)


@settings(deadline=None)
@given(st.integers(1, 3000), SEEDS)
def test_every_place_is_taken_once(size: int, seed: int) -> None:
    order = Permutation(size, seed)
    places = order.places(0, size)
    assert sorted(places) == list(range(size))
    middle = size // 2
    assert order.places(0, middle) + order.places(middle, size) == places  # in whatever portions it is asked for


@given(st.integers(1, 10**15), SEEDS, st.data())
@settings(max_examples=50, deadline=None)
def test_places_of_a_huge_set_are_in_it_and_differ(size: int, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    places = Permutation(size, seed).places(start, min(size, start + 200))
    assert len(set(places)) == len(places)
    assert all(0 <= place < size for place in places)


def test_the_order_is_for_ever() -> None:
    """Other numbers here would change the bytes of every pack: shards.pack_plan.VERSION must change with them."""
    assert Permutation(10, 0).places(0, 10) == [2, 3, 6, 4, 5, 1, 0, 7, 9, 8]
    assert Permutation(10**12, 7).places(5, 8) == [246324941524, 550481731492, 234443612058]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_sets_are_shuffled_in_all_ways(size: int) -> None:
    """Over seeds, every permutation comes about equally often: chi squared within five of its deviations."""
    ways = math.factorial(size)
    draws = ways * 30
    counts = Counter(tuple(Permutation(size, seed).places(0, size)) for seed in range(draws))
    chi = sum((counts[way] - 30) ** 2 / 30 for way in counts) + 30 * (ways - len(counts))
    assert len(counts) == ways
    assert abs(chi - (ways - 1)) < 5 * math.sqrt(2 * (ways - 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_shuffle_is_global(seed: int) -> None:
    """As chance would have it: neighbours, where samples of a shard go, and how far they travel."""
    shards, each = 100, 300
    size = shards * each
    places = Permutation(size, seed).places(0, size)
    origin = [0] * size
    for number, place in enumerate(places):
        origin[place] = number
    # Neighbours come from the same input shard as often as any two samples do.
    chance = (each - 1) / (size - 1)
    same = sum(one // each == other // each for one, other in pairwise(origin))
    assert abs(same - (size - 1) * chance) < 5 * math.sqrt((size - 1) * chance)
    # Every input shard is spread over all output shards.
    outputs = 60
    table = Counter((number // each, place * outputs // size) for number, place in enumerate(places))
    expected = each / outputs
    chi = sum((table[i, j] - expected) ** 2 / expected for i in range(shards) for j in range(outputs))
    degrees = (shards - 1) * (outputs - 1)
    assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)
    # Before and after are independent: their correlation, and that of one sample's place with the next one's.
    for one, other in ((range(size), places), (places[:-1], places[1:])):
        assert abs(correlation(one, other)) < 5 / math.sqrt(size)
    # Runs upwards: of three neighbours the middle one is a turn in two of three cases.
    turns = sum((b > a) == (b > c) for a, b, c in zip(origin, origin[1:], origin[2:]))  # noqa: B905
    assert abs(turns - 2 * (size - 2) / 3) < 5 * math.sqrt(16 * size / 90)


def correlation(one: object, other: object) -> float:
    import numpy as np

    return float(np.corrcoef(np.array(one, dtype=float), np.array(other, dtype=float))[0, 1])


def test_seeds_give_other_orders() -> None:
    size = 5000
    orders = [Permutation(size, seed).places(0, size) for seed in range(20)]
    for one, other in pairwise(orders):
        fixed = sum(a == b for a, b in zip(one, other, strict=True))
        assert fixed < 10  # one on average


def plan_of(folder: Path, counts: list[int], mean: int, size: int, seed: int = 0) -> Plan:
    """A plan needs manifests only."""
    entries = [
        ShardEntry(url=f"{number}.tar", nsamples=count, bytes=count * mean, sha256=f"{number:064x}")
        for number, count in enumerate(counts)
    ]
    write_manifest(Storage.open(str(folder)), DatasetManifest(name="x", shards=entries))
    return make_plan([str(folder)], size, seed)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 50_000), st.integers(1, 2_000_000))
@settings(max_examples=60, deadline=None)
def test_shards_are_equal_and_near_the_size(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], mean: int, size: int
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    plan = plan_of(folder, counts, mean, size)
    starts = [plan.start(number) for number in range(plan.nshards + 1)]
    assert (starts[0], starts[-1]) == (0, sum(counts) == plan.nsamples and plan.nsamples)
    lengths = {stop - start for start, stop in pairwise(starts)}
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    # As few as keep the mean at most `size`: but a shard has a sample at least.
    assert plan.nbytes <= plan.nshards * size or plan.nshards == plan.nsamples
    assert plan.nshards == 1 or plan.nbytes > (plan.nshards - 1) * size
    # Groups hold all shards in their order, as many as an output shard's bytes.
    flat = [source for group in plan.groups for source in group.sources]
    assert [source.nsamples for source in flat] == counts
    first = 0
    for group in plan.groups:
        assert group.first == first
        first += group.nsamples
        assert len(group.sources) == 1 or sum(source.bytes for source in group.sources) <= size
        rows = [group.rows(part) for part in range(group.parts)]
        assert [row for part in rows for row in part] == list(range(group.nsamples))
        assert all(rows)
    # Chunks and buckets, where there is a round of merging: as many files in each as tasks can read from.
    merging = replace(plan, fan=8)
    if merging.chunks:
        files = Counter(merging.chunk_of(group.file + part) for group in plan.groups for part in range(group.parts))
        assert sorted(files) == list(range(merging.chunks))
        assert max(files.values()) <= merging.chunks
    assert [plan.bucket_of(number) for number in range(plan.nshards)] == [
        bucket for bucket in range(plan.buckets) for _ in plan.bucket(bucket)
    ]
    assert repr(make_plan([str(folder)], size, 0)) == repr(plan)


def test_the_identity_is_of_the_samples_not_of_their_place(tmp_path: Path) -> None:
    here, there = (dataset(tmp_path / name, pairs(2, 5)) for name in ("here", "there"))
    assert make_plan([here], 1000, 0).identity == make_plan([f"{there}/manifest.json"], 1000, 0).identity
    one = make_plan([here], 1000, 0).identity
    assert one != make_plan([here], 1000, 1).identity
    assert one != make_plan([here], 1001, 0).identity
    other = dataset(tmp_path / "other", pairs(2, 5, seed=1))
    assert one != make_plan([other], 1000, 0).identity


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GB", 10**9), ("500MB", 5 * 10**8), ("256MiB", 2**28), ("1gib", 2**30), ("2TB", 2 * 10**12), ("64kB", 64_000),
        ("1.5GB", 15 * 10**8), ("1000000", 10**6), ("77B", 77), (" 1 GB ", 10**9),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1G", "GB", "1 giga", "1e9", "٣GB", "0.1", "99999TB", "1GB2", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of a shard: write 1GB, 500MB, 256MiB or a number of bytes"):
        parse_size(text)


def test_inputs_that_cannot_be_packed(tmp_path: Path) -> None:
    whole = dataset(tmp_path / "whole", pairs(2, 3))
    with pytest.raises(
        PackError, match=r"the key 'a0000-000000' is in .*/whole/shards/0000.tar twice: keys are unique"
    ):
        make_plan([whole, f"{whole}/"], 1000, 0)
    copy = dataset(tmp_path / "copy", pairs(2, 3))
    with pytest.raises(PackError, match=r"the key 'a0000-000000' is in .*/whole/.* and .*/copy/shards/0000.tar: keys"):
        make_plan([whole, copy], 1000, 0)
    half = dataset(tmp_path / "half", pairs(1, 3, "b"), complete=False)
    with pytest.raises(PackError, match=r"half/manifest.json: the data set is not complete .*--incomplete"):
        make_plan([whole, half], 1000, 0)
    assert not make_plan([whole, half], 1000, 0, incomplete=True).complete
    empty = dataset(tmp_path / "empty", [])
    with pytest.raises(PackError, match=r"empty/manifest.json: no samples: there is nothing to pack"):
        make_plan([empty], 1000, 0)
    assert make_plan([empty, whole], 1000, 0).nsamples == 6
    with pytest.raises(NotFound, match="cannot read .*gone/manifest.json: not found: check the path"):
        make_plan([str(tmp_path / "gone")], 1000, 0)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ManifestError, match="bad.json: damaged"):
        make_plan([str(tmp_path / "bad.json")], 1000, 0)
    with pytest.raises(PackError, match="would make 1,200,000 shards, names have room for 1,000,000"):
        plan_of(tmp_path / "many", [400_000] * 3, 10, 1)
