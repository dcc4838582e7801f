"""URL lists as the sources ship them -> pieces -> rows.

The one decision: every record of a list is a row, also one that is damaged. What it holds of an address and a caption
is kept as it stands, so that a list's rows, a download's rows and the ledger's add up; a file that cannot be read at
all is an error. Nothing is written: a piece of a file is found again by its range, and read where it is fetched.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.fetch import records, text_lists
from curation.fetch.adapters import TEXT_KINDS, Adapter, Kind, find_columns, travel_names
from curation.fetch.columns import text_column, travelling
from curation.parquet_source import read_table
from curation.raw import SourceError
from shards.storage import Entry, Storage, StorageError

# Bytes of a Parquet column at a time: some releases are one row group of millions of rows.
_BUFFER = 4 << 20


@dataclass(frozen=True)
class Piece:
    """Some rows of a list, which become one shard: rows [start, stop) of Parquet or JSON, bytes [start, stop) of text.

    path: relative to the root of the lists. rows: how many there are.
    """

    path: str
    start: int
    stop: int
    rows: int


def cut_list(storage: Storage, entry: Entry, adapter: Adapter, rows: int) -> list[Piece]:
    """A file's pieces of `rows` rows (the last may have less), in its order; none where it has no row.

    Reads the footer of Parquet, all of a JSON object, and text once, block by block. Every line of a text is a row, an
    empty one too. Raises `SourceError` or `StorageError`, of one line.
    """
    kind = _kind(storage, entry.path, adapter)
    if kind in TEXT_KINDS:
        return list(_cut_text(storage, entry, adapter, kind, rows))
    if kind == "parquet":
        total = _parquet_rows(storage, entry.path, adapter)
    else:
        total = _json_rows(storage.uri, entry, adapter).num_rows
    starts = range(0, total, rows)
    return [Piece(entry.path, start, min(start + rows, total), min(rows, total - start)) for start in starts]


def read_piece(storage: Storage, piece: Piece, adapter: Adapter) -> pa.Table:
    """The rows of a piece, in the file's order: `url` and `caption` (string), then every other column it has.

    Other columns have the names of `adapters.travel_names` and the types of `columns.travelling`; those of JSON lines
    are settled by the file's first lines, and columns that come later are text. Text that is no UTF-8 shows U+FFFD.
    url and caption are null where a record has none; a JSON line that cannot be read is its own caption. Raises
    `SourceError` where the file is not the one that was cut.
    """
    kind = _kind(storage, piece.path, adapter)
    if kind == "parquet":
        table = _read_parquet(storage, piece, adapter)
    elif kind == "json":
        table = _json_rows(storage.uri, _entry(storage, piece.path), adapter).slice(piece.start, piece.rows)
    else:
        layout = text_lists.look(storage, piece.path, adapter, kind)
        data = bytes(storage.view_range(piece.path, piece.start, piece.stop))
        table = text_lists.read_rows(data, adapter, kind, layout)
    if table.num_rows != piece.rows:
        raise SourceError(
            f"{storage.where(piece.path)}: has other rows than when it was counted ({table.num_rows:,} instead of "
            f"{piece.rows:,} from {piece.start} to {piece.stop}): bring the old file back"
        )
    return table


def _kind(storage: Storage, path: str, adapter: Adapter) -> Kind:
    kind = adapter.kind_of(path)
    if kind is None:
        where = storage.where(path)
        if path.endswith(".gz"):
            raise SourceError(f"{where}: a compressed list cannot be read piece by piece: unpack it (gunzip) first")
        raise SourceError(f"{where}: the source comes as {' or '.join(adapter.kinds)}: is `download.source` right?")
    return kind


def _cut_text(storage: Storage, entry: Entry, adapter: Adapter, kind: Kind, rows: int) -> Iterator[Piece]:
    start = text_lists.look(storage, entry.path, adapter, kind).start
    held, stop = 0, start
    for ends in records.record_ends(storage, entry.path, start, entry.size, kind == "csv"):
        for mark in ends[rows - held - 1 :: rows].tolist():
            yield Piece(entry.path, start, mark, rows)
            start = mark
        held, stop = (held + len(ends)) % rows, int(ends[-1])
    if held:
        yield Piece(entry.path, start, stop, held)


def _parquet_rows(storage: Storage, path: str, adapter: Adapter) -> int:
    try:
        with storage.open_input(path) as source, pq.ParquetFile(source) as file:
            names, total = list(file.schema_arrow.names), int(file.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(storage, path, "Parquet file", error) from error
    find_columns(storage.where(path), names, adapter)
    return total


def _read_parquet(storage: Storage, piece: Piece, adapter: Adapter) -> pa.Table:
    """Reads the row groups that hold the piece, page by page, and decodes what lies before it in the first of them."""
    table = read_table(storage, piece.path, piece.start, piece.stop, buffer=_BUFFER)
    names, where = table.column_names, storage.where(piece.path)
    url, caption = find_columns(where, names, adapter)
    found: dict[str, Any] = {"url": None, "caption": None}
    for name, shipped, column in zip(travel_names(names, url, caption), names, table.columns, strict=True):
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if name not in ("url", "caption"):
            found[name] = travelling(shipped.strip().lower(), array)
            continue
        try:
            found[name] = text_column(array)
        except pa.ArrowException as error:
            raise SourceError(
                f"{where}: column {shipped} holds {array.type}, not text: is `download.source` right?"
            ) from error
    return pa.table(found)


@functools.lru_cache(maxsize=1)
def _json_rows(uri: str, entry: Entry, adapter: Adapter) -> pa.Table:
    """All rows of one JSON object of parallel lists, kept for the next piece: a million take seconds to parse."""
    storage = Storage.open(uri)
    where = storage.where(entry.path)
    try:
        data = json.loads(bytes(storage.view(entry.path)))
    except (ValueError, RecursionError) as error:
        raise _unreadable(storage, entry.path, "JSON file", error) from error
    if not isinstance(data, dict):
        shape = f"one object of lists, with {adapter.url[0]} and {adapter.caption[0]}"
        raise SourceError(f"{where}: must be {shape}: is `download.source` right?")
    lists = {name: values for name, values in data.items() if isinstance(values, list)}
    url, caption = find_columns(where, list(lists), adapter)
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise SourceError(f"{where}: its lists are of unequal length ({told}): fetch the file again")
    return text_lists.from_values(lists, url, caption)


def _entry(storage: Storage, path: str) -> Entry:
    """Size and time of a file; `NotFound` if there is none."""
    listed = (entry for entry in storage.list(path.rpartition("/")[0], path) if entry.path == path)
    return next(listed, None) or Entry(path, storage.size(path), None)


def _unreadable(storage: Storage, path: str, what: str, error: Exception) -> Exception:
    """One line for what a reader says; a `StorageError` says it itself."""
    if isinstance(error, StorageError):
        return error
    reason = " ".join(str(error).split())[:200]
    return SourceError(f"{storage.where(path)}: not a readable {what} ({reason}): fetch it again")
