"""Local disks with real refusals, and Arrow's file system in memory in the place of an object store."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from shards.inputs import resolve_inputs
from shards.storage import CutOff, Entry, NotFound, Storage, StorageError

ROOT_USER = os.geteuid() == 0


@pytest.fixture(params=["local", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage.open(str(tmp_path / "root"))
    memory = fs._MockFileSystem()
    memory.create_dir("bucket/root")
    return Storage(memory, "bucket/root", "s3://bucket/root")


def names(storage: Storage) -> list[str]:
    return [entry.path for entry in storage.list(recursive=True)]


# ---------------------------------------------------------------- what holds everywhere


def test_write_read_list_delete(storage: Storage) -> None:
    storage.write("a.txt", b"hello")
    if not storage.is_local:  # folders of an object store need not be made
        storage._fs.create_dir("bucket/root/x/y")
    storage.write("x/y/b.bin", [b"he", memoryview(b"ll"), pa.py_buffer(b"o"), b""])
    assert storage.write_hashed("a.txt", [pa.py_buffer(b"hello!")]) == hashlib.sha256(b"hello!").hexdigest()
    assert (storage.read("a.txt"), storage.read("x/y/b.bin")) == (b"hello!", b"hello")
    assert storage.view("a.txt").to_pybytes() == b"hello!"
    assert storage.view_range("a.txt", 1, 4).to_pybytes() == b"ell"
    assert storage.view_range("a.txt", 6, 6).size == 0
    read_range = storage.ranges("a.txt")
    assert [read_range(*cut).to_pybytes() for cut in ((1, 4), (0, 2), (6, 6))] == [b"ell", b"he", b""]
    with storage.open_input("a.txt") as file:
        file.seek(2)
        assert file.read(2) == b"ll"
    assert storage.size("a.txt") == 6
    assert storage.exists("a.txt")
    assert not storage.exists("x")
    assert not storage.exists("none")
    assert [(entry.path, entry.size) for entry in storage.list()] == [("a.txt", 6)]
    assert names(storage) == ["a.txt", "x/y/b.bin"]
    assert [entry.path for entry in storage.list("x", ".bin", recursive=True)] == ["x/y/b.bin"]
    assert storage.list("x", ".tar", recursive=True) == storage.list("none") == []
    storage.delete("a.txt")
    storage.delete("a.txt")
    with pytest.raises(NotFound, match=r"cannot delete .*root/a\.txt: not found"):
        storage.delete("a.txt", missing_ok=False)
    assert names(storage) == ["x/y/b.bin"]


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.view("empty").size == 0
    assert storage.size("empty") == 0


def test_missing_files_are_told(storage: Storage) -> None:
    for call in (storage.read, storage.view, storage.size, storage.open_input):
        with pytest.raises(NotFound, match=r"^cannot (read|look at) .*root/none\.tar: not found: check the path$"):
            call("none.tar")


def test_a_range_behind_the_end_is_told(storage: Storage) -> None:
    storage.write("a", b"12345")
    for read in (lambda: storage.view_range("a", 3, 9), lambda: storage.ranges("a")(0, 9)):
        with pytest.raises(CutOff, match="ends before byte 9"):
            read()
    with pytest.raises(ValueError, match="no range"):
        storage.view_range("a", 3, 2)


@pytest.mark.parametrize("rel", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_below_the_root(storage: Storage, rel: str) -> None:
    with pytest.raises(ValueError, match="below the root"):
        storage.read(rel)
    with pytest.raises(ValueError, match="below the root"):
        storage.write(rel, b"")


def test_storage_and_its_errors_can_be_pickled(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(Storage.open(str(tmp_path))))
    storage.write("a", b"1")
    assert (storage.uri, storage.read("a")) == (str(tmp_path), b"1")
    error = pickle.loads(pickle.dumps(NotFound("cannot read x: not found")))
    assert (type(error), str(error)) == (NotFound, "cannot read x: not found")


# ---------------------------------------------------------------- names of roots


def test_roots_of_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "f").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    for uri in (
        "a b",
        "./a b/",
        str(tmp_path / "a b"),
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b",
    ):
        storage = Storage.open(uri)
        assert storage.is_local
        assert storage.uri == str(tmp_path / "a b")
        assert storage.read("f") == b"1"
    assert Storage.open("/").exists(str(tmp_path / "a b" / "f")[1:])


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", r"ftp:// is not known: use a local path, file://, s3:// or gs://$"),
        ("http://host/x.tar", "http:// is not known"),
        ("s3://", "is no bucket's name"),
        ("s3:///x", "'' is no bucket's name"),
        ("gs://bu cket/x", "'bu cket' is no bucket's name"),
    ],
)
def test_unknown_roots_are_told(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Storage.open(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError, match="credentials") as caught:
        Storage.open("s3://AKIAX:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_an_object_store_out_of_reach_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "not-a-key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",  # nobody listens
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "WINNOW_STORE_PATIENCE_S": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"^cannot \w+ s3://bucket/x.*cannot be reached") as caught:
        Storage.open("s3://bucket/x").read("a")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- refusals of a local disk


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=2500), st.lists(st.integers(0, 900_000), max_size=3), st.booleans())
def test_any_number_of_pieces_is_written_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], large: list[int], hashed: bool
) -> None:
    storage = Storage.open(str(tmp_path_factory.mktemp("pieces")))
    pieces = [bytes([number % 251]) * size for number, size in enumerate([*sizes, *large, *sizes[:5]])]
    if hashed:
        assert storage.write_hashed("a", pieces) == hashlib.sha256(b"".join(pieces)).hexdigest()
    else:
        storage.write("a", pieces)
    assert storage.read("a") == b"".join(pieces)


def test_what_the_kernel_takes_in_parts_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda file, pieces: real(file, [bytes(pieces[0][:70_001])]))
    pieces = [bytes([number]) * 100_000 for number in range(12)]
    storage = Storage.open(str(tmp_path))
    assert storage.write_hashed("a", pieces) == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert storage.read("a") == b"".join(pieces)


def test_thousands_of_pieces_and_a_pipe_sized_one(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    pieces = [b"x" * (number % 7) for number in range(5000)] + [b"y" * 5_000_000]
    storage.write("a", pieces)
    assert storage.read("a") == b"".join(pieces)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.write("a", b"old")
    with pytest.raises(TypeError):
        storage.write("a", [b"new", "no bytes"])  # type: ignore[list-item]
    assert storage.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_mapped_file_keeps_its_bytes_when_it_is_replaced(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.write("a", b"old" * 5000)
    view = storage.view("a")
    storage.write("a", b"n")
    assert view.to_pybytes() == b"old" * 5000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "winnow-test", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_left_clean(small_disk: Path) -> None:
    storage = Storage.open(str(small_disk))
    storage.write("a", b"old")
    with pytest.raises(StorageError, match=r"^cannot write .*disk/a: no space left on the device: .* run again$"):
        storage.write("a", [b"x" * 50_000] * 3)
    assert storage.read("a") == b"old"
    assert os.listdir(small_disk) == ["a"]
    storage.write("a", b"y" * 40_000)  # the space of the failed write is free again


def test_a_read_only_disk_is_told(small_disk: Path) -> None:
    storage = Storage.open(str(small_disk))
    storage.write("a", b"1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"cannot write .*disk/x/b: the file system is read-only: choose another"):
        storage.write("x/b", b"2")
    with pytest.raises(StorageError, match=r"cannot delete .*: the file system is read-only"):
        storage.delete("a")
    assert storage.read("a") == b"1"


def test_a_limit_on_file_sizes_is_told_and_left_clean(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*/a: larger than this process"):
            storage.write("a", b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


_AS_NOBODY = """
import os, sys
from shards.storage import Storage, StorageError
os.setgid(65534)
os.setuid(65534)
storage = Storage.open(sys.argv[1])
for call in (lambda: storage.write("new", b"1"), lambda: storage.read("secret"), lambda: storage.list("closed")):
    try:
        call()
    except StorageError as error:
        print(error)
    else:
        print("no error")
