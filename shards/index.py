"""The index beside a shard: `<shard>.tar.idx`, byte offsets of its samples, as Megatron-Energon reads it.

The one decision behind this module: the file is byte for byte what `energon prepare` would write, so that other readers
take it as theirs, and a run of samples can be found for one ranged read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pyarrow as pa

from shards.manifest import ShardEntry
from shards.storage import Storage
from shards.tar import build_shard, group, scan

SUFFIX = ".idx"


class IndexDamaged(ValueError):
    """An index file is damaged: one line with its name."""


def offsets_of(buffer: pa.Buffer | memoryview | bytes) -> list[int]:
    """Offset of every sample's first header, then the end of the last sample (not the end of the file).

    Samples that share a key and are adjacent count as one, as they do for Energon. Raises `shards.tar.TarError`.
    """
    offsets: list[int] = []
    end = 0
    previous: str | None = None
    for sample in group(scan(buffer)):
        if sample.key != previous:
            offsets.append(sample.start)
        previous, end = sample.key, sample.stop
    return [*offsets, end]


def encode_index(offsets: Sequence[int]) -> bytes:
    """Little-endian unsigned 64-bit integers, nothing else: n samples give 8 * (n + 1) bytes."""
    return struct.pack(f"<{len(offsets)}Q", *offsets)


def decode_index(data: bytes, name: str = "index") -> list[int]:
    """The offsets in an index; `IndexDamaged` unless they are whole and ascending."""
    if not data or len(data) % 8:
        raise IndexDamaged(f"{name}: {len(data)} bytes are no list of 8-byte offsets: write the index again")
    offsets = list(struct.unpack(f"<{len(data) // 8}Q", data))
    for number, (left, right) in enumerate(pairwise(offsets)):
        if left >= right:
            raise IndexDamaged(f"{name}: offset {number + 1} is not above the one before it: write the index again")
    return offsets


def write_index(storage: Storage, tar: str, offsets: Sequence[int], durable: bool = False) -> None:
    """Writes the index of the shard `tar` (path below the storage's root) beside it."""
    storage.write(tar + SUFFIX, encode_index(offsets), durable)


def write_shard(
    storage: Storage, tar: str, samples: Iterable[tuple[str, Sequence[tuple[str, bytes]]]], durable: bool = False
) -> ShardEntry:
    """Writes samples, as `build_shard` takes them, as the shard `tar` with its index; what a manifest says of it."""
    shard = build_shard(samples, hashed=False)
    sha256 = storage.write_hashed(tar, shard.buffers, durable)
    write_index(storage, tar, shard.offsets, durable)
    return ShardEntry(url=tar, nsamples=len(shard.offsets) - 1, bytes=shard.size, sha256=sha256)


def read_index(storage: Storage, tar: str) -> list[int]:
    """Reads the index beside the shard `tar`: sample i lies at bytes [offsets[i], offsets[i + 1])."""
    name = tar + SUFFIX
    return decode_index(storage.read(name), storage.where(name))
