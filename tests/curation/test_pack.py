"""The same pack as Ray tasks: the same bytes, one line for what fails, and a folder that one driver holds."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from curation import lease
from curation.__main__ import main
from curation.cluster import JobError
from curation.pack import _memory, pack_on_ray
from curation.plan import RunError
from shards.pack_plan import make_plan
from shards.pack_work import FOLDER
from shards.storage import Storage
from tests.curation.processes import PATIENCE_S, driver
from tests.shards.packing import dataset, files, pack_of, pairs

SIZE = 60_000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    return [dataset(folder / "a", pairs(20, 5, "a"), "one"), dataset(folder / "b", pairs(1, 50, "b"), "two")]


@pytest.fixture(scope="module")
def whole(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_of(inputs, out, SIZE)
    return files(out)


def test_the_bytes_are_those_of_one_machine(
    inputs: list[str], whole: dict[str, bytes], tmp_path: Path, ray_local: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["pack", *inputs, "--size", "60kB", "--out", str(out)]
    assert main(arguments) == 0
    assert files(out) == whole
    assert (
        "16 shards of 9 or 10 samples and 51.2 kB to 68.1 kB, 150 samples and 937.5 kB in all"
        in capsys.readouterr().out
    )
    assert main(arguments) == 0
    assert "nothing to do, it is packed" in capsys.readouterr().out
    assert main([*arguments, "--seed", "9"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {out}: holds another pack: seed 0 there, 9 here: choose another --out, or remove it\n"
    )


def test_what_fails_is_one_line_and_is_mended_by_another_call(
    inputs: list[str], whole: dict[str, bytes], tmp_path: Path, ray_local: None
) -> None:
    path = Path(inputs[0], "shards/0003.tar")
    before = path.read_bytes()
    out = Storage.open(str(tmp_path / "out"))
    plan = make_plan(inputs, SIZE, 0)
    try:
        path.write_bytes(before[:-1] + b"X")
        with pytest.raises(JobError, match=rf"^{path}: its sha256 is not the one in the manifest: replaced or damaged"):
            pack_on_ray(plan, out, None, lambda done, of: None)
    finally:
        path.write_bytes(before)
    pack_on_ray(plan, out, None, lambda done, of: None)
    assert files(tmp_path / "out") == whole


def test_a_folder_that_another_driver_holds_is_refused(inputs: list[str], tmp_path: Path) -> None:
    out = Storage.open(str(tmp_path / "out"))
    with lease.hold(out, print), pytest.raises(RunError, match="another run is at work here"):
        pack_on_ray(make_plan(inputs, SIZE, 0), out, None, lambda done, of: None)


def test_a_data_set_of_others_is_not_touched(inputs: list[str], tmp_path: Path) -> None:
    """Not even by a lease, while Ray starts."""
    where = Path(inputs[0])
    (where / lease.NAME).write_text("theirs")
    try:
        with pytest.raises(RunError, match=rf"^{where}: holds another data set \(one\)"):
            pack_on_ray(make_plan(inputs, SIZE, 0), Storage.open(str(where)), None, lambda done, of: None)
        assert (where / lease.NAME).read_text() == "theirs"
    finally:
        (where / lease.NAME).unlink()


def test_files_that_another_machine_keeps_to_itself_are_told(
    inputs: list[str], tmp_path: Path, ray_local: None
) -> None:
    """A folder that is not shared: what a task wrote there is not there for the driver."""
    plan, out = make_plan(inputs, SIZE, 0), Storage.open(str(tmp_path / "out"))

    def told(done: int, of: int) -> None:
        if done == len(plan.groups):
            out.delete(f"{FOLDER}/keys/000000")

    with pytest.raises(JobError, match=r"keys/000000: not found: check the path \(on more than one machine, --out is"):
        pack_on_ray(plan, out, None, told)


def test_relative_paths_of_a_submitted_job_are_refused(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for arguments, line in (
        ([inputs[0], "--out", "packed"], "error: --out: 'packed' is relative, and a submitted job runs in a copy of"),
        (["in", "--out", str(tmp_path / "out")], "error: MANIFEST: 'in' is relative, and not among the files that"),
    ):
        assert main(["pack", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(line)
        assert said.endswith("give an absolute path that all nodes share, or s3://\n")
    assert list(copy.iterdir()) == []


def test_a_task_asks_for_no_more_memory_than_there_is(inputs: list[str]) -> None:
    plan = make_plan(inputs, 10**9, 0)
    assert _memory(plan, [{"CPU": 1.0}]) is None
    assert _memory(plan, [{"CPU": 1.0, "memory": 1e9}, {"CPU": 8.0, "memory": 1.5e9}, {"memory": 9e9}]) == 1_500_000_000
    assert _memory(plan, [{"CPU": 1.0, "memory": 64e9}]) == 2 * 10**9 + 2**28


@pytest.mark.slow
def test_a_driver_that_is_killed_is_followed_by_another(
    tmp_path: Path, whole: dict[str, bytes], inputs: list[str]
) -> None:
    """Its own Ray, killed in the middle; the next call goes on, here without Ray."""
    out = tmp_path / "out"
    with driver(tmp_path / "log", "pack", *inputs, "--size", "60kB", "--out", out, "--address", "local") as first:
        first.wait_until(lambda: list((out / FOLDER / "keys").glob("[0-9]*")), "a group was laid off")
        first.send(signal.SIGKILL)
        first.end()
        _, left = psutil.wait_procs(list(first._found), timeout=PATIENCE_S)
        assert not left
    (out / lease.NAME).unlink()
    pack_of(inputs, out, SIZE)
    assert files(out) == whole
