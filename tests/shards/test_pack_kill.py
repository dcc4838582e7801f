"""A pack that is killed, and one that is interrupted: the next call ends in the same bytes, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shards.pack_work import FOLDER
from tests.shards.packing import dataset, files, pack_of, pairs

SIZE = 400_000
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(tmp_path_factory.mktemp("in") / "in", pairs(60, 30, size=5000))


@pytest.fixture(scope="module")
def whole(inputs: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_of([inputs], out, SIZE)
    return files(out)


def start(inputs: str, out: Path, workers: int) -> subprocess.Popen[str]:
    command = ["-m", "shards", "pack", inputs, "--size", str(SIZE), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def await_(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, f"it ended before: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def await_gone(processes: list[psutil.Process]) -> None:
    """Whoever worked for a driver that was killed ends by itself."""
    _, left = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not left


def count(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))


@pytest.mark.parametrize(
    ("folder", "files_there", "workers"),
    [
        (f"{FOLDER}/keys", 1, 2), (f"{FOLDER}/spill", 15, 1), (f"{FOLDER}/done", 1, 1), (f"{FOLDER}/done", 14, 2),
        (".", 60, 1),
    ],
)  # fmt: skip
def test_killed_at_any_moment_it_goes_on(
    inputs: str, whole: dict[str, bytes], tmp_path: Path, folder: str, files_there: int, workers: int
) -> None:
    out = tmp_path / "out"
    process = start(inputs, out, workers)
    await_(lambda: count(out / folder) >= files_there, process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    await_gone(started)
    shards = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    done = {out / f"{path.stem}.tar" for path in (out / FOLDER / "done").glob("*.json")}
    pack_of([inputs], out, SIZE, workers=1)
    assert files(out) == whole  # also: nothing is left of temporary files
    assert all(path.stat().st_mtime_ns == shards[path] for path in done)  # finished shards were not made again


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_it_says_so_and_leaves_no_process(
    inputs: str, whole: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    process = start(inputs, out, workers)
    await_(lambda: count(out / FOLDER / "keys") >= 2, process)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (130, ("", "error: interrupted\n"))
    await_gone(started)
    assert not list(out.rglob("*.tmp"))
    process = start(inputs, out, workers)
    said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert files(out) == whole
