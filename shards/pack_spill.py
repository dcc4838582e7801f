"""Files in which samples wait between two steps of a pack, laid off by where they go.

The one decision behind this module: a file has one piece for each destination, samples in the order of their places, as
the bytes that they will be in an output shard. So a destination takes one range of each file, an output shard is these
ranges' samples put in order, and S3 is asked for ranges of megabytes, never for samples.

A file: `pieces + 1` offsets (uint64) and `pieces` CRC-32 (uint32), then the pieces. A piece: the number of its samples
(uint64), their places (uint64 each), their sizes (uint64 each), their bytes. All little-endian.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

from shards.pack_plan import PackError
from shards.storage import CutOff, Storage

# Requests at a time to an object store: each waits tens of milliseconds.
_REQUESTS = 16
Bytes = bytes | memoryview


class Placed(NamedTuple):
    """A sample at its place among all, in pieces to be written one after the other."""

    place: int
    size: int
    pieces: Sequence[Bytes]


def write_spill(storage: Storage, path: str, samples: list[Placed], cuts: Sequence[int]) -> None:
    """Writes samples to a file with a piece for each range of places between two `cuts`."""
    samples.sort(key=lambda sample: sample.place)
    laid: list[list[Placed]] = [[] for _ in cuts[1:]]
    for sample in samples:
        laid[bisect_right(cuts, sample.place) - 1].append(sample)
    sums, sizes, data = [], [_head_size(len(laid))], list[Bytes]()
    for piece in laid:
        if not piece:
            sums.append(0)
            sizes.append(0)
            continue
        table = (len(piece), *(sample.place for sample in piece), *(sample.size for sample in piece))
        found = joined([struct.pack(f"<{len(table)}Q", *table), *(part for sample in piece for part in sample.pieces)])
        sum_ = 0
        for part in found:
            sum_ = zlib.crc32(part, sum_)
        sums.append(sum_)
        sizes.append(sum(map(len, found)))
        data += found
    storage.write(path, [struct.pack(f"<{len(sizes)}Q{len(sums)}I", *accumulate(sizes), *sums), *data])


def read_pieces(storage: Storage, paths: Iterable[str], piece: int, pieces: int) -> list[Placed]:
    """The samples of one piece of every file, not in order.

    A file that was damaged on a disk is removed, so that the next call makes it again, and is a `PackError`.
    """

    def read(path: str) -> list[Placed]:
        try:
            return _read(storage, path, piece, pieces)
        except _Damaged as error:
            storage.delete(path)
            raise PackError(
                f"{storage.where(path)}: damaged since it was written (a power cut?): removed it: run again"
            ) from error

    with ThreadPoolExecutor(1 if storage.is_local else _REQUESTS) as pool:
        return [sample for found in pool.map(read, paths) for sample in found]


def joined(pieces: Iterable[Bytes]) -> list[Bytes]:
    """The same bytes with neighbours of type bytes put together."""
    found: list[Bytes] = []
    loose: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            loose.append(piece)
        else:
            if loose:
                found.append(b"".join(loose))
                loose = []
            found.append(piece)
    if loose:
        found.append(b"".join(loose))
    return found


class _Damaged(Exception):
    pass


def _head_size(pieces: int) -> int:
    return 8 * (pieces + 1) + 4 * pieces


def _read(storage: Storage, path: str, piece: int, pieces: int) -> list[Placed]:
    size = _head_size(pieces)
    # Read, not mapped: a mapping takes in pages around the piece, those of hundreds of files at a time.
    read_range = storage.ranges(path)
    try:
        head = read_range(0, size)
        start, stop = struct.unpack_from("<2Q", head, 8 * piece)
        (sum_,) = struct.unpack_from("<I", head, 8 * (pieces + 1) + 4 * piece)
        if not size <= start <= stop:
            raise _Damaged
        if start == stop:
            return []
        data = memoryview(read_range(start, stop))
    except CutOff as error:
        raise _Damaged from error
    if zlib.crc32(data) != sum_:
        raise _Damaged
    (count,) = struct.unpack_from("<Q", data)
    table = struct.unpack_from(f"<{2 * count}Q", data, 8)
    places, ends = table[:count], list(accumulate(table[count:], initial=8 + 16 * count))
    return [
        Placed(place, stop - start, (data[start:stop],))
        for place, start, stop in zip(places, ends[:-1], ends[1:], strict=True)
    ]
