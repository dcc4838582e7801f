"""Packs of real files: the samples as they were, in the plan's order; the same bytes however they are made."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards.__main__ import main
from shards.check import check
from shards.index import offsets_of, read_index
from shards.manifest import LIST_NAME, read_manifest
from shards.pack import pack
from shards.pack_plan import PackError, make_plan
from shards.pack_work import FOLDER, Done, Gather, Spill, Task, perform
from shards.storage import Storage, StorageError
from shards.tar import build_shard
from tests.shards.packing import Sample, dataset, files, pack_of, packed, pairs, samples_of
from tests.small_disk import small_disk

SIZE = 60_000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two data sets of small shards, and a shard that is larger than a packed one."""
    folder = tmp_path_factory.mktemp("inputs")
    first = [samples[: 3 + number % 5] for number, samples in enumerate(pairs(20, 8, "a"))]
    return [
        dataset(folder / "a", first, "one"),
        dataset(folder / "b", [*pairs(3, 7, "b"), pairs(1, 60, "c")[0]], "two"),
    ]


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs packed in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_of(inputs, out, SIZE)
    return out


def test_samples_are_what_they_were_in_the_order_of_the_plan(inputs: list[str], whole: Path) -> None:
    given: list[Sample] = []
    for where in inputs:
        for tar in sorted(Path(where, "shards").glob("*.tar")):
            given += samples_of(tar.read_bytes())
    plan = make_plan(inputs, SIZE, 0)
    order: list[Sample] = [("", [])] * len(given)
    for sample, place in zip(given, plan.order.places(0, len(given)), strict=True):
        order[place] = sample
    names = [f"{number:06d}.tar" for number in range(plan.nshards)]
    assert sorted(path.name for path in whole.iterdir()) == sorted(
        [*names, *(f"{name}.idx" for name in names), LIST_NAME, "manifest.json"]
    )
    for number, name in enumerate(names):
        shard = build_shard(order[plan.start(number) : plan.start(number + 1)])
        assert (whole / name).read_bytes() == b"".join(shard.buffers)
        assert read_index(Storage.open(str(whole)), name) == shard.offsets == offsets_of((whole / name).read_bytes())
    assert (whole / LIST_NAME).read_text().split() == names


def test_shards_are_equal_and_the_check_passes(inputs: list[str], whole: Path) -> None:
    report = check(Storage.open(str(whole)))
    assert (report.faults, report.notes) == ([], [])
    manifest = read_manifest(Storage.open(str(whole)))
    counts = {shard.nsamples for shard in manifest.shards}
    assert max(counts) - min(counts) <= 1
    assert manifest.nsamples == report.samples == sum(make.nsamples for make in make_plan(inputs, SIZE, 0).groups)
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
@pytest.mark.parametrize("fan", [3, 4, 512])
def test_the_bytes_do_not_depend_on_who_makes_them(
    inputs: list[str], whole: Path, tmp_path: Path, workers: int, fan: int
) -> None:
    plan = replace(make_plan(inputs, SIZE, 0), fan=fan)
    assert bool(plan.chunks) == (fan < 512)
    told: list[tuple[int, int]] = []
    done = packed(plan, tmp_path / "out", workers, lambda *numbers: told.append(numbers))
    assert files(tmp_path / "out") == files(whole)
    assert told == [(number, done.worked) for number in range(done.worked + 1)]


def test_other_seeds_and_sizes_give_other_shards(inputs: list[str], whole: Path, tmp_path: Path) -> None:
    pack_of(inputs, tmp_path / "seed", SIZE, seed=1)
    pack_of(inputs, tmp_path / "size", SIZE + 5000)
    for other in ("seed", "size"):
        assert not check(Storage.open(str(tmp_path / other))).faults
        assert (tmp_path / other / "000000.tar").read_bytes() != (whole / "000000.tar").read_bytes()
    keys = [sorted(sample[0] for tar in folder.glob("*.tar") for sample in samples_of(tar.read_bytes()))
            for folder in (whole, tmp_path / "seed", tmp_path / "size")]  # fmt: skip
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


