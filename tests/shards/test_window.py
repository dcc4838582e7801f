"""Walks over archives that must not be held as a whole."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from shards.storage import Storage, StorageError
from shards.tar import scan
from shards.window import BLOCK_BYTES, walking


def mapped_bytes() -> int:
    """Bytes of files that stand in this process's page table."""
    told = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return 1024 * int(told["Pss_File"].split()[0])


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        for number in range(1_500):
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = 40_000 + number % 700
            out.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def test_a_local_walk_sees_all_and_holds_little(tar: Path) -> None:
    storage, size = Storage.open(str(tar.parent)), tar.stat().st_size
    before = mapped_bytes()
    with walking(storage, tar.name, size) as archive:
        found = list(scan(archive))
        assert mapped_bytes() - before < 2 * BLOCK_BYTES < size / 3
        assert found == list(scan(archive))  # what was let go is read again
    assert found == list(scan(storage.view(tar.name)))
    assert len(found) == 1_500


def test_empty_files_and_those_that_became_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    storage = Storage.open(str(tmp_path))
    with walking(storage, "a.tar", 0) as archive:
        assert len(archive) == 0
    with pytest.raises(StorageError, match=r"a\.tar.*the file is empty"), walking(storage, "a.tar", 512):
        pass
