"""Which shards are fetched, told by their stats; what was once read of them is kept in `_done.parquet`.

The one decision: the truth is what stands beside the tars, so the kept table is believed only for stats of the very
size and time that it was read from. Without it a download of five billion rows would read 500,000 small files to begin.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.fetch.worker import STATS, Fetched
from shards.storage import Entry, NotFound, Storage

NAME = "_done.parquet"
_READERS = 16  # object stores answer in 50 ms each
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("stats_bytes", pa.int64()),
        ("stats_mtime", pa.float64()),
        ("tar", pa.int64()),
        ("parquet", pa.int64()),
        ("listed", pa.int64()),
        ("arrived", pa.int64()),
        ("reasons", pa.string()),
    ]
)


def done_shards(output: Storage) -> dict[str, Fetched]:
    """Name -> how it ended, of every shard whose stats stand and whose files have the sizes that they name."""
    entries = {entry.path: entry for entry in output.list()}
    known = {(row["name"], row["stats_bytes"], row["stats_mtime"]): row for row in _kept(output, entries)}
    stats = [entry for path, entry in entries.items() if path.endswith(STATS)]

    def look(entry: Entry) -> dict[str, Any] | None:
        name = entry.path.removesuffix(STATS)
        return known.get((name, entry.size, entry.mtime)) or _read(output, name, entry)

    with ThreadPoolExecutor(_READERS) as pool:
        rows = [row for row in pool.map(look, stats) if row is not None]
    if any((row["name"], row["stats_bytes"], row["stats_mtime"]) not in known for row in rows) or len(rows) < len(
        known
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink)
        output.write(NAME, sink.getvalue())
    return {
        row["name"]: Fetched(int(row["name"]), row["listed"], row["arrived"], reasons=json.loads(row["reasons"]))
        for row in rows
        if all((at := entries.get(f"{row['name']}.{kind}")) and at.size == row[kind] for kind in ("tar", "parquet"))
    }


def _kept(output: Storage, entries: dict[str, Entry]) -> list[dict[str, Any]]:
    if NAME not in entries:
        return []
    try:
        with output.open_input(NAME) as file:
            rows: list[dict[str, Any]] = pq.read_table(file, schema=_SCHEMA).to_pylist()
    except (pa.ArrowException, ValueError, KeyError, OSError):
        return []  # read anew from the stats
    return rows


def _read(output: Storage, name: str, entry: Entry) -> dict[str, Any] | None:
    """What the stats of a shard say; None where they say nothing, so that the shard is fetched again."""
    try:
        stats = json.loads(output.read(entry.path))
        return {
            "name": str(int(name)).zfill(len(name)),
            "stats_bytes": entry.size,
            "stats_mtime": entry.mtime,
            "tar": int(stats["tar"]["bytes"]),
            "parquet": int(stats["parquet"]["bytes"]),
            "listed": int(stats["count"]),
            "arrived": int(stats["successes"]),
            "reasons": json.dumps({str(why): int(count) for why, count in stats["reasons"].items()}),
        }
    except (ValueError, KeyError, TypeError, AttributeError, NotFound):
        return None
