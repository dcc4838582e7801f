"""Data sets of stages 2 and 3: whole, the same again, and no picture in two of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from demo.__main__ import FOLDER, SETTINGS
from demo.stages import DATA_SETS, MULTI_TASK, DataSet, ensure_data
from shards.index import offsets_of, read_index
from shards.manifest import read_manifest
from shards.schema import Sample, load_sample
from shards.storage import Storage
from shards.tar import group, scan
from trainer.config import load_config

CHATS = DataSet("stage3", 20, {"chat": 1})


def read(folder: Path) -> list[tuple[str, Sample, list[bytes]]]:
    found, storage = [], Storage.open(str(folder))
    for shard in read_manifest(storage).shards:
        data = (folder / shard.url).read_bytes()
        assert read_index(storage, shard.url) == offsets_of(data)
        for one in group(scan(data)):
            parts = {name: data[part.offset : part.offset + part.size] for name, part in one.parts.items()}
            sample = load_sample(parts["json"])
            found.append((one.key, sample, [parts[name] for name in sample.images]))
    return found


def test_samples_are_as_often_as_their_shares_and_held_out_pictures_are_others(tmp_path: Path) -> None:
    seen = {}
    for name in ("stage2", "stage2-held"):
        assert ensure_data(tmp_path, DataSet(name, 300, MULTI_TASK))
        found = read(tmp_path / name)
        assert [key for key, _, _ in found] == [f"{number:06d}" for number in range(300)]
        seen[name] = {image for _, _, images in found for image in images}
        counts = Counter[str](sample.task for _, sample, _ in found)
        shares = Counter[str]()
        for task, share in MULTI_TASK.items():
            shares["vqa" if task in ("colour", "count") else task] += share
        assert sum(shares.values()) == 100
        for task, share in shares.items():  # five deviations of a binomial count
            assert abs(counts[task] - 3 * share) < 5 * (3 * share) ** 0.5 + 1, counts
    assert len(seen["stage2"]) > 250
    assert not seen["stage2"] & seen["stage2-held"]


def test_only_what_is_not_whole_is_made_again(tmp_path: Path) -> None:
    assert ensure_data(tmp_path, CHATS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "stage3").iterdir()}
    assert not ensure_data(tmp_path, CHATS)
    (tmp_path / "stage3" / "000000.tar").write_bytes(before["000000.tar"][:-512])
    assert ensure_data(tmp_path, CHATS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "stage3").iterdir()} == before
    assert ensure_data(tmp_path, CHATS, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["stage3"]


def test_several_shards_by_several_workers_are_the_samples_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_data(tmp_path / "one", CHATS)
    monkeypatch.setattr("demo.stages.PER_SHARD", 8)
    steps: list[tuple[str, int, int]] = []
    ensure_data(tmp_path / "more", CHATS, progress=lambda *step: steps.append(step))
    assert read(tmp_path / "more/stage3") == read(tmp_path / "one/stage3")
    assert [done for _, done, _ in steps] == [8, 16, 20]


@pytest.mark.parametrize(("stage", "pack"), [(1, None), (2, "task"), (3, "any")])
def test_the_settings_of_the_training_are_the_trainers(stage: int, pack: str | None) -> None:
    read = load_config(stage, (SETTINGS,))
    assert (read.parallel.precision, read.data.pack) == ("float32", pack)
    assert {*map(Path, read.eval.manifests)} <= {FOLDER / each.name for each in DATA_SETS}
