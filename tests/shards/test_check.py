"""A real small run, and data sets of shards alone: whole they pass; whatever is damaged is named by its file."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import manifests
from curation.plan import make_plan
from curation.run import finish, write_run
from shards.__main__ import main
from shards.check import check
from shards.check_work import CheckError, Report
from shards.index import encode_index
from shards.manifest import DatasetManifest, ShardEntry, read_manifest, write_manifest
from shards.schema import Caption, PureText, dump_sample
from shards.storage import Storage
from shards.tar import build_shard
from shards.unique import KeyHashes
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.test_unit import run_plainly

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run: three units that kept something, one that did not, one without any sample."""
    folder = tmp_path_factory.mktemp("model")
    for name, first in (("a", 0), ("b", 10), ("c", 20)):
        dirt = [*pair("x", "no", image(seed=first)), *pair("y", "A tall tower in the evening sun", None)]
        write_tar(folder / f"in/{name}.tar", flat(good_pairs(4, first)) + dirt)
    write_tar(folder / "in/d.tar", pair("x", "no", image()))
    write_tar(folder / "in/e.tar", [])
    curate(folder)
    return folder


def curate(folder: Path, **settings: Any) -> None:
    """All that a run does, in this process."""
    plan = make_plan(profile(folder, **settings))
    write_run(plan)
    run_plainly(profile(folder, **settings))
    finish(plan, [])


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Path:
    shutil.copytree(model / "runs/test", tmp_path / "run")
    return tmp_path / "run"


def checked(folder: Path, **options: Any) -> Report:
    return check(Storage.open(str(folder)), **options)


def faults(folder: Path, **options: Any) -> list[str]:
    return [f"{fault.path}: {fault.what}" for fault in checked(folder, **options).faults]


def files_of(folder: Path, *endings: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(endings or ("",)))


def test_a_whole_run_passes(run: Path) -> None:
    for options in ({"workers": 1}, {"workers": 2}, {"fast": True}):
        report = checked(run, **options)
        assert (report.faults, report.notes) == ([], [])
        assert (report.units, report.shards, report.samples, report.rows) == (5, 3, 12, 19)
        size = sum(path.stat().st_size for path in files_of(run) if path.parent.name in ("ledger", "samples", "shards"))
        assert report.bytes == (0 if options.get("fast") else size)


def test_compacted_manifests_are_checked_like_loose_ones(run: Path) -> None:
    output = Storage.open(str(run))
    loose = {path: path.read_bytes() for path in (run / "units").glob("*.json")}
    assert manifests.compact(output, at=1) == 5
    assert not checked(run).faults
    for path, data in list(loose.items())[:2]:  # killed before the loose ones were deleted
        path.write_bytes(data)
    assert not checked(run).faults
    report = checked(run)
    assert (report.units, report.rows) == (5, 19)
    next((run / "ledger").iterdir()).unlink()
    assert len(faults(run)) == 1
    (merged,) = (run / "units").glob("_merged*")
    merged.write_bytes(merged.read_bytes()[:-1] + b"X")
    assert any(line.startswith(f"units/{merged.name}: not as it was written") for line in faults(run))


def test_every_file_that_is_removed_is_named(run: Path) -> None:
    every = files_of(run)
    assert len(every) == 3 * 2 + 5 * 3 + 3
    for path in every:
        data = path.read_bytes()
        path.unlink()
        found = faults(run)
        named = f"shards/{path.stem}.tar" if path.parent.name == "units" else path.relative_to(run).as_posix()
        if path.parent.name == "units" and not (run / named).exists():
            named = f"ledger/{path.stem}.parquet"  # a unit that kept nothing: its files are left over
        assert any(line.startswith(f"{named}: ") for line in found), (path, found)
        path.write_bytes(data)
    assert not checked(run).faults


def test_any_flipped_bit_and_any_cut_is_named(run: Path) -> None:
    chance = random.Random(11)
    kinds = [files_of(run / kind) for kind in ("ledger", "samples", "units")]
    kinds += [files_of(run, ".tar"), files_of(run, ".idx"), [run / "manifest.json"], [run / "shards.txt"]]
    for paths in kinds:
        for _ in range(14):
            path = chance.choice(paths)
            good = path.read_bytes()
            at = chance.randrange(len(good))
            bad = bytearray(good)
            bad[at] ^= 1 << chance.randrange(8)
            for data in (bytes(bad), good[:at]):
                path.write_bytes(data)
                found = faults(run, workers=1)
                same = path.name == "manifest.json" and loads(data) == json.loads(good)  # white space
                named = path.relative_to(run).as_posix()
                assert same or any(line.startswith(f"{named}: ") for line in found), (named, at, found)
                assert all("\n" not in line for line in found)
            path.write_bytes(good)
    assert not checked(run).faults


def loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_swapped_files_are_both_named(run: Path) -> None:
    for kind, ending in (("ledger", ""), ("samples", ""), ("units", ""), ("shards", ".tar"), ("shards", ".idx")):
        left, right = files_of(run / kind, ending)[:2]
        a, b = left.read_bytes(), right.read_bytes()
        assert a != b
        left.write_bytes(b)
        right.write_bytes(a)
        found = faults(run)
        for path in (left, right):
            assert any(line.startswith(f"{path.relative_to(run)}: ") for line in found), (path, found)
        left.write_bytes(a)
        right.write_bytes(b)


def test_what_belongs_to_no_unit_is_a_fault_of_a_complete_run_only(run: Path) -> None:
    shutil.copy(next((run / "shards").glob("*.tar")), run / "shards/0123456789ab.tar")
    (run / "ledger/.x.parquet.0123456789abcdef0123456789abcdef.tmp").write_bytes(b"half")
    assert faults(run) == ["shards/0123456789ab.tar: no unit manifest names it"]
    record = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**record, "complete": False}))
    report = checked(run)
    assert not report.faults
    assert [note.path for note in report.notes] == [
        "ledger/.x.parquet.0123456789abcdef0123456789abcdef.tmp", "manifest.json", "shards/0123456789ab.tar",
    ]  # fmt: skip


def test_a_run_cut_short_after_it_went_on_is_no_fault(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "all", ignore=shutil.ignore_patterns("runs"))
    folder = tmp_path / "all"
    hidden = [folder / "in/c.tar", folder / "in/d.tar"]
    away = [path.rename(tmp_path / path.name) for path in hidden]
    curate(folder)
    output = Storage.open(str(folder / "runs/test"))
    write_manifest(output, read_manifest(output).model_copy(update={"complete": False}))
    for path, home in zip(away, hidden, strict=True):
        path.rename(home)
    run_plainly(profile(folder))  # and no end
    output.write("failed/0123456789ab.json", json.dumps({"unit_id": "0", "input": "f.tar", "error": "boom"}).encode())
    report = checked(folder / "runs/test")
    assert not report.faults
    lines = [f"{note.path}: {note.what}" for note in report.notes]
    assert lines[0] == "failed/0123456789ab.json: failed: f.tar: boom"
    assert lines[1].startswith("manifest.json: counts 12 of 19 samples")
    assert lines[3].startswith("shards/")
    curate(folder)
    report = checked(folder / "runs/test")
    assert (report.faults, len(report.notes)) == ([], 1)


@pytest.fixture
def grown(model: Path, tmp_path: Path) -> Path:
    """The model's folder with an input file more, which its run has not seen; its name puts it before the others."""
    shutil.copytree(model, tmp_path / "grown", dirs_exist_ok=True)
    write_tar(tmp_path / "grown/in/0.tar", flat(good_pairs(3, 40)))
    return tmp_path / "grown"


def open_again(folder: Path) -> Storage:
    """As a run begins that has units to do."""
    output = Storage.open(str(folder / "runs/test"))
    write_manifest(output, read_manifest(output).model_copy(update={"complete": False}))
    write_run(make_plan(profile(folder)))
    (folder / "runs/test/lease.json").write_text("{}")
    return output


def noted(folder: Path) -> list[str]:
    report = checked(folder / "runs/test")
    assert not report.faults
    return [f"{note.path}: {note.what}" for note in report.notes]


def test_a_complete_run_killed_in_a_new_unit_is_no_fault(grown: Path) -> None:
    output = open_again(grown)
    assert len(noted(grown)) == 1
    run_plainly(profile(grown))
    (unit,) = make_plan(profile(grown)).units[:1]
    output.delete(f"units/{unit.short}.json")  # killed just before it was written
    lines = noted(grown)
    files = [f"ledger/{unit.short}.parquet", f"samples/{unit.short}.parquet", f"shards/{unit.short}.tar", f"shards/{unit.short}.tar.idx"]  # fmt: skip
    assert [line for line in lines if unit.short in line] == [
        f"{path}: no unit manifest names it: left by a run that was cut short" for path in files
    ]
    assert len(lines) == 5
    curate(grown)
    assert noted(grown) == []


