"""Which shards are fetched, told by their stats; what was once read of them is kept in `_done.parquet`.

The one decision: the truth is what stands beside the tars, so the kept table is believed only for stats of the very
size and time that it was read from. Without it a download of five billion rows would read 500,000 small files to begin.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from curation.fetch.catalogue import STATS
from curation.fetch.worker import Fetched
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


class _Told(NamedTuple):
    """What the stats of a shard say: sizes of its files, counts, reasons as JSON."""

    tar: int
    parquet: int
    listed: int
    arrived: int
    reasons: str


def done_shards(output: Storage) -> dict[str, Fetched]:
    """Name -> how it ended, of every shard whose stats stand and whose files have the sizes that they name."""
    entries = {entry.path: entry for entry in output.list()}
    kept = _kept(output, entries)
    told: dict[tuple[str, int, float | None], _Told] = {}
    unknown: list[tuple[str, int, float | None]] = []
    for path, entry in entries.items():
        if path.endswith(STATS):
            mark = (path.removesuffix(STATS), entry.size, entry.mtime)
            if mark in kept:
                told[mark] = kept[mark]
            else:
                unknown.append(mark)
    if unknown:
        with ThreadPoolExecutor(_READERS) as pool:
            found = zip(unknown, pool.map(lambda mark: _read(output, mark[0]), unknown), strict=True)
            told.update((mark, row) for mark, row in found if row is not None)
    if told.keys() != kept.keys():
        _keep(output, told)
    done = {}
    for (name, _, _), row in told.items():
        tar, parquet = entries.get(f"{name}.tar"), entries.get(f"{name}.parquet")
        if tar is not None and parquet is not None and (tar.size, parquet.size) == (row.tar, row.parquet):
            done[name] = Fetched(int(name), row.listed, row.arrived, reasons=json.loads(row.reasons))
    return done


def _kept(output: Storage, entries: dict[str, Entry]) -> dict[tuple[str, int, float | None], _Told]:
    if NAME not in entries:
        return {}
    try:
        with output.open_input(NAME) as file:
            columns = [column.to_pylist() for column in pq.read_table(file, schema=_SCHEMA).columns]
    except (pa.ArrowException, ValueError, KeyError, OSError):
        return {}  # read anew from the stats
    rows = zip(*columns, strict=True)
    # A store that tells no times could hide a change of equal size.
    return {(name, size, mtime): _Told(*rest) for name, size, mtime, *rest in rows if mtime is not None}


def _keep(output: Storage, told: dict[tuple[str, int, float | None], _Told]) -> None:
    rows = [(*mark, *row) for mark, row in told.items()]
    table = pa.table([pa.array([row[at] for row in rows], f.type) for at, f in enumerate(_SCHEMA)], _SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    output.write(NAME, sink.getvalue())


def _read(output: Storage, name: str) -> _Told | None:
    """What the stats of a shard say; None where they say nothing, so that the shard is fetched again."""
    try:
        stats = json.loads(output.read(f"{name}{STATS}"))
        int(name)
        reasons = json.dumps({str(why): int(count) for why, count in stats["reasons"].items()})
        tar, parquet = (int(stats[kind]["bytes"]) for kind in ("tar", "parquet"))
        return _Told(tar, parquet, int(stats["count"]), int(stats["successes"]), reasons)
    except (ValueError, KeyError, TypeError, AttributeError, NotFound):
        return None
