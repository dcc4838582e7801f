"""Archives that are not in memory as a whole: a part of one, or one that is walked from front to back.

The one decision behind this module: on an object store a walk over a tar's headers reads all of it, in blocks, and
holds two. A request for each header would wait 20 to 50 ms for 512 bytes, as long as megabytes take to arrive.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa

from shards.storage import Storage
from shards.tar import Window

# A multiple of a tar's blocks, so that no header lies in two. Members larger than this are skipped, not read.
BLOCK_BYTES = 8 << 20


class Part:
    """Bytes [start, start + n) of an archive of `size` bytes, by their positions in the archive."""

    def __init__(self, buffer: pa.Buffer, start: int, size: int) -> None:
        self._view, self._start, self._size = memoryview(buffer).cast("B"), start, size
        self._stop = start + len(self._view)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice, /) -> memoryview:
        start, stop, _ = key.indices(self._size)
        if start >= stop:
            return self._view[:0]
        if start < self._start or stop > self._stop:
            raise IndexError(f"bytes {start} to {stop} are not in this part")
        return self._view[start - self._start : stop - self._start]


@contextmanager
def walking(storage: Storage, path: str, size: int) -> Iterator[Window | pa.Buffer]:
    """A file of `size` bytes to be looked at from front to back: mapped, or two blocks of it at a time."""
    if storage.is_local:
        yield _Passed(storage.mapped(path)) if size else pa.py_buffer(b"")
        return
    with ThreadPoolExecutor(1) as ahead:
        yield _Blocks(storage.reader(path), size, ahead)


class _Passed:
    """A mapped file whose pages are let go once they are behind: the kernel maps whole neighbourhoods of what is read.

    Else planning, which walks over many tars side by side, would be told to hold all of them.
    """

    def __init__(self, file: mmap.mmap) -> None:
        self._file, self._view, self._behind = file, memoryview(file), 0

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, key: slice, /) -> memoryview:
        found = self._view[key]
        start = key.indices(len(self._view))[0]
        if start - self._behind > BLOCK_BYTES:
            self._file.madvise(mmap.MADV_DONTNEED, self._behind, start - self._behind & -mmap.PAGESIZE)
            self._behind = start & -mmap.PAGESIZE
        return found


class _Blocks:
    """The block in use, and the next one already on its way where blocks are used one after the other."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, ahead: ThreadPoolExecutor) -> None:
        self._read_at, self._size, self._ahead = read_at, size, ahead
        self._number, self._block = -1, b""
        self._next: tuple[int, Future[bytes]] | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice, /) -> bytes:
        start, stop, _ = key.indices(self._size)
        found = []
        while start < stop:
            number, offset = divmod(start, BLOCK_BYTES)
            piece = self._get(number)[offset : offset + stop - start]
            found.append(piece)
            start += len(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    def _get(self, number: int) -> bytes:
        if number != self._number:
            in_order = number == self._number + 1
            if self._next is not None and self._next[0] == number:
                self._block = self._next[1].result()
            else:
                self._block = self._read(number)
            self._number, self._next = number, None
            if in_order and (number + 1) * BLOCK_BYTES < self._size:
                self._next = number + 1, self._ahead.submit(self._read, number + 1)
        return self._block

    def _read(self, number: int) -> bytes:
        return self._read_at(number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self._size))
