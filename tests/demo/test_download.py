"""How the demo's pairs come about, with a few fetches in the place of the download command: that one's own tests, and
tests/test_demo_truth.py, run the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from demo.download import ensure_pairs
from demo.server import HOST, listen
from demo.web import WebError, build_web, read_recipe

SAMPLES = 4  # too few for faults


class Download:
    """Asks for every address of the list, and leaves a tar that says how many images came: `loses` fewer a call."""

    def __init__(self, out: Path, status: int = 0, loses: tuple[int, ...] = ()) -> None:
        self.out, self.status, self.loses = out, status, loses
        self.calls: list[bool] = []

    def __call__(self, again: bool) -> int:
        lost = self.loses[len(self.calls)] if self.loses else 0
        self.calls.append(again)
        urls = pq.read_table(self.out / "urls")["URL"].to_pylist()
        for url in urls:
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.status == 200
        web = self.out / "web"
        web.mkdir(exist_ok=True)
        (web / "00000.tar").write_bytes(b"tar")
        (web / "00000.parquet").write_bytes(b"parquet")
        stats = {"successes": len(urls) - lost, "tar": {"bytes": 3}, "parquet": {"bytes": 7}}
        if not self.status:
            (web / "00000_stats.json").write_text(json.dumps(stats))
        return self.status


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port in the place of the usual one."""
    with listen(0) as free:
        number: int = free.getsockname()[1]
    monkeypatch.setattr("demo.download.PORT", number)
    return number


def test_a_web_is_built_served_and_fetched_once(tmp_path: Path, port: int) -> None:
    download, said = Download(tmp_path), list[str]()
    assert ensure_pairs(tmp_path, SAMPLES, 0, download, said.append) == 0
    assert said == [
        f"demo web: 4 samples in {tmp_path / 'site'}",
        f"demo web: served at http://{HOST}:{port}/ while it is fetched",
    ]
    said.clear()
    assert ensure_pairs(tmp_path, SAMPLES, 0, download, said.append) == 0
    assert download.calls == [False]
    assert said == [
        f"demo web: 4 samples in {tmp_path / 'site'} (already there)",
        f"demo pairs: {tmp_path / 'web'} (already fetched)",
    ]


def test_a_failed_download_is_told_and_goes_on_next_time(tmp_path: Path, port: int) -> None:
    assert ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path, status=1), lambda line: None) == 1
    said: list[str] = []
    assert ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), said.append) == 0
    assert said[0].endswith("(already there)")
    assert said[-1].endswith("while it is fetched")


def test_images_that_must_arrive_are_asked_for_twice(tmp_path: Path, port: int) -> None:
    download, said = Download(tmp_path, loses=(3, 0)), list[str]()
    assert ensure_pairs(tmp_path, SAMPLES, 0, download, said.append) == 0
    assert download.calls == [False, True]
    assert said[-1] == "demo pairs: 3 of 4 images that are there did not arrive: once more ..."


def test_a_web_that_does_not_arrive_whole_is_no_demo(tmp_path: Path, port: int) -> None:
    with pytest.raises(WebError, match="1 of 4 images did not arrive: is the machine too busy"):
        ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path, loses=(2, 1)), lambda line: None)
    later = Download(tmp_path, loses=(1, 0))
    assert ensure_pairs(tmp_path, SAMPLES, 0, later, lambda line: None) == 0
    assert later.calls == [False, True]


@pytest.mark.parametrize("gone", ["00000.tar", "00000.parquet", "00000_stats.json"])
def test_pairs_that_lack_a_file_are_fetched_again(tmp_path: Path, port: int, gone: str) -> None:
    ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), lambda line: None)
    for rest in (None, b"{}"):
        (tmp_path / "web" / gone).unlink()
        if rest is not None:
            (tmp_path / "web" / gone).write_bytes(rest)
        again = Download(tmp_path)
        ensure_pairs(tmp_path, SAMPLES, 0, again, lambda line: None)
        assert again.calls == [False]


def test_another_web_takes_everything_of_the_old_one_away(tmp_path: Path, port: int) -> None:
    run = tmp_path / "run"
    ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), lambda line: None)
    run.mkdir()
    (tmp_path / "web" / "old.txt").write_text("")
    said: list[str] = []
    download = Download(tmp_path)
    assert ensure_pairs(tmp_path, SAMPLES, 1, download, said.append, stale=(run,)) == 0
    assert said[:2] == [f"removed {folder}, which an earlier demo web had made" for folder in (tmp_path / "web", run)]
    assert download.calls == [False]
    assert not run.exists()
    assert not (tmp_path / "web" / "old.txt").exists()


def test_a_taken_port_means_another_web_and_never_another_s_server(tmp_path: Path, port: int) -> None:
    said: list[str] = []
    with listen(port):
        assert ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), said.append) == 0
        other = read_recipe(tmp_path)["port"]
        assert other != port
        assert said[0] == f"port {port} of {HOST} is taken, so the demo web is built for port {other}"
        assert f":{other}/" in pq.read_table(tmp_path / "urls")["URL"][0].as_py()
    # What is whole stays as it is, now that the usual port is free again.
    again = Download(tmp_path)
    assert ensure_pairs(tmp_path, SAMPLES, 0, again, lambda line: None) == 0
    assert again.calls == []
    with listen(other):
        assert ensure_pairs(tmp_path, SAMPLES, 0, again, lambda line: None) == 0
    assert again.calls == []
    # Another web goes back to it, so that two checkouts agree again.
    ensure_pairs(tmp_path, SAMPLES, 1, again, lambda line: None)
    assert read_recipe(tmp_path)["port"] == port


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, port: int) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "mine.txt").write_text("mine")
    with pytest.raises(WebError, match="web was not made by this command"):
        ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), lambda line: None)
    assert (tmp_path / "web" / "mine.txt").read_text() == "mine"


def test_a_web_that_was_built_alone_is_used(tmp_path: Path, port: int) -> None:
    build_web(tmp_path, SAMPLES, 0, 1, port=port)
    said: list[str] = []
    assert ensure_pairs(tmp_path, SAMPLES, 0, Download(tmp_path), said.append) == 0
    assert said[0].endswith("(already there)")


def test_a_command_that_is_interrupted_ends_before_its_caller(tmp_path: Path) -> None:
    """Ctrl-C goes to both; the command is given the time to leave whole files."""
    child = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(0.5); open('ended', 'w'); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end); print('up', flush=True); time.sleep(60)\n"
    )
    (tmp_path / "childish.py").write_text(child)
    caller = subprocess.Popen(
        [sys.executable, "-c", "from demo.download import run_command; run_command('childish')"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    os.killpg(caller.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in caller.communicate(timeout=20)[1]
    assert (tmp_path / "ended").exists()
