"""The samples with a picture whose scores are nearest to a line, on both of its sides.

The one decision: a score's samples are sorted once and then only looked up, so that pictures follow a dragged line; and
they come from at most so many units, those with the smallest ids, as the report's do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.dashboard import rows
from curation.dashboard.pictures import Pictures
from curation.opened import Opened
from curation.report.gallery import UNITS

# Samples of one side; characters of a caption.
MOST, _CAPTION = 12, 160
# While a run grows its samples are read again at most so often, seconds.
_AGAIN_S = 30.0
# A million rows' samples take some 40 MB: captions of those with a picture, and their places.
_COLUMNS = ("caption", "reason")

Floats = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Neighbour:
    """A sample beside a line."""

    key: str
    score: float
    caption: str | None
    reason: str | None


@dataclass(frozen=True)
class _Sorted:
    """Samples by ascending score. `rows`: their places in the table of captions and reasons. single: of 32 bits."""

    scores: Floats
    rows: Places
    single: bool


class Near:
    """Of one run or decision. opened: whose scores count; pictures: of the run that it belongs to."""

    def __init__(self, opened: Opened, pictures: Pictures) -> None:
        self._opened, self._pictures = opened, pictures
        self._lock = threading.Lock()
        self._units: list[str] = []
        self._read_at = 0.0
        self._samples: pa.Table | None = None  # key, caption and reason of every sample with a picture
        self._places: list[Places] = []
        self._sorted: dict[str, _Sorted] = {}

    def samples(
        self, units: Sequence[str], score: str, x: float, count: int, at_most: bool = False
    ) -> tuple[list[Neighbour], list[Neighbour]]:
        """Samples below x, and those at or above it, the nearest first; at_most: at or below it, and above.

        units: ids, sorted. score: a column of the ledger, whose type x takes, as a threshold does. Raises
        `LedgerError`, `StorageError`.
        """
        with self._lock:
            samples = self._read(list(units[:UNITS]))
            if score not in self._sorted:
                self._sorted[score] = self._sort(score)
            found = self._sorted[score]
        x = float(np.float32(x)) if found.single else x
        at = int(np.searchsorted(found.scores, x, side="right" if at_most else "left"))
        below = list(range(at - 1, max(at - 1 - count, -1), -1))
        above = list(range(at, min(at + count, len(found.scores))))
        return _taken(samples, found, below), _taken(samples, found, above)

    def _read(self, units: list[str]) -> pa.Table:
        """The samples with a picture; read again where other units count now."""
        recent = time.monotonic() - self._read_at < _AGAIN_S
        if self._samples is None or (units != self._units and not recent):
            parts, self._places, self._sorted = [], [], {}
            for unit_id, table in rows.read_many(self._opened, units, ["key", *_COLUMNS]):
                there = self._pictures.places(unit_id)
                self._places.append(there)
                table = table.take(pa.array(there))
                short = pc.utf8_slice_codeunits(table.column("caption"), 0, _CAPTION)
                parts.append(table.set_column(1, "caption", short))
            self._units, self._read_at = units, time.monotonic()
            self._samples = (
                pa.concat_tables(parts).combine_chunks() if parts else pa.table({"key": pa.array([], "string")})
            )
        return self._samples

    def _sort(self, score: str) -> _Sorted:
        found, single = [], False
        tables = rows.read_many(self._opened, self._units, [score])
        for (_, table), places in zip(tables, self._places, strict=True):
            single |= pa.types.is_float32(table.schema.field(score).type)
            values = table.column(score).cast(pa.float64()).to_numpy(zero_copy_only=False)
            found.append(values[places])
        scores = np.concatenate(found) if found else np.empty(0)
        order = np.argsort(scores, kind="stable")
        order = order[: int(np.count_nonzero(~np.isnan(scores)))]  # what was not scored is sorted last
        return _Sorted(scores[order], order, single)


def _taken(samples: pa.Table, found: _Sorted, at: list[int]) -> list[Neighbour]:
    picked = samples.take(pa.array(found.rows[at], pa.int64())).to_pylist() if at else []
    return [
        Neighbour(row["key"], float(found.scores[index]), row["caption"], row["reason"])
        for row, index in zip(picked, at, strict=True)
    ]
