"""Where the records of a text list end, and what stands in them.

The one decision: a record ends at a line's end, in a CSV at one outside quotes, and nothing that a damaged record holds
may swallow all that follows it. So a quote opens only at the start of a field, closes only before a comma or a line's
end, and one that is not closed within `MAX_QUOTED` bytes is a plain character. Whole blocks are searched at once;
quotes are walked one by one only where they are not those of a clean CSV.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from curation.raw import SourceError
from shards.storage import Storage

Offsets: TypeAlias = npt.NDArray[np.int64]

BLOCK = 8 << 20
# The longest quoted field: that of Python's own csv module. A search for a quote that never closes ends here.
MAX_QUOTED = 128 << 10
# What is longer is no record of a list, but a file of another kind. It bounds the memory of a pass.
MAX_RECORD = 32 << 20

_NEWLINE, _QUOTE, _COMMA, _RETURN = b'\n",\r'
# Inside quotes: a doubled one is a character, one before a comma or a line's end closes, any other is a character.
_CLOSING = re.compile(rb'""|"(?=[,\n]|\r\n)')
_CLOSING_AT_END = re.compile(rb'""|"(?=[,\n]|\r?\n|\r?\Z)')
_STOP = re.compile(rb"[,\n]")


def record_ends(storage: Storage, path: str, start: int, size: int, quoted: bool) -> Iterator[Offsets]:
    """The offset behind every record of a file's bytes [start, size), in arrays of a block each; the last is `size`.

    start: where a record begins. quoted: as in CSV. Raises `SourceError` for a record of over `MAX_RECORD` bytes.
    """
    at, reach = start, BLOCK
    while at < size:
        stop = min(at + reach, size)
        block = storage.view_range(path, at, stop)
        ends = find_ends(memoryview(block), stop == size, quoted)
        gaps = np.diff(ends, prepend=0)
        if max(gaps.max(initial=0), 0 if len(ends) else stop - at) > MAX_RECORD:
            raise SourceError(
                f"{storage.where(path)}: a line behind byte {at} is longer than {MAX_RECORD >> 20} MiB: is this a list?"
            )
        if len(ends):
            yield ends + at
            at, reach = at + int(ends[-1]), BLOCK
        else:
            reach *= 2  # a record that is longer than the block


def find_ends(data: memoryview, whole: bool, quoted: bool) -> Offsets:
    """Offsets behind the records in `data`, which begins with one; without those that may go on behind it.

    whole: nothing follows, so that what stands behind the last line's end is a record too.
    """
    values = np.frombuffer(data, np.uint8)
    ends: Offsets = np.flatnonzero(values == _NEWLINE) + 1
    if quoted and (quotes := np.flatnonzero(values == _QUOTE)).size:
        outside = ends[np.searchsorted(quotes, ends) % 2 == 0]
        clean = _clean(values, quotes, whole)
        short = np.diff(outside, prepend=0, append=len(values)).max() <= MAX_QUOTED
        ends = outside if clean and short else np.fromiter(_walk(bytes(data), whole), np.int64)
    if whole and len(values) and (not len(ends) or ends[-1] != len(values)):
        ends = np.append(ends, len(values))
    return ends


def _clean(values: npt.NDArray[np.uint8], quotes: Offsets, whole: bool) -> bool:
    """Whether every second quote opens a field, and every other closes one or is one half of a doubled quote.

    Then a line's end is outside quotes exactly if an even number of them stands before it.
    """
    if whole and len(quotes) % 2:
        return False
    opening, closing, last = quotes[0::2], quotes[1::2], len(values) - 1
    before = values[np.maximum(opening - 1, 0)]
    doubled = np.zeros(len(opening), bool)
    doubled[1:] = opening[1:] == closing[: len(opening) - 1] + 1
    opens = (opening == 0) | (before == _COMMA) | (before == _NEWLINE) | doubled
    after, second = values[np.minimum(closing + 1, last)], values[np.minimum(closing + 2, last)]
    returns = (after == _RETURN) & ((closing + 1 == last) | (second == _NEWLINE))
    closes = (closing == last) | (after == _COMMA) | (after == _NEWLINE) | (after == _QUOTE) | returns
    return bool(opens.all() and closes.all())


def _walk(data: bytes, whole: bool) -> Iterator[int]:
    """Offsets behind the records, quote by quote; ends early where what follows `data` could matter."""
    at = 0
    while at < len(data):
        while True:
            found = _field(data, at, whole)
            if found is None:
                return
            _, stop, at = found
            if stop == len(data) and not whole:
                return
            if at == stop or data[stop] == _NEWLINE:
                break
        yield at


def _field(data: bytes, at: int, whole: bool) -> tuple[bytes, int, int] | None:
    """The field that begins at `at`: its text, where it stops, and where the next begins (its stop: there is none).

    None where `data` does not hold enough to tell.
    """
    inner, rest = b"", at
    if data[at : at + 1] == b'"':
        limit = at + 1 + MAX_QUOTED
        reach = min(limit + 2, len(data))  # what stands behind the last possible quote decides whether it closes
        pattern = _CLOSING_AT_END if whole and reach == len(data) else _CLOSING
        close = next((match for match in pattern.finditer(data, at + 1, reach) if match[0] == b'"'), None)
        if close is not None and close.start() < limit:
            inner, rest = data[at + 1 : close.start()].replace(b'""', b'"'), close.end()
        elif close is None and not whole and limit + 2 > len(data):
            return None
    match = _STOP.search(data, rest)
    stop, following = (match.start(), match.end()) if match is not None else (len(data), len(data))
    tail = data[rest:stop]
    if match is None or match[0] == b"\n":
        tail = tail.removesuffix(b"\r")
    return inner + tail, stop, following


def split_lines(data: bytes) -> list[bytes]:
    """The records of a text without quotes, each without its line's end."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def split_csv(data: bytes) -> list[list[bytes]]:
    """The records of a CSV as lists of their fields; `data` holds whole records and nothing else."""
    records, start = [], 0
    for end in find_ends(memoryview(data), True, True).tolist():
        records.append(split_record(data[start:end]))
        start = end
    return records


def split_record(record: bytes) -> list[bytes]:
    """The fields of one record of a CSV, with or without its line's end."""
    if b'"' not in record:
        return record.removesuffix(b"\n").removesuffix(b"\r").split(b",")
    fields, at = [], 0
    while True:
        found = _field(record, at, True)
        assert found is not None  # nothing can follow the whole record
        text, stop, at = found
        fields.append(text)
        if at == stop or record[stop] == _NEWLINE:
            return fields