# ---------------------------------------------------------------- going on


def test_a_pack_that_is_whole_is_left_alone(inputs: list[str], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out", copy_function=shutil.copy2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack_of(inputs, tmp_path / "out", SIZE).worked == 0
    (tmp_path / "out" / FOLDER / "spill").mkdir(parents=True)  # killed while it cleared up
    assert pack_of(inputs, tmp_path / "out", SIZE).worked == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("fan", [3, 512])
def test_broken_off_after_any_task_it_goes_on(inputs: list[str], whole: Path, tmp_path: Path, fan: int) -> None:
    """Each call does some tasks and dies; nothing is done twice that stood, and the bytes are the same."""
    plan = replace(make_plan(inputs, SIZE, 0), fan=fan)
    out = Storage.open(str(tmp_path / "out"))

    class Died(Exception):
        pass

    tasks: list[Task] = []
    for _ in range(100):
        left = 4

        def run(given: Iterator[Task]) -> Iterator[Done]:
            nonlocal left
            for task in given:
                if not left:
                    raise Died
                left -= 1
                tasks.append(task)
                yield perform(task)

        try:
            pack(plan, out, run, lambda done, of: None)  # type: ignore[arg-type]
            break
        except Died:
            continue
    assert files(tmp_path / "out") == files(whole)
    assert len({str(task) + type(task).__name__ for task in tasks}) == len(tasks) > 20


@pytest.mark.parametrize(
    "lost", ["000003.tar", "000003.tar.idx", f"{FOLDER}/done/000003.json", f"{FOLDER}/keys/000001"]
)
def test_what_a_power_cut_took_is_made_again(inputs: list[str], whole: Path, tmp_path: Path, lost: str) -> None:
    plan, out = make_plan(inputs, SIZE, 0), Storage.open(str(tmp_path / "out"))
    break_off(plan, out, lambda task: isinstance(task, Gather) and task.number == plan.nshards - 1)
    (tmp_path / "out" / lost).write_bytes(b"")
    again: list[Task] = []

    def run(tasks: Iterator[Task]) -> Iterator[Done]:
        for task in tasks:
            again.append(task)
            yield perform(task)

    pack(plan, out, run, lambda done, of: None)  # type: ignore[arg-type]
    assert files(tmp_path / "out") == files(whole)
    assert len(again) == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000, None])
