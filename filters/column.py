"""Keeps pairs by a number that their source ships: punsafe, pwatermark, an aesthetic score, a similarity.

The decision behind this module: a missing value is an answer, not an error. Sources leave these columns null, empty or
unreadable for some rows, so the configuration says what such a row comes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from filters.base import Filter, Need, RuleError

Missing = Literal["drop", "keep"]

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


class Column(Filter):
    """Keeps samples with `min` <= value <= `max` in the source's column; at least one bound is needed.

    `missing` decides for values that are null, not a number (NaN) or text that is none. There are no `bins`: a source's
    numbers have no range that is known before all of them are read, and so no histogram.
    """

    name: ClassVar[str] = "column"
    version: ClassVar[str] = "1"
    thresholds: ClassVar[frozenset[str]] = frozenset({"min", "max", "missing"})

    column: str = Field(min_length=1)
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)
    missing: Missing = "drop"

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("needs `min`, `max` or both")
        check_range(self.min, self.max)
        return self

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"columns"})

    @property
    def scores(self) -> dict[str, pa.DataType]:
        return {"value": pa.float64()}

    def columns_needed(self) -> tuple[str, ...]:
        return (self.column,)

    def score(self, samples: pa.Table) -> Mapping[str, pa.Array]:
        return {"value": source_numbers(samples, self.column)}

    def keep(self, scores: pa.Table) -> pa.BooleanArray:
        return pc.fill_null(within(scores["value"].combine_chunks(), self.min, self.max), self.missing == "keep")


def source_numbers(samples: pa.Table, column: str) -> pa.DoubleArray:
    """The source's column as float64, null for null, NaN and text that is no number; `RuleError` if there is none."""
    shipped = sorted(name.removeprefix("source.") for name in samples.column_names if name.startswith("source."))
    if column not in shipped:
        raise RuleError(f"the source has no column {column!r}; it has: {', '.join(shipped) or 'none'}")
    values = samples[f"source.{column}"].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = pc.utf8_trim_whitespace(values)
            values = pc.if_else(pc.match_substring_regex(values, _NUMBER), values, pa.scalar(None, values.type))
        # Not `safe`: an integer above 2**53 may lose its last digits.
        numbers = pc.cast(values, pa.float64(), safe=False)
    except pa.ArrowNotImplementedError as error:
        raise RuleError(f"the source's column {column!r} holds {values.type}, neither numbers nor text") from error
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def within(values: pa.Array, low: float | None, high: float | None) -> pa.BooleanArray:
    """low <= value <= high, null for null. Bounds take the values' type: 0.7 as float32 is 0.7 on both sides."""
    inside = pc.is_valid(values)
    if low is not None:
        inside = pc.and_(inside, pc.greater_equal(values, pa.scalar(low, values.type)))
    if high is not None:
        inside = pc.and_(inside, pc.less_equal(values, pa.scalar(high, values.type)))
    return pc.if_else(pc.is_valid(values), inside, pa.scalar(None, pa.bool_()))


def check_range(low: float | None, high: float | None) -> None:
    """Raises ValueError for an empty range."""
    if low is not None and high is not None and low > high:
        raise ValueError(f"`min` ({low}) is above `max` ({high}): nothing could pass")