"""


@pytest.mark.skipif(not ROOT_USER, reason="needs root to become somebody else")
def test_permission_denied_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret").write_bytes(b"1")
        (folder / "secret").chmod(0o600)
        (folder / "closed").mkdir(mode=0o700)
        command = [sys.executable, "-c", _AS_NOBODY, name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    advice = "permission denied: check owner and mode, or choose another place"
    assert lines == [
        f"cannot write {name}/new: {advice}",
        f"cannot read {name}/secret: {advice}",
        f"cannot list {name}/closed: {advice}",
    ]


def test_files_and_folders_in_each_others_place(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.write("file", b"1")
    (tmp_path / "folder" / "in").mkdir(parents=True)
    for rel in ("file/x", "file/x/y"):
        with pytest.raises(StorageError, match=rf"cannot write .*{rel}: a file stands where a folder is needed"):
            storage.write(rel, b"")
    with pytest.raises(StorageError, match=r"cannot write .*/folder: a folder stands where a file is needed"):
        storage.write("folder", b"")
    with pytest.raises(StorageError, match=r"cannot list .*/file: a file stands where a folder is needed"):
        storage.list("file")
    with pytest.raises(StorageError, match=r"cannot read .*/folder: "):
        storage.read("folder")
    assert names(storage) == ["file"]
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


_KILLED = """
import os, sys
from shards.storage import Storage
storage = Storage.open(sys.argv[1])
real = os.writev
def die(file, pieces):
    real(file, pieces[:1])
    os.kill(os.getpid(), 9)
