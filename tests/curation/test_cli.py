"""The command line as a user meets it: one clear line for every mistake, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.curation.pairs import CHEAP, flat, good_pairs, image, pair, write_config, write_tar


def call(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curation", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.mark.parametrize("command", [(), ("validate",), ("plan",), ("run",), ("stats",), ("calibrate",)])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    done = call(*command, "--help")
    assert done.returncode == 0
    assert "example: python -m curation" in done.stdout


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, curation.__main__; print(sorted({m.split('.')[0] for m in sys.modules} & {'ray','torch','pyarrow','pydantic','yaml'}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_run_from_the_shell(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(5)) + pair("x", "no", image()))
    config = write_config(tmp_path, target_retention=0.5)
    planned = call("plan", "--config", config)
    assert "1. text_length (read task): min_chars=6" in planned.stdout
    assert "1, about 6 samples; 1 to do, 0 done" in planned.stdout
    assert not (tmp_path / "runs").exists()
    done = call("run", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "retention: 83.3% of 6 pairs seen (target 50.0%, +33.3 points)" in done.stdout
    assert "test: 1/1 units, 6 samples, kept 83.3%" in done.stderr
    assert "nothing to do" in call("run", "--config", config).stdout
    shown = call("stats", "--config", config)
    assert "retention: 83.3%" in shown.stdout
    assert "samples/s" in shown.stdout
    as_json = json.loads(call("stats", "--config", config, "--json").stdout)
    assert (as_json["seen"], as_json["kept"], as_json["complete"]) == (6, 5, True)
    assert as_json["filters"]["text_length"] == {
        "scored": 6, "dropped_first": 1, "failed": 1, "failed_alone": 1, "errors": 0,
    }  # fmt: skip
    refused = one_line(call("run", "--config", config, "--set", "aspect_ratio.max=2.5"))
    assert "aspect_ratio.max: 3.0 -> 2.5" in refused


@pytest.mark.slow
def test_a_failed_unit_makes_the_exit_status_one(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(2)))
    write_tar(tmp_path / "in/b.tar", pair("x", "a caption that goes boom", image()))
    config = write_config(tmp_path, filters={**CHEAP, "mine": {"filter": "tests.curation.test_unit:Raises"}})
    done = call("run", "--config", config)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "filter 'mine' failed: ZeroDivisionError: the plug-in met a boom" in done.stderr
    assert "1 unit failed, the others are committed" in done.stderr


def test_validate_tells_every_error_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path, filters={**CHEAP, "emojy": {}, "min_size": {"short_side": "big"}})
    done = call("validate", "--config", config)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "did you mean 'emoji'?" in done.stderr


def test_mistakes_have_one_line_each(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "in" in one_line(call("run", "--config", config))
    assert "no run here yet" in one_line(call("stats", "--config", config))
    assert "cannot be read" in one_line(call("run", "--config", tmp_path / "no.yaml"))
    assert "did you mean 'test'" in one_line(call("plan", "tset", "--config", config))
    (tmp_path / "in").mkdir()
    assert "in" in one_line(call("plan", "--config", config))
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(1)))
    assert "--address" in one_line(call("run", "--config", config, "--address", "127.0.0.1:1"))


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(1)))
    config = write_config(tmp_path)
    for command in ("validate", "plan"):
        shell = f"{sys.executable} -m curation {command} --config {config} | true"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert "BrokenPipe" not in done.stderr
