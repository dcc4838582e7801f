"""Deciding rows again: always what a fresh run with these thresholds would have decided, or told as unscored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import ledger
from curation.profile import Input, Profile
from curation.redecide import columns_of, decide_again, scored_before
from filters.base import Filter, Need


class Number(Filter):
    """Keeps numbers of at least `min`; NaN and null are no number."""

    name: ClassVar[str] = "number"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min"})

    min: int
    pixels: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"pixels"} if self.pixels else {"caption"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"number": pa.int32(), "number_error": pa.string()}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return pc.greater_equal(scores.column("number").combine_chunks(), self.min)


LABELS = ("a", "b", "x", "y")  # a and b are cheap, x and y look at pixels
PROBLEMS = (None, None, None, None, "unreadable:truncated", "fetch:http_404", "html")
Score = tuple[int | None, str | None]
Row = tuple[str | None, tuple[Score, Score, Score, Score]]

scores = st.one_of(st.tuples(st.integers(0, 3), st.none()), st.just((None, "cannot be decoded")), st.just((None, None)))
rows = st.lists(st.tuples(st.sampled_from(PROBLEMS), st.tuples(scores, scores, scores, scores)), max_size=12)
thresholds = st.fixed_dictionaries({label: st.integers(0, 4) for label in LABELS})
orders = st.tuples(st.permutations(LABELS[:2]), st.permutations(LABELS[2:])).map(lambda pair: (*pair[0], *pair[1]))
configurations = st.tuples(orders, thresholds)


def profile(configuration: tuple[tuple[str, ...], Mapping[str, int]]) -> Profile:
    order, least = configuration
    filters = {label: Number(min=least[label], pixels=label in "xy") for label in order}
    return Profile(name="test", input=Input(path="in", format="parquet"), mappers=(), filters=filters)


def world(table: list[Row]) -> pa.Table:
    """Every score of every sample, as an oracle knows them."""
    columns: dict[str, Any] = {}
    for index, label in enumerate(LABELS):
        columns[f"{label}_number"] = pa.array([row[1][index][0] for row in table], pa.int32())
        columns[f"{label}_number_error"] = pa.array([row[1][index][1] for row in table], pa.string())
    return pa.table(columns)


def fresh(table: list[Row], checked: Profile) -> tuple[pa.Table, dict[str, np.ndarray[Any, Any]]]:
    """What a run writes, step by step, and which rows each pixel filter saw."""
    problems = pa.array([row[0] for row in table], pa.string())
    found, done, seen = world(table), dict(checked.cheap), {}
    for label, rule in checked.pixel.items():
        picked = ledger.decide(found, done, problems).reason.is_null()
        seen[label] = np.asarray(picked, dtype=bool)
        for score in rule.scores:
            name = f"{label}_{score}"
            field = found.schema.field(name)
            blank = pc.if_else(picked, found.column(name), pa.scalar(None, field.type))
            found = found.set_column(found.schema.get_field_index(name), field, blank)
        done[label] = rule
    return ledger.with_verdicts(found, checked.filters, problems).select(columns_of(checked.filters)), seen


@settings(max_examples=300, deadline=None)
@given(rows, configurations, configurations)
def test_decided_again_is_decided_afresh(table: list[Row], first: Any, second: Any) -> None:
    before, after = profile(first), profile(second)
    run, seen = fresh(table, before)
    expected, needed = fresh(table, after)
    scored = scored_before(run, after, list(before.filters))
    for label in "xy":
        assert scored[label].tolist() == seen[label].tolist()
    again = decide_again(run, after, list(before.filters))
    lacking = np.zeros(len(table), dtype=bool)
    for label in "xy":
        lacking |= needed[label] & ~seen[label]
    # A row that lacks the first pixel filter's score may or may not go on to the second: it is unscored either way.
    assert again.unscored[lacking].all()
    decided = np.flatnonzero(~again.unscored)
    assert again.table.select(expected.column_names).take(decided).equals(expected.take(decided))
    # Scores that were made later fill the gap, and nothing else changes.
    everything = world(table).append_column("row", pa.array(np.arange(len(table)), pa.int64()))
    extra = {
        label: everything.filter(pa.array(needed[label] & ~seen[label])).select(
            ["row", f"{label}_number", f"{label}_number_error"]
        )
        for label in "xy"
    }
    filled = decide_again(run, after, list(before.filters), extra)
    assert not filled.unscored.any()
    assert filled.table.select(expected.column_names).equals(expected)


@settings(max_examples=100, deadline=None)
@given(rows, configurations, thresholds)
def test_tightening_and_the_last_filter_never_leave_a_row_unscored(table: list[Row], first: Any, more: Any) -> None:
    order, least = first
    run, _ = fresh(table, profile(first))
    last = order[-1]
    tighter = {label: max(least[label], more[label]) if label != last else more[label] for label in order}
    again = decide_again(run, profile((order, tighter)), order)
    assert not again.unscored.any()


@settings(max_examples=100, deadline=None)
@given(rows, configurations)
def test_problems_are_read_back_from_the_verdicts(table: list[Row], first: Any) -> None:
    checked = profile(first)
    run, _ = fresh(table, checked)
    assert ledger.problems_of(run, checked.filters).to_pylist() == [row[0] for row in table]
