"""Lists that are text: TSV, CSV and JSON lines, as records and as rows.

The one decision: the columns are settled at the beginning of a file, the rows at their own place in it, so that a piece
is read without what lies between, and no row depends on its neighbours. TSV has no quotes, as CC3M and CC12M ship it;
CSV has. A line of JSON has its own url and caption, whatever other lines have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from curation.fetch import records
from curation.fetch.adapters import Adapter, Kind, find_column, find_columns, plain_name, travel_names
from curation.fetch.columns import column_of, is_null, text_column, text_of, travelling
from curation.raw import SourceError
from shards.storage import Storage

_HEAD = 256 << 10  # bytes in which the names of the columns stand, and the lines that are looked at
_SAMPLE = 100  # lines that are looked at to tell an address from a caption
_BOM = b"\xef\xbb\xbf"
_DELIMITER = {"tsv": b"\t", "csv": b","}


class Layout(NamedTuple):
    """A file's columns, and the byte behind a byte order mark and a line with their names.

    JSON lines have none, but `types`: those of the columns that the first lines have beside url and caption.
    """

    names: list[str]
    url: int
    caption: int
    start: int
    types: Mapping[str, pa.DataType] | None = None


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
        return Layout([], 0, 0, start, _settle(where, head[start:], adapter))
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
    if kind == "jsonl":
        return _json_lines(data, adapter, layout.types or {})
    return _delimited(_fields(data, kind), kind, layout)


def from_values(columns: dict[str, list[Any]], url: int, caption: int) -> pa.Table:
    """Columns of values read from JSON, with the places of url and caption among them, as a table."""
    names = travel_names(list(columns), url, caption)
    found: dict[str, Any] = {"url": None, "caption": None}
    for name, (key, values) in zip(names, columns.items(), strict=True):
        if name in found:
            found[name] = pa.array([text_of(value) for value in values], pa.string())
        else:
            found[name] = column_of(plain_name(key), values)
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


def _settle(where: str, head: bytes, adapter: Adapter) -> dict[str, pa.DataType]:
    """The types of the other columns of JSON lines, as the whole first lines show them.

    Refuses JSON lines whose first ones have no url or caption, and what is no JSON lines at all.
    """
    if not head:
        return {}
    sample = [value for line in records.split_lines(head) if (value := _json_object(line)) is not None]
    if not sample:
        raise SourceError(f"{where}: not one of its first lines is a JSON object: is it JSON lines?")
    find_columns(where, list(dict.fromkeys(name for value in sample for name in value)), adapter)
    rows = [_named(value, adapter) for value in sample]
    names = dict.fromkeys(name for row in rows for name in row if name not in ("url", "caption"))
    return {name: _column(name, [row.get(name) for row in rows]).type for name in names}


def _json_lines(data: bytes, adapter: Adapter, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Lines as rows, with the columns of the first lines and then those that these add, as text.

    What is no JSON object is its own caption.
    """
    lines = records.split_lines(data)
    columns: dict[str, list[Any]] = {name: [None] * len(lines) for name in ("url", "caption", *types)}
    for index, line in enumerate(lines):
        value = _json_object(line)
        row = {"caption": line.decode(errors="replace")} if value is None else _named(value, adapter)
        for name, item in row.items():
            if name not in columns:
                columns[name] = [None] * len(lines)
            columns[name][index] = item
    return pa.table({name: _column(name, values, types.get(name, pa.string())) for name, values in columns.items()})


def _named(value: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """A line's values by the names under which they travel, its own keys alone deciding which.

    Its url and its caption are those of the first wanted key that is not null, of which there may be none.
    """
    keys = list(value)
    there = [key for key in keys if not is_null(value[key])]
    found = [find_column(there, wanted) for wanted in (adapter.url, adapter.caption)]
    url, caption = (None if place is None else keys.index(there[place]) for place in found)
    names = travel_names(keys, url, caption)
    empty = {key for key in value.keys() - set(there) if plain_name(key) in adapter.url + adapter.caption}
    return {name: value[key] for name, key in zip(names, keys, strict=True) if key not in empty}


def _column(name: str, values: list[Any], settled: pa.DataType | None = None) -> pa.Array:
    """A column by the name under which it travels; sizes are known by it."""
    return column_of(name.removeprefix("source_"), values, settled)


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
