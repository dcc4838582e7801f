"""The command: which run is meant, where the page goes, and one line for every mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from curation.__main__ import main
from curation.opened import Opened, open_run
from tests.curation.report.runs import decided, small_run
from tests.s3 import serving_here

Call = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Opened:
    return small_run(tmp_path)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """`report` in this process: what it said, where it went well, or its one line of error."""

    def report(*arguments: str | Path) -> str:
        status = main(["report", *map(str, arguments)])
        said = capsys.readouterr()
        lines = said.out.splitlines() if status == 0 else said.err.splitlines()
        assert len(lines) == 1, said
        assert (status == 0) == lines[0].startswith("report: ")
        return lines[0]

    return report


def test_a_folder_a_decision_and_a_profile(
    run: Opened, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/test"
    assert str(folder / "report.html") in call(folder)
    first = (folder / "report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").mkdir()  # a folder of the profile's name, but no run
    assert str(folder / "report.html") in call("test")
    assert (folder / "report.html").read_bytes() == first
    assert "profile" not in call("runs/test", "--out", "mine.html")
    assert (tmp_path / "mine.html").read_bytes() == first
    decision = decided(tmp_path, {"text_length": {"min_words": 6}})
    call(decision.output.uri, "--compare", "test")
    html = (Path(decision.output.uri) / "report.html").read_text()
    assert '<h2 id="comparison-heading">' in html
    assert "kept → text_length" in html
    call(f"file://{folder}", "--out", f"file://{tmp_path}/uri.html")
    assert (tmp_path / "uri.html").read_bytes() == first


def test_mistakes_have_one_line_each(run: Opened, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'test'" in call("tset")
    assert "no run here" in call("in")
    assert "no run here" in call("./nothing")
    assert "without no.yaml" in call("test", "--config", "no.yaml")
    assert "names no file" in call("test", "--out", f"{tmp_path}/")
    assert "names no file" in call("test", "--out", "")
    assert "cannot write" in call("test", "--out", tmp_path)
    assert "cannot be compared with itself" in call("test", "--compare", "runs/test")
    assert not (tmp_path / "runs/test/report.html").exists()


def test_a_run_that_is_half_written_is_refused_or_said_to_be(run: Opened, call: Call, tmp_path: Path) -> None:
    next(Path(run.output.uri).glob("units/*.json")).unlink()
    manifest = Path(run.output.uri) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    folder = tmp_path / "runs/test"
    assert "not complete" in call(folder)
    call(folder, "--partial")
    html = (folder / "report.html").read_text()
    assert "Not complete. " in html
    assert "the 2 of 3 units that are committed so far" in html
    for path in Path(run.output.uri).glob("units/*.json"):
        path.unlink()
    call(folder, "--partial")
    assert "there is no funnel yet" in (folder / "report.html").read_text()


def test_a_unit_that_went_after_the_end_is_missed(run: Opened, call: Call, tmp_path: Path) -> None:
    next(Path(run.output.uri).glob("units/*.json")).unlink()
    folder = tmp_path / "runs/test"
    assert "not complete" in call(folder)
    call(folder, "--partial")
    assert "the 2 of 3 units that are committed so far" in (folder / "report.html").read_text()


def test_the_sample_of_a_calibration_is_no_run(run: Opened, call: Call, tmp_path: Path) -> None:
    sample = tmp_path / "runs/test/calibration" / run.decision[:16]
    shutil.copytree(run.output.uri, sample)
    assert "the sample of a calibration" in call(sample)
    assert "the sample of a calibration" in call(run.output.uri, "--compare", sample)
    # A run that is kept in a folder of that name is one all the same.
    shutil.copytree(run.output.uri, tmp_path / "calibration/test")
    call(tmp_path / "calibration/test")


def test_a_failed_unit_is_shown(run: Opened, call: Call, tmp_path: Path) -> None:
    output = open_run(str(tmp_path / "runs/test")).output
    failed = {"unit_id": "0" * 64, "input": "<b>9.tar", "error": "filter 'x' failed: \u202eodd"}
    output.write("failed/000000000000.json", json.dumps(failed).encode())
    call(tmp_path / "runs/test")
    html = (tmp_path / "runs/test/report.html").read_text()
    assert "&lt;b&gt;9.tar" in html
    assert "⟨U+202E⟩odd" in html


def test_other_releases_and_damage_are_one_line(run: Opened, call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    path = folder / "run.json"
    before = path.read_text()
    path.write_text(before.replace('"run_version": 2', '"run_version": 1'))
    assert "written by another release" in call(folder)
    path.write_text(before[:-40])
    assert "damaged" in call(folder)
    path.write_text(before)
    unit = next(folder.glob("units/*.json"))
    unit.write_text(unit.read_text()[:-100])
    assert "damaged" in call(folder)


def test_a_run_on_an_object_store(run: Opened, call: Call, tmp_path: Path) -> None:
    with serving_here() as store:
        bucket = store.bucket()
        store.put(
            bucket,
            {f"runs/test/{entry.path}": run.output.read(entry.path) for entry in run.output.list(recursive=True)},
        )
        where = f"s3://{bucket}/runs/test"
        assert f"report: {where}/report.html" in call(where)
        call(tmp_path / "runs/test")
        local = (tmp_path / "runs/test/report.html").read_text()
        there = store.objects(bucket)["runs/test/report.html"].decode()
        assert there.replace(where, str(tmp_path / "runs/test")) == local
        assert f"report: {where}/other.html" in call(where, "--out", f"{where}/other.html")
        assert "runs/test/other.html" in store.objects(bucket)
