"""Are the keys of a data set unique? Answered in bounded memory for any number of keys.

The one decision behind this module: keys are compared by 128-bit hashes that are laid off into 256 files by their first
byte, and one file at a time is looked through: 10^8 keys need 2.4 GB of temporary disk and about 100 MB of memory.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import IO, Self

from shards.errors import explain

_HASH = 16  # bytes
_PLACE = struct.Struct("<II")
_RECORD = _HASH + _PLACE.size
# A bucket stays in memory up to this size: 64 MiB for all.
_SPOOL = 1 << 18


class KeyHashes:
    """Takes in the key hashes of shards, and tells which of them meet again in another shard.

    Raises `StorageError` where the temporary folder cannot be written, or is full.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._buckets: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        for _ in range(256):
            bucket = tempfile.SpooledTemporaryFile(_SPOOL, prefix="shards-keys-")
            self._buckets.append(bucket)
            self._stack.callback(_close, bucket)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, shard: int, hashes: bytes) -> None:
        """The samples of a shard: 16 bytes each, in their order."""
        with _told():
            for sample in range(len(hashes) // _HASH):
                digest = hashes[sample * _HASH : (sample + 1) * _HASH]
                self._buckets[digest[0]].write(digest + _PLACE.pack(shard, sample))

    def repeated(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """(shard, sample) of every key that another shard has too, after the place where it is first."""
        for bucket in self._buckets:
            with _told():
                bucket.seek(0)
                data = bucket.read()
            hashes = [data[at : at + _HASH] for at in range(0, len(data), _RECORD)]
            if len(set(hashes)) == len(hashes):
                continue
            places: dict[bytes, list[tuple[int, int]]] = {}
            for number, digest in enumerate(hashes):
                places.setdefault(digest, []).append(_PLACE.unpack_from(data, number * _RECORD + _HASH))
            for found in places.values():
                found.sort()
                for place in found[1:]:
                    if place[0] != found[0][0]:
                        yield found[0], place


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain("write to", "the temporary folder (TMPDIR)", error) from error


def _close(bucket: IO[bytes]) -> None:
    with suppress(OSError):  # what a full disk did not take: nobody will read it
        bucket.close()