def test_a_run_killed_before_its_end_is_no_fault(grown: Path) -> None:
    output = open_again(grown)
    run_plainly(profile(grown))
    assert any(line.startswith("manifest.json: counts 19 of 22 samples") for line in noted(grown))
    before = (grown / "runs/test/manifest.json").read_bytes()
    finish(make_plan(profile(grown)), [])
    assert noted(grown) == []
    after = (grown / "runs/test/manifest.json").read_bytes()
    output.write("manifest.json", before)  # killed between the list and the manifest
    lines = noted(grown)
    assert "shards.txt: lists 1 shards more than manifest.json: run again to end the run" in lines
    good = (grown / "runs/test/shards.txt").read_text().splitlines()
    wrong = ([*good, "shards/other.tar"], [*good[1::-1], *good[2:], good[0]], good[:2], good[::-1])
    for names in wrong:
        output.write("shards.txt", "\n".join(names).encode())
        assert any(line.startswith("shards.txt: not the shards") for line in faults(grown / "runs/test")), names
    output.write("shards.txt", "\n".join(good).encode())
    output.write("manifest.json", before.replace(b'"complete": false', b'"complete": true'))
    assert len(faults(grown / "runs/test")) == 3  # one that says complete must agree: funnel, list, shards
    output.write("manifest.json", after)
    assert noted(grown) == []


def test_a_first_run_that_was_killed_is_no_fault_where_a_manifest_says_so(grown: Path) -> None:
    prints = profile(grown).fingerprints()
    begun = DatasetManifest(
        name="test", complete=False, fingerprints={"score": prints.score, "decision": prints.decision}, shards=[]
    )
    write_manifest(Storage.open(str(grown / "runs/test")), begun)
    assert any(line.startswith("manifest.json: counts 0 of 19 samples") for line in noted(grown))


def test_a_manifest_that_is_behind_counts_less_and_nothing_else(grown: Path) -> None:
    output = open_again(grown)
    run_plainly(profile(grown))
    record = json.loads(output.read("manifest.json"))
    for change in ({"kept": 99}, {"seen": 99}, {"mappers": {"other": 1}}, {"kept": "1"}):
        output.write("manifest.json", json.dumps({**record, "funnel": {**record["funnel"], **change}}).encode())
        found = faults(grown / "runs/test")
        assert [line.partition(", ")[0].partition(":")[0] for line in found] == ["manifest.json"], (change, found)
    record["funnel"].pop("kept")
    output.write("manifest.json", json.dumps(record).encode())
    assert len(faults(grown / "runs/test")) == 1


def test_run_json_of_a_complete_run_agrees_with_its_units(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"input": {**record["input"], "units": 6}}, "run.json: its input has 6 units, 5 have a manifest"),
        ({"input": {**record["input"], "sha256": "0" * 64}}, "run.json: its input's sha256 is not that of the units"),
        ({"thresholds": {}}, "run.json: its thresholds are not those of its decision_fp"),
        ({"identity": {**record["identity"], "x": 1}}, "run.json: its identity is not that of its score_fp"),
        ({"decision_fp": "0" * 64}, "run.json: its fingerprints are not those of the units"),
    ]
    for change, line in changes:
        (run / "run.json").write_text(json.dumps({**record, **change}))
        assert any(found.startswith(line) for found in faults(run)), line
    (run / "run.json").write_text(json.dumps({**record, **changes[1][0]}))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    assert not faults(run)  # another input may be on its way


def test_the_order_of_the_input_is_known_for_parts_of_files(tmp_path: Path) -> None:
    samples = [pair(f"k{number:02d}", f"A picture of thing number {number}", heavy(number)) for number in range(12)]
    write_tar(tmp_path / "in/a.tar", [part for sample in samples for part in sample])
    write_tar(tmp_path / "in/a-b.tar", flat(good_pairs(2)))
    write_tar(tmp_path / "in/a/z.tar", flat(good_pairs(2, 5)))
    curate(tmp_path, units={"max_samples": 1})
    report = checked(tmp_path / "runs/test")
    assert (report.faults, report.units) == ([], 12 + 2)