def test_a_spill_file_that_was_damaged_is_told_and_made_again(
    inputs: list[str], whole: Path, tmp_path: Path, damage: bytes | None
) -> None:
    plan, out = make_plan(inputs, SIZE, 0), Storage.open(str(tmp_path / "out"))
    break_off(plan, out, lambda task: isinstance(task, Gather))
    path = sorted((tmp_path / "out" / FOLDER / "spill").rglob("*-000"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage is None else damage)
    with pytest.raises(PackError, match=rf"^{path}: damaged since it was written .*: removed it: run again$"):
        pack_of(inputs, tmp_path / "out", SIZE)
    pack_of(inputs, tmp_path / "out", SIZE)
    assert files(tmp_path / "out") == files(whole)


def break_off(plan: object, out: Storage, at: Callable[[Task], bool]) -> None:
    def run(tasks: Iterator[Task]) -> Iterator[Done]:
        for task in tasks:
            if at(task):
                raise InterruptedError
            yield perform(task)

    with pytest.raises(InterruptedError):
        pack(plan, out, run, lambda done, of: None)  # type: ignore[arg-type]


def test_another_pack_is_not_mixed_in(inputs: list[str], whole: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    break_off(make_plan(inputs, SIZE, 0), Storage.open(str(begun)), lambda task: isinstance(task, Gather))
    before = files(begun), files(whole)
    for out in (begun, whole):
        for arguments, what in (
            ((inputs, out, SIZE, 3), "seed 0 there, 3 here"),
            ((inputs, out, 70_000, 0), "size 60000 there, 70000 here"),
            ((inputs[:1], out, SIZE, 0), "inputs one, two there, one here"),
            ((inputs[::-1], out, SIZE, 0), "inputs one, two there, two, one here"),
        ):
            with pytest.raises(PackError, match=rf"^{out}: holds another pack: {what}: choose another --out, or"):
                pack_of(*arguments)
    assert (files(begun), files(whole)) == before


def test_folders_of_others_are_refused(inputs: list[str], tmp_path: Path) -> None:
    before = files(Path(inputs[0]))
    with pytest.raises(PackError, match=rf"^{inputs[0]}: holds another data set \(one\): choose another --out$"):
        pack_of(inputs, inputs[0], SIZE)
    with pytest.raises(PackError, match="holds 0000.tar, which is of no pack: choose another --out"):
        pack_of(inputs, f"{inputs[0]}/shards", SIZE)
    assert files(Path(inputs[0])) == before
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(PackError, match="holds run.json, which is of no pack: choose another --out"):
        pack_of(inputs, tmp_path, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PackError, match="manifest.json: .*; or choose another --out"):
        pack_of(inputs, tmp_path, SIZE)


def test_a_second_pack_at_the_same_time_is_refused(inputs: list[str], whole: Path, tmp_path: Path) -> None:
    plan, out = make_plan(inputs, SIZE, 0), tmp_path / "out"
    refused = []

    def told(done: int, of: int) -> None:
        if not refused:
            with pytest.raises(
                PackError, match=rf"^{out}: another pack is at work here: wait for its end, or stop it$"
            ):
                pack_of(inputs, out, SIZE)
            refused.append(done)

    packed(plan, out, 1, told)
    assert refused
    assert files(out) == files(whole)


# ---------------------------------------------------------------- what goes wrong


def damaged(inputs: list[str], folder: Path, harm: Callable[[Path], object]) -> list[str]:
    where = folder / "in"
    shutil.copytree(inputs[0], where)
    harm(where / "shards/0007.tar")
    return [str(where)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (flip, r"its sha256 is not the one in the manifest: replaced or damaged: restore it, or curate it again"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-512]),
            r"[\d,]+ bytes, the manifest says [\d,]+: replaced or",
        ),
        (lambda path: path.write_bytes(b""), r"0 bytes, the manifest says [\d,]+: replaced or damaged"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_input_is_named_and_can_be_mended(
    inputs: list[str], tmp_path: Path, harm: Callable[[Path], object], what: str, workers: int
) -> None:
    given = damaged(inputs, tmp_path, harm)
    with pytest.raises(PackError, match=f"^{given[0]}/shards/0007.tar: {what}"):
        pack_of(given, tmp_path / "out", SIZE, workers=workers)
    assert not list((tmp_path / "out").glob("*.tar"))
    shutil.copy(f"{inputs[0]}/shards/0007.tar", f"{given[0]}/shards/0007.tar")
    pack_of(given, tmp_path / "out", SIZE, workers=workers)
    pack_of(inputs[:1], tmp_path / "fresh", SIZE)
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_an_input_that_is_missing_is_named(inputs: list[str], tmp_path: Path) -> None:
    given = damaged(inputs, tmp_path, lambda path: path.unlink())
    with pytest.raises(StorageError, match=rf"^cannot read {given[0]}/shards/0007.tar: not found: check the path$"):
        pack_of(given, tmp_path / "out", SIZE)


def test_a_manifest_that_counts_wrong_is_told(tmp_path: Path) -> None:
    where = Path(dataset(tmp_path / "in", pairs(2, 3)))
    text = (where / "manifest.json").read_text()
    (where / "manifest.json").write_text(
        text.replace('"nsamples": 3', '"nsamples": 4', 1).replace('"total_samples": 6', '"total_samples": 7')
    )
    with pytest.raises(PackError, match=r"0000.tar: 3 samples, the manifest says 4: replaced or damaged"):
        pack_of([str(where)], tmp_path / "out", 10**6)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_that_comes_twice_is_named(tmp_path: Path, workers: int) -> None:
    one, two = pairs(3, 5, "a"), pairs(3, 5, "b")
    two[2][1] = (one[1][3][0], two[2][1][1])
    given = [dataset(tmp_path / "one", one), dataset(tmp_path / "two", two)]
    places = rf"{given[0]}/shards/0001.tar and {given[1]}/shards/0002.tar"
    with pytest.raises(PackError, match=rf"^the key 'a0001-000003' is in {places}: keys are unique in a data set"):
        pack_of(given, tmp_path / "out", 20_000, workers=workers)
    assert not files(tmp_path / "out")  # it can never be packed so: nothing is left lying about
    two[2][1] = ("b", two[2][1][1])
    pack_of([given[0], dataset(tmp_path / "mended", two)], tmp_path / "out", 20_000)


def test_a_full_disk_is_one_line_and_then_it_goes_on(inputs: list[str], whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "900k") as disk:
        for _ in range(2):
            with pytest.raises(StorageError, match=r"^cannot write .*: no space left on the device: free some"):
                pack_of(inputs, disk / "out", SIZE)
        assert not [path for path in files(disk) if path.endswith(".tmp")]
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        pack_of(inputs, disk / "out", SIZE)
        assert files(disk / "out") == files(whole)


def test_a_process_that_dies_is_told(inputs: list[str], tmp_path: Path) -> None:
    from shards.pool import PoolError, worked

    plan = make_plan(inputs, SIZE, 0)
    with pytest.raises(PoolError, match=r"^a process died while it worked on one of .*/shards/00.*Try --workers 1$"):
        pack(plan, Storage.open(str(tmp_path / "out")), lambda tasks: worked(die, tasks, 2), lambda done, of: None)


def die(task: Task) -> Done:
    if isinstance(task, Spill) and task.group.number == 3:
        os._exit(9)
    return perform(task)


# ---------------------------------------------------------------- the command


def test_the_command(inputs: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", *inputs, "--size", "60kB", "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert f"{tmp_path}/out: 19 shards of 9 or 10 samples and 4" in said.out
    assert not said.err
    assert files(tmp_path / "out") == files(whole)
    assert main(arguments) == 0
    assert "nothing to do, it is packed" in capsys.readouterr().out
    assert main([*arguments, "--seed", "5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["pack", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")]) == 2
    assert (
        capsys.readouterr().err == f"error: cannot read {tmp_path}/nowhere/manifest.json: not found: check the path\n"
    )
    assert main(["pack", *inputs, "--out", "/proc/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write /proc/nowhere")
    for wrong in (["--size", "1 giga"], ["--seed", "-1"], ["--workers", "0"]):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
    assert "is no size of a shard: write 1GB" in capsys.readouterr().err


def test_help_has_an_example_and_answers_at_once() -> None:
    code = "import sys, shards.__main__ as m\ntry: m.main(['pack', '--help'])\nexcept SystemExit: pass\nassert 'pyarrow' not in sys.modules"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "example: python -m shards pack runs/laion_en" in said


# ---------------------------------------------------------------- memory


_MEASURED = """
import sys
from shards.pack import pack
from shards.pack_plan import make_plan
from shards.pack_work import perform
from shards.storage import Storage

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

plan = make_plan([sys.argv[1]], int(sys.argv[2]), 0)
before = peak()
pack(plan, Storage.open(sys.argv[3]), lambda tasks: (perform(task) for task in tasks), lambda done, of: None)
print(peak() - before, plan.nbytes)
"""


@pytest.mark.parametrize("large", [0, 600])
def test_memory_is_bounded_by_the_size_whatever_the_data(tmp_path: Path, large: int) -> None:
    """All memory of the process counts. An input shard that is larger than `size` is mapped as a whole on a local disk."""
    size = 8_000_000
    shards = [*pairs(80, 25, size=60_000), *pairs(int(large > 0), large, "z", size=60_000)]
    where = dataset(tmp_path / "in", shards)
    run = subprocess.run(
        [sys.executable, "-c", _MEASURED, where, str(size), tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, data = map(int, run.stdout.split())
    assert data > 130_000_000
    assert grown < 2 * size + large * 70_000 + 10_000_000
