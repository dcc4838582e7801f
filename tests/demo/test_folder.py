from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demo import folder as folder_module
from demo.clip import ensure_clip
from demo.folder import FolderError, alone, in_place_of, prepare, sweep, work_folder
from demo.web import PARTS, build_web


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    prepare(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    prepare(tmp_path / "a" / "b")


@pytest.mark.parametrize("below", ["", "below", "below/more"])
def test_a_file_in_the_way_is_named_before_any_work(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below
    for work in (prepare, build_web, ensure_clip):
        with pytest.raises(FolderError, match=r"file is a file, not a folder: .* --out") as caught:
            work(out)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc, a folder in which nobody can write")
@pytest.mark.parametrize("out", ["/proc", "/proc/x"])
def test_a_folder_that_takes_no_file_is_found_before_any_work(out: str) -> None:
    for work in (prepare, build_web, ensure_clip):
        with pytest.raises(FolderError, match=f"^{out} cannot be written to .*: name another folder with --out$"):
            work(Path(out))


@pytest.mark.parametrize("command", ["web", "clip"])
def test_the_commands_say_it_in_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = subprocess.run(
        [sys.executable, "-m", "demo", command, "--out", str(tmp_path / "file")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert shown.returncode == 1
    assert (
        shown.stderr
        == f"error: {tmp_path / 'file'} is a file, not a folder: remove it, or name another folder with --out\n"
    )


def test_only_leftovers_of_the_dead_are_swept(tmp_path: Path) -> None:
    host = folder_module._host()
    ours = work_folder(tmp_path, "web")
    dead = tmp_path / f".web-{host}-{_dead_process()}-0123abcd"
    elsewhere = tmp_path / ".web-another_host-1-0123abcd"
    unknown, old = tmp_path / ".web-0123456789abcdef", tmp_path / ".web-fedcba9876543210"
    others = tmp_path / ".websites", tmp_path / "web", tmp_path / ".clip-x-1-y"
    for path in (dead, elsewhere, unknown, old, *others):
        (path / "web").mkdir(parents=True)
        (path / "web" / "00000.tar").write_bytes(b"x")
    long_ago = time.time() - 3700
    for path in (old, *others, *old.rglob("*")):
        os.utime(path, (long_ago, long_ago))
    assert sweep(tmp_path, "web") == sorted([dead, old])
    assert sorted(tmp_path.iterdir()) == sorted([ours, elsewhere, unknown, *others])


def test_a_build_of_another_machine_is_alive_while_it_writes(tmp_path: Path) -> None:
    work = tmp_path / ".web-another-host-1-0123abcd"
    (work / "web").mkdir(parents=True)
    long_ago = time.time() - 3700
    os.utime(work, (long_ago, long_ago))
    assert sweep(tmp_path, "web") == []
    os.utime(work / "web", (long_ago, long_ago))
    assert sweep(tmp_path, "web") == [work]


def test_a_killed_build_is_swept_by_the_next(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "demo", "web", "--samples", "3000", "--workers", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(build, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".web-*/site/*.pack")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob(".web-*"))) == 1
    assert build_web(tmp_path, 3, workers=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*PARTS, "web.json"])


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from demo.folder import alone\n"
        f"with alone(Path({str(tmp_path)!r}), lambda: None): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    waited = []

    def wait() -> None:
        waited.append(True)
        other.kill()  # its lock ends with it

    with alone(tmp_path, wait):
        assert waited == [True]
    with alone(tmp_path, lambda: pytest.fail("nobody holds it")):
        pass
    other.communicate()


def test_what_is_made_takes_the_place_of_what_was_there_or_nothing_changes(tmp_path: Path) -> None:
    old = tmp_path / "made"
    old.mkdir()
    (old / "file").write_text("old")
    with pytest.raises(FileExistsError), in_place_of(old) as work:
        work.mkdir()  # fails half-way: it is there
    assert (old / "file").read_text() == "old"
    with in_place_of(old) as work:
        (work / "other").write_text("new")
    assert [path.name for path in old.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