def heavy(seed: int) -> bytes:
    """A JPEG of 200 kB: only tars above a megabyte are cut."""
    picture = image(seed=seed)
    return picture[:2] + b"".join(b"\xff\xfe\xff\xff" + bytes(65533) for _ in range(3)) + picture[2:]


def rewrite(run: Path, change: Callable[[dict[str, Any]], None], unit: str | None = None) -> str:
    """Changes a unit's manifest as if it had been written so; gives the unit."""
    path = (
        run / f"units/{unit}.json"
        if unit
        else next(p for p in files_of(run / "units") if b'"kept": 4' in p.read_bytes())
    )
    record = json.loads(path.read_text())
    record.pop("sha256")
    change(record)
    for file in filter(None, record["files"].values()):
        data = (run / file["path"]).read_bytes()
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    record["sha256"] = hashlib.sha256(json.dumps(record, ensure_ascii=False).encode()).hexdigest()
    path.write_text(json.dumps(record, ensure_ascii=False))
    manifest = json.loads((run / "manifest.json").read_text())
    for shard in manifest["shardlist"]:
        if shard["url"] == f"shards/{path.stem}.tar" and record["files"]["shard"]:
            shard.update(filesize=record["files"]["shard"]["bytes"], sha256=record["files"]["shard"]["sha256"])
    manifest["total_bytes"] = sum(shard["filesize"] for shard in manifest["shardlist"])
    (run / "manifest.json").write_text(json.dumps(manifest))
    return path.stem


def nothing(record: dict[str, Any]) -> None:
    """Only the hashes are made to fit."""


def tar_edit(change: Callable[[list[tuple[str, list[tuple[str, bytes]]]]], None]) -> Edit:
    """Rebuilds a shard and its index, whole in themselves, with other samples."""

    def edit(path: Path) -> None:
        samples: dict[str, list[tuple[str, bytes]]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, []).append((extension, tar.extractfile(member).read()))  # type: ignore[union-attr]
        listed = list(samples.items())
        change(listed)
        shard = build_shard(listed)
        path.write_bytes(b"".join(shard.buffers))
        Path(f"{path}.idx").write_bytes(encode_index(shard.offsets))

    return edit


def set_part(number: int, extension: str, data: bytes | None) -> Edit:
    def change(samples: list[tuple[str, list[tuple[str, bytes]]]]) -> None:
        key, parts = samples[number]
        others = [part for part in parts if part[0] != extension]
        samples[number] = (key, others if data is None else [*others, (extension, data)])

    return tar_edit(change)


def twice(path: Path) -> None:
    data = path.read_bytes()
    end = int.from_bytes(Path(f"{path}.idx").read_bytes()[8:16], "little")
    path.write_bytes(data[:end] + data)  # the first sample comes again, further behind


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (tar_edit(lambda samples: samples.append(("zz-000001", samples[0][1]))), "the sample 'zz-000001' is not kept"),
        (tar_edit(lambda samples: samples.pop(1)[0] and None), "of the ledger is not in it"),
        (tar_edit(lambda samples: samples.reverse()), "its samples are not in the ledger's order"),
        (set_part(0, "txt", b"another"), "is not the ledger's"),
        (set_part(1, "txt", None), "has no .txt"),
        (set_part(1, "jpg", None), "has no image"),
        (set_part(1, "json", None), "has no .json"),
        (set_part(2, "json", b"[1"), "cannot be read"),
        (set_part(2, "json", b"[1]"), "is no object"),
        (set_part(2, "json", b'{"key": "other"}'), "is of 'other'"),
        (set_part(2, "json", b"[" * 100_000), "cannot be read"),
        (twice, "comes twice"),
    ],
)
def test_a_shard_that_fits_its_hashes_is_compared_with_the_ledger(run: Path, edit: Edit, line: str) -> None:
    path = files_of(run, ".tar")[0]
    edit(path)
    rewrite(run, nothing, path.stem)
    found = [fault for fault in faults(run) if fault.startswith(f"shards/{path.name}: ")]
    assert any(line in fault for fault in found), found


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda rows: rows.pop(), "5 rows, the unit's manifest lists 6"),
        (lambda rows: rows[1].update(key=rows[0]["key"]), "row 1 has the key"),
        (lambda rows: rows[0].update(reason="emoji"), "3 rows are kept, the unit's manifest says 4"),
        (lambda rows: rows[4].update(reason="emoji"), "reason 'emoji': 1 rows, the unit's manifest says 0"),
        (lambda rows: [row.pop("caption") for row in rows], "has no column 'caption'"),
    ],
)
def test_a_ledger_that_fits_its_hash_is_compared_with_the_manifest(
    run: Path, edit: Callable[[list[dict[str, Any]]], Any], line: str
) -> None:
    unit = rewrite(run, nothing)
    path = run / f"ledger/{unit}.parquet"
    rows = pq.read_table(path).to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)
    rewrite(run, nothing, unit)
    assert any(found.startswith(f"ledger/{unit}.parquet: {line}") for found in faults(run)), faults(run)
    path.write_bytes(b"PAR1 is how Parquet begins")
    rewrite(run, nothing, unit)
    assert any(found.startswith(f"ledger/{unit}.parquet: no ledger") for found in faults(run))


