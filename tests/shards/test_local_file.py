"""Large durable files, which go to the disk past the kernel's cache where the file system lets them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import local_file
from shards.local_file import write_local

DIRECT = 4 << 20


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(random.Random(number).randbytes(size)) for number, size in enumerate(sizes)]


FCNTL = fcntl.fcntl


def refused(file: int, code: int, argument: int = 0) -> int:
    """fcntl of a file system without direct writes."""
    if code == fcntl.F_SETFL and argument & local_file._O_DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")
    return FCNTL(file, code, argument)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 511, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1]), max_size=9), st.booleans())
def test_bytes_and_hash(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], hashed: bool) -> None:
    path = tmp_path_factory.mktemp("direct") / "a"
    pieces = views(*sizes, DIRECT)
    digest = write_local(str(path), pieces, durable=True, hashed=hashed)
    assert path.read_bytes() == b"".join(pieces)
    assert digest == (hashlib.sha256(b"".join(pieces)).hexdigest() if hashed else "")
    assert os.listdir(path.parent) == ["a"]


def test_small_files_and_those_that_need_not_be_durable_are_written_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(local_file, "_go_direct", lambda file, on=True: asked.append(file))
    write_local(str(tmp_path / "a"), views(DIRECT - 1), durable=True)
    write_local(str(tmp_path / "a"), views(DIRECT + 1))
    assert not asked
    write_local(str(tmp_path / "a"), views(DIRECT), durable=True)
    assert len(asked) == 1


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "fcntl", refused)
    pieces = views(100, DIRECT, 5000)
    digest = write_local(str(tmp_path / "a"), pieces, durable=True, hashed=True)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert digest == hashlib.sha256(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("taken", [4096 * 3, 70_001, None])
def test_the_kernel_takes_less_or_refuses_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int | None
) -> None:
    """taken: bytes of a write that goes through; None: direct writes fail after the first."""
    real, calls = os.write, 0

    def write(file: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if taken is not None:
            return real(file, data[:taken])
        if calls > 1 and fcntl.fcntl(file, fcntl.F_GETFL) & local_file._O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    pieces = views(DIRECT, 5000, 1 << 20)
    digest = write_local(str(tmp_path / "a"), pieces, durable=True, hashed=True)
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert digest == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    calls = 0

    def write(file: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        write_local(str(tmp_path / "a"), views(DIRECT), durable=True)
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
