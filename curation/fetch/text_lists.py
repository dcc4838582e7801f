"""Lists that are text: TSV, CSV and JSON lines, as records and as rows.

The one decision: the columns are settled at the beginning of a file, the rows at their own place in it, so that a piece
is read without what lies between. TSV has no quotes, as CC3M and CC12M ship it; CSV has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from curation.fetch import records
from curation.fetch.adapters import Adapter, Kind, find_column, find_columns, travel_names
from curation.fetch.columns import column_of, text_column, text_of, travelling
from curation.raw import SourceError
from shards.storage import Storage

_HEAD = 256 << 10  # bytes in which the names of the columns stand, and the lines that are looked at
_SAMPLE = 100  # lines that are looked at to tell an address from a caption
_BOM = b"\xef\xbb\xbf"
_DELIMITER = {"tsv": b"\t", "csv": b","}


class Layout(NamedTuple):
    """A file's columns (JSON lines: none), and the byte behind a byte order mark and a line with their names."""

    names: list[str]
    url: int
    caption: int
    start: int


def look(storage: Storage, path: str, adapter: Adapter, kind: Kind) -> Layout:
    """Looks at the beginning of a file. Raises `SourceError` where it is not what the source ships."""
    size, where = storage.size(path), storage.where(path)
    head = bytes(storage.view_range(path, 0, min(size, _HEAD)))
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{where}: is UTF-16: save it as UTF-8")
    if head.startswith((b"\x1f\x8b", b"PAR1", b"PK\x03\x04")):
        raise SourceError(f"{where}: is no {kind} but compressed or Parquet: unpack it, or name it as what it is")
    start = len(_BOM) if head.startswith(_BOM) else 0
    if kind == "jsonl":
        _check_keys(where, head[start:], adapter)
        return Layout([], 0, 0, start)
    ends = records.find_ends(memoryview(head)[start:], size == len(head), kind == "csv")[: _SAMPLE + 1].tolist()
    sample = _fields(head[start : start + ends[-1]], kind) if ends else [[]]
    names = [field.decode(errors="replace") for field in sample[0]]
    if adapter.order is not None and sorted(name.strip().lower() for name in names) != sorted(adapter.order):
        layout = Layout(list(adapter.order), *find_columns(where, adapter.order, adapter), start)
        _refuse_swapped(where, sample, layout)
        return layout
    if not ends:
        what = "is empty" if start == size else f"its first line is longer than {_HEAD >> 10} KiB"
        raise SourceError(f"{where}: {what}: it must begin with a line of column names")
    return Layout(names, *find_columns(where, names, adapter), start + ends[0])


def read_rows(data: bytes, adapter: Adapter, kind: Kind, layout: Layout) -> pa.Table:
    """The rows of whole records: url, caption, then the others."""
    return _json_lines(data, adapter) if kind == "jsonl" else _delimited(_fields(data, kind), kind, layout)


def from_values(columns: dict[str, list[Any]], url: int, caption: int) -> pa.Table:
    """Columns of values read from JSON, with the places of url and caption among them, as a table."""
    names = travel_names(list(columns), url, caption)
    found: dict[str, Any] = {"url": None, "caption": None}
    for name, (key, values) in zip(names, columns.items(), strict=True):
        if name in found:
            found[name] = pa.array([text_of(value) for value in values], pa.string())
        else:
            found[name] = column_of(key.strip().lower(), values)
    return pa.table(found)


def _refuse_swapped(where: str, sample: Sequence[Sequence[bytes]], layout: Layout) -> None:
    """Two sources ship the same two columns in opposite order, and nothing else in their files says which."""

    def addresses(place: int) -> int:
        return sum(b"://" in record[place][:12] for record in sample if place < len(record))

    if not addresses(layout.url) and 2 * addresses(layout.caption) > len(sample):
        order = " then ".join(layout.names)
        raise SourceError(f"{where}: should have {order}, but its captions are addresses: is `download.source` right?")


def _fields(data: bytes, kind: Kind) -> list[list[bytes]]:
    """The fields of every record."""
    return records.split_csv(data) if kind == "csv" else [line.split(b"\t") for line in records.split_lines(data)]


def _delimited(rows: list[list[bytes]], kind: Kind, layout: Layout) -> pa.Table:
    """Records as rows. Fields too many are the caption's, the one free text; fields too few are null."""
    names, caption = layout.names, layout.caption
    whole: list[list[bytes] | list[bytes | None]] = []
    for fields in rows:
        surplus = len(fields) - len(names)
        if surplus > 0:
            text = _DELIMITER[kind].join(fields[caption : caption + surplus + 1])
            whole.append([*fields[:caption], text, *fields[caption + surplus + 1 :]])
        else:
            whole.append(fields if surplus == 0 else [*fields, *[None] * -surplus])
    columns = zip(*whole, strict=True) if whole else [()] * len(names)
    found: dict[str, Any] = {"url": None, "caption": None}
    for name, shipped, values in zip(travel_names(names, layout.url, caption), names, columns, strict=True):
        array = text_column(pa.array(values, pa.large_binary()))
        found[name] = array if name in found else travelling(shipped.strip().lower(), array)
    return pa.table(found)


def _check_keys(where: str, head: bytes, adapter: Adapter) -> None:
    """Refuses JSON lines whose first ones have no url or caption, and what is no JSON lines at all."""
    if not head:
        return
    sample = [value for line in records.split_lines(head)[:_SAMPLE] if (value := _json_object(line)) is not None]
    if not sample:
        raise SourceError(f"{where}: not one of its first lines is a JSON object: is it JSON lines?")
    find_columns(where, list(dict.fromkeys(name for value in sample for name in value)), adapter)


def _json_lines(data: bytes, adapter: Adapter) -> pa.Table:
    """Lines as rows; the columns are the keys of these lines. What is no JSON object is its own caption."""
    lines = records.split_lines(data)
    values = [_json_object(line) for line in lines]
    names = list(dict.fromkeys(name for value in values if value is not None for name in value))
    places = []
    for role, wanted in (("url", adapter.url), ("caption", adapter.caption)):
        place = find_column(names, wanted)
        if place is None:  # not one of these lines has it
            place = len(names)
            names.append(role)
        places.append(place)
    columns = {name: [None if value is None else value.get(name) for value in values] for name in names}
    captions = columns[names[places[1]]]
    for index, value in enumerate(values):
        if value is None:
            captions[index] = lines[index].decode(errors="replace")
    return from_values(columns, places[0], places[1])


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
