"""Data sets are opened by folder or manifest; what is wrong with them is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.shards.packing import dataset, pack_of
from tests.trainer.data.sets import cut, pairs
from trainer.data.source import open_source
from trainer.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(dataset(tmp_path / "a", cut(pairs(9), [2, 6, 1])))


def test_a_folder_and_its_manifest_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for uri in (str(folder), f"{folder}/", str(folder / "manifest.json"), "manifest.json", f"file://{folder}"):
        source = open_source(uri, check=True)
        assert source.name == str(folder)
        assert source.counts.tolist() == [2, 6, 1]
        assert source.nsamples == 9
        assert source.sizes.tolist() == [(folder / url).stat().st_size for url in source.urls]


def test_a_packed_data_set(folder: Path, tmp_path: Path) -> None:
    pack_of([str(folder)], tmp_path / "packed", 1 << 20)
    assert open_source(str(tmp_path / "packed"), check=True).nsamples == 9


def test_the_fingerprint_is_of_the_shards_in_their_order(folder: Path, tmp_path: Path) -> None:
    made = cut(pairs(9), [2, 6, 1])
    same, other = dataset(tmp_path / "b", made, name="x"), dataset(tmp_path / "c", made[::-1])
    assert open_source(same).fingerprint == open_source(str(folder)).fingerprint != open_source(other).fingerprint


def test_counts_are_arrays_in_a_row(folder: Path) -> None:
    counts = open_source(str(folder)).counts
    assert counts.dtype == np.int64
    assert counts.flags.c_contiguous


@pytest.mark.parametrize(
    ("hurt", "wanted"),
    [
        (lambda a: (a / "shards/0001.tar").unlink(), "shards/0001.tar is missing, by the manifest"),
        (lambda a: (a / "shards/0001.tar.idx").unlink(), "shards/0001.tar.idx is missing, by the manifest 56 are needed: copy it again"),
        (lambda a: (a / "shards/0002.tar").write_bytes(b"x"), "shards/0002.tar has 1 bytes"),
        (lambda a: (a / "shards/0000.tar.idx").write_bytes(bytes(32)), "shards/0000.tar.idx has 32 bytes, by the manifest 24"),
        (lambda a: (a / "manifest.json").unlink(), "manifest.json: not found: check the path: a data set is a folder"),
        (lambda a: (a / "manifest.json").write_text("{"), "manifest.json: damaged"),
        (lambda a: (a / "manifest.json").write_text("{}"), "not a manifest of a data set"),
    ],
)  # fmt: skip
def test_damage_is_one_line(folder: Path, hurt, wanted: str) -> None:  # type: ignore[no-untyped-def]
    hurt(folder)
    with pytest.raises(DataError) as caught:
        open_source(str(folder), check=True)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no shards"):
        open_source(dataset(tmp_path, []))


def test_an_unknown_scheme() -> None:
    with pytest.raises(DataError, match="ftp:// is not known"):
        open_source("ftp://somewhere/a")


def test_what_is_not_complete_is_told_once_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = dataset(tmp_path, cut(pairs(2), [2]), complete=False)
    assert open_source(where).nsamples == 2
    assert capsys.readouterr().err == ""
    open_source(where, check=True)
    assert "not complete" in capsys.readouterr().err


def test_shards_that_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "manifest.json").read_text())
    for shard in record["shardlist"]:
        shard["url"] = f"../a/{shard['url']}"
    (tmp_path / "b").mkdir()
    (tmp_path / "b/manifest.json").write_text(json.dumps(record))
    assert open_source(str(tmp_path / "b"), check=True).nsamples == 9