os.writev = die
storage.write("x/a", [b"half", b"whole"])
"""


def test_temporary_files_of_the_dead_are_not_seen_and_swept(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.write("x/a", b"old")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    left = [name for name in os.listdir(tmp_path / "x") if name != "a"]
    assert len(left) == 1
    (tmp_path / "x" / ".b.tmp").write_bytes(b"not ours")
    assert names(storage) == ["x/.b.tmp", "x/a"]
    assert storage.read("x/a") == b"old"
    assert storage.sweep_temporary() == 0
    os.utime(tmp_path / "x" / left[0], (1, 1))
    assert storage.sweep_temporary() == 1
    assert sorted(os.listdir(tmp_path / "x")) == [".b.tmp", "a"]


@pytest.mark.parametrize("recursive", [False, True])
def test_a_name_that_is_not_utf8_is_told(tmp_path: Path, recursive: bool) -> None:
    (tmp_path / "a.tar").write_bytes(b"1")
    folder = tmp_path / "in" if recursive else tmp_path
    folder.mkdir(exist_ok=True)
    (Path(os.fsdecode(os.fsencode(folder) + b"/b\xff.tar"))).write_bytes(b"1")
    with pytest.raises(StorageError, match=r"a name is not UTF-8: rename (in/)?b\\xff\.tar$") as caught:
        Storage.open(str(tmp_path)).list(recursive=recursive)
    assert str(caught.value).startswith(f"cannot list {tmp_path}: ")
    with pytest.raises(StorageError, match="is not UTF-8"):
        resolve_inputs(str(tmp_path), (".tar",))


# ---------------------------------------------------------------- inputs


@pytest.fixture
def web(tmp_path: Path) -> Path:
    for name in (
        "00000.tar",
        "00001.tar",
        "00003.tar",
        "00001.parquet",
        "en/a.tar",
        "_tmp/b.tar",
        ".c.tar",
        "zh/a.tar",
    ):
        path = tmp_path / "web" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "web" / "empty").mkdir()
    return tmp_path / "web"


@pytest.mark.parametrize(
    ("pattern", "root", "found"),
    [
        ("", "", ["00000.tar", "00001.tar", "00003.tar", "en/a.tar", "zh/a.tar"]),
        ("/00001.tar", "", ["00001.tar"]),
        ("/{00000..00001}.tar", "", ["00000.tar", "00001.tar"]),
        ("/{zh,en}/a.tar", "", ["en/a.tar", "zh/a.tar"]),
        ("/*.tar", "", [".c.tar", "00000.tar", "00001.tar", "00003.tar"]),
        ("/0000[13].*", "", ["00001.tar", "00003.tar"]),
        ("/en/*", "/en", ["a.tar"]),
        ("/{en,00001}*", "", ["00001.tar"]),
        ("/**/a.tar", "", ["en/a.tar", "zh/a.tar"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_inputs(web: Path, scheme: str, pattern: str, root: str, found: list[str]) -> None:
    if "{en,00001}" in pattern:
        with pytest.raises(NotFound, match=r"1 of 2 names have no file: en\*"):
            resolve_inputs(f"{scheme}{web}{pattern}", (".tar",))
        return
    storage, entries = resolve_inputs(f"{scheme}{web}{pattern}", (".tar",))
    assert storage.uri == f"{web}{root}"
    assert [entry.path for entry in entries] == found
    assert [storage.read(entry.path).decode() for entry in entries] == [
        f"{root}/{name}"[1:] if root else name for name in found
    ]
    assert all(entry.size == storage.size(entry.path) and entry.mtime for entry in entries)


@pytest.mark.parametrize(
    ("path", "suffixes", "message"),
    [
        ("none", (".tar",), r"cannot read .*none: not found: check the path$"),
        ("none/*.tar", (".tar",), r"there is no folder .*none: check the path$"),
        ("empty", (".tar",), r"no input with the ending \.tar: it is empty$"),
        ("en", (".parquet", ".pq"), r"no input with the ending \.parquet or \.pq: it holds 1 other files$"),
        ("00001.parquet", (".tar",), r"no input with the ending \.tar: 00001\.parquet is none$"),
        ("{00000..00012}.tar", (".tar",), r"10 of 13 names have no file: 00002\.tar, 00004\.tar, 00005\.tar, \.\.\.: "),
        ("{00000..00001}.parquet", (".tar",), r"1 of 2 names have no file: 00000\.parquet: complete the input first$"),
        ("*.jpg", (".jpg",), r"1 of 1 names have no file: \*\.jpg"),
        ("{3..1}.tar", (".tar",), "runs downwards"),
        ("[z-a].tar", (".tar",), "cannot be understood"),
    ],
)
def test_inputs_that_are_not_there_are_told(web: Path, path: str, suffixes: tuple[str, ...], message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        resolve_inputs(f"{web}/{path}", suffixes)
    assert "\n" not in str(caught.value)


def test_names_that_look_like_patterns_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a[1]{x,y}.tar"
    path.write_bytes(b"1")
    storage, entries = resolve_inputs(str(path), (".tar",))
    assert entries == [Entry(path.name, 1, entries[0].mtime)]
    assert storage.read(path.name) == b"1"


def test_a_pattern_of_buckets_is_refused() -> None:
    with pytest.raises(StorageError, match=r"cannot stand for buckets"):
        resolve_inputs("s3://{a,b}/x.tar", (".tar",))
