"""A run says when it keeps another share than it was set to, and holds its tongue for chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from curation.drift import LEAST, Drift
from curation.stats import Totals
from shards.storage import Storage
from tests.curation.pairs import CHEAP, profile

FILTERS = {**CHEAP, "clip_score": {"column": "similarity", "min": 0.3}}


def watch(folder: Path, target: float | None = 0.28, units: int = 100, decision: str = "d") -> Drift:
    checked = profile(folder, "parquet", target_retention=target, filters=FILTERS)
    return Drift.of(Storage.open(str(folder)), checked, decision, units)


def calibrated(folder: Path, name: str, decision: str, target: float, low: float, high: float) -> None:
    path = folder / "calibration" / name / "calibration.json"
    path.parent.mkdir(parents=True)
    found = {"decision_fp": decision, "target": target, "interval": {"low": low, "high": high}}
    path.write_text(json.dumps(found))


def whole(kept: int, seen: int, units: int = 100) -> Totals:
    return Totals(units=units, seen=seen, kept=kept)


def test_half_a_point_without_a_calibration(tmp_path: Path) -> None:
    found = watch(tmp_path)
    assert found.verdict(whole(2_849, 10_000)) is None
    assert found.verdict(whole(2_751, 10_000)) is None
    assert found.verdict(whole(2_850, 10_000)) is None
    line = found.verdict(whole(3_120, 10_000))
    assert line == (
        "test: retention is 31.2%, 3.2 points above the target of 28.0% (more than 0.5 points): "
        "python -m curation calibrate test finds the threshold"
    )
    assert "2.8 points below" in (found.verdict(whole(2_520, 10_000)) or "")


def test_the_interval_of_its_own_calibration(tmp_path: Path) -> None:
    calibrated(tmp_path, "a", "other", 0.28, 0.0, 1.0)
    calibrated(tmp_path, "b", "d", 0.28, 0.272, 0.288)
    (tmp_path / "calibration/c").mkdir()
    found = watch(tmp_path)
    assert found.verdict(whole(2_879, 10_000)) is None
    assert "0.9 points above the target of 28.0% (its calibration promised +-0.8): " in (
        found.verdict(whole(2_890, 10_000)) or ""
    )
    # A calibration for another target promised its width, not its place.
    assert "12.0 points below the target of 40.0% (its threshold was calibrated for 28.0%)" in (
        watch(tmp_path, target=0.4).verdict(whole(2_800, 10_000)) or ""
    )
    # All units were in the sample: what is left is rounding.
    calibrated(tmp_path, "d", "exact", 0.28, 0.2801, 0.2801)
    exact = watch(tmp_path, decision="exact")
    assert exact.verdict(whole(2_801, 10_000)) is None
    assert exact.verdict(whole(2_812, 10_000)) is not None


def test_a_damaged_calibration_is_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ('{"decision_fp": "d", "target": 0.2, "interval": 3}', '{"decision_fp": "d", "target": "x", "interval": {}}')
    for number, text in enumerate(("{", "[]", *odd)):
        path = tmp_path / f"calibration/{number}/calibration.json"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    found = watch(tmp_path)
    assert capsys.readouterr().err.count("calibration.json: damaged, and left out") == 4
    assert (found.allowed, found.aim) == (0.005, None)


def test_calibrate_is_advised_where_it_can_help(tmp_path: Path) -> None:
    assert "python -m curation calibrate test" in (watch(tmp_path).verdict(whole(1, 10_000)) or "")
    other = Drift.of(Storage.open(str(tmp_path)), profile(tmp_path, target_retention=1.0), "d", 100)
    assert (other.verdict(whole(5_000, 10_000)) or "").endswith("the target of 100.0% (more than 0.5 points)")


def test_nothing_seen_and_no_target(tmp_path: Path) -> None:
    assert watch(tmp_path).verdict(whole(0, 0)) is None
    assert watch(tmp_path).verdict(whole(0, 0, units=0)) is None
    assert watch(tmp_path, target=None).verdict(whole(900, 1_000)) is None
    nothing = watch(tmp_path, units=50)
    for _ in range(50):
        nothing.add(0, 0)
    assert nothing.verdict(whole(0, 0, 50)) is None


def test_a_part_of_a_run_may_be_off_by_its_own_spread(tmp_path: Path) -> None:
    few = watch(tmp_path)
    few.add(100, 60)
    assert few.verdict(whole(60, 100, units=1)) is None  # one unit tells nothing of its like
    few.add(100, 10)
    assert few.verdict(whole(70, 200, units=2)) is None
    plain = watch(tmp_path)
    for _ in range(10):
        plain.add(100, 60)
    assert "retention so far is 60.0%, 32.0 points above" in (plain.verdict(whole(600, 1_000, units=10)) or "")
    # Units of an earlier session count, and have no spread that is known: nothing is said of them alone.
    assert watch(tmp_path).verdict(whole(600, 1_000, units=10)) is None


def test_early_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = watch(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(19):
        found.add(100, int(rng.binomial(100, 0.6)))
    assert not capsys.readouterr().err
    found.add(100, 60)
    told = capsys.readouterr().err
    assert told.startswith("warning: test: retention so far is ")
    assert told.count("\n") == 1
    for _ in range(79):
        found.add(100, 60)
    assert not capsys.readouterr().err


def test_chance_is_seldom_taken_for_drift(capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that end on their target to the sample, so that every warning on the way is a false alarm."""
    rng, units, rounds = np.random.default_rng(0), 640, 200
    for _ in range(rounds):
        kept = rng.binomial(200, np.clip(rng.normal(0.28, 0.03, units), 0, 1))
        found = Drift("test", int(kept.sum()) / (200 * units), LEAST, units)
        for number in kept:
            found.add(200, int(number))
        assert found.verdict(whole(int(kept.sum()), 200 * units, units)) is None
    assert capsys.readouterr().err.count("warning:") <= rounds // 50
