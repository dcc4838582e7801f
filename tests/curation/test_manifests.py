"""Unit manifests, loose and compacted: nothing lost and nothing counted twice, and a huge run is summed up quickly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import manifests, stats
from curation.opened import open_run
from curation.plan import make_plan
from curation.run import finish, write_run
from shards.storage import Storage
from tests.curation.pairs import flat, good_pairs, image, pair, profile, write_tar
from tests.curation.test_unit import run_plainly

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A unit manifest as a real unit gives it."""
    folder = tmp_path_factory.mktemp("model")
    write_tar(folder / "in/a.tar", flat(good_pairs(40)) + flat(pair(f"x{i}", "no", image(seed=i)) for i in range(9)))
    return run_plainly(profile(folder))[0]


def made(model: Manifest, number: int, **changes: Any) -> Manifest:
    """A manifest like the model's, of a unit of its own; every other one kept nothing."""
    unit_id = hashlib.sha256(str(number).encode()).hexdigest()
    files = json.loads(json.dumps(model["files"]).replace(model["unit_id"][:12], unit_id[:12]))
    kept = number % 2 * model["kept"]
    files["shard"] = files["shard"] if kept else None
    reasons = {**model["reasons"], f"unreadable:{number % 3}": number}
    return {**model, "unit_id": unit_id, "files": files, "kept": kept, "reasons": reasons, **changes}


def stand_loose(output: Storage, many: Iterable[Manifest]) -> list[Manifest]:
    done = list(many)
    for manifest in done:
        output.write(f"units/{manifest['unit_id'][:12]}.json", json.dumps(manifest, ensure_ascii=False).encode())
    return done


def agree(output: Storage, expected: Iterable[Manifest]) -> None:
    """Every way to look at the run says the same as the manifests that it should hold."""
    many = sorted(expected, key=lambda manifest: str(manifest["unit_id"]))
    assert manifests.committed(output) == {m["unit_id"]: m["decision_fp"] for m in many}
    assert sorted((m["unit_id"], m["kept"]) for m in manifests.read_all(output)) == [
        (m["unit_id"], m["kept"]) for m in many
    ]
    for decision in {m["decision_fp"] for m in many}:
        counting = [m for m in many if m["decision_fp"] == decision]
        summary = manifests.sum_up(output, decision)
        same(summary.totals, counting)
        assert {unit_id: shard and shard.sha256 for unit_id, shard in summary.shards.items()} == {
            m["unit_id"]: (m["files"]["shard"] or {}).get("sha256") for m in counting
        }


def same(left: stats.Totals, units: list[Manifest]) -> None:
    right = stats.Totals()
    for manifest in units:
        right.add(manifest)
    assert left.seconds == pytest.approx(right.seconds)  # sums of floats in another order
    assert sorted(left.warnings) == sorted(right.warnings)
    plain = {"seconds": {}, "warnings": []}
    assert dataclasses.replace(left, **plain) == dataclasses.replace(right, **plain)


def test_any_mixture_of_loose_and_compacted_counts_each_unit_once(model: Manifest, tmp_path: Path) -> None:
    chance = random.Random(3)
    for attempt in range(12):
        output = Storage.open(str(tmp_path / str(attempt)))
        expected: dict[str, Manifest] = {}
        for _ in range(6):
            some = [made(model, number, warnings=[f"w{number}"]) for number in chance.sample(range(30), 6)]
            if chance.random() < 0.3:  # decided again: the later one counts
                some = [{**m, "decision_fp": "other", "hits": {"x": 1}} for m in some]
            stand_loose(output, some)
            expected.update((m["unit_id"], m) for m in some)
            if chance.random() < 0.6:
                manifests.compact(output, at=1)
            if chance.random() < 0.3:
                gone = set(chance.sample(sorted(expected), 3))
                assert manifests.forget(output, gone) == 3
                assert manifests.forget(output, gone) == 0
                for unit_id in gone:
                    del expected[unit_id]
            agree(output, expected.values())
        wanted = set(chance.sample(sorted(expected), 5))
        decision = expected[min(wanted)]["decision_fp"]
        assert manifests.sum_up(output, decision, wanted).shards.keys() == {
            unit_id for unit_id in wanted if expected[unit_id]["decision_fp"] == decision
        }
        assert {m["unit_id"] for m in manifests.read_all(output, wanted)} == wanted


def test_compacting_waits_for_enough_and_moves_all(model: Manifest, tmp_path: Path) -> None:
    output = Storage.open(str(tmp_path))
    first = stand_loose(output, (made(model, number) for number in range(3)))
    assert manifests.compact(output, at=4) == 0
    assert manifests.compact(output, at=3) == 3
    second = stand_loose(output, (made(model, number) for number in range(3, 8)))
    assert manifests.compact(output, at=1) == 5
    assert [entry.path.rpartition("-")[0] for entry in output.list("units")] == [
        "units/_merged-000000", "units/_merged-000001",
    ]  # fmt: skip
    agree(output, first + second)


