"""Walks over archives that must not be held as a whole."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from shards.storage import Storage, StorageError
from shards.tar import scan
from shards.window import BLOCK_BYTES, walking
from tests.curation.test_memory import needs_smaps, resident
from tests.shards.test_tar import archive


@needs_smaps
def test_a_local_walk_sees_all_and_holds_little(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(archive([(f"{number:05d}.jpg", bytes(40_000 + number % 700)) for number in range(1_500)]))
    storage, size, me = Storage.open(str(tmp_path)), tar.stat().st_size, psutil.Process()
    before = resident(me, "Pss_File")
    with walking(storage, tar.name, size) as walked:
        found = list(scan(walked))
        assert resident(me, "Pss_File") - before < 2 * BLOCK_BYTES < size / 3
        assert found == list(scan(walked))  # what was let go is read again
    assert found == list(scan(storage.view(tar.name)))
    assert len(found) == 1_500


def test_empty_files_and_those_that_became_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    storage = Storage.open(str(tmp_path))
    with walking(storage, "a.tar", 0) as walked:
        assert len(walked) == 0
    with pytest.raises(StorageError, match=r"a\.tar.*the file is empty"), walking(storage, "a.tar", 512):
        pass
