"""Ledger rows of the committed units of a run or decision, unit by unit, for search and for counting.

The one decision: only units that the manifests name are opened, under names made of their ids. So nothing outside a run
is ever read, and a row that is found is one that the funnel counts.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from curation.opened import Opened, read_unit_ledger, unit_ledger_columns
from curation.units import Unit

# Beyond so many rows a run is looked into by key only: a search reads all of its captions.
MOST_ROWS = 5_000_000
KEY = re.compile(r"([0-9a-f]{12})-([0-9]{6}|[1-9][0-9]{6,8})\Z")
_READERS = 4


class NotHere(LookupError):
    """No such sample: one line."""


def read(opened: Opened, unit_id: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A unit's ledger rows. Raises `LedgerError`, `StorageError`."""
    return read_unit_ledger(opened.output, opened.name, Unit(unit_id, "", 0), columns)


def columns(opened: Opened, unit_id: str) -> list[str]:
    """The columns that a unit's ledger rows have. Raises `LedgerError`, `StorageError`."""
    return unit_ledger_columns(opened.output, opened.name, Unit(unit_id, "", 0))


def read_many(
    opened: Opened, unit_ids: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """Units with their ledger rows, in this order; some are read ahead."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = []
        for unit_id in unit_ids:
            waiting.append((unit_id, pool.submit(read, opened, unit_id, columns)))
            if len(waiting) > 2 * _READERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for unit_id, future in waiting:
            yield unit_id, future.result()


def unit_of(units: Sequence[str], key: str) -> str:
    """The id of a sample's unit. units: ids, sorted. Raises `NotHere`."""
    match = KEY.match(key)
    if match is not None:
        at = bisect_left(units, match[1])
        if at < len(units) and units[at].startswith(match[1]):
            return units[at]
    raise NotHere("no sample of this run has that key")


def rows_of(opened: Opened, units: Sequence[str], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of samples, in the order of their keys; those that are not there are left out.

    units: ids, sorted. Raises `NotHere` for what is no key of these units, `LedgerError`, `StorageError`.
    """
    wanted: dict[str, list[int]] = {}
    for key in keys:
        wanted.setdefault(unit_of(units, key), []).append(int(key.rpartition("-")[2]))
    found: dict[str, dict[str, Any]] = {}
    for unit_id, table in read_many(opened, list(wanted)):
        places = [place for place in wanted[unit_id] if place < len(table)]
        found.update((str(row["key"]), row) for row in table.take(pa.array(places, pa.int64())).to_pylist())
    return [found[key] for key in keys if key in found]
