"""Storage on a real S3 API, whole and disturbed: no object is ever seen half, and what fails is told in one line."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.inputs import resolve_inputs
from shards.object_store import ONE_PUT_BYTES, PATIENCE_VARIABLE
from shards.storage import NotFound, Storage, StorageError, Unavailable
from tests.s3 import KEY, SECRET, Fault, Store, serving

SMALL = b"small" * 200
LARGE = os.urandom(1 << 20) * 12  # two parts


@pytest.fixture(scope="module")
def _store() -> Iterator[Store]:
    with serving() as store:
        yield store


@pytest.fixture
def store(_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    use(monkeypatch, _store, patience_s=30)
    yield _store
    _store.proxy.clear()


def use(monkeypatch: pytest.MonkeyPatch, store: Store, patience_s: float) -> None:
    for name, value in {**store.environment(), PATIENCE_VARIABLE: str(patience_s)}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(store: Store) -> str:
    return store.bucket()


def kinds(store: Store) -> list[str]:
    return [request.kind for request in store.proxy.log]


# ---------------------------------------------------------------- as it should be


def test_what_a_storage_does(store: Store, bucket: str) -> None:
    storage = pickle.loads(pickle.dumps(Storage.open(f"s3://{bucket}/pre/x/")))
    assert (storage.uri, storage.is_local, storage.list(), storage.exists("a")) == (
        f"s3://{bucket}/pre/x",
        False,
        [],
        False,
    )
    storage.write("a/b.tar", [LARGE, memoryview(b"x"), pa.py_buffer(b"yz")])
    storage.write("m.json.gz", b"{}")
    storage.write("empty", b"")
    assert storage.read("a/b.tar") == LARGE + b"xyz"
    assert storage.view_range("a/b.tar", len(LARGE), len(LARGE) + 3).to_pybytes() == b"xyz"
    assert [(entry.path, entry.size) for entry in storage.list(recursive=True)] == [
        ("a/b.tar", len(LARGE) + 3), ("empty", 0), ("m.json.gz", 2)
    ]  # fmt: skip
    assert (storage.size("a/b.tar"), storage.exists("a"), storage.exists("m.json.gz")) == (len(LARGE) + 3, False, True)
    for pattern in ("", "/a", "/a/b.tar", "/{a,a}/b.tar", "/**/*.tar"):
        found, entries = resolve_inputs(f"s3://{bucket}/pre/x{pattern}", (".tar",))
        assert [found.where(entry.path) for entry in entries] == [f"s3://{bucket}/pre/x/a/b.tar"]
    storage.delete("m.json.gz")
    storage.delete("m.json.gz")
    with pytest.raises(NotFound, match=rf"^cannot read s3://{bucket}/pre/x/m.json.gz: not found: check the path$"):
        storage.read("m.json.gz")
    with pytest.raises(StorageError, match="ends before byte 13000000"):
        storage.view_range("a/b.tar", 1, 13_000_000)
    read_range = storage.ranges("a/b.tar")
    storage.delete("a/b.tar")
    with pytest.raises(NotFound, match="b.tar: not found: check the path$"):  # gone since it was opened
        read_range(0, 1000)


def test_a_small_file_is_one_put_and_a_large_one_appears_when_it_is_complete(store: Store, bucket: str) -> None:
    storage = Storage.open(f"s3://{bucket}")
    store.proxy.clear()
    storage.write("small", [SMALL, SMALL])
    storage.write("below", b"x" * (ONE_PUT_BYTES - 1))
    assert kinds(store) == ["PUT", "PUT"]
    store.proxy.clear()
    storage.write("large", LARGE)
    assert kinds(store) == ["CREATE", "PART", "PART", "COMPLETE"]
    assert store.uploads(bucket) == []
    assert store.objects(bucket) == {"small": SMALL * 2, "below": b"x" * (ONE_PUT_BYTES - 1), "large": LARGE}


# ---------------------------------------------------------------- faults

FAULTS = {
    "throttled": Fault(status=503),
    "server error": Fault(status=500),
    "request cut": Fault(cut_request=True),
    "answer cut": Fault(cut_response=True),
}


# The AWS library itself asks three times: a burst of four needs the patience of ours.
@pytest.mark.parametrize(
    ("name", "burst"),
    [
        ("throttled", 1),
        ("request cut", 4),
        *(
            pytest.param(name, burst, marks=pytest.mark.slow)
            for name, burst in itertools.product(FAULTS, (1, 4))
            if (name, burst) not in (("throttled", 1), ("request cut", 4))
        ),
    ],
)
def test_what_passes_is_waited_for(store: Store, bucket: str, name: str, burst: int) -> None:
    fault = FAULTS[name]
    table = pa.table({"a": list(range(1000))})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage = Storage.open(f"s3://{bucket}/x")
    storage.write("t.parquet", sink.getvalue())

    def parquet() -> bool:
        with storage.open_input("t.parquet") as file:
            return bool(pq.read_table(file).equals(table))

    steps: list[tuple[str, Callable[[], object], object]] = [
        ("PUT", lambda: storage.write("small", SMALL), None),
        ("CREATE", lambda: storage.write("large", LARGE), None),
        ("PART", lambda: storage.write("large", LARGE), None),
        ("COMPLETE", lambda: storage.write("large", LARGE), None),
        ("GET", lambda: storage.read("small"), SMALL),
        ("GET", lambda: storage.view_range("large", 5, 7_000_000).to_pybytes(), LARGE[5:7_000_000]),
        ("GET", parquet, True),
        ("HEAD", lambda: storage.size("small"), len(SMALL)),
        ("LIST", lambda: [entry.path for entry in storage.list()], ["large", "small", "t.parquet"]),
    ]
    for kind, step, expected in steps:
        left = [burst]

        def choose(method: str, path: str, number: int, kind: str = kind, left: list[int] = left) -> Fault | None:
            wanted = {"CREATE": "POST", "COMPLETE": "POST", "PART": "PUT", "LIST": "GET"}.get(kind, kind)
            # The first POST of an upload begins it, the second completes it.
            passed = sum(request.kind == "CREATE" and request.status == 200 for request in store.proxy.log)
            if method != wanted or (kind == "COMPLETE" and not passed) or not left[0]:
                return None
            left[0] -= 1
            return fault

        store.proxy.clear()
        store.proxy.choose = choose
        assert step() == expected, kind
        store.proxy.clear()
        assert set(store.objects(bucket)) <= {"x/small", "x/large", "x/t.parquet"}
        assert all(data in (SMALL, LARGE, sink.getvalue()) for data in store.objects(bucket).values()), kind
    assert storage.read("small") == SMALL


def test_a_store_that_is_away_for_a_while_and_slow_after_that(store: Store, bucket: str) -> None:
    import threading

    storage = Storage.open(f"s3://{bucket}")
    back = threading.Event()

    def away() -> None:
        with store.proxy.refuse():
            back.wait(20)

    thread = threading.Thread(target=away)
    threading.Timer(3.0, back.set).start()  # longer than the AWS library itself tries
    thread.start()
    while store.proxy._server is not None:
        time.sleep(0.01)
    storage.write("a", SMALL)
    thread.join()
    store.proxy.choose = lambda method, path, number: Fault(
        wait_s=3.5 * (method == "GET")
    )  # pyarrow's own limit is 3 s without a byte
    assert storage.read("a") == SMALL
    assert kinds(store)[-2:] == ["HEAD", "GET"]


def test_a_store_that_stays_broken_is_given_up_and_then_not_waited_for(
    store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, store, patience_s=2)
    storage = Storage.open(f"s3://{bucket}")
    store.proxy.choose = lambda method, path, number: Fault(status=503)
    with pytest.raises(Unavailable, match=rf"^cannot write s3://{bucket}/a: the object store asks to slow down: use"):
        storage.write("a", SMALL)
    store.proxy.clear()
    store.proxy.choose = lambda method, path, number: Fault(status=503)
    with pytest.raises(Unavailable):
        storage.write("a", SMALL)
    assert kinds(store) == ["PUT"] * 3
    store.proxy.choose = None
    storage.write("a", SMALL)
    assert store.objects(bucket) == {"a": SMALL}


@pytest.mark.parametrize("kind", ["POST", "PUT"])
def test_a_large_file_that_cannot_be_put_leaves_the_old_one(
    store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """pyarrow's stream publishes an empty object where its upload cannot begin and the store then comes back."""
    use(monkeypatch, store, patience_s=0)
    storage = Storage.open(f"s3://{bucket}")
    storage.write("a", b"old")
    failing = [3]  # the attempts of the AWS library; what comes after them would succeed

    def choose(method: str, path: str, number: int) -> Fault | None:
        failing[0] -= method == kind
        return Fault(status=503) if method == kind and (failing[0] >= 0 or kind == "PUT") else None

    store.proxy.choose = choose
    with pytest.raises(Unavailable):
        storage.write("a", LARGE)
    gc.collect()
    assert store.objects(bucket) == {"a": b"old"}


