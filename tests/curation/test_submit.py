"""`ray job submit --working-dir . -- python -m curation run PROFILE` on a real cluster of one node."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from curation import submitted
from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, profile, write_config, write_tar
from tests.curation.test_unit import files_of, ledger_of, run_plainly

ROOT = Path(__file__).parents[2]
# Only in the uploaded folder: a worker that can import it has got the upload.
PLUGIN = """
import time
from tests.curation.plugins import Where, pa

class Slow(Where):
    def score(self, samples):
        time.sleep(1)
        if any("boom" in caption for caption in samples.column("caption").to_pylist()):
            raise ZeroDivisionError("met a boom")
        return {"process": pa.array([0] * len(samples), pa.int64())}
"""


class Head:
    """`ray start --head` with ports, a session folder and a process group of its own."""

    def __init__(self, folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        self.environment = {
            **environment,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": path,
            **settings,
        }
        names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.url = f"http://127.0.0.1:{ports['dashboard-port']}"
        self.address = f"127.0.0.1:{ports['port']}"
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += [
            f"--temp-dir={folder}",
            "--num-cpus=2",
            "--object-store-memory=300000000",
            "--metrics-export-port=0",
        ]
        self.log = (folder / "start.log").open("w+")
        self.process = subprocess.Popen(
            [*ray("start", "--head", "--block", "--include-dashboard=true"), *options],
            env=self.environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
        )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/api/jobs/", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        self.log.seek(0)
        raise AssertionError(f"no cluster: {self.log.read()[-2000:]}")

    def stop(self) -> None:
        """Ends what this head started, by process id."""
        try:
            mine = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            mine = []
        # Ray's daemons have process groups of their own, and a worker whose parent died has another parent.
        mine += [
            process for process in psutil.process_iter() if process not in mine and str(self.folder) in line(process)
        ]
        for process in mine:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(mine, timeout=20)
        self.process.wait(20)
        self.log.close()

    def submit(
        self, folder: Path, *arguments: str | Path, job: str, wait: bool = True, environment: Path | None = None
    ) -> subprocess.Popen[str]:
        options = [] if environment is None else ["--runtime-env", str(environment)]
        options += [
            "--address",
            self.url,
            "--working-dir",
            ".",
            "--submission-id",
            job,
            *([] if wait else ["--no-wait"]),
        ]
        command = ["python", "-m", "curation", *map(str, arguments)]
        return subprocess.Popen(
            [*ray("job", "submit"), *options, "--", *command],
            env=self.environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def about(self, job: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/jobs/{job}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


def ray(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *arguments]


def line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running() as started:
        yield started


@contextmanager
def running(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="wv-"))  # short: Ray's sockets lie below it, and have 107 characters
    started = Head(folder, settings)
    try:
        started.wait()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project with things in it that must stay at home, and without the .gitignore that Ray reads too."""
    folder = tmp_path / "checkout"
    for name in ("curation", "filters", "shards", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".rayignore", folder)
    shutil.copy(ROOT / "pipelines.yaml", folder)
    (folder / "own_filters.py").write_text(PLUGIN)
    for heavy in (".venv/lib/x", ".venv-gpu/lib/x", "data/demo/web/x.tar", "runs/demo/shards/x.tar", ".git/objects/x"):
        (folder / heavy).parent.mkdir(parents=True)
        (folder / heavy).write_bytes(os.urandom(3_000_000))
    return folder


def uploads(head: Head) -> dict[str, Path]:
    found = head.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    return {path.name: path for path in found if path.is_dir()}


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def test_a_submitted_run_of_this_checkout(head: Head, tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(5)) + pair("x", "no", image()))
    before = uploads(head)
    config = write_config(tmp_path)
    environment = ROOT / "cluster/runtime_env.yaml"
    job = head.submit(ROOT, "run", "--config", config, job="whole", environment=environment)
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert head.about("whole")["driver_exit_code"] == 0
    assert "test: 1/1 units, 6 samples, kept 83.3%" in said
    assert "retention: 83.3% of 6 pairs seen" in said
    assert len(ledger_of(tmp_path)) == 6
    (upload,) = uploads(head).keys() - before.keys()
    there = {path.name for path in uploads(head)[upload].iterdir()}
    assert {"curation", "filters", "shards", "pipelines.yaml"} <= there
    assert there.isdisjoint({".venv", "data", "runs", ".git", "tests", "docs"})
    assert megabytes(uploads(head)[upload]) < 5


