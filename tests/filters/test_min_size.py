from __future__ import annotations

import pyarrow as pa
import pytest
from pydantic import ValidationError

from filters.base import load_filter
from filters.min_size import MinSize
from tests.filters.test_aspect_ratio import sizes


@pytest.mark.parametrize(
    ("size", "short_side", "kept"),
    [
        ((200, 200), 200, True),
        ((200, 4000), 200, True),
        ((199, 4000), 200, False),
        ((4000, 199), 200, False),
        ((1, 1), 0, True),
        ((None, 500), 200, None),
        ((500, None), 200, None),
    ],
)
def test_cases(size: tuple[int | None, int | None], short_side: int, kept: bool | None) -> None:
    rule = MinSize(short_side=short_side)
    scores = rule.score(sizes(size))
    assert {name: array.type for name, array in scores.items()} == rule.scores
    assert rule.keep(pa.table(dict(scores))).to_pylist() == [kept]


def test_no_rows() -> None:
    rule = MinSize()
    assert rule.keep(pa.table(dict(rule.score(sizes())))).to_pylist() == []


def test_fields_and_contract() -> None:
    assert load_filter("min_size") is MinSize
    assert MinSize(short_side=5).fingerprint() == {"name": "min_size", "version": "1"}
    for bad in (-1, 1.5, "small"):
        with pytest.raises(ValidationError):
            MinSize(short_side=bad)
