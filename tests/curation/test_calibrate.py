"""Calibration on a real local Ray: what it promises of a sample, a full run keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.__main__ import main
from curation.calibrate import Calibration, Unreachable, calibrate, filter_of, target_of
from curation.cluster import JobError
from curation.config import load
from curation.plan import RunError, make_plan
from curation.run import run
from curation.sampling import Sample, drawn
from curation.yaml_edit import must_be_editable
from shards.storage import Storage
from tests.curation.pairs import CHEAP, flat, good_pairs, image, profile, write_config, write_parquet, write_tar
from tests.curation.runs import run_whole
from tests.curation.test_run import clip_settings

pytestmark = pytest.mark.usefixtures("ray_local")
COLUMN = {**CHEAP, "clip_score": {"column": "similarity", "min": 0.3}}
SHIPPED: dict[str, Any] = {"columns": {"key": "uid"}, "filters": COLUMN, "target_retention": 0.3}


@pytest.fixture(scope="module", autouse=True)
def _clip_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PYTEST_TINY_CLIP"] = str(tmp_path_factory.mktemp("clip"))


def some_scores(folder: Path, files: int, rows: int, seed: int = 0) -> None:
    """Files that differ: a score and a good caption for most rows, no score for some, a bad caption for others."""
    rng, picture = np.random.default_rng(seed), image()
    for number in range(files):
        level = rng.normal(0.28, 0.01)
        write_parquet(
            folder / f"in/{number:05d}.parquet",
            [
                {
                    "uid": f"{number:05d}{row:05d}",
                    "image": picture,
                    "caption": "no" if row % 5 == 0 else "一只猫坐在沙发上" if row % 5 == 1 else "A cat sits on a sofa",
                    "similarity": None if row % 11 == 0 else float(np.float32(rng.normal(level, 0.05))),
                }
                for row in range(rows)
            ],
        )


def found(checked: Any, target: float, **sample: Any) -> Calibration:
    return calibrate(checked, filter_of(checked, None), target, Sample(**sample))


def test_a_full_run_keeps_what_the_calibration_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 8, 200)
    config = write_config(tmp_path, "parquet", **SHIPPED)
    assert main(["calibrate", "--config", str(config), "--sample", "0.1", "--write"]) == 0
    said = capsys.readouterr()
    assert "test: after 5 of 8 units the interval is +-" in said.err
    assert "takes 3 more" in said.err
    assert "(every unit is in the sample)" in said.out
    assert f"written: {config}" in said.out
    promised = json.loads(next((tmp_path / "runs/test/calibration").glob("*/calibration.json")).read_text())
    assert promised["before"] == 0.3
    checked = load(config).profile("test")
    assert checked.filters["clip_score"].model_dump()["min"] == promised["after"]
    result = run(checked)
    assert result.totals.kept == promised["funnel"]["kept"]
    assert result.totals.retention == promised["retention"] == pytest.approx(0.3, abs=0.001)
    assert result.drift is None
    # What the run has scored is not scored again, whatever the target; nothing is written into the configuration.
    again = found(checked, 0.2, share=1.0)
    assert again.reused == again.of == 8
    assert not list((tmp_path / f"runs/test/calibration/{Path(again.folder).name}/ledger").glob("*"))[8:]
    assert again.totals.kept == again.solution.kept
    # The run's threshold is no part of the name of the calibration's folder.
    assert again.folder == promised["folder"]


def test_a_run_with_another_threshold_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 3, 60)
    config = write_config(tmp_path, "parquet", **{**SHIPPED, "target_retention": 0.05})
    assert main(["run", "--config", str(config)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
    assert "points above the target of 5.0%" in line
    assert "python -m curation calibrate test" in line


def test_the_sample_depends_on_the_seed_and_only_it_is_scored(tmp_path: Path) -> None:
    some_scores(tmp_path, 12, 40)
    checked = profile(tmp_path, "parquet", **SHIPPED)
    units = make_plan(checked).units
    assert drawn(units, 0) == drawn(units[::-1], 0) != drawn(units, 1)
    first = found(checked, 0.3, within=100)
    assert (first.units, first.of, first.reused) == (5, 12, 0)
    scored = {path.stem for path in Path(first.folder.removeprefix("file://")).glob("ledger/*.parquet")}
    assert scored == {unit.short for unit in drawn(units, 0)[:5]}
    assert not (tmp_path / "runs/test/run.json").exists()
    folder = Storage.open(first.folder)
    assert not folder.list("shards")
    assert not folder.exists("lease.json")
    assert first.interval.low < first.interval.estimate < first.interval.high
    # Again: nothing is scored anew. A unit lost: it alone is.
    times = {path: path.stat().st_mtime_ns for path in Path(first.folder).glob("ledger/*.parquet")}
    assert found(checked, 0.3, within=100).to_json() == first.to_json()
    lost = sorted(times)[0]
    (lost.parents[1] / f"units/{lost.stem}.json").unlink()
    assert found(checked, 0.3, within=100).to_json() == first.to_json()
    assert {path for path in times if path.stat().st_mtime_ns != times[path]} == {lost}
    other = found(checked, 0.3, within=100, seed=1)
    assert other.folder == first.folder
    assert {path.stem for path in Path(first.folder).glob("ledger/*.parquet")} > scored


def test_each_language_is_cut_at_the_same_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 5, 100)
    filters = {**CHEAP, "clip_score": {"column": "similarity", "min": {"en": 0.3, "zh": 0.26}}}
    config = write_config(tmp_path, "parquet", **{**SHIPPED, "filters": filters})
    assert main(["calibrate", "--config", str(config), "--target", "0.25", "--write", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["after"].keys() == told["before"].keys() == {"en", "zh"}
    assert told["written"] is True
    assert load(config).profile("test").filters["clip_score"].model_dump()["min"] == told["after"]
    assert told["retention"] == pytest.approx(0.25, abs=0.003)
    assert main(["calibrate", "--config", str(config), "--target", "0.25"]) == 0
    setting = capsys.readouterr().out.rpartition("with --set ")[2]
    assert setting == f"'clip_score.min={{en: {told['after']['en']}, zh: {told['after']['zh']}}}'\n"
    assert run(load(config).profile("test")).totals.retention == told["retention"]


@pytest.mark.slow
def test_rows_that_the_run_never_scored_are_scored_here(tmp_path: Path) -> None:
    for number in range(3):
        short = [member for sample in good_pairs(3, number * 10) for member in sample]
        write_tar(tmp_path / f"in/{number}.tar", [*short, *flat(good_pairs(2, 100 + number * 10))])
    settings = clip_settings()
    strict = {"text_length": {"min_chars": 45}, "clip_score": {**settings, "min": 0.0}}
    loose = {"text_length": {}, "clip_score": {**settings, "min": 0.0}}
    first = profile(tmp_path, filters=strict)
    assert run_whole(first).totals().reasons["text_length"] == 9
    tight = found(first, 0.1, share=1.0)
    assert (tight.reused, tight.of) == (3, 3)
    assert not Storage.open(tight.folder).list("ledger")
    # A looser text_length lets samples through that CLIP has not seen: their units are scored in the folder.
    wider = found(profile(tmp_path, filters=loose), 0.5, share=1.0)
    assert wider.reused == 0
    assert len(Storage.open(wider.folder).list("ledger")) == 3
    assert wider.folder != tight.folder
    assert wider.totals.kept == wider.solution.kept == pytest.approx(0.5 * 15, abs=1)


@pytest.mark.slow
def test_a_later_pixel_filter_judges_what_clip_would_have_dropped(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/a.tar", flat(good_pairs(12)))
    settings = clip_settings()
    cosines = found(profile(tmp_path, filters={**CHEAP, "one": {"filter": "clip_score", **settings}}), 0.5, share=1.0)
    middle = cosines.solution.minimums[""]
    filters = {
        **CHEAP,
        "one": {"filter": "clip_score", **settings, "min": 0.99},
        "two": {"filter": "clip_score", **settings, "min": middle},
    }
    checked = profile(tmp_path, name="both", filters=filters)
    with pytest.raises(RunError, match="has 2 clip_score filters: --filter one or --filter two"):
        filter_of(checked, None)
    result = calibrate(checked, "one", 0.25, Sample(share=1.0))
    assert (result.solution.kept, result.totals.kept) == (3, 3)
    assert result.totals.failed["two"] == 6
    with pytest.raises(
        Unreachable, match=r"without one the filters keep 50.0 % of the 12 pairs.*two drops 50.0 % first"
    ):
        calibrate(checked, "one", 0.75, Sample(share=1.0))


def test_out_of_reach_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 5, 55)
    config = str(write_config(tmp_path, "parquet", **SHIPPED))

    def refused(*arguments: str) -> str:
        assert main(["calibrate", "--config", config, *arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    line = refused("--target", "0.9")
    assert "a retention of 90.0 % is out of reach: without clip_score the filters keep 80.0 %" in line
    assert "text_length drops 20.0 % first, 18.2 % alone: loosen what costs too much, or set a lower --target" in line
    line = refused("--target", "0.79")
    assert "but even with clip_score.min at -1 only" in line
    assert "have no score (column 'similarity' is empty there, and `missing: drop`)" in line
    line = refused("--target", "0.01", "--set", "clip_score.missing=keep")
    assert "kept whatever clip_score.min is" in line
    assert "set clip_score.missing to drop" in line
    assert "'clap' is no clip_score filter" in refused("--filter", "clap")
    bare = str(write_config(tmp_path, "parquet", filters=COLUMN))
    assert main(["calibrate", "--config", bare]) == 2
    assert "give --target 0.14, or set target_retention" in capsys.readouterr().err
    with pytest.raises(RunError, match="has no clip_score filter"):
        filter_of(profile(tmp_path, "parquet"), None)
    assert target_of(profile(tmp_path, "parquet", target_retention=0.2), None) == 0.2


def test_a_tie_far_from_the_target_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"uid": str(row), "image": image(), "caption": "A cat sits on a sofa"} for row in range(20)]
    write_parquet(tmp_path / "in/0.parquet", [{**row, "similarity": 0.31} for row in pairs])
    config = str(write_config(tmp_path, "parquet", **SHIPPED))
    assert main(["calibrate", "--config", config]) == 0
    said = capsys.readouterr()
    assert "warning: test: no threshold comes nearer to 30.00% than 70.0 points: many scores are the same" in said.err
    assert "tie: 20 samples lie exactly on 0.31: one step up keeps 0.00%" in said.out
    assert main(["calibrate", "--config", config, "--target", "0.997"]) == 0
    assert "warning:" not in capsys.readouterr().err


def test_nothing_to_see(tmp_path: Path) -> None:
    some_scores(tmp_path, 2, 1)
    for path in (tmp_path / "in").glob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(Unreachable, match="the 2 units of the sample hold no pair"):
        found(profile(tmp_path, "parquet", **SHIPPED), 0.3)


@pytest.mark.parametrize(
    "option", [("--target", "14"), ("--target", "0"), ("--sample", "nan"), ("--within", "0"), ("--within", "x")]
)
def test_options_that_make_no_sense(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["calibrate", *option])
    assert left.value.code == 2
    assert f"'{option[1]}' is no" in capsys.readouterr().err


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 1, 10)
    config = write_config(tmp_path, "parquet", **SHIPPED)
    text = config.read_text()
    config.write_text(text.replace("min: 0.3", "min: *m").replace("profiles:", "x-min: &m 0.3\nprofiles:"))
    assert main(["calibrate", "--config", str(config), "--write"]) == 2
    said = capsys.readouterr().err
    assert "is an alias of something written elsewhere" in said
    assert "pipelines.yaml: profiles.test.filters.clip_score.min" in said
    assert not (tmp_path / "runs").exists()
    # A threshold that the call overrides is still the file's own number.
    config.write_text(text)
    call = [
        "calibrate",
        "--config",
        str(config),
        "--write",
        "--set",
        "clip_score.min=0.1",
        "--set",
        "min_size.short_side=100",
    ]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "threshold: clip_score.min 0.1 -> " in said
    assert "it holds with --set min_size.short_side=100" in said
    assert "min: 0.3\n" not in config.read_text()


def test_what_was_found_is_shown_where_the_file_changes_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some_scores(tmp_path, 1, 10)
    config = write_config(tmp_path, "parquet", **SHIPPED)

    def changed_after(*arguments: Any) -> None:
        must_be_editable(*arguments)
        config.write_text(config.read_text().replace("target_retention: 0.3", "target_retention: 0.4"))

    monkeypatch.setattr("curation.yaml_edit.must_be_editable", changed_after)
    assert main(["calibrate", "--config", str(config), "--write", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["written"] is False
    assert f"error: {config}: has changed since it was read: nothing was written" in said.err


def test_a_unit_that_fails(tmp_path: Path) -> None:
    some_scores(tmp_path, 1, 20)
    (tmp_path / "in/bad.parquet").write_bytes(b"no parquet at all")
    checked = profile(tmp_path, "parquet", **SHIPPED)
    with pytest.raises(JobError, match="1 of the sample's units failed.*the first: unit .*bad.parquet"):
        found(checked, 0.3)
    (tmp_path / "in/bad.parquet").unlink()
    assert found(checked, 0.3).units == 1


def test_other_scores_and_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_scores(tmp_path, 2, 40)
    checked = profile(tmp_path, "parquet", **SHIPPED)
    run(checked)
    other = profile(tmp_path, "parquet", **{**SHIPPED, "mappers": []})
    result = found(other, 0.3)
    assert "holds other scores than this profile gives" in capsys.readouterr().err
    assert (result.reused, result.of) == (0, 2)
    for part in (tmp_path / "runs/test/ledger").glob("*.parquet"):
        part.write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"ledger/.*damaged.*run test --redo"):
        found(checked, 0.3)
    for part in Path(result.folder).glob("ledger/*.parquet"):
        part.unlink()
    with pytest.raises(RunError, match="a ledger part is missing or damaged: delete this folder"):
        found(other, 0.3)
