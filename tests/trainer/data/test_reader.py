"""Samples come out of shards as they went in; what is broken inside a sample is told apart from what ends a run."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.schema import Caption, load_sample
from shards.storage import Storage
from tests.s3 import serving_here
from tests.shards.packing import Sample, dataset
from tests.trainer.data.sets import cut, pairs, samples, settings, streams
from trainer.data.reader import BadSample, Raw, Reader, first, read_sample
from trainer.data.source import open_source
from trainer.errors import DataError


def one(tmp_path: Path, *parts: tuple[str, bytes]) -> Raw:
    """The sample of these members, written and read again."""
    where = dataset(tmp_path, [[("k", list(parts))]])
    return read_sample(Reader([open_source(where)]).at(0), 0)


def test_samples_and_pairs_come_back(tmp_path: Path) -> None:
    made, more = samples(27), pairs(7)
    sources = [open_source(dataset(tmp_path / "a", cut(made, [9, 18]))), open_source(dataset(tmp_path / "b", [more]))]
    reader = Reader(sources)
    for place, (key, parts) in enumerate(made + more):
        chunk = reader.at(place)
        raw, said = read_sample(chunk, 0), dict(parts)
        assert (raw.key, chunk.place, chunk.source) == (key, place, int(place >= 27))
        if place < 27:
            assert raw.sample == load_sample(said["json"])
            assert list(map(bytes, raw.images)) == [said[name] for name in raw.sample.images]
        else:
            assert isinstance(raw.sample, Caption)
            assert raw.sample.text.encode() == said["txt"]
            assert list(map(bytes, raw.images)) == [said["jpg"]]
    chunk = reader.chunk(1, 4, 9)
    assert [read_sample(chunk, row).key for row in range(5)] == [key for key, _ in made[13:18]]


def test_images_on_a_disk_are_mapped(tmp_path: Path) -> None:
    assert all(isinstance(each, memoryview) for each in one(tmp_path, ("jpg", b"x"), ("txt", b"a")).images)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red star", "en"),
        ("一个红色的五角星", "zh"),
        ("a 红 star", "en"),
        ("USB 接口的红色键盘", "zh"),
        ("123", "en"),
    ],
)
def test_the_language_of_a_pair(tmp_path: Path, text: str, language: str) -> None:
    assert one(tmp_path, ("webp", b"x"), ("txt", text.encode())).sample.language == language


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([("jpg", b"x")], "no caption: neither a .txt with text nor a .json with a task"),
        ([("jpg", b"x"), ("txt", b"  \n")], "no caption"),
        ([("jpg", b"x"), ("txt", b"\xff\xfe")], "can't decode byte"),
        ([("txt", b"a")], "its image .jpg is missing"),
        ([("jpg", b"x"), ("txt", b"a"), ("json", b"{")], "Expecting"),
        ([("jpg", b"x"), ("txt", b"a"), ("json", b"[" * 100_000)], "recursion"),
        ([("jpg", b"x"), ("json", b'{"task": "caption", "text": ""}')], "caption.text: there is no text in it"),
        ([("jpg", b"x"), ("json", b'{"task": "songs"}')], "songs"),
        ([("1.jpg", b"x"), ("json", json.dumps({"task": "vqa", "question": "a?", "answer": "b", "images": ["0.jpg", "1.jpg"]}).encode())], "its image .0.jpg is missing"),
    ],
)  # fmt: skip
def test_broken_samples_name_shard_and_key(tmp_path: Path, parts: list[tuple[str, bytes]], why: str) -> None:
    with pytest.raises(BadSample) as caught:
        one(tmp_path, *parts)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/shards/0000.tar: 'k': ")
    assert why in said
    assert "\n" not in said


def test_damage_of_one_sample_leaves_the_others(tmp_path: Path) -> None:
    where = dataset(tmp_path, [pairs(3)])
    path = tmp_path / "shards/0000.tar"
    _, second, *_ = struct.unpack("<4Q", Path(f"{path}.idx").read_bytes())
    data = bytearray(path.read_bytes())
    data[second : second + 8] = b"damaged!"
    path.write_bytes(data)
    reader = Reader([open_source(where, check=True)])
    assert [read_sample(reader.at(place), 0).key for place in (0, 2)] == ["p0-00000", "p0-00002"]
    with pytest.raises(BadSample, match=r"0000.tar: 'sample 1': damaged at byte \d+: the checksum"):
        read_sample(reader.at(1), 0)


@pytest.mark.parametrize(
    ("hurt", "wanted"),
    [
        (lambda tar, idx: tar.unlink(), "0000.tar: not found"),
        (lambda tar, idx: idx.unlink(), "0000.tar.idx: not found"),
        (lambda tar, idx: idx.write_bytes(idx.read_bytes()[:-8]), "0000.tar.idx: no index of 3 samples in"),
        (lambda tar, idx: idx.write_bytes(idx.read_bytes()[:-8] + struct.pack("<Q", 1 << 40)), "no index of 3 samples"),
        (lambda tar, idx: idx.write_bytes(bytes(32)), "no index of 3 samples"),
        (lambda tar, idx: tar.write_bytes(tar.read_bytes()[:-1]), "0000.tar: has"),
    ],
)
def test_what_a_shard_lacks_is_no_bad_sample(tmp_path: Path, hurt: Callable[[Path, Path], None], wanted: str) -> None:
    source = open_source(dataset(tmp_path, [pairs(3)]))
    hurt(tmp_path / "shards/0000.tar", tmp_path / "shards/0000.tar.idx")
    with pytest.raises(DataError) as caught:
        Reader([source]).at(0)
    assert not isinstance(caught.value, BadSample)
    assert wanted in str(caught.value)


def test_the_first_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[Sample] = [*pairs(3), ("broken", [("txt", b"a")]), *samples(4)]
    source = open_source(dataset(tmp_path, cut(made, [2, 6])))
    keys = [key for key, _ in made if key != "broken"]
    assert [raw.key for raw in first(source, 3)] == keys[:3]
    assert capsys.readouterr().err == ""
    assert [raw.key for raw in first(source, 99)] == keys
    assert "left out" in capsys.readouterr().err


def test_an_object_store_gives_the_same_stream_by_one_request_a_chunk(tmp_path: Path) -> None:
    made = cut(samples(36), [20, 16])
    with serving_here() as store:
        bucket = store.bucket()
        dataset(tmp_path, made)
        for path in tmp_path.rglob("*.*"):
            store.put(bucket, {f"a/{path.relative_to(tmp_path)}": path.read_bytes()})
        uri = f"s3://{bucket}/a"
        chunk = Reader([open_source(uri, check=True)]).chunk(0, 4, 8)
        store.proxy.clear()
        raws = [read_sample(chunk, row) for row in range(4)]
        assert store.proxy.log == []  # one read, held
        assert all(isinstance(image, bytes) for raw in raws for image in raw.images)

        def keys(where: str, workers: int) -> list[tuple[str, ...]]:
            chosen = settings(2, [where], "steps=6", f"data.workers={workers}", "data.chunk=10", "data.length=256")
            return [micro.keys for step in streams(chosen)[0] for micro in step]

        local = keys(str(tmp_path), 0)
        assert keys(uri, 0) == local
        assert keys(uri, 1) == local  # in a process of its own, not forked from one that has asked the store
        Storage.open(uri).delete("shards/0001.tar")
        with pytest.raises(DataError, match=r"shards/0001.tar is missing"):
            keys(uri, 0)
