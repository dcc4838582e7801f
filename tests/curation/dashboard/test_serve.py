"""The command as a user calls it: where the page is, who may open it, and one line for every mistake."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.curation.report.runs import small_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    small_run(folder)
    return folder / "runs"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "curation", "dashboard", *arguments]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "WINNOW_DASHBOARD_TOKEN"} | more


def refused(*arguments: str, **more: str) -> str:
    """What is said of a call that cannot be done: one line, exit status 2."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, env=environment(**more))
    assert done.returncode == 2, done
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("note:")]
    assert line.startswith("error: ")
    return line


@contextmanager
def started(*arguments: str, **more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running dashboard: the address that it printed."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("dashboard: http://"), (line, process.stderr and process.stderr.read())
        yield line.removeprefix("dashboard: ").strip(), process
    finally:
        process.kill()
        process.wait()


def test_it_says_where_it_is_and_ends_on_interrupt(runs: Path) -> None:
    with started(str(runs), "--port", "0") as (address, process):
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"test" in answer.read()
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 130)
        assert time.monotonic() - began < 5
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_beyond_loopback_a_token_is_made_and_asked_for(runs: Path) -> None:
    with started(str(runs), "--host", "0.0.0.0", "--port", "0") as (address, _):
        where, _, token = address.partition("?token=")
        assert len(token) >= 32
        port = where.rstrip("/").rpartition(":")[2]
        for wrong in ("", "?token=wrong"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{wrong}", timeout=20)
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert answer.status == 200


def test_a_given_token_counts_on_loopback_too(runs: Path) -> None:
    with started(str(runs), "--port", "0", WINNOW_DASHBOARD_TOKEN="given-by-the-team") as (address, _):
        assert address.endswith("/?token=given-by-the-team")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address.partition("?")[0], timeout=20)


def test_the_printed_address_opens_the_page_whatever_the_token_is_made_of(runs: Path) -> None:
    with started(str(runs), "--port", "0", "--token", "ab+/=&c%20#d?e") as (address, _):
        jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with jar.open(address, timeout=20) as answer:
            assert answer.status == 200
            assert "token" not in answer.url
    assert "ASCII" in refused(str(runs), "--port", "0", "--token", "密码密码密码密码")


def test_mistakes_are_told_in_one_line(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no runs here" in refused(str(tmp_path / "empty"))
    assert "nothing" in refused(str(tmp_path / "nothing"))
    assert "--token: needs 8 ASCII" in refused(str(runs), "--token", "abc", "--port", "0")
    assert "no such address" in refused(str(runs), "--host", "no.such.host.invalid", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(str(runs), "--port", str(port))
        assert f"127.0.0.1:{port} cannot be listened on (in use)" in line
    done = subprocess.run(command(str(runs), "--port", "70000"), capture_output=True, text=True, timeout=60)
    assert (done.returncode, "not a port" in done.stderr) == (2, True)


def test_a_run_of_another_release_or_a_damaged_one_is_told(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "test", tmp_path / "runs/older")
    about = tmp_path / "runs/older/run.json"
    record = json.loads(about.read_text())
    about.write_text(json.dumps({**record, "run_version": 1}))
    assert "written by another release (run_version 1" in refused(str(tmp_path / "runs"))
    about.write_text("{")
    assert "run.json: damaged" in refused(str(tmp_path / "runs/older"))
    about.write_text(json.dumps(record))
    unit = next((tmp_path / "runs/older/units").glob("*.json"))
    unit.write_text(unit.read_text()[:100])
    assert f"units/{unit.name}: damaged" in refused(str(tmp_path / "runs"))


def test_help_has_an_example() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=60)
    assert "example: python -m curation dashboard runs" in done.stdout


def test_libraries_of_the_page_are_those_that_are_named() -> None:
    folder = ROOT / "curation/dashboard/static/vendor"
    named = dict(
        re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    )
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    for name in named:
        assert (folder / name.replace(".min.js", ".LICENSE")).is_file()