def test_unit_manifests_that_do_not_add_up_are_named(run: Path) -> None:
    unit = rewrite(run, lambda record: record["reasons"].update(emoji=3))
    found = faults(run)
    assert any(line.startswith(f"units/{unit}.json: kept and reasons do not add up") for line in found)
    assert any(line.startswith("manifest.json: its funnel is not the sum of the unit manifests") for line in found)
    rewrite(run, lambda record: record["reasons"].pop("emoji"), unit)
    assert not faults(run)
    rewrite(run, lambda record: record.update(decision_fp="other"), unit)
    assert f"units/{unit}.json: of another configuration or profile than most units" in faults(run)
    rewrite(run, lambda record: record["files"]["ledger"].update(path="run.json"), unit)
    assert any("names other files than a unit's" in line for line in faults(run))


def test_an_index_of_another_tar_is_named_though_its_hash_fits(run: Path) -> None:
    unit = rewrite(run, nothing)
    path = run / f"shards/{unit}.tar.idx"
    offsets = list(range(0, 512 * 5, 512))
    path.write_bytes(encode_index(offsets))
    rewrite(run, nothing, unit)
    assert faults(run) == [f"shards/{unit}.tar.idx: its offsets are not those of the samples in the tar"]


# --- data sets without units ---


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    write_shards(folder, {f"s/{number:03d}.tar": [f"k{number}{index}" for index in range(3)] for number in range(3)})
    return folder


def write_shards(folder: Path, shards: dict[str, list[str]]) -> None:
    storage = Storage.open(str(folder))
    entries = []
    for url, keys in shards.items():
        parts = [("jpg", b"an image" * 400), ("txt", b"a text"), ("json", b"{}")]
        shard = build_shard([(key, parts) for key in keys])
        storage.write(url, shard.buffers)
        storage.write(f"{url}.idx", encode_index(shard.offsets))
        entries.append(ShardEntry(url=url, nsamples=len(keys), bytes=shard.size, sha256=shard.sha256))
    write_manifest(storage, DatasetManifest(name="packed", shards=entries))


def test_a_data_set_of_shards_alone(packed: Path) -> None:
    report = checked(packed)
    assert (report.faults, report.units, report.shards, report.samples) == ([], 0, 3, 9)
    assert not faults(packed, fast=True)
    for path in files_of(packed / "s"):
        good = path.read_bytes()
        for data in (None, good[:-1], b"", bytes(len(good)), good[:700] + b"\xff" + good[701:]):
            path.unlink() if data is None else path.write_bytes(data)
            if data != good:
                assert any(line.startswith(f"s/{path.name}: ") for line in faults(packed)), (path, data and len(data))
            path.write_bytes(good)
    shutil.copy(packed / "s/000.tar", packed / "s/extra.tar")
    (packed / "shards.txt").write_text("s/000.tar\ns/002.tar\ns/001.tar\n")
    assert faults(packed) == [
        "s/extra.tar: not listed in manifest.json", "shards.txt: not the shards of manifest.json: line 2 differs",
    ]  # fmt: skip


def test_a_key_in_two_shards_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.tar": ["x", "y"], "b.tar": ["z"], "c.tar": ["v", "y", "z"]})
    assert faults(tmp_path) == ["c.tar: the key 'y' is also in a.tar", "c.tar: the key 'z' is also in b.tar"]
    write_shards(tmp_path, {name: [f"k{index}" for index in range(30)] for name in ("a.tar", "b.tar", "c.tar")})
    found = faults(tmp_path)
    assert len(found) == 21
    assert "manifest.json: 60 keys are in more than one shard, 20 of them are named" in found


