"""Pictures of samples: thumbnails that units keep for review, and small copies of kept images out of the shards.

The one decision: whatever is sent was drawn by us as a small JPEG. No byte of a source's image reaches a browser, and a
sample that was dropped has a picture only if its unit kept one for review: nothing is fetched again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.dashboard import rows
from curation.dashboard.rows import NotHere
from curation.opened import Opened
from curation.report.gallery import UNITS, is_thumbnail
from curation.unit import thumbnail
from shards.index import SUFFIX, IndexDamaged, decode_index
from shards.storage import NotFound
from shards.tar import TarError, group, scan

# Pixels of the longer side.
SIDE = 320
# Thumbnails (some 10 KB each) and units that are remembered: all from which samples are shown beside a line.
_PICTURES, _UNITS = 2_000, UNITS + 8
# Images are decoded one after the other: one of the largest that Pillow takes needs half a gigabyte.
_DRAWING = threading.Lock()
_IMAGES = ("jpg", "jpeg", "png", "webp")

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Keeps what was made last. making: under which it is made, so that of two who want the same one makes it."""

    def __init__(self, most: int, making: AbstractContextManager[Any] | None = None) -> None:
        self._most, self._making = most, making if making is not None else nullcontext()
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        if (found := self._find(key)) is not None:
            return found[0]
        with self._making:
            if (found := self._find(key)) is not None:  # made while this one waited
                return found[0]
            made = make()
            with self._lock:
                self._held[key] = made
                while len(self._held) > self._most:
                    self._held.popitem(last=False)
            return made

    def _find(self, key: Key) -> tuple[Value] | None:
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return (self._held[key],)


@dataclass(frozen=True)
class _Unit:
    """`review`: its review samples by key, as rows; `kept`: places of the kept rows in the ledger, in their order."""

    review: dict[str, dict[str, Any]]
    kept: np.ndarray[Any, np.dtype[np.int64]]
    offsets: list[int]  # of the kept samples in the shard


class Pictures:
    """Of one run. opened: the run itself, which has the shards and review samples, also for its later decisions."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._units: Recent[str, _Unit] = Recent(_UNITS)
        self._made: Recent[str, bytes | None] = Recent(_PICTURES, _DRAWING)

    def review(self, unit_id: str) -> dict[str, dict[str, Any]]:
        """The review samples of a unit by key; none where they are gone or damaged."""
        return self._unit(unit_id).review

    def places(self, unit_id: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows of a unit, ascending, of whose samples there are pictures."""
        unit = self._unit(unit_id)
        review = [int(key.rpartition("-")[2]) for key, row in unit.review.items() if is_thumbnail(row["thumbnail"])]
        return np.union1d(unit.kept[: max(len(unit.offsets) - 1, 0)], np.array(review, np.int64))

    def has(self, unit_id: str, key: str) -> bool:
        """Whether there is a picture of a sample of this unit."""
        return bool(np.isin(int(key.rpartition("-")[2]), self.places(unit_id)))

    def picture(self, unit_id: str, key: str) -> bytes:
        """A JPEG. Raises `NotHere`, `StorageError`."""
        made = self._made.get(key, lambda: self._make(unit_id, key))
        if made is None:
            raise NotHere("there is no picture of this sample")
        return made

    def _make(self, unit_id: str, key: str) -> bytes | None:
        unit = self._unit(unit_id)
        found = unit.review.get(key, {}).get("thumbnail")
        place = np.flatnonzero(unit.kept == int(key.rpartition("-")[2]))
        if len(place) and place[0] + 1 < len(unit.offsets):
            start, stop = unit.offsets[place[0]], unit.offsets[place[0] + 1]
            made = self._from_shard(unit_id, start, stop)
            if made is not None:
                return made
        return thumbnail(memoryview(found), SIDE) if found is not None and is_thumbnail(found) else None

    def _from_shard(self, unit_id: str, start: int, stop: int) -> bytes | None:
        try:
            piece = self._opened.output.view_range(f"shards/{unit_id[:12]}.tar", start, stop)
            for sample in group(scan(piece)):
                for ending in _IMAGES:
                    if ending in sample.parts:
                        member = sample.parts[ending]
                        return thumbnail(memoryview(piece)[member.offset : member.offset + member.size], SIDE)
        except (NotFound, TarError):  # the shards were moved away, or the unit is being made anew
            return None
        return None

    def _unit(self, unit_id: str) -> _Unit:
        return self._units.get(unit_id, lambda: self._read(unit_id))

    def _read(self, unit_id: str) -> _Unit:
        output, short = self._opened.output, unit_id[:12]
        reasons = rows.read(self._opened, unit_id, ["reason"]).column("reason")
        kept = np.flatnonzero(np.asarray(pc.is_null(reasons), dtype=bool))
        try:
            table = pq.read_table(pa.BufferReader(output.read(f"samples/{short}.parquet")))
            review = {str(row["key"]): row for row in table.to_pylist()}
        except (NotFound, pa.ArrowException, OSError, KeyError):
            review = {}
        try:
            offsets = decode_index(output.read(f"shards/{short}.tar{SUFFIX}"), short)
        except (NotFound, IndexDamaged):
            offsets = []
        return _Unit(review, kept, offsets)
