"""The `.tar.idx` file; equality with what Energon writes is in test_readers.py."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.index import IndexDamaged, decode_index, encode_index, offsets_of, read_index, write_index
from shards.storage import NotFound, Storage
from shards.tar import build_shard


@given(st.lists(st.integers(0, 2**63), min_size=1, unique=True).map(sorted))
def test_round_trip(offsets: list[int]) -> None:
    data = encode_index(offsets)
    assert data == b"".join(struct.pack("<Q", offset) for offset in offsets)
    assert decode_index(data) == offsets


@pytest.mark.parametrize("data", [b"", b"1234567", encode_index([0, 512, 512]), encode_index([512, 0])])
def test_damage_is_told(data: bytes) -> None:
    with pytest.raises(IndexDamaged, match=r"^a\.tar\.idx: .*: write the index again$"):
        decode_index(data, "a.tar.idx")


def test_offsets_are_found_again_in_the_archive(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    shard = build_shard([(f"k{number}", [("jpg", b"x" * number * 300), ("txt", b"y")]) for number in range(9)])
    storage.write("s/a.tar", shard.buffers)
    write_index(storage, "s/a.tar", shard.offsets)
    assert read_index(storage, "s/a.tar") == shard.offsets == offsets_of(storage.view("s/a.tar"))
    with pytest.raises(NotFound, match=re.escape("s/b.tar.idx")):
        read_index(storage, "s/b.tar")
