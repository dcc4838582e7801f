"""What is predicted of a sample is what `keep` makes of it, for scores of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curation import ledger
from curation.threshold import OutOfReach, Scored, Solution, decimal, scored, solve, written
from filters.base import Filter
from filters.clip_score import ClipScore
from filters.text_length import TextLength

MODEL = {"model": "local-dir:nowhere"}
SHIPPED = {"column": "similarity"}
COSINES = st.one_of(
    st.floats(-1, 1, width=32),
    st.integers(-10_000, 10_000).map(lambda number: float(np.float32(number / 10_000))),
    st.integers(2_990, 3_010).map(lambda number: float(np.float32(number / 10_000))),
)
ROWS = st.lists(
    st.tuples(st.one_of(st.none(), COSINES), st.sampled_from(["en", "zh", None]), st.booleans()),
    min_size=1,
    max_size=60,
)


def unit(rows: list[tuple[float | None, str | None, bool]], rule: ClipScore) -> tuple[pa.Table, dict[str, Filter]]:
    """A decided ledger part: per row a cosine, a language, and whether its text is long enough."""
    filters: dict[str, Filter] = {"text_length": TextLength(), "clip_score": rule}
    count = len(rows)
    columns: dict[str, Any] = {
        "text_length_chars": pa.array([20 if row[2] else 1 for row in rows], pa.int32()),
        "text_length_words": pa.array([5 if row[2] else 1 for row in rows], pa.int32()),
        "text_length_han": pa.array([0] * count, pa.int32()),
        "clip_score_cosine": pa.array([row[0] for row in rows], pa.float32()),
        "clip_score_language": pa.array([row[1] for row in rows], pa.string()),
    }
    if rule.column is None:
        # What did not reach the model has no cosine and no word why; what did has one or the other.
        cosines = [row[0] if row[2] else None for row in rows]
        columns["clip_score_cosine"] = pa.array(cosines, pa.float32())
        columns["clip_score_truncated"] = pa.array([False] * count, pa.bool_())
        errors = ["decode: broken" if row[2] and row[0] is None else None for row in rows]
        columns["clip_score_cosine_error"] = pa.array(errors, pa.string())
    return ledger.with_verdicts(pa.table(columns), filters, pa.nulls(count, pa.string())), filters


def kept_by_keep(table: pa.Table, filters: dict[str, Filter], rule: ClipScore, solution: Solution) -> int:
    """Decided as a run does, with the numbers as the file would hold them."""
    low: Any = solution.minimums
    changed = ClipScore.model_validate({**rule.model_dump(exclude_unset=True), "min": low.get("", low)})
    problems = ledger.problems_of(table, filters)
    rows = table.drop_columns(ledger.VERDICT.names)
    return int(ledger.with_verdicts(rows, {**filters, "clip_score": changed}, problems).column("reason").null_count)


@settings(deadline=None)
@given(
    ROWS,
    st.floats(0.01, 1),
    st.sampled_from([MODEL, SHIPPED, {**SHIPPED, "missing": "keep"}]),
    st.booleans(),
    st.sampled_from([None, 0.301]),
)
@example([(0.3012, "en", True)] * 12, 0.5, MODEL, False, None)
@example([(-1.0, "en", True), (-0.99999, "zh", True)], 1.0, SHIPPED, True, None)
def test_the_prediction_is_exact(
    rows: list[tuple[float | None, str | None, bool]],
    target: float,
    kind: dict[str, Any],
    two: bool,
    most: float | None,
) -> None:
    rule = ClipScore(**kind, min={"en": -1, "zh": -1} if two else -1, max=most)
    table, filters = unit(rows, rule)
    values = scored(table, filters, "clip_score")
    assert (values.seen, values.lacking) == (len(rows), 0)
    reachable = sum(len(scores) for scores in values.scores.values())
    wanted = target * len(rows)
    if values.anyway + reachable < wanted - 1e-6 or values.anyway > wanted + 1e-6 or not reachable:
        with pytest.raises(OutOfReach):
            solve([values], target, rule.minimums)
        return
    found = solve([values], target, rule.minimums)
    assert values.kept(found.minimums) == found.kept == kept_by_keep(table, filters, rule, found)
    assert all(tie.samples >= 1 and tie.kept_above == found.kept - tie.samples for tie in found.ties)
    if not two:
        # No other score would do better.
        counts = [values.kept({"": float(value)}) for value in values.scores[""]]
        assert abs(found.kept - target * len(rows)) == min(abs(count - target * len(rows)) for count in counts)


def test_both_languages_lose_the_same_share() -> None:
    rng = np.random.default_rng(0)
    rows = [(float(np.float32(round(value, 4))), "en", True) for value in rng.normal(0.3, 0.05, 900)]
    rows += [(float(np.float32(round(value, 4))), "zh", True) for value in rng.normal(0.2, 0.05, 300)]
    rule = ClipScore(**MODEL, min={"en": 0.3, "zh": 0.26})
    table, filters = unit([*rows], rule)
    found = solve([scored(table, filters, "clip_score")], 0.4, rule.minimums)
    assert found.kept == pytest.approx(0.4 * 1200, abs=2)
    shares = [
        np.mean([row[0] >= np.float32(found.minimums[language]) for row in rows if row[1] == language])
        for language in ("en", "zh")
    ]
    assert shares == pytest.approx([0.4, 0.4], abs=0.005)
    assert found.minimums["en"] - found.minimums["zh"] == pytest.approx(0.1, abs=0.02)


def test_a_language_without_samples_keeps_its_number() -> None:
    rule = ClipScore(**MODEL, min={"en": 0.3, "zh": 0.26})
    table, filters = unit([(0.31, "en", True), (0.32, "en", True)], rule)
    found = solve([scored(table, filters, "clip_score")], 0.5, rule.minimums)
    assert found.texts == {"en": "0.32", "zh": "0.26"}
    assert [tie.language for tie in found.ties] == ["en"]


def test_what_can_never_be_kept_and_what_always_is() -> None:
    rows = [(0.5, "en", True), (None, "en", True), (None, "en", False), (0.2, "en", True)]
    values = {}
    for name, kind in {"model": MODEL, "drop": SHIPPED, "keep": {**SHIPPED, "missing": "keep"}}.items():
        values[name] = scored(*unit(rows, ClipScore(**kind, min=0)), "clip_score")
    assert [(one.others, one.mute, one.anyway) for one in values.values()] == [(3, 1, 0), (3, 1, 0), (3, 0, 1)]
    with pytest.raises(OutOfReach) as few:
        solve([values["model"]], 0.75, {"": 0})
    assert (few.value.kept, few.value.most) == (2, True)
    assert solve([values["keep"]], 0.75, {"": 0}).kept == 3
    with pytest.raises(OutOfReach) as many:
        solve([values["keep"]], 0.2, {"": 0})
    assert (many.value.kept, many.value.most) == (1, False)
    # Shipped scores that are no cosines: above 1 nothing can cut, below -1 nothing can keep.
    odd = scored(
        *unit(
            [(31.0, "en", True), (-7.0, "en", True), (0.1, "en", True), (float("inf"), "en", True)],
            ClipScore(**SHIPPED, min=0),
        ),
        "clip_score",
    )
    assert (odd.anyway, odd.others, len(odd.scores[""])) == (2, 4, 1)


def test_rows_that_a_stricter_run_did_not_score_are_lacking() -> None:
    rule = ClipScore(**MODEL, min=0.3)
    table, filters = unit([(0.5, "en", True), (0.4, "en", False)], rule)
    assert scored(table, filters, "clip_score").lacking == 0
    loose = {**filters, "text_length": TextLength(min_words=1, min_chars=1)}
    assert scored(table, loose, "clip_score").lacking == 1
    # With a column every row has its score.
    table, filters = unit([(0.5, "en", True), (0.4, "en", False)], ClipScore(**SHIPPED, min=0.3))
    assert scored(table, {**filters, "text_length": TextLength(min_words=1, min_chars=1)}, "clip_score").lacking == 0


@settings(deadline=None)
@given(st.lists(COSINES, min_size=2, max_size=2, unique=True))
def test_decimals_lie_between_neighbours(pair: list[float]) -> None:
    lower, value = (np.float32(number) for number in sorted(pair))
    if lower == value:  # 0.0 and -0.0
        return
    text = decimal(value, lower)
    assert lower < np.float32(float(text)) <= value
    assert "e" not in text.lower()
    assert "." in text
    if value - lower > 2e-4:
        assert len(text.partition(".")[2]) <= 4


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.3, "0.3"),
        (1.0, "1.0"),
        (-1.0, "-1.0"),
        (0.0, "0.0"),
        (-0.0, "0.0"),
        (1e-5, "0.00001"),
        (0.30000000000000004, "0.30000000000000004"),
    ],
)
def test_numbers_as_yaml_reads_them(number: float, text: str) -> None:
    assert written(number) == text
    assert decimal(np.float32(0.3012), np.float32(0.3011)) == "0.3012"
    assert decimal(np.float32(0.3012), None) == "0.3012"


def test_nothing_at_all() -> None:
    nothing = Scored(0, 0, 0, 0, {"": np.zeros(0, np.float32)}, 0)
    with pytest.raises(OutOfReach):
        solve([nothing], 0.5, {"": 0.3})
