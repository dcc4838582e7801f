from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.base import RuleError, load_filter
from filters.clip_score import ClipScore
from filters.column import Column


def shipped(values: Any, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"caption": pa.nulls(len(values), pa.large_string()), "source.punsafe": pa.array(values, kind)})


def decide(rule: Column, samples: pa.Table) -> list[bool | None]:
    return rule.keep(pa.table(dict(rule.score(samples)))).to_pylist()


@pytest.mark.parametrize(
    ("value", "kind", "number"),
    [
        (0.25, pa.float32(), 0.25),
        (0.25, pa.float16(), 0.25),
        (7, pa.int8(), 7.0),
        (2**63, pa.uint64(), 2.0**63),
        (True, pa.bool_(), 1.0),
        (Decimal("1.50"), pa.decimal128(5, 2), 1.5),
        ("0.5", pa.string(), 0.5),
        (" 1e-3 ", pa.large_string(), 0.001),
        ("+.5", pa.string(), 0.5),
        ("5.", pa.string(), 5.0),
        ("", pa.string(), None),
        ("UNLIKELY", pa.string(), None),
        ("0x10", pa.string(), None),
        ("1,5", pa.string(), None),
        ("nan", pa.string(), None),
        (float("nan"), pa.float64(), None),
        (None, pa.float64(), None),
        (None, pa.null(), None),
        ("0.5", pa.dictionary(pa.int8(), pa.string()), 0.5),
    ],
)
def test_values(value: object, kind: pa.DataType, number: float | None) -> None:
    rule = Column(column="punsafe", max=1)
    scores = rule.score(shipped([value], kind))
    assert scores["value"].type == rule.scores["value"]
    assert scores["value"].to_pylist() == [number]


def test_bounds_are_inclusive_and_missing_decides_for_nulls() -> None:
    samples = shipped([0.1, 0.2, 0.5, 0.6, None])
    assert decide(Column(column="punsafe", max=0.5), samples) == [True, True, True, False, False]
    assert decide(Column(column="punsafe", min=0.2), samples) == [False, True, True, True, False]
    assert decide(Column(column="punsafe", min=0.2, max=0.5, missing="keep"), samples) == [
        False,
        True,
        True,
        False,
        True,
    ]


@given(
    st.lists(st.one_of(st.none(), st.floats(), st.integers(-5, 5).map(float)), max_size=30),
    st.floats(-3, 3),
    st.booleans(),
)
def test_never_null(values: list[float | None], bound: float, keep_missing: bool) -> None:
    rule = Column(column="punsafe", min=bound, missing="keep" if keep_missing else "drop")
    expected = [keep_missing if value is None or value != value else value >= bound for value in values]
    assert decide(rule, shipped(values, pa.float64())) == expected


@given(st.lists(st.text(max_size=12), max_size=20))
def test_any_text_is_a_number_or_missing(values: list[str]) -> None:
    numbers = Column(column="punsafe", min=0).score(shipped(values, pa.string()))["value"].to_pylist()
    for text, number in zip(values, numbers, strict=True):
        if number is not None:
            assert number == float(text.strip())  # which takes U+001C to U+001F for spaces, as Arrow does


def test_an_absent_column_names_those_there_are() -> None:
    rule = Column(column="pwatermark", min=0)
    with pytest.raises(RuleError, match=r"no column 'pwatermark'; it has: punsafe$"):
        rule.score(shipped([0.5]))
    with pytest.raises(RuleError, match="it has: none"):
        rule.score(pa.table({"caption": ["a"]}))
    with pytest.raises(RuleError, match="list<"):
        Column(column="punsafe", min=0).score(shipped([[1.0]]))


def test_a_column_that_is_null_throughout_has_no_type() -> None:
    """So Arrow reads a column that no row of a unit has a value for."""
    for nulls in (pa.nulls(3), pa.chunked_array([pa.nulls(1), pa.nulls(2)])):
        samples = pa.table({"source.punsafe": nulls})
        assert samples["source.punsafe"].type == pa.null()
        scores = Column(column="punsafe", min=0).score(samples)
        assert scores["value"].type == pa.float64()
        assert scores["value"].to_pylist() == [None] * 3
        assert decide(Column(column="punsafe", min=0), samples) == [False] * 3
        assert decide(Column(column="punsafe", min=0, missing="keep"), samples) == [True] * 3
        captioned = samples.append_column("caption", pa.array(["a"] * 3, pa.large_string()))
        shipped_score = ClipScore(min=0.3, column="punsafe").score(captioned)["cosine"]
        assert shipped_score.type == pa.float32()
        assert shipped_score.null_count == 3


def test_no_rows() -> None:
    assert decide(Column(column="punsafe", min=0), shipped([], pa.string())) == []
    chunkless = pa.table({"source.punsafe": pa.chunked_array([], pa.float32())})
    assert decide(Column(column="punsafe", min=0), chunkless) == []


def test_fields_and_contract() -> None:
    assert load_filter("column") is Column
    rule = Column(column="punsafe", max=0.5, missing="keep")
    assert rule.columns_needed() == ("punsafe",)
    assert rule.fingerprint() == {"name": "column", "version": "1", "column": "punsafe"}
    for bad in ({}, {"min": 2, "max": 1}, {"min": float("nan")}, {"min": 0, "missing": "guess"}):
        with pytest.raises(ValidationError):
            Column(column="punsafe", **bad)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Column(column="", min=0)
