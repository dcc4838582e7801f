"""The data set's manifest; that the real wids opens it is in test_readers.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shards.manifest import DatasetManifest, ManifestError, ShardEntry, read_manifest, write_manifest
from shards.storage import NotFound, Storage

SHARDS = [
    ShardEntry(url=f"shards/{name}.tar", nsamples=n, bytes=n * 512, sha256=name * 64) for n, name in enumerate("ab", 3)
]
MANIFEST = DatasetManifest(name="demo", shards=SHARDS, fingerprints={"score": "1f"}, funnel={"seen": 25, "图": [0.28]})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


@pytest.mark.parametrize("name", ["manifest.json", "decisions/x/manifest.json"])
def test_round_trip(storage: Storage, name: str) -> None:
    write_manifest(storage, MANIFEST, name)
    assert read_manifest(storage, name) == MANIFEST
    assert storage.read(name.replace("manifest.json", "shards.txt")) == b"shards/a.tar\nshards/b.tar\n"
    record = json.loads(storage.read(name))
    assert (record["total_samples"], record["total_bytes"], record["wids_version"]) == (7, 3584, 1)
    assert record["shardlist"][0] == {"url": "shards/a.tar", "nsamples": 3, "filesize": 1536, "sha256": "a" * 64}
    before = storage.read(name)
    write_manifest(storage, MANIFEST, name)
    assert storage.read(name) == before


def test_nothing_kept_is_a_manifest_too(storage: Storage) -> None:
    write_manifest(storage, DatasetManifest(name="none", shards=[], complete=False))
    assert read_manifest(storage).nsamples == 0
    assert not read_manifest(storage).complete


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2, this release reads 1"),
        ({"wids_version": 2}, "wids_version: Input should be 1"),
        ({"total_samples": 8}, "says 8 samples and 3584 bytes, its shards hold 7 and 3584"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"name": 5, "complete": "yes"}, r"name: Input should be a valid string \(and 1 more\)"),
        (
            {"shardlist": [{"url": "a.tar", "nsamples": 0, "filesize": 1, "sha256": "a" * 64}]},
            r"shardlist\.0\.nsamples: ",
        ),
        ({"shardlist": [{"url": "a?.tar", "nsamples": 1, "filesize": 1, "sha256": "a" * 64}]}, r"shardlist\.0\.url: "),
        (
            {"shardlist": [{"url": "a.tar", "nsamples": 1, "filesize": 1, "sha256": "a" * 64}] * 2},
            r"a\.tar is listed twice",
        ),
    ],
)
def test_a_manifest_that_is_wrong_is_told_in_one_line(storage: Storage, changes: dict[str, Any], message: str) -> None:
    write_manifest(storage, MANIFEST)
    record = json.loads(storage.read("manifest.json")) | changes
    storage.write("manifest.json", json.dumps(record).encode())
    with pytest.raises(ManifestError, match=rf"manifest\.json: .*{message}") as caught:
        read_manifest(storage)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": 1', b"\xff", b"[]"])
def test_half_a_file_is_told(storage: Storage, data: bytes) -> None:
    storage.write("manifest.json", data)
    with pytest.raises(ManifestError, match=r"manifest\.json: (damaged|not a manifest)"):
        read_manifest(storage)


def test_missing_and_unwritable(storage: Storage) -> None:
    with pytest.raises(NotFound, match=r"manifest\.json"):
        read_manifest(storage)
    with pytest.raises(ManifestError, match="the funnel holds a number that JSON has not"):
        write_manifest(storage, MANIFEST.model_copy(update={"funnel": {"rate": float("nan")}}))
    assert not storage.exists("shards.txt")
    with pytest.raises(ValidationError):
        ShardEntry(url="a.tar", nsamples=1, bytes=0, sha256="a" * 64)
