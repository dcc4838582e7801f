"""Packs from and to a real S3 API: the same bytes as on a disk, with few requests; what fails is one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards.check import check
from shards.object_store import PATIENCE_VARIABLE
from shards.pack_plan import make_plan
from shards.pack_work import FOLDER
from shards.storage import NotFound, Storage, StorageError, Unavailable
from tests.s3 import Fault, Store, serving_here
from tests.shards.packing import dataset, files, pack_of, packed, pairs

SIZE = 60_000


@pytest.fixture(scope="module")
def _store() -> Iterator[Store]:
    with serving_here(**{PATIENCE_VARIABLE: "0"}) as store:
        yield store


@pytest.fixture
def store(_store: Store) -> Iterator[Store]:
    yield _store
    _store.proxy.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    given = [dataset(folder / "a", pairs(6, 5, "a"), "one"), dataset(folder / "b", pairs(1, 30, "b"), "two")]
    pack_of(given, folder / "out", SIZE)
    return folder


def put(store: Store, local: Path) -> list[str]:
    """The inputs in a new bucket."""
    bucket = store.bucket()
    for name in "ab":
        store.put(bucket, {f"in/{name}/{path}": data for path, data in files(local / name).items()})
    store.proxy.clear()
    return [f"s3://{bucket}/in/a", f"s3://{bucket}/in/b/manifest.json"]


def objects(store: Store, bucket: str, prefix: str) -> dict[str, bytes]:
    """Without the empty object that Arrow leaves for a folder out of which something was deleted."""
    found = store.objects(bucket, prefix)
    assert found.pop("", b"") == b""
    return found


def test_the_bytes_are_those_of_a_local_pack(store: Store, local: Path) -> None:
    """Here with a round of merging."""
    given = put(store, local)
    bucket = given[0].split("/")[2]
    plan = replace(make_plan(given, SIZE, 0), fan=3)
    packed(plan, f"s3://{bucket}/out")
    assert objects(store, bucket, "out/") == files(local / "out")
    assert not check(Storage.open(f"s3://{bucket}/out")).faults
    assert packed(plan, f"s3://{bucket}/out").worked == 0


def test_requests_are_bounded_by_files_not_by_samples(store: Store, local: Path) -> None:
    """A shard costs three requests for each spill file at most: to open it, its head, a range of it."""
    given = put(store, local)
    plan = make_plan(given, SIZE, 0)
    bucket = given[0].split("/")[2]
    store.proxy.clear()
    packed(plan, f"s3://{bucket}/out")
    assert objects(store, bucket, "out/") == files(local / "out")
    spills = sum(group.parts for group in plan.groups)
    inputs = sum(len(group.sources) for group in plan.groups)
    reads = [request.path for request in store.proxy.log if request.kind in ("GET", "HEAD")]
    assert 0 < sum(f"/{FOLDER}/spill/" in path for path in reads) <= 3 * plan.nshards * spills
    # To open it and to read it; one that is larger than `size` in pieces of 4 MiB.
    assert sum(path.startswith(f"/{bucket}/in/") for path in reads) == 2 * inputs
    assert len(store.proxy.log) < 3 * plan.nshards * spills + 2 * inputs + 4 * (plan.nshards + spills) + 20


def test_from_the_store_to_a_disk_and_back(store: Store, local: Path, tmp_path: Path) -> None:
    given = put(store, local)
    pack_of(given, tmp_path / "out", SIZE, workers=2)
    assert files(tmp_path / "out") == files(local / "out")
    bucket = store.bucket()
    pack_of([str(local / "a"), str(local / "b")], f"s3://{bucket}/x/y", SIZE)
    assert objects(store, bucket, "x/y/") == files(local / "out")


def test_a_packed_shard_of_many_parts(store: Store, tmp_path: Path) -> None:
    """Over 5 MiB an object goes up in parts."""
    given = dataset(tmp_path / "in", pairs(4, 40, size=100_000))
    bucket = store.bucket()
    pack_of([given], f"s3://{bucket}/out", 9_000_000)
    pack_of([given], tmp_path / "out", 9_000_000)
    assert objects(store, bucket, "out/") == files(tmp_path / "out")
    assert not store.uploads(bucket)


def test_a_store_that_fails_in_between(store: Store, local: Path) -> None:
    given = put(store, local)
    bucket = given[0].split("/")[2]
    store.proxy.choose = lambda method, path, number: (
        Fault(status=503) if method == "PUT" and path.endswith("/000003.tar") else None
    )
    with pytest.raises(
        Unavailable, match=rf"^cannot write s3://{bucket}/out/000003.tar: the object store asks to slow"
    ):
        pack_of(given, f"s3://{bucket}/out", SIZE)
    assert "manifest.json" not in store.objects(bucket, "out/")
    store.proxy.clear()
    pack_of(given, f"s3://{bucket}/out", SIZE)
    assert objects(store, bucket, "out/") == files(local / "out")
    assert f"/{bucket}/out/000001.tar" not in [request.path for request in store.proxy.log if request.kind == "PUT"]


def test_what_is_not_there(store: Store, local: Path) -> None:
    given = put(store, local)
    with pytest.raises(NotFound, match="^cannot reach s3://no-such-bucket-here: there is no such bucket"):
        pack_of(given, "s3://no-such-bucket-here", SIZE)
    with pytest.raises(StorageError, match=r"^cannot (?:reach|read) s3://no-such-bucket-here"):
        pack_of(["s3://no-such-bucket-here/x"], f"{given[0]}-out", SIZE)
    with (
        store.proxy.refuse(),
        pytest.raises(Unavailable, match="cannot be reached: check network, region and endpoint"),
    ):
        pack_of(given, f"{given[0]}-out", SIZE)


def test_another_pack_that_ended_first_is_no_error(store: Store, local: Path) -> None:
    """Two machines know nothing of each other: the one that is later finds the files it needs cleared away."""
    given = put(store, local)
    bucket = given[0].split("/")[2]
    plan = make_plan(given, SIZE, 0)

    def told(done: int, of: int) -> None:
        if done == of - plan.nshards + 2:
            pack_of(given, f"s3://{bucket}/out", SIZE)

    packed(plan, f"s3://{bucket}/out", 1, told)
    assert objects(store, bucket, "out/") == files(local / "out")