def test_files_of_the_first_format_are_read(model: Manifest, tmp_path: Path) -> None:
    output = Storage.open(str(tmp_path))
    old = [made(model, number) for number in range(5)]
    table = {
        "unit_id": [m["unit_id"] for m in old],
        "decision_fp": [m["decision_fp"] for m in old],
        "manifest": [json.dumps(m) for m in old],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    output.write("units/_merged-7.parquet", sink.getvalue())
    new = stand_loose(output, (made(model, number) for number in range(5, 9)))
    agree(output, old + new)
    manifests.compact(output, at=1)
    agree(output, old + new)
    assert [entry.path[:20] for entry in output.list("units")] == ["units/_merged-000008", "units/_merged-7.parq"]
    assert manifests.forget(output, {old[0]["unit_id"]}) == 1
    agree(output, old[1:] + new)


def test_what_is_compacted_already_is_not_compacted_again(model: Manifest, tmp_path: Path) -> None:
    output = Storage.open(str(tmp_path))
    some = stand_loose(output, (made(model, number) for number in range(4)))
    manifests.compact(output, at=1)
    before = output.list("units")
    stand_loose(output, [{**m, "seconds": {"read": 9.5}} for m in some])  # a second driver's commits, or a kill
    assert manifests.compact(output, at=1) == 4
    assert output.list("units") == before


def test_a_manifest_committed_anew_while_it_is_compacted_stays(
    model: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Storage.open(str(tmp_path))
    some = stand_loose(output, (made(model, number) for number in range(4)))
    newer = {**some[2], "decision_fp": "a longer name than before"}
    write = Storage.write

    def meanwhile(self: Storage, rel: str, data: Any, durable: bool = False) -> None:
        write(self, rel, data, durable)
        if "_merged" in rel:
            write(self, f"units/{newer['unit_id'][:12]}.json", json.dumps(newer).encode())

    monkeypatch.setattr(Storage, "write", meanwhile)
    assert manifests.compact(output, at=1) == 3
    agree(output, [*some[:2], newer, some[3]])


# What a killed process does: the compaction (or the forgetting) of a folder, ended by -9 before its nth change.
KILLED = """
import os, signal, sys
from curation import manifests
from shards.storage import Storage
left = int(sys.argv[3])
def deadly(change):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)
    return call
Storage.write, Storage.delete = deadly(Storage.write), deadly(Storage.delete)
output = Storage.open(sys.argv[1])
manifests.compact(output, at=1) if sys.argv[2] == "-" else manifests.forget(output, set(sys.argv[2].split(",")))
"""


def killed(output: Storage, what: str, after: int) -> bool:
    """Whether the process was killed before it came to its end."""
    status = subprocess.run([sys.executable, "-c", KILLED, output.uri, what, str(after)], timeout=60).returncode
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_a_compaction_killed_at_any_change_loses_nothing(model: Manifest, tmp_path: Path) -> None:
    for after in (0, 1, 3):
        output = Storage.open(str(tmp_path / str(after)))
        every = stand_loose(output, (made(model, number) for number in range(3)))
        manifests.compact(output, at=1)
        every += stand_loose(output, (made(model, number) for number in range(3, 7)))
        assert killed(output, "-", after)  # one file is written, then four loose ones go
        agree(output, every)
        manifests.compact(output, at=1)
        agree(output, every)
        assert len(output.list("units")) == 2


def test_a_forgetting_killed_at_any_change_is_repeated(model: Manifest, tmp_path: Path) -> None:
    every = [made(model, number) for number in range(9)]
    gone = {every[number]["unit_id"] for number in (0, 3, 4, 8)}
    for after in (1, 3, 5):
        output = Storage.open(str(tmp_path / str(after)))
        for first in (0, 3):
            stand_loose(output, every[first : first + 3])
            manifests.compact(output, at=1)
        stand_loose(output, every[6:])
        # A file of three rows is written anew and deleted, twice; then a loose one goes.
        assert killed(output, ",".join(gone), after) == (after < 5)
        standing = manifests.committed(output).keys()
        assert standing >= {m["unit_id"] for m in every} - gone
        agree(output, [m for m in every if m["unit_id"] in standing])
        manifests.forget(output, gone)
        agree(output, [m for m in every if m["unit_id"] not in gone])


def test_bytes_reach_the_disk_before_what_vouches_for_them(
    model: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(file: int) -> None:
        fsync(file)
        log.append(("fsync", os.readlink(f"/proc/self/fd/{file}")))

    def renamed(source: str, target: str) -> None:
        replace(source, target)
        log.append(("rename", source))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    run_plainly(profile(tmp_path))
    output = Storage.open(str(tmp_path / "runs/test"))
    assert manifests.compact(output, at=1) == 1
    names = [name for what, name in log if what == "rename"]
    folders = [Path(name).parent.name for name in names]
    assert folders == ["ledger", "shards", "shards", "samples", "units", "units"]
    assert log == [(what, name) for name in names for what in ("fsync", "rename")]


def compact_when_told(uri: str, gate: Any, rounds: int) -> None:
    output = Storage.open(uri)
    for _ in range(rounds):
        gate.wait(60)
        manifests.compact(output, at=1)
        gate.wait(60)


def test_drivers_that_compact_at_once_lose_nothing(model: Manifest, tmp_path: Path) -> None:
    output = Storage.open(str(tmp_path))
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    rounds = 10
    drivers = [context.Process(target=compact_when_told, args=(output.uri, gate, rounds)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    expected: list[Manifest] = []
    try:
        for number in range(rounds):
            expected += stand_loose(output, (made(model, number * 30 + index) for index in range(30)))
            ids = {m["unit_id"] for m in expected}
            gate.wait(60)
            for index in range(3):  # while they move manifests about, and new ones come
                expected += stand_loose(output, [made(model, 10_000 + number * 3 + index)])
                ids.add(expected[-1]["unit_id"])
                assert manifests.committed(output).keys() == ids
            gate.wait(60)
            assert manifests.committed(output).keys() == ids
    finally:
        if sys.exc_info()[0]:
            gate.abort()
        for driver in drivers:
            driver.join(60)
    assert [driver.exitcode for driver in drivers] == [0, 0]
    agree(output, expected)


def test_damage_is_told_in_one_line_or_changes_nothing(model: Manifest, tmp_path: Path) -> None:
    output = Storage.open(str(tmp_path))
    some = stand_loose(output, (made(model, number) for number in range(6)))
    manifests.compact(output, at=1)
    (entry,) = output.list("units")
    good = output.read(entry.path)
    decision = model["decision_fp"]
    expected = manifests.sum_up(output, decision)
    chance = random.Random(5)
    looks: list[Callable[[], Any]] = [
        lambda: manifests.committed(output),
        lambda: list(manifests.read_all(output)),
        lambda: manifests.sum_up(output, decision),
    ]
    good_looks = [look() for look in looks]
    lines: list[str] = []
    for _ in range(150):
        bad = bytearray(good)
        at = chance.randrange(len(bad))
        bad[at] ^= 1 << chance.randrange(8)
        output.write(entry.path, bytes(bad[: chance.choice((len(bad), at))]))
        for look in looks:
            try:
                assert look() == good_looks[looks.index(look)]
            except manifests.ManifestError as error:
                lines.append(str(error))
    assert len(lines) > 200
    assert all(entry.path in line and "\n" not in line for line in lines)
    output.write(entry.path, good)
    assert manifests.sum_up(output, decision) == expected
    agree(output, some)


def test_100_000_committed_units_are_listed_and_summed_up_in_seconds(model: Manifest, tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    checked = profile(tmp_path)
    plan = make_plan(checked)
    output = plan.output
    first = [made(model, number, decision_fp=plan.prints.decision) for number in range(2_000)]
    stand_loose(output, first)
    manifests.compact(output)
    (entry,) = output.list("units")
    with output.open_input(entry.path) as file:
        table = pq.read_table(file)
    shards = table.column("shard").to_pylist()
    ids: list[str] = []
    for number in range(50):
        # Other units with the same numbers. Their manifests' texts are none: nobody may need them.
        names = [hashlib.sha256(f"{number} {row}".encode()).hexdigest() for row in range(2_000)]
        renamed = [
            shard and {**shard, "path": f"shards/{name[:12]}.tar"} for name, shard in zip(names, shards, strict=True)
        ]
        file_of = table.set_column(0, "unit_id", pa.array(names))
        file_of = file_of.set_column(3, "shard", pa.array(renamed, table.schema.field("shard").type))
        file_of = file_of.set_column(4, "manifest", pa.array(["not JSON"] * 2_000))
        sink = pa.BufferOutputStream()
        pq.write_table(file_of, sink, compression="zstd", write_page_checksum=True)
        output.write(f"units/_merged-{number:06d}-{'0' * 16}.parquet", sink.getvalue())
        ids += names
    output.delete(entry.path)
    write_run(plan)
    assert sorted(path.name for path in Path(output.uri).iterdir()) == ["run.json", "units"]  # no ledger to read

    started = time.perf_counter()
    assert len(manifests.committed(output)) == 100_000
    listed = time.perf_counter()
    opened = open_run(checked.run_folder)
    totals, complete = opened.totals(), opened.complete
    assert (totals.units, totals.kept, complete) == (100_000, 50_000 * model["kept"], False)
    shown = time.perf_counter()
    plan.units[:] = [dataclasses.replace(plan.units[0], unit_id=name) for name in ids]
    assert finish(plan, []).kept == totals.kept
    finished = time.perf_counter()
    assert open_run(checked.run_folder).complete
    # 0.2 s, 0.6 s and 1.3 s on one core; parsing every manifest takes 90 s.
    assert listed - started < 10
    assert shown - listed < 10
    assert finished - shown < 15
