"""Histograms: which bins are drawn, where thresholds stand, and that no sample goes missing."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import example, given
from hypothesis import strategies as st

from curation.report.charts import (
    Histogram,
    Threshold,
    bins,
    draw_histogram,
    histogram,
    notes,
    thresholds_of,
    title,
)


def counted(filled: dict[int, int], low: float = 0.0, high: float = 256.0, size: int = 256) -> dict[str, Any]:
    all_ = [filled.get(index, 0) for index in range(size)]
    return {"low": low, "high": high, "all": all_, "others": [number // 2 for number in all_]}


def shown(*arguments: Any, **options: Any) -> Histogram:
    found = histogram(*arguments, **options)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("score", "scores", "settings", "expected"),
    [
        ("chars", ["chars", "words"], {"min_chars": 6, "max_chars": 9, "min_words": 3}, [("min_chars", 6, "min"), ("max_chars", 9, "max")]),
        ("cosine", ["cosine"], {"min": 0.3, "max": None, "missing": "drop"}, [("min", 0.3, "min")]),
        ("short_side", ["short_side"], {"short_side": 200}, [("short_side", 200, "")]),
        ("a", ["a", "b"], {"min": 1}, []),  # of which of the two, nobody can tell
        ("other_chars", ["other_chars"], {"max_other_chars": 0}, [("max_other_chars", 0, "max")]),
        ("cosine", ["cosine"], {"min": {"en": 0.3, "zh": 0.2}}, [("min en", 0.3, "min"), ("min zh", 0.2, "min")]),
        ("x", ["x"], {"min": True, "max": float("inf")}, []),
    ],
)  # fmt: skip
def test_thresholds_are_found_by_their_names(
    score: str, scores: list[str], settings: dict[str, Any], expected: list[tuple[str, float, str]]
) -> None:
    assert [(found.name, found.value, found.side) for found in thresholds_of(score, scores, settings)] == expected


@given(
    st.dictionaries(st.integers(0, 255), st.integers(1, 10_000), min_size=1),
    st.sampled_from([(0.0, 64.0), (0.0, 1024.0), (-0.5, 1.0), (-1.0, 1.0), (1.0, 9.0)]),
    st.lists(st.floats(-2000, 2000), max_size=3),
)
@example(filled={70: 1, 71: 1, 72: 1, 195: 1}, ends=(0.0, 64.0), marks=[])  # an odd first bar
def test_every_sample_is_drawn_or_told(filled: dict[int, int], ends: tuple[float, float], marks: list[float]) -> None:
    chart = shown("f · s", counted(filled, *ends), [Threshold(f"min_{at}", at, "min") for at in marks])
    assert sum(bar[2] for bar in chart.bars) + chart.below + chart.above == chart.total == sum(filled.values())
    assert 1 <= len(chart.bars) <= 64
    assert all(bar[2] >= bar[3] for bar in chart.bars)
    assert [bar[1] for bar in chart.bars[:-1]] == [bar[0] for bar in chart.bars[1:]]
    told = " ".join(notes(chart))
    drawn = BeautifulSoup(draw_histogram(chart, 0), "html.parser")
    lines = drawn.find_all("line", class_="threshold")
    assert len(lines) + told.count("of the picture.") == len(marks)
    for box in drawn.find_all("rect"):
        assert float(box["width"]) > 0 <= float(box["height"])
        assert -0.01 <= float(box["x"]) <= 340
    assert len(bins(chart)) == len(chart.bars)


def test_the_line_of_a_maximum_of_whole_numbers_stands_behind_what_it_keeps() -> None:
    """One bar a number, though a number has four bins; what is at most 0 is left of the line."""
    chart = shown("emoji · count", counted({0: 90, 4: 5, 8: 5}, 0, 64), [Threshold("max_count", 0, "max")])
    assert chart.whole_numbers
    assert bins(chart)[:3] == [("0", 90, 45), ("1", 5, 2), ("2", 5, 2)]
    drawn = BeautifulSoup(draw_histogram(chart, 1), "html.parser")
    (line,) = drawn.find_all("line", class_="threshold")
    first, second = drawn.find_all("rect", class_="all")[:2]
    assert float(first["x"]) + float(first["width"]) <= float(line["x1"]) <= float(second["x"])


def test_far_outliers_and_far_thresholds_are_told() -> None:
    chart = shown("t · c", counted({**dict.fromkeys(range(10, 20), 100), 250: 7}), [Threshold("max_c", 240, "max")])
    assert chart.above == 7
    assert "max_c 240 lies to the right of the picture." in notes(chart)
    assert "7 samples lie to the right of it." in notes(chart)


def test_a_few_among_many_are_seen_on_a_logarithmic_scale() -> None:
    chart = shown("t · c", counted({0: 100_000, 1: 10, 2: 10, 3: 10}), [])
    assert "Logarithmic scale of counts." in notes(chart)
    assert "No threshold of this filter is named after this score." in notes(chart)


def test_the_title_says_what_the_drawing_shows() -> None:
    chart = shown("clip · cosine", counted({3: 8, 5: 1}), [Threshold("min", 4.0, "min")])
    assert (
        title(chart) == "Histogram of clip · cosine: 9 samples, most of them between 3 and 4 (8); thresholds: min at 4"
    )
    drawn = BeautifulSoup(draw_histogram(chart, 7), "html.parser").svg
    assert drawn is not None
    assert (drawn["role"], drawn["aria-labelledby"]) == ("img", "chart-7")


def test_nothing_counted_is_no_histogram() -> None:
    assert histogram("a · b", counted({}), []) is None
    assert histogram("a · b", counted({3: 1}, 5, 5), []) is None
