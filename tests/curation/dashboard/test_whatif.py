"""What a dragged threshold would keep, from bins alone: never wrong, and exact wherever the bins can know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curation.dashboard.counting import Counting
from curation.dashboard.whatif import changed, charts_of, rules_of, side_of
from curation.opened import Opened
from curation.profile import Profile
from curation.report.data import gather
from curation.rescore import rescore
from filters.aspect_ratio import AspectRatio
from filters.clip_score import ClipScore
from filters.min_size import MinSize
from filters.text_length import TextLength
from tests.curation.dashboard.conftest import write_mixture
from tests.curation.pairs import CHEAP, flat, image, pair, profile, write_tar
from tests.curation.report.runs import finished, some_input


def thresholds(opened: Opened) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for chart in charts_of(gather(opened), rules_of(opened.record)):
        for threshold in chart["thresholds"]:
            yield chart, threshold


def must_hold(opened: Opened) -> dict[str, int]:
    """Counts every step of every threshold in the ledger; gives how many were told exactly, by threshold."""
    counting = Counting(opened, rules_of(opened.record))
    units = [manifest["unit_id"] for manifest in opened.units()]
    seen = opened.totals().seen
    exact: dict[str, int] = {}
    for chart, threshold in thresholds(opened):
        found = threshold["steps"]
        if found is None:
            assert threshold["why"]
            continue
        assert found["at"] == sorted(found["at"])
        assert len(set(found["value"])) == len(found["value"]) == len(found["at"]) == len(found["low"])
        field = threshold["id"].removeprefix(f"{chart['label']}.")
        exact[threshold["id"]] = 0
        for value, low, high in zip(found["value"], found["low"], found["high"], strict=True):
            counted = counting.count(units, seen, {chart["label"]: {field: value}})
            where = (threshold["id"], value, low, high, counted)
            assert low <= counted["kept"] + counted["unscored"] <= high, where
            if low == high:
                assert (counted["kept"], counted["unscored"]) == (low, 0), where
                exact[threshold["id"]] += 1
    return exact


def test_every_step_of_every_threshold_holds_against_the_ledger(mixture: tuple[Opened, Profile]) -> None:
    opened, _ = mixture
    exact = must_hold(opened)
    assert set(exact) == {threshold["id"] for _, threshold in thresholds(opened)}
    # Filters with one limit tell each tightening exactly; the last filter of all tells every step.
    shine = next(threshold for _, threshold in thresholds(opened) if threshold["id"] == "shine.min")
    assert exact["shine.min"] == len(shine["steps"]["at"])
    assert min(exact[name] for name in ("aspect_ratio.max", "min_size.short_side")) > 3
    assert exact["emoji.max_count"] >= 1  # none is tighter than the run's 0


def test_what_no_bin_holds_is_not_told_as_if_it_did(tmp_path: Path) -> None:
    """Thresholds in the middle of a bin; samples that are kept without a score; errors without a word why."""
    members = [
        pair(
            f"{index:04d}",
            f"A photo of {'an unseen' if index % 9 == 0 else 'a fine'} thing number {index}",
            image(180 + index, 400, seed=index),
            {} if index % 12 == 0 else {"similarity": 0.2 + index / 300},
        )
        for index in range(70)
    ]
    write_tar(tmp_path / "in/a.tar", flat(members))
    score = {"clip_score": {"column": "similarity", "min": 0.3, "missing": "keep"}}
    exact = must_hold(finished(profile(tmp_path, name="kept", filters={**CHEAP, **score})))
    assert exact["clip_score.min"] == 0
    unseen = {"min_size": {"short_side": 205}, "bright": {"filter": "tests.curation.plugins:Bright"}}
    exact = must_hold(finished(profile(tmp_path, name="silent", filters={"emoji": {}, **unseen})))
    assert exact["min_size.short_side"] == 0
    fine = {"emoji": {}, "min_size": {"short_side": 205}}
    exact = must_hold(finished(profile(tmp_path, name="fine", filters=fine)))
    assert exact["min_size.short_side"] > 5


def test_a_filter_that_is_not_known_here_may_lack_scores(tmp_path: Path) -> None:
    write_mixture(tmp_path, files=1)
    own = {**CHEAP, "own": {"filter": "tests.curation.plugins:Bright", "min": 124.0}}
    checked = profile(tmp_path, filters=own)
    opened = finished(checked)
    rules = rules_of(opened.record)
    assert "own" not in rules
    units = [manifest["unit_id"] for manifest in opened.units()]
    for changes in ({"min_size": {"short_side": 150}}, {"min_size": {"short_side": 230}}, {"aspect_ratio": {"max": 9}}):
        thresholds = json.loads(json.dumps(checked.decision_identity()))
        for label, fields in changes.items():
            thresholds[label].update(fields)
        expected = rescore(checked.deciding(thresholds), dry_run=True, workers=1)
        counted = Counting(opened, rules).count(units, 0, changes)
        assert (counted["kept"], counted["unscored"]) == (expected.totals.kept, expected.unscored), changes


def test_thresholds_of_two_languages_change_together() -> None:
    rule = ClipScore.model_validate({"column": "similarity", "min": {"en": 0.3, "zh": 0.26}})
    both = changed(rule, {"min.en": 0.35, "min.zh": 0.31})
    assert isinstance(both, ClipScore)
    assert both.minimums == {"en": 0.35, "zh": 0.31}
    with pytest.raises(KeyError):
        changed(rule, {"max.en": 1})


def test_without_pixel_filters_single_limits_are_exact_both_ways(tmp_path: Path) -> None:
    some_input(tmp_path)
    opened = finished(profile(tmp_path))
    found = {threshold["id"]: threshold["steps"] for _, threshold in thresholds(opened)}
    for name in ("aspect_ratio.max", "min_size.short_side", "emoji.max_count", "language.max_other_chars"):
        assert found[name]["low"] == found[name]["high"], name


def test_counts_are_those_of_a_dry_run_of_rescore(mixture: tuple[Opened, Profile]) -> None:
    opened, checked = mixture
    counting = Counting(opened, rules_of(opened.record))
    units = [manifest["unit_id"] for manifest in opened.units()]
    cases: list[dict[str, dict[str, float]]] = [
        {"shine": {"min": 126.5}},
        {"shine": {"min": 110.0}},
        {"text_length": {"min_words": 6, "max_chars": 60}, "aspect_ratio": {"max": 2.0}},
        {"min_size": {"short_side": 150}},
        {"min_size": {"short_side": 150}, "emoji": {"max_count": 3}, "shine": {"min": 120.0}},
        {"language": {"max_other_chars": 4}, "text_length": {"min_han": 1}},
    ]
    lacking = 0
    for changes in cases:
        thresholds = json.loads(json.dumps(checked.decision_identity()))
        for label, fields in changes.items():
            thresholds[label].update(fields)
        expected = rescore(checked.deciding(thresholds), dry_run=True, workers=1)
        counted = counting.count(units, 0, changes)
        assert (counted["kept"], counted["unscored"]) == (expected.totals.kept, expected.unscored), changes
        lacking += expected.unscored
        for label, number in counted["dropped"].items():
            assert number == expected.totals.reasons.get(label, 0), (changes, label)
    assert lacking
    unchanged = counting.count(units, 0, {})
    assert unchanged["kept"] == opened.totals().kept
    assert unchanged["retention"] is None


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"emoji": {"maximum": 3}}, KeyError),
        ({"nothing": {"min": 1}}, KeyError),
        ({"emoji": {"max_count": -1}}, ValueError),
    ],
)
def test_what_no_filter_takes_is_refused(mixture: tuple[Opened, Profile], changes: Any, error: type[Exception]) -> None:
    opened, _ = mixture
    with pytest.raises(error):
        Counting(opened, rules_of(opened.record)).count([], 0, changes)


def test_a_module_named_by_a_run_is_not_imported(mixture: tuple[Opened, Profile], tmp_path: Path) -> None:
    opened, _ = mixture
    record = {**opened.record, "filters": {**opened.record["filters"], "shine": "this:Zen", "emoji": "not.there:At"}}
    assert set(rules_of(record)) == set(opened.labels) - {"shine", "emoji"}


def test_the_side_of_a_limit_is_asked_of_its_filter() -> None:
    assert side_of(MinSize(), "short_side") == "min"
    assert side_of(AspectRatio(), "ratio") == "max"
    assert side_of(TextLength(), "chars") == ""  # with three scores nobody can say


def test_a_value_parts_samples_as_its_edge_does() -> None:
    """Of a score's own type, also where the edge itself is no number of that type."""
    from curation.dashboard.whatif import _value

    for edge in (0.3046875, 3.0, 1 / 3, -0.1, 0.7):
        for kind in (pa.float32(), pa.float64()):
            low, high = _value(edge, "min", kind), _value(edge, "max", kind)
            as_type = np.float32 if kind == pa.float32() else np.float64
            assert float(as_type(low)) >= edge > float(as_type(high))
            assert float(np.nextafter(as_type(low), as_type(-np.inf))) < edge
            assert float(np.nextafter(as_type(high), as_type(np.inf))) >= edge
    assert [_value(edge, side, pa.int32()) for edge in (7.0, 7.25) for side in ("min", "max")] == [7, 6, 8, 7]
