from __future__ import annotations

from collections import Counter

import pytest

from demo.defects import DEFECTS, DIRT, FATAL, ODD, plan
from demo.files import HAS_AVIF


def test_about_28_percent_are_worth_keeping() -> None:
    labels = plan(3000, 0)
    assert 0.27 <= sum(label.kept for label in labels) / 3000 <= 0.29


@pytest.mark.parametrize("seed", [0, 1])
def test_every_defect_occurs_at_its_rate(seed: int) -> None:
    counts = Counter(d for label in plan(3000, seed) for d in label.defects)
    for defect in DEFECTS.values():
        if defect.name == "avif" and not HAS_AVIF:
            continue
        assert abs(counts[defect.name] / 3000 - defect.rate - defect.second) <= 0.0007, defect.name


def test_22_percent_are_chinese_among_the_kept_as_well() -> None:
    labels = plan(3000, 0)
    assert sum(label.language == "zh" for label in labels) == 660
    kept = [label for label in labels if label.kept]
    assert 0.17 <= sum(label.language == "zh" for label in kept) / len(kept) <= 0.27


def test_a_web_of_a_hundred_has_every_defect() -> None:
    found = {d for label in plan(100, 3) for d in label.defects}
    assert found >= {d.name for d in DEFECTS.values() if HAS_AVIF or d.name != "avif"}


def test_some_samples_have_two_defects_and_cleaned_captions_are_kept_too() -> None:
    labels = plan(3000, 0)
    assert sum(len(label.defects) > 1 for label in labels) > 300
    assert sum(label.kept and label.dirt is not None for label in labels) > 200
    assert sum(len(label.must_fail) > 1 for label in labels) > 50


def test_no_label_contradicts_itself() -> None:
    fatal, dirt, odd = ({d.name for d in group} for group in (FATAL, DIRT, ODD))
    for label in plan(3000, 1):
        names = set(label.defects)
        assert len(names) == len(label.defects)
        assert len(names & dirt) <= 1
        assert len(names & odd) <= 1
        assert len(names & fatal) <= 2
        if label.unreadable:
            assert len(names) == 1
        if label.dirt:
            assert label.caption_defect is None
        if names & odd:
            assert not names & {"tiny", "extreme_aspect"}


def test_labels_follow_from_the_seed() -> None:
    assert plan(500, 4) == plan(500, 4) != plan(500, 5)
    assert plan(1, 0)[0].language == "en"
