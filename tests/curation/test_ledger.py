"""The decision: first failure in order, all failures listed, nothing kept in silence."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from curation import ledger
from filters.aspect_ratio import AspectRatio
from filters.base import Filter
from filters.clip_score import ClipScore
from filters.min_size import MinSize

FILTERS: dict[str, Filter] = {
    "min_size": MinSize(short_side=200),
    "aspect_ratio": AspectRatio(max=3.0),
    "clip": ClipScore(min=0.3),
}


def scores(rows: list[tuple[int | None, float | None, float | None, str | None]]) -> pa.Table:
    side, ratio, cosine, error = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.table(
        {
            "min_size_short_side": pa.array(side, pa.int32()),
            "aspect_ratio_ratio": pa.array(ratio, pa.float32()),
            "clip_cosine": pa.array(cosine, pa.float32()),
            "clip_truncated": pa.nulls(len(rows), pa.bool_()),
            "clip_cosine_error": pa.array(error, pa.string()),
            "clip_language": pa.nulls(len(rows), pa.string()),
        }
    )


def decide(
    rows: list[tuple[int | None, float | None, float | None, str | None]], problems: list[str | None]
) -> ledger.Decision:
    return ledger.decide(scores(rows), FILTERS, pa.array(problems, pa.string()))


def test_the_table_of_cases() -> None:
    decision = decide(
        [
            (300, 1.0, 0.35, None),  # kept
            (300, 1.0, 0.25, None),
            (100, 4.0, None, None),  # fails two, never scored by CLIP
            (300, 4.0, None, None),
            (300, 1.0, None, "decode: broken"),
            (300, 1.0, None, None),  # no score and no reason for it
            (None, None, None, None),  # unreadable
            (None, 1.0, None, None),  # a cheap score is missing
        ],
        [None, None, None, None, None, None, "unreadable:truncated", None],
    )
    assert decision.reason.to_pylist() == [
        None, "clip", "min_size", "aspect_ratio", "clip:error", None, "unreadable:truncated", None,
    ]  # fmt: skip
    assert decision.failed.to_pylist() == [
        [],
        ["clip"],
        ["min_size", "aspect_ratio"],
        ["aspect_ratio"],
        ["clip"],
        [],
        [],
        [],
    ]
    assert decision.unscored.to_pylist() == [False, False, False, False, False, True, False, True]


def test_no_rows_and_no_filters() -> None:
    assert len(decide([], []).reason) == 0
    assert ledger.decide(scores([(1, 1.0, 1.0, None)]), {}, pa.nulls(1, pa.string())).reason.to_pylist() == [None]


number = st.one_of(st.none(), st.floats(-1, 400, width=32))


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 400)), number, number, st.one_of(st.none(), st.just("why"))))
)
def test_a_row_is_kept_dropped_or_unscored(
    rows: list[tuple[int | None, float | None, float | None, str | None]],
) -> None:
    decision = decide(rows, [None] * len(rows))
    for row, reason, failed, unscored in zip(
        rows, decision.reason.to_pylist(), decision.failed.to_pylist(), decision.unscored.to_pylist(), strict=True
    ):
        kept = reason is None and not unscored
        if kept:
            assert row[0] is not None
            assert row[0] >= 200
            assert row[1] is not None
            assert row[1] <= 3
            assert row[2] is not None
            assert row[2] >= 0.3 - 1e-6
        assert (reason is None) == (not failed)
        if reason is not None:
            assert reason.split(":")[0] == failed[0]


def test_parquet_bytes_are_the_same_twice_and_carry_the_version() -> None:
    table = pa.table(
        {field.name: pa.nulls(3, field.type) for field in ledger.schema(FILTERS)}, schema=ledger.schema(FILTERS)
    )
    first, second = ledger.to_parquet(table), ledger.to_parquet(table)
    assert first.equals(second)
    assert pq.read_schema(pa.BufferReader(first)).metadata[b"schema_version"] == ledger.SCHEMA_VERSION.encode()