@pytest.mark.slow
def test_the_exit_status_is_the_runs(head: Head, tmp_path: Path, checkout: Path) -> None:
    """Three jobs side by side: a unit that fails (1), a mistake in the file (2), an output that would be lost (2)."""
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    write_tar(tmp_path / "in/b.tar", pair("x", "a caption that goes boom", image()))
    before = uploads(head)
    settings = {"filters": {**CHEAP, "mine": {"filter": "own_filters:Slow"}}}
    config = write_config(tmp_path, **settings)
    calls = {
        "failing": ("run", "--config", config),
        "mistaken": ("run", "--config", config, "--set", "emoji.max_cuont=1"),
        "lost": ("run", "--config", config, "--set", "output.path=runs"),
        "left": ("plan", "demo"),
    }
    jobs = {name: head.submit(checkout, *arguments, job=name) for name, arguments in calls.items()}
    said = {name: job.communicate(timeout=300)[0] for name, job in jobs.items()}
    # `ray job submit` itself knows 0 and 1 only; what the run said stands in the job's record.
    assert {name: job.returncode for name, job in jobs.items()} == dict.fromkeys(calls, 1)
    codes = {name: head.about(name)["driver_exit_code"] for name in calls}
    assert codes == {"failing": 1, "mistaken": 2, "lost": 2, "left": 2}, said
    assert "filter 'mine' failed: ZeroDivisionError: met a boom" in said["failing"]
    assert len(ledger_of(tmp_path)) == 2
    assert "did you mean 'max_count'?" in said["mistaken"]
    assert "error: output.path: 'runs' is relative, and a submitted job runs in a copy of the folder" in said["lost"]
    assert "error: input.path: 'data/demo/web' is relative, and not among the files that were uploaded" in said["left"]
    assert not any("Traceback" in text for text in said.values())
    (upload,) = uploads(head).keys() - before.keys()
    folder = uploads(head)[upload]
    assert not [name for name in (".venv", ".venv-gpu", "data", "runs", ".git") if (folder / name).exists()]
    assert megabytes(folder) < 5


@pytest.mark.slow
def test_a_stopped_job_goes_on_and_ends_in_the_same_bytes(head: Head, tmp_path: Path, checkout: Path) -> None:
    settings = {"filters": {**CHEAP, "mine": {"filter": "own_filters:Slow"}}}
    for name in ("stopped", "whole"):
        for number in range(8):
            bad = pair("x", "no", image())
            write_tar(tmp_path / name / f"in/{number}.tar", flat(good_pairs(3, number * 5)) + bad)
    config = write_config(tmp_path / "stopped", **settings)
    first = head.submit(checkout, "run", "--config", config, job="first", wait=False)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    units = tmp_path / "stopped/runs/test/units"
    deadline = time.monotonic() + 120
    while not list(units.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    done = subprocess.run(
        [*ray("job", "stop", "--address", head.url), "first"],
        env=head.environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert head.about("first")["status"] == "STOPPED"
    assert 0 < len(list(units.glob("*.json"))) < 8
    again = head.submit(checkout, "run", "--config", config, job="again")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    sys.path.insert(0, str(checkout))
    try:
        run_plainly(profile(tmp_path / "whole", **settings))
    finally:
        sys.path.remove(str(checkout))
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert len(ledger_of(tmp_path / "stopped")) == 8 * 4


@pytest.mark.parametrize("below", ["", "deeper"])
def test_paths_in_the_copy_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    (copy / "deeper/lists").mkdir(parents=True)
    monkeypatch.chdir(copy / below)
    assert submitted.working_copy() == copy
    assert "--set output.path=" in (submitted.lost_output("output.path", "runs") or "")
    assert submitted.lost_output("output.path", str(copy / "runs"))
    for kept in ("s3://bucket/runs", str(tmp_path / "runs"), "/data/runs"):
        assert submitted.lost_output("output.path", kept) is None
    assert submitted.lost_input("input.path", "data/web")
    assert submitted.lost_input("input.path", "data/{00..12}.tar")
    assert submitted.lost_input("input.path", "s3://bucket/{00..12}.tar") is None
    monkeypatch.chdir(copy / "deeper")
    assert submitted.lost_input("input.path", "lists") is None
    assert submitted.lost_input("input.path", "lists/*.parquet") is None


def test_elsewhere_relative_paths_are_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert submitted.working_copy() is None
    assert submitted.lost_output("output.path", "runs") is None
    assert submitted.lost_input("input.path", "data/none") is None
