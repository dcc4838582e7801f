"""Samples out of shards: chunks by one ranged read, or mapped, and what a key's members say.

The one decision: two kinds of faults. What a shard or its index lacks ends the run, in one line; what is wrong inside a
sample is a `BadSample`, to be counted: the web is full of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shards.import_samples import language_of
from shards.index import SUFFIX
from shards.manifest import place
from shards.schema import Caption, Sample, load_sample
from shards.storage import Storage, StorageError
from shards.tar import group, scan
from shards.window import Part
from trainer.data.source import Source, Whole
from trainer.errors import DataError

_IMAGES = ("jpg", "jpeg", "png", "webp")
_OPEN = 64  # shards that are kept open, with their indices: 80 KB for 10,000 samples


class BadSample(DataError):
    """A sample that cannot be read: shard, key and reason in one line."""


class Raw(NamedTuple):
    """A sample as it stands in its shard. images: files, in the order of the sample's; mapped on a local disk."""

    key: str
    sample: Sample
    images: tuple[bytes | memoryview, ...]


class Chunk(NamedTuple):
    """Consecutive samples of a shard, the first at `place` of all. offsets: of each, then the end."""

    shard: str
    source: int
    place: int
    offsets: Whole
    window: memoryview | Part


class Reader:
    """The shards of all sources, numbered through."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._shards = np.cumsum([0, *(len(source.urls) for source in sources)])
        self._places = np.concatenate([[0], np.cumsum(np.concatenate([source.counts for source in sources]))])
        self._opened = lru_cache(_OPEN)(self._open)

    def chunk(self, shard: int, start: int, stop: int) -> Chunk:
        """Samples [start, stop) of a shard. Raises `DataError` for a shard or an index that is not as it must be."""
        try:
            where, source, all_offsets, read = self._opened(shard)
            offsets = all_offsets[start : stop + 1]
            window = read(int(offsets[0]), int(offsets[-1]))
        except StorageError as error:
            raise DataError(str(error)) from error
        return Chunk(where, source, int(self._places[shard]) + start, offsets, window)

    def at(self, place: int) -> Chunk:
        """The sample at a place among all."""
        shard = int(np.searchsorted(self._places, place, "right")) - 1
        row = place - int(self._places[shard])
        return self.chunk(shard, row, row + 1)

    def _open(self, shard: int) -> tuple[str, int, Whole, Callable[[int, int], memoryview | Part]]:
        owner = int(np.searchsorted(self._shards, shard, "right")) - 1
        source, number = self._sources[owner], shard - int(self._shards[owner])
        home, path = place(source.storage, source.urls[number])
        storage = Storage.open(home) if home else source.storage
        data, where = storage.read(path + SUFFIX), storage.where(path)
        offsets = np.frombuffer(data, "<i8", len(data) // 8).astype(np.int64)
        count, size = int(source.counts[number]), int(source.sizes[number])
        if len(data) != 8 * (count + 1) or (np.diff(offsets, prepend=-1) <= 0).any() or offsets[-1] > size:
            raise DataError(f"{where}{SUFFIX}: no index of {count:,} samples in {size:,} bytes, as the manifest says")
        if not storage.is_local:
            read = storage.ranges(path)
            return where, owner, offsets, lambda left, right: Part(read(left, right), left, right)
        mapped = memoryview(storage.view(path))
        if len(mapped) != size:
            raise DataError(f"{where}: has {len(mapped):,} bytes, by the manifest {size:,} are needed: copy it again")
        return where, owner, offsets, lambda *_: mapped


def read_sample(chunk: Chunk, row: int) -> Raw:
    """The sample `row` of a chunk. Raises `BadSample`."""
    key, window = f"sample {chunk.place + row}", chunk.window
    try:
        found = list(group(scan(window, int(chunk.offsets[row]), int(chunk.offsets[row + 1]))))
        key = found[0].key if found else key
        if len(found) != 1:
            raise DataError(f"{len(found)} samples where the index has one")
        parts = {name: window[part.offset : part.offset + part.size] for name, part in found[0].parts.items()}
        record = json.loads(bytes(parts["json"])) if "json" in parts else {}
        if isinstance(record, dict) and "task" in record:
            sample = load_sample(bytes(parts["json"]))
            names: Sequence[str] = sample.images
        else:
            sample = _pair(bytes(parts.get("txt", b"")).decode())
            names = [name for name in _IMAGES if name in parts][:1] or ["jpg"]
        if missing := [name for name in names if name not in parts]:
            raise DataError(f"its image .{missing[0]} is missing")
    except (ValueError, RecursionError) as error:  # of tar, JSON, UTF-8 and schema
        raise BadSample(f"{chunk.shard}: {key!r}: {' '.join(str(error).split())}") from error
    # A sample that waits for its pack shall not hold the whole chunk; what is mapped costs nothing.
    held = bytes if isinstance(window, Part) else memoryview
    return Raw(key, sample, tuple(held(parts[name]) for name in names))


def first(source: Source, count: int) -> Iterator[Raw]:
    """The first `count` samples that can be read, in the manifest's order; others are told on stderr."""
    reader, given = Reader([source]), 0
    for place_ in range(source.nsamples):
        if given == count:
            return
        try:
            yield read_sample(reader.at(place_), 0)
            given += 1
        except BadSample as error:
            sys.stderr.write(f"warning: left out: {error}\n")


def _pair(text: str) -> Caption:
    """A curated pair names no language: Chinese where most letters are Han."""
    if not text.strip():
        raise DataError("no caption: neither a .txt with text nor a .json with a task")
    return Caption(text=text, language=language_of(text))
