from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.aspect_ratio import AspectRatio
from filters.base import load_filter


def sizes(*pairs: tuple[int | None, int | None]) -> pa.Table:
    return pa.table(
        {
            "width": pa.chunked_array([[w] for w, _ in pairs], pa.int32()),
            "height": pa.chunked_array([[h] for _, h in pairs], pa.int32()),
        }
    )


def decide(rule: AspectRatio, samples: pa.Table) -> list[bool | None]:
    return rule.keep(pa.table(dict(rule.score(samples)))).to_pylist()


@pytest.mark.parametrize(
    ("size", "maximum", "kept"),
    [
        ((100, 100), 1.0, True),
        ((101, 100), 1.0, False),
        ((300, 100), 3.0, True),
        ((100, 300), 3.0, True),
        ((301, 100), 3.0, False),
        ((100, 301), 3.0, False),
        ((310, 100), 3.1, True),
        ((1, 65535), 70000, True),
        ((None, 100), 3.0, None),
        ((100, None), 3.0, None),
        ((0, 100), 3.0, None),
        ((0, 0), 3.0, None),
    ],
)
def test_cases(size: tuple[int | None, int | None], maximum: float, kept: bool | None) -> None:
    assert decide(AspectRatio(max=maximum), sizes(size)) == [kept]


@given(st.lists(st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)), max_size=20))
def test_symmetric_and_at_least_one(pairs: list[tuple[int, int]]) -> None:
    rule = AspectRatio()
    scores = rule.score(sizes(*pairs))
    assert {name: array.type for name, array in scores.items()} == rule.scores
    assert scores["ratio"] == rule.score(sizes(*[(h, w) for w, h in pairs]))["ratio"]
    assert all(ratio >= 1 for ratio in scores["ratio"].to_pylist())


def test_no_rows() -> None:
    assert decide(AspectRatio(), sizes()) == []


def test_fields_and_contract() -> None:
    assert load_filter("aspect_ratio") is AspectRatio
    assert AspectRatio(max=2.0).fingerprint() == AspectRatio().fingerprint() == {"name": "aspect_ratio", "version": "1"}
    assert AspectRatio().needs == {"header"}
    for bad in (0.99, float("nan"), float("inf"), "wide"):
        with pytest.raises(ValidationError):
            AspectRatio(max=bad)
