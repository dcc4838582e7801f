"""Packs of real files: the samples as they were, in the plan's order; the same bytes however they are made."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from shards.check import check
from shards.index import offsets_of, read_index
from shards.manifest import LIST_NAME, read_manifest
from shards.pack_plan import make_plan
from shards.storage import Storage
from shards.tar import build_shard
from tests.shards.packing import SIZE, Sample, dataset, few_large, files, pack_of, packed, pairs, samples_of


def test_samples_are_what_they_were_in_the_order_of_the_plan(two_sets: list[str], two_packed: Path) -> None:
    given: list[Sample] = []
    for where in two_sets:
        for tar in sorted(Path(where, "shards").glob("*.tar")):
            given += samples_of(tar.read_bytes())
    plan = make_plan(two_sets, SIZE, 0)
    order: list[Sample] = [("", [])] * len(given)
    for sample, place in zip(given, plan.order.places(0, len(given)), strict=True):
        order[place] = sample
    names = [f"{number:06d}.tar" for number in range(plan.nshards)]
    assert sorted(path.name for path in two_packed.iterdir()) == sorted(
        [*names, *(f"{name}.idx" for name in names), LIST_NAME, "manifest.json"]
    )
    for number, name in enumerate(names):
        shard = build_shard(order[plan.start(number) : plan.start(number + 1)])
        assert (two_packed / name).read_bytes() == b"".join(shard.buffers)
        assert (
            read_index(Storage.open(str(two_packed)), name)
            == shard.offsets
            == offsets_of((two_packed / name).read_bytes())
        )
    assert (two_packed / LIST_NAME).read_text().split() == names


def test_shards_are_equal_and_the_check_passes(two_sets: list[str], two_packed: Path) -> None:
    report = check(Storage.open(str(two_packed)))
    assert (report.faults, report.notes) == ([], [])
    manifest = read_manifest(Storage.open(str(two_packed)))
    counts = {shard.nsamples for shard in manifest.shards}
    assert max(counts) - min(counts) <= 1
    assert manifest.nsamples == report.samples == sum(make.nsamples for make in make_plan(two_sets, SIZE, 0).groups)
    assert (manifest.name, manifest.complete, manifest.funnel) == ("one+two", True, {})
    prints = manifest.fingerprints
    assert (prints["size"], prints["seed"], prints["input.1"].split()[0]) == (str(SIZE), "0", "two")
    assert prints["input.0.decision_fp"] == f"{3:064x}"


def test_sizes_are_near_what_was_asked(tmp_path: Path) -> None:
    """Samples' sizes spread by half of their mean, 400 in a shard: by the law of large numbers within a few percent."""
    where = dataset(tmp_path / "in", pairs(40, 100, size=2000))
    for size in (1_500_000, 2_000_000):
        manifest = pack_of([where], tmp_path / f"out{size}", size).manifest
        sizes = [shard.bytes for shard in manifest.shards]
        mean = sum(sizes) / len(sizes)
        assert 0.8 * size < mean <= size
        assert max(sizes) / mean < 1.07
        assert min(sizes) / mean > 0.93


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fan", [3, 512])
def test_the_bytes_do_not_depend_on_who_makes_them(
    two_sets: list[str], two_packed: Path, tmp_path: Path, workers: int, fan: int
) -> None:
    plan = replace(make_plan(two_sets, SIZE, 0), fan=fan)
    assert bool(plan.chunks) == (fan < 512)
    told: list[tuple[int, int]] = []
    done = packed(plan, tmp_path / "out", workers, lambda *numbers: told.append(numbers))
    assert files(tmp_path / "out") == files(two_packed)
    assert told == [(number, done.worked) for number in range(done.worked + 1)]


def test_other_seeds_and_sizes_give_other_shards(two_sets: list[str], two_packed: Path, tmp_path: Path) -> None:
    pack_of(two_sets, tmp_path / "seed", SIZE, seed=1)
    pack_of(two_sets, tmp_path / "size", SIZE + 5000)
    for other in ("seed", "size"):
        assert not check(Storage.open(str(tmp_path / other))).faults
        assert (tmp_path / other / "000000.tar").read_bytes() != (two_packed / "000000.tar").read_bytes()
    keys = [sorted(sample[0] for tar in folder.glob("*.tar") for sample in samples_of(tar.read_bytes()))
            for folder in (two_packed, tmp_path / "seed", tmp_path / "size")]  # fmt: skip
    assert keys[0] == keys[1] == keys[2]


def test_samples_of_every_shape(tmp_path: Path) -> None:
    """Several images, text alone, empty and large parts, keys with folders and over 100 bytes: as they were."""
    rng = random.Random(3)
    shapes: list[Sample] = [
        ("chat", [("0.jpg", rng.randbytes(9000)), ("1.jpg", rng.randbytes(20)), ("json", b"{}")]),
        ("text", [("txt", b"alone")]),
        ("none", [("txt", b"")]),
        ("folder/with/key", [("png", rng.randbytes(100_000)), ("txt", b"x")]),
        ("k" * 140, [("jpg", rng.randbytes(513)), ("seg.png", b"m")]),
        ("é" * 60, [("webp", rng.randbytes(512)), ("txt", "图".encode())]),
    ]
    where = dataset(tmp_path / "in", [shapes[:2], shapes[2:5], shapes[5:]])
    for size in (1, 10**9):
        pack_of([where], tmp_path / f"{size}", size)
        read = dict(sample for tar in (tmp_path / f"{size}").glob("*.tar") for sample in samples_of(tar.read_bytes()))
        assert read == dict(shapes)
    assert len(list((tmp_path / "1").glob("*.tar"))) == len(shapes)


def test_tars_of_others_are_written_by_our_rules(tmp_path: Path) -> None:
    """GNU headers, owners, times, capital endings and strange files in between: what readers see is what is kept."""
    import hashlib
    import io
    import tarfile

    where = Path(dataset(tmp_path / "in", pairs(1, 3)))
    path = where / "shards/0000.tar"
    samples = list(samples_of(path.read_bytes()))
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [("__info__/x", b"{}"), ("README", b"hello")] + [
            (f"{key}.{ending.upper()}", data) for key, parts in samples for ending, data in parts
        ]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname, info.mode = len(data), 1_700_000_000, 1000, "me", 0o600
            tar.addfile(info, io.BytesIO(data))
    (where / "shards/0000.tar.idx").write_bytes(b"cut o")
    raw = path.read_bytes()
    manifest = json.loads((where / "manifest.json").read_text())
    manifest["shardlist"][0] |= {"filesize": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (where / "manifest.json").write_text(json.dumps(manifest | {"total_bytes": len(raw)}))
    done = pack_of([str(where)], tmp_path / "out", 10**6)
    assert done.left_out == 2
    plan = make_plan([str(where)], 10**6, 0)
    order = [sample for _, sample in sorted(zip(plan.order.places(0, 3), samples, strict=True))]
    assert (tmp_path / "out/000000.tar").read_bytes() == b"".join(build_shard(order).buffers)


def test_few_large_shards_become_many_small_ones(tmp_path: Path) -> None:
    plan = few_large(tmp_path / "in")
    assert plan.chunks > len(plan.groups)
    packed(plan, tmp_path / "merged")
    packed(replace(plan, fan=512), tmp_path / "out")
    assert files(tmp_path / "merged") == files(tmp_path / "out")
    assert sum(path.suffix == ".tar" for path in (tmp_path / "out").iterdir()) == 90
