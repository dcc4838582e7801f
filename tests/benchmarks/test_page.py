"""docs/benchmarks.md is what the figures and the words make, to the letter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.measure import BenchmarkError, Cost, Ratio, _Group, counted_by, measure
from benchmarks.page import RESULTS, ROOT, WORDS, PageError, main, render
from benchmarks.shown import bars, number_in_words, table
from benchmarks.sides import Measured, Side, add_options, by_turns, in_turn, ratio, run_command

MACHINE = {
    "cpu": "a CPU",
    "cores": 2,
    "memory_gib": 8,
    "python": "3.11.1",
    "system": "Linux 6",
    "counted_by": "a control group",
}
CORPUS = {"samples": 9_000, "images": 70, "median_bytes": 3e4, "mean_bytes": 4e4, "captions": 12, "source": "demo"}


def some(**figures: Any) -> dict[str, Any]:
    return {"command": "python -m benchmarks.some", "machine": MACHINE, "versions": {"ray": "2.60"}, **figures}


def test_the_page_is_made_of_the_figures() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    page, pictures = render(WORDS.read_text(), results)
    assert (ROOT / "docs/benchmarks.md").read_text() == page, "run python -m benchmarks.page"
    drawn = {path.name: path.read_text() for path in (ROOT / "docs/benchmarks").glob("*.svg")}
    assert drawn == pictures
    assert all(f"benchmarks/{file})" in page for file in pictures)


def test_figures_go_where_the_words_say(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("Two | sides", ["side", "a second"], [["ours", 12], ["theirs|", 3.5]])
    assert "theirs|  3.5" in capsys.readouterr().out
    plot = bars("Reading <tars>", "samples a second", {"ours": [10.0, 12.0, 11.0], "theirs": [1.0]}, ["ours"])
    page, pictures = render(
        "{{machine}} {{command some}} {{versions some}} {{corpus some}}\n{{tables some}}\n{{bars some}}",
        {"some": some(tables=[shown], bars=[plot], corpus=CORPUS)},
    )
    assert page.startswith(
        "2 cores of a CPU, 8 GiB, Linux 6, Python 3.11.1, CPU seconds counted by a control group "
        "`python -m benchmarks.some` ray 2.60 9,000 samples of 70 distinct images, 30 KB in the middle and 40 KB on "
        "average, with 12 captions of the demo\n"
    )
    assert "**Two | sides**\n\n| side | a second |\n| --- | --- |\n| ours | 12 |\n| theirs\\| | 3.5 |" in page
    assert "](benchmarks/some-0.svg)" in page
    root = ElementTree.fromstring(pictures["some-0.svg"])
    widths = [float(rect.attrib["width"]) for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[0] / widths[1] == pytest.approx(11, rel=0.01)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}line"))) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [("{{tables none}}", "python -m benchmarks.none --json"), ("{{pies some}}", "say tables, bars, command")],
)
def test_words_that_no_figures_fit(words: str, said: str) -> None:
    with pytest.raises(PageError, match=said):
        render(words, {"some": some(tables=[], bars=[])})


def test_machines_are_told_apart() -> None:
    other = some(tables=[]) | {"machine": {**MACHINE, "cores": 64}}
    page, _ = render("{{machine}}", {"some": some(), "more": other})
    assert page.startswith("2 cores of a CPU")
    assert "64 cores of a CPU, 8 GiB, Linux 6, Python 3.11.1, CPU seconds counted by a control group (more)" in page


def test_the_command_has_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["page", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "example: python -m benchmarks.page" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "said"), [(8420.4, "8,420"), (37.14, "37.1"), (0.9849, "0.98"), (-250.0, "-250")])
def test_numbers_with_three_digits(value: float, said: str) -> None:
    assert number_in_words(value) == said


def python(code: str) -> list[str]:
    import sys

    return [sys.executable, "-c", code]


BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


def test_a_command_is_charged_for_what_outlives_it() -> None:
    """A grandchild that nobody waits for burns as long as the command itself."""
    child = BURN.format(0.5)
    cost = measure(python(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n{child}"))
    assert 0.9 < cost.cpu < 3.0


def test_a_command_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"exit status 1: ZeroDivisionError: division by zero"):
        measure(python("1 / 0"))


def test_sides_take_turns_and_lose_their_start_up(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def side(name: str, seconds: float) -> Side:
        told = f"open({str(log)!r}, 'a').write('{name}')\n" + BURN
        say = "print('so'); print('{\"kept\": 3}')"
        return Side(name, python(told.format(0.4 + seconds) + say), python(told.format(0.4)))

    found = in_turn([side("a", 0.8), side("b", 2.4)], samples={"a": 240, "b": 240}, pairs=2)
    assert log.read_text() == "ab" + "aabb" + "bbaa"  # once each, then start-up and work, turn by turn
    assert found["a"].told() == {"kept": 3}
    assert len(found["a"].as_json()["start_cpu_seconds_runs"]) == 2
    assert found["a"].over(found["b"]).middle == pytest.approx(3, rel=0.35)
    assert found["a"].rate == pytest.approx(300, rel=0.35)


def test_no_work_beside_the_start_up_is_said() -> None:
    cost = Cost(1.0, 2.0, 0, "")
    with pytest.raises(BenchmarkError, match="ours: no more CPU than its start-up: 3 samples are too few"):
        Measured("ours", 3, (cost,), (cost,))


def test_figures_that_cannot_be_written_are_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(options: argparse.Namespace) -> dict[str, Any]:
        raise AssertionError("it ran")

    for given in (tmp_path, Path("/dev/null/a.json")):
        parser = argparse.ArgumentParser()
        add_options(parser)
        monkeypatch.setattr("sys.argv", ["some", "--json", str(given)])
        assert run_command(parser, compare, ()) == 1
        assert "--json: " in capsys.readouterr().err


def test_processes_are_counted_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Group, "make", classmethod(lambda cls: None))
    assert counted_by() == "asking all processes ten times a second"
    assert 0.9 < measure(python(BURN.format(1.2))).cpu < 3.0


def test_functions_take_turns() -> None:
    calls: list[str] = []
    found = by_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, pairs=2)
    assert "".join(calls) == "ab" + "abba"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}
    assert ratio([1.0, 2.0], [3.0, 8.0]) == Ratio((3.0, 4.0))