_WRITER = """
import sys
from shards.storage import Storage
storage = Storage.open(sys.argv[1])
print("open", flush=True)
storage.write("a", [b"n" * 1_000_000] * int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill", "int", "term"])
@pytest.mark.parametrize("megabytes", [4, 12], ids=["one PUT", "parts"])
def test_a_writer_that_dies_in_its_upload_leaves_the_old_object(
    store: Store, bucket: str, number: signal.Signals, megabytes: int
) -> None:
    Storage.open(f"s3://{bucket}").write("a", b"old")
    command = [sys.executable, "-c", _WRITER, f"s3://{bucket}", str(megabytes)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"

        def hit() -> None:
            store.proxy.on_half = None  # once
            writer.send_signal(number)
            if number != signal.SIGINT:
                writer.wait(30)

        cut = [1]

        def choose(method: str, path: str, count: int) -> Fault | None:
            cut[0] -= method == "PUT"
            return Fault(cut_request=True) if method == "PUT" and cut[0] == 0 else None

        store.proxy.on_half = hit
        store.proxy.choose = choose
        writer.communicate(timeout=60)
    finally:
        writer.kill()
        writer.wait()
    # One Ctrl-C waits for the upload's end, so that its thread never closes half a stream.
    expected = b"n" * 1_000_000 * megabytes if number == signal.SIGINT else b"old"
    assert store.objects(bucket) == {"a": expected}
    assert writer.returncode in (-number, 1)


def test_a_piece_that_is_no_buffer_sends_nothing(store: Store, bucket: str) -> None:
    storage = Storage.open(f"s3://{bucket}")
    storage.write("a", b"old")
    store.proxy.clear()
    for pieces in ([b"new", "text"], [LARGE, None], [b"x", memoryview(b"abcd")[::2]]):
        with pytest.raises((TypeError, BufferError, pa.ArrowException, ValueError)):
            storage.write("a", pieces)  # type: ignore[arg-type]
    assert kinds(store) == []
    assert store.objects(bucket) == {"a": b"old"}


# ---------------------------------------------------------------- credentials


def test_pickles_hold_no_credentials(store: Store, bucket: str) -> None:
    data = pickle.dumps(Storage.open(f"s3://{bucket}/x"))
    assert KEY.encode() not in data
    assert SECRET.encode() not in data
    assert len(data) < 200


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{KEY}:{SECRET}@bucket/x",
        f"s3://{KEY}:{SECRET}/more@bucket/x",
        f"s3://{KEY}@bucket/{SECRET}",
        f"s3://bucket?access_key={KEY}&secret_key={SECRET}",
        f"s3://bucket/x?secret_key={SECRET}",
        f"s3://bucket/x/*.tar?X-Amz-Signature={SECRET}",
        f"s3://{KEY}:{SECRET}@{{a,b}}/x.tar",
        f"https://{KEY}:{SECRET}@host/x.tar",
        f"https://host/x.tar?token={SECRET}",
        f"gs://key:{SECRET}@bucket/x",
    ],
)
def test_addresses_with_credentials_are_refused_and_not_repeated(uri: str) -> None:
    for call in (Storage.open, lambda uri: resolve_inputs(uri, (".tar",))):
        with pytest.raises(StorageError) as caught:
            call(uri)
        assert SECRET not in str(caught.value)
        assert KEY not in str(caught.value)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- what cannot work is told soon, in one line


def told(call: Callable[[], object], within_s: float = 12.0) -> str:
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call()
    assert time.monotonic() - started < within_s
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", ["", "/x", "/x/*.tar", "/{0..3}.tar"])
def test_a_bucket_that_is_not_there(store: Store, path: str) -> None:
    line = "there is no such bucket: check its name, and region and endpoint"
    assert told(lambda: resolve_inputs(f"s3://no-such-bucket{path}", (".tar",))).endswith(line)
    storage = Storage.open("s3://no-such-bucket/x")
    assert told(storage.must_answer) == f"cannot reach s3://no-such-bucket/x: {line}"
    assert told(storage.list).endswith(line)
    assert told(lambda: storage.write("a", b"1")) == f"cannot write s3://no-such-bucket/x/a: {line}"
    assert told(lambda: storage.write("a", LARGE)).endswith(line)


def test_an_empty_bucket_and_an_empty_folder_answer(store: Store, bucket: str) -> None:
    for uri in (f"s3://{bucket}", f"s3://{bucket}/x/y"):
        storage = Storage.open(uri)
        storage.must_answer()
        assert storage.list() == []
    assert "not found" in told(lambda: resolve_inputs(f"s3://{bucket}/x", (".tar",)))


def test_credentials_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(INITIAL_NO_AUTH_ACTION_COUNT="1") as strict:  # moto then checks keys and signatures
        bucket = strict.bucket()
        use(monkeypatch, strict, patience_s=60)
        storage = Storage.open(f"s3://{bucket}/x")
        line = "access denied: check the credentials in the environment and the bucket's policy"
        assert told(storage.must_answer) == f"cannot reach s3://{bucket}/x: {line}"
        assert "access denied" in told(lambda: storage.write("a", b"1"))
        assert "access denied" in told(lambda: storage.list())
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        assert "access denied" in told(Storage.open(f"s3://{bucket}/x").must_answer)


def test_no_credentials_at_all(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    store.proxy.choose = lambda method, path, number: Fault(status=403)  # as S3 answers; moto has an error of its own
    assert "access denied: check the credentials" in told(Storage.open(f"s3://{bucket}/x").must_answer)


def test_a_bucket_of_another_region(store: Store, bucket: str) -> None:
    store.proxy.choose = lambda method, path, number: Fault(status=301)
    line = "the bucket is in another region: set AWS_REGION to the bucket's region"
    storage = Storage.open(f"s3://{bucket}/x")
    assert told(storage.must_answer).endswith(line)
    assert told(lambda: storage.write("a", b"1")).endswith(line)
    assert told(storage.list).endswith(line)


@pytest.mark.parametrize("endpoint", ["refused", "http://no-such-host.invalid", "gopher://x", "http://u:p@127.0.0.1:9"])
def test_an_endpoint_that_is_none(store: Store, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    with store.proxy.refuse():
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.proxy.url if endpoint == "refused" else endpoint)
        line = told(lambda: resolve_inputs("s3://bucket/x", (".tar",)))
    assert ("cannot be reached" in line) or ("AWS_ENDPOINT_URL is no address" in line and "u:p" not in line)


def test_a_busy_store_is_waited_for_at_the_begin_too(store: Store, bucket: str) -> None:
    storage = Storage.open(f"s3://{bucket}/x")
    store.proxy.choose = lambda method, path, number: Fault(status=503) if number < 4 else None
    storage.must_answer()


def test_a_patience_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "soon")
    with pytest.raises(StorageError, match=r"^WINNOW_STORE_PATIENCE_S='soon' is no number of seconds"):
        Storage.open(str(tmp_path))