def test_repeated_keys_are_found_among_many() -> None:
    with KeyHashes() as hashes:
        for shard in range(40):
            keys = [hashlib.blake2b(f"{shard} {n}".encode(), digest_size=16).digest() for n in range(2_000)]
            keys[7] = hashlib.blake2b(f"{shard // 2}".encode(), digest_size=16).digest()
            hashes.add(shard, b"".join(keys))
        assert sorted(hashes.repeated()) == [((shard, 7), (shard + 1, 7)) for shard in range(0, 40, 2)]


def test_samples_of_later_stages_are_held_to_their_schema(tmp_path: Path) -> None:
    good = dump_sample(Caption(text="A dog", images=("png",)))
    samples = [
        ("a", [("png", b"x"), ("json", good)]),
        ("b", [("json", dump_sample(PureText(text="Only text")))]),
        ("c", [("jpg", b"x"), ("json", good)]),
        ("d", [("json", b'{"task": "vqa"}')]),
    ]
    shard = build_shard(samples)
    storage = Storage.open(str(tmp_path))
    storage.write("a.tar", shard.buffers)
    storage.write("a.tar.idx", encode_index(shard.offsets))
    entry = ShardEntry(url="a.tar", nsamples=4, bytes=shard.size, sha256=shard.sha256)
    write_manifest(storage, DatasetManifest(name="x", shards=[entry]))
    first, second = faults(tmp_path)
    assert first == "a.tar: the sample 'c' has no .png"
    assert second.startswith("a.tar: the sample 'd': vqa.question: Field required")


def test_a_manifest_may_name_shards_elsewhere(packed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(Storage.open(str(packed)))
    urls = ["../packed/s/000.tar", str(packed / "s/001.tar"), f"file://{packed}/s/002.tar"]
    moved = [shard.model_copy(update={"url": url}) for shard, url in zip(manifest.shards, urls, strict=True)]
    write_manifest(Storage.open(str(tmp_path / "other")), manifest.model_copy(update={"shards": moved}))
    report = checked(tmp_path / "other")
    assert (report.faults, report.samples) == ([], 9)
    (packed / "s/001.tar").unlink()
    assert faults(tmp_path / "other") == [f"{urls[1]}: missing"]


# --- the command ---


def test_the_command_tells_faults_and_its_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run)]) == 0
    assert capsys.readouterr().out.endswith(": no faults\n")
    path = files_of(run, ".tar")[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["check", str(run), "--fast"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"shards/{path.name}: ")
    assert out[-1].endswith(": 1 fault")
    assert main(["check", str(run), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert not record["ok"]
    assert {fault["path"] for fault in record["faults"]} == {f"shards/{path.name}"}
    assert main(["check", str(run / "nothing")]) == 2
    assert "no data set" in capsys.readouterr().err
    with pytest.raises(CheckError):
        checked(run / "ledger")
    for wrong in (["check"], ["check", str(run), "--workers", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


def test_help_has_an_example_and_needs_no_arrow() -> None:
    code = "import sys; from shards.__main__ import main\ntry: main(['check', '--help'])\nfinally: sys.exit('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "example: python -m shards check" in done.stdout


def test_a_worker_that_dies_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "")
    from shards import check_run

    monkeypatch.setattr(check_run, "check_unit", die)
    with pytest.raises(CheckError, match="a process died while it worked on one of"):
        checked(run, workers=2)


def die(task: Any) -> Any:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_on_an_object_store(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "nobody"),
            ("AWS_SECRET_ACCESS_KEY", "nothing"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", endpoint),
        ):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="check")
        for path in files_of(run):
            client.put_object(Bucket="check", Key=f"run/{path.relative_to(run)}", Body=path.read_bytes())
        output = Storage.open("s3://check/run")
        report = check(output)
        assert (report.faults, report.notes, report.units, report.rows) == ([], [], 5, 19)
        manifests.compact(output, at=1)
        path = files_of(run, ".tar")[0]
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        client.put_object(Bucket="check", Key=f"run/shards/{path.name}", Body=bytes(data))
        client.delete_object(Bucket="check", Key=f"run/samples/{path.stem}.parquet")
        lines = {f"{fault.path}: {fault.what}" for fault in check(output).faults}
        assert f"samples/{path.stem}.parquet: missing" in lines
        assert f"shards/{path.name}: its sha256 is not the one in the manifest: replaced or damaged" in lines
    finally:
        server.stop()
