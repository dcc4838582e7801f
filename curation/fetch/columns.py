"""A source's columns in the few types that every later step can hold: Parquet, the JSON beside an image, the ledger.

The one decision: nothing is too odd to travel. Numbers stay numbers, lists stay lists of them (boxes and phrases are
read as such again when tasks are built), text that is no UTF-8 shows U+FFFD for its bad bytes, and what has no place in
both Parquet and JSON becomes text, and so do objects read from JSON, whose keys would else depend on their neighbours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.fetch.adapters import SIZES
from curation.raw import plain_json

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
# Lists in lists that stay lists. Boxes need two; Arrow writes Parquet of any depth, but reads none of about 100 levels,
# of which a list takes two or three.
_DEPTH = 16
_EXACT = 2.0**53  # whole numbers beyond are no sizes, and no longer exact as floats
# What Arrow raises for values that have no type in common, and for values that Python has none for (KeyError: a time
# zone that nobody knows).
_NO_VALUE = (pa.ArrowException, OverflowError, TypeError, ValueError, KeyError)


def text_column(array: pa.Array) -> pa.StringArray:
    """Addresses or captions as strings of valid UTF-8; raises `pa.ArrowException` for what is no text."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return text_column(array.dictionary_decode())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = array.cast(pa.large_binary())
    if _is_binary(array.type):
        try:
            return array.cast(pa.string())  # checks that it is UTF-8
        except pa.ArrowInvalid:
            texts = (None if item is None else item.decode(errors="replace") for item in array.to_pylist())
            return pa.array(texts, pa.string())
    return array.cast(pa.string())


def travelling(name: str, array: pa.Array) -> pa.Array:
    """Any other column of a source, of as many rows, in a type that Parquet and JSON both hold; null stays null.

    name: its lower-case name. Sizes become whole numbers (int64), null where they are none. NaN and infinity are null.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return travelling(name, array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return travelling(name, array.storage)
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if name in SIZES and (texts or numbers):
        return _whole_numbers(text_column(array) if texts else array)
    if texts:
        return text_column(array)
    if pa.types.is_floating(kind):
        array = array.cast(pa.float32()) if pa.types.is_float16(kind) else array
        return pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_nested(kind) and _holds(kind):
        try:
            array.validate(full=True)
            return array
        except pa.ArrowInvalid:
            return _as_json(array.cast(_bytes_for_text(kind)).to_pylist())
    try:
        return array.cast(pa.string())  # times, decimals
    except _NO_VALUE:
        return _shown(array)


def column_of(name: str, values: Sequence[Any], settled: pa.DataType | None = None) -> pa.Array:
    """A column of values read from JSON: numbers, truths, texts or lists of them, else each value's JSON as text.

    Text that is a number counts as one among numbers. settled: the type that other values of the column have; it is
    widened for these (whole numbers to floats), or given up for text where no one type holds all.
    """
    if name in SIZES:
        return travelling(name, _as_json(values))
    if settled is not None and pa.types.is_string(settled):
        return _as_json(values)
    try:
        plain = [_listed(value) for value in values]
        if any(_is_number(value) for value in plain) or (settled is not None and pa.types.is_primitive(settled)):
            plain = [_number(value) for value in plain]
        array = pa.array(plain)
        if settled is not None:
            schemas = [pa.schema([("x", kind)]) for kind in (settled, array.type)]
            array = pa.array(plain, pa.unify_schemas(schemas, promote_options="permissive").field("x").type)
        return travelling(name, array)
    except _NO_VALUE:
        return _as_json(values)


def is_null(value: Any) -> bool:
    """Whether a value read from JSON is none: null, NaN, infinity."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def text_of(value: Any) -> str | None:
    """A value read from JSON as text: strings as they are, others as JSON; halves of surrogate pairs as `?`."""
    if is_null(value):
        return None
    if not isinstance(value, str):
        value = json.dumps(plain_json(value), ensure_ascii=False, default=str)
    return str(value).encode(errors="replace").decode()


def _listed(value: Any, depth: int = _DEPTH) -> Any:
    """A value read from JSON as Arrow takes it; raises `TypeError` for objects and for what is nested too deeply."""
    if isinstance(value, list) and depth > 0:
        return [_listed(item, depth - 1) for item in value]
    if isinstance(value, list | dict):
        raise TypeError("no list of plain values")
    return text_of(value) if isinstance(value, str) else None if is_null(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """A text that JSON would read as a number as that number; anything else as it is."""
    if not isinstance(value, str) or (match := _JSON_NUMBER.fullmatch(value.strip())) is None:
        return value
    number = float(value)
    if match[2] is None and match[3] is None:
        return int(value)
    return number if math.isfinite(number) else value


def _as_json(values: Sequence[Any]) -> pa.StringArray:
    return pa.array([text_of(value) for value in values], pa.string())


def _shown(array: pa.Array) -> pa.StringArray:
    """Each value as JSON, or as Arrow shows it where Python cannot hold it: a date in the year 300,000."""
    try:
        return _as_json(array.to_pylist())
    except _NO_VALUE:
        values = (array.slice(index, 1) for index in range(len(array)))
        return pa.array([None if one.null_count else " ".join(one.to_string(indent=0).split()) for one in values])


def _whole_numbers(array: pa.Array) -> pa.Int64Array:
    if pa.types.is_string(array.type):
        array = pc.utf8_trim_whitespace(array)
        array = pc.if_else(pc.match_substring_regex(array, _NUMBER), array, pa.scalar(None, pa.string()))
    values = pc.round(pc.cast(array, pa.float64(), safe=False))
    inside = pc.less(pc.abs(values), _EXACT)  # false for NaN
    return pc.if_else(inside, values, pa.scalar(None, pa.float64())).cast(pa.int64())


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _holds(kind: pa.DataType, depth: int = _DEPTH) -> bool:
    """Whether both Parquet and JSON hold a nested type as it is: lists and structs of numbers and texts."""
    if pa.types.is_nested(kind) and depth == 0:
        return False
    if pa.types.is_struct(kind):
        fields = (kind.field(index).type for index in range(kind.num_fields))
        return kind.num_fields > 0 and all(_holds(field, depth - 1) for field in fields)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds(kind.value_type, depth - 1)
    plain = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    return bool(
        plain or pa.types.is_boolean(kind) or pa.types.is_null(kind) or kind in (pa.string(), pa.large_string())
    )


def _bytes_for_text(kind: pa.DataType) -> pa.DataType:
    """The nested type with binary in the place of text, so that bytes that are no UTF-8 can be looked at."""
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(_bytes_for_text(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_bytes_for_text(kind.value_type), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _bytes_for_text(kind.value_type)
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    return pa.large_binary() if kind in (pa.string(), pa.large_string()) else kind
