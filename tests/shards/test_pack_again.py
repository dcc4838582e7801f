"""Packs that were broken off, that are done already, and folders that hold something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.pack import pack
from shards.pack_plan import PackError, Plan, make_plan
from shards.pack_work import FOLDER, Done, Gather, Task, perform
from shards.storage import Storage
from tests.shards.packing import SIZE, few_large, files, pack_of, packed


def test_a_pack_that_is_whole_is_left_alone(two_sets: list[str], two_packed: Path, tmp_path: Path) -> None:
    shutil.copytree(two_packed, tmp_path / "out", copy_function=shutil.copy2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack_of(two_sets, tmp_path / "out", SIZE).worked == 0
    (tmp_path / "out" / FOLDER / "spill").mkdir(parents=True)  # killed while it cleared up
    assert pack_of(two_sets, tmp_path / "out", SIZE).worked == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def in_steps(plan: Plan, out: Storage, each: int) -> list[Task]:
    """Packs by calls that each do so many tasks and die; gives all their tasks."""

    class Died(Exception):
        pass

    tasks: list[Task] = []

    def run(given: Iterable[Task]) -> Generator[Done]:
        for task in given:
            if len(tasks) == limit:
                raise Died
            tasks.append(task)
            yield perform(task)

    while True:
        limit = len(tasks) + each
        try:
            pack(plan, out, run, lambda done, of: None)
        except Died:
            continue
        return tasks


@pytest.mark.parametrize("fan", [3, 512])
def test_broken_off_after_any_task_it_goes_on(two_sets: list[str], two_packed: Path, tmp_path: Path, fan: int) -> None:
    """Nothing is done twice that stood, and the bytes are the same."""
    tasks = in_steps(replace(make_plan(two_sets, SIZE, 0), fan=fan), Storage.open(str(tmp_path / "out")), 4)
    assert files(tmp_path / "out") == files(two_packed)
    assert len({str(task) + type(task).__name__ for task in tasks}) == len(tasks) > 20


def test_large_shards_are_not_read_again(tmp_path: Path) -> None:
    """Files of one input shard wait for several tasks, and go as each of them ends."""
    plan = few_large(tmp_path / "in")
    tasks = in_steps(plan, Storage.open(str(tmp_path / "out")), 20)
    packed(replace(plan, fan=512), tmp_path / "fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    assert len({str(task) + type(task).__name__ for task in tasks}) == len(tasks)


@pytest.mark.parametrize(
    "lost", ["000003.tar", "000003.tar.idx", f"{FOLDER}/done/000003.json", f"{FOLDER}/keys/000001"]
)
def test_what_a_power_cut_took_is_made_again(two_sets: list[str], two_packed: Path, tmp_path: Path, lost: str) -> None:
    plan, out = make_plan(two_sets, SIZE, 0), Storage.open(str(tmp_path / "out"))
    break_off(plan, out, lambda task: isinstance(task, Gather) and task.number == plan.nshards - 1)
    (tmp_path / "out" / lost).write_bytes(b"")
    again: list[Task] = []

    def run(tasks: Iterable[Task]) -> Generator[Done]:
        for task in tasks:
            again.append(task)
            yield perform(task)

    pack(plan, out, run, lambda done, of: None)
    assert files(tmp_path / "out") == files(two_packed)
    assert len(again) == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000, 15, None])  # 15: of the offset at which the first piece ends
def test_a_spill_file_that_was_damaged_is_told_and_made_again(
    two_sets: list[str], two_packed: Path, tmp_path: Path, damage: bytes | int | None
) -> None:
    plan, out = make_plan(two_sets, SIZE, 0), Storage.open(str(tmp_path / "out"))
    break_off(plan, out, lambda task: isinstance(task, Gather))
    path = sorted((tmp_path / "out" / FOLDER / "spill").rglob("*-000"))[1]
    data = bytearray(path.read_bytes())
    data[damage if isinstance(damage, int) else len(data) // 2] ^= 1
    path.write_bytes(damage if isinstance(damage, bytes) else data)
    with pytest.raises(PackError, match=rf"^{path}: damaged since it was written .*: removed it: run again$"):
        pack_of(two_sets, tmp_path / "out", SIZE)
    pack_of(two_sets, tmp_path / "out", SIZE)
    assert files(tmp_path / "out") == files(two_packed)


def break_off(plan: Plan, out: Storage, at: Callable[[Task], bool]) -> None:
    def run(tasks: Iterable[Task]) -> Generator[Done]:
        for task in tasks:
            if at(task):
                raise InterruptedError
            yield perform(task)

    with pytest.raises(InterruptedError):
        pack(plan, out, run, lambda done, of: None)


def test_another_pack_is_not_mixed_in(two_sets: list[str], two_packed: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    break_off(make_plan(two_sets, SIZE, 0), Storage.open(str(begun)), lambda task: isinstance(task, Gather))
    before = files(begun), files(two_packed)
    for out in (begun, two_packed):
        for arguments, what in (
            ((two_sets, out, SIZE, 3), "seed 0 there, 3 here"),
            ((two_sets, out, 70_000, 0), "size 60000 there, 70000 here"),
            ((two_sets[:1], out, SIZE, 0), "inputs one, two there, one here"),
            ((two_sets[::-1], out, SIZE, 0), "inputs one, two there, two, one here"),
        ):
            with pytest.raises(PackError, match=rf"^{out}: holds another pack: {what}: choose another --out, or"):
                pack_of(*arguments)
    assert (files(begun), files(two_packed)) == before


def test_folders_of_others_are_refused(two_sets: list[str], tmp_path: Path) -> None:
    before = files(Path(two_sets[0]))
    with pytest.raises(PackError, match=rf"^{two_sets[0]}: holds another data set \(one\): choose another --out$"):
        pack_of(two_sets, two_sets[0], SIZE)
    for folder, name in (("shards", "0000.tar"), ("", "manifest.json")):
        other = tmp_path / "other" / folder
        shutil.copytree(Path(two_sets[0], folder), other)
        before = files(tmp_path)
        with pytest.raises(PackError, match=rf"^{other}: holds (?:{name}, which is of no pack|another data set)"):
            pack_of(two_sets, other, SIZE)
        assert files(tmp_path) == before
        shutil.rmtree(tmp_path / "other")
    ledger = tmp_path / "run" / "ledger"
    ledger.mkdir(parents=True)
    (ledger / "0000.parquet").write_bytes(b"")
    with pytest.raises(PackError, match=rf"^{ledger}: holds 0000.parquet, which is of no pack: choose an --out that"):
        pack_of(two_sets, ledger, SIZE)
    assert [path.name for path in ledger.iterdir()] == ["0000.parquet"]
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PackError, match="manifest.json: .*; or choose another --out"):
        pack_of(two_sets, tmp_path, SIZE)


def test_a_second_pack_at_the_same_time_is_refused(two_sets: list[str], two_packed: Path, tmp_path: Path) -> None:
    plan, out = make_plan(two_sets, SIZE, 0), tmp_path / "out"
    refused = []

    def told(done: int, of: int) -> None:
        if not refused:
            with pytest.raises(
                PackError, match=rf"^{out}: another pack is at work here: wait for its end, or stop it$"
            ):
                pack_of(two_sets, out, SIZE)
            refused.append(done)

    packed(plan, out, 1, told)
    assert refused
    assert files(out) == files(two_packed)
