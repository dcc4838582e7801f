"""The three kinds of work of a pack, each a function of a task that may run anywhere, and again.

The one decision behind this module: two passes. First every input shard is read once, from end to end, its hash
compared, and its samples are laid off by where they go (`spill`); then every output shard is put together from one
range of each spill file (`gather`). Reading samples where they lie would ask an object store once for each of them.
Where there are more than some hundred spill files, a round in between brings samples of many groups that go to
neighbouring shards together (`merge`): the number of requests then grows with shards to the power of 1.5, not 2.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from shards.check_files import KEY_HASH
from shards.errors import explain
from shards.index import SUFFIX, encode_index
from shards.manifest import ShardEntry
from shards.pack_order import Permutation
from shards.pack_plan import Group, PackError, Source, not_unique
from shards.pack_spill import Placed, joined, read_pieces, write_spill
from shards.storage import Storage
from shards.tar import END, TarError, TarSample, group, sample_pieces, scan

# Beside the packed shards until they are whole.
FOLDER = "_packing"
_REQUESTS = 8
_PIECE = 1 << 22


@dataclass(frozen=True)
class Spill:
    """Reads a group. cuts: the places at which its files' pieces begin, and the end; files: one for each part."""

    out: Storage
    group: Group
    order: Permutation
    cuts: tuple[int, ...]
    files: tuple[str, ...]
    keys: str
    limit: int  # bytes of an input shard that is held in memory; a larger one is copied to the local disk

    def __str__(self) -> str:
        return self.group.sources[0].where


@dataclass(frozen=True)
class Merge:
    """Takes one of `pieces` pieces of each file, and lays their samples off by finer cuts into the file `target`."""

    out: Storage
    files: tuple[str, ...]
    piece: int
    pieces: int
    cuts: tuple[int, ...]
    target: str

    def __str__(self) -> str:
        return self.out.where(self.target)


@dataclass(frozen=True)
class Gather:
    """Puts an output shard together from one of `pieces` pieces of each file: the places from `start` to `stop`."""

    out: Storage
    number: int
    files: tuple[str, ...]
    piece: int
    pieces: int
    start: int
    stop: int

    def __str__(self) -> str:
        return self.out.where(shard_name(self.number))


Task = Spill | Merge | Gather


@dataclass(frozen=True)
class Done:
    """A task's end. entry: of an output shard; left_out: files of the input that belong to no sample."""

    task: Task
    entry: ShardEntry | None = None
    left_out: int = 0


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def record_name(number: int) -> str:
    """Where an output shard's entry for the manifest waits: it says that the shard is done."""
    return f"{FOLDER}/done/{number:06d}.json"


def perform(task: Task) -> Done:
    """Does a task. Raises `PackError` and `StorageError`; what it did half counts for nothing."""
    try:
        if isinstance(task, Spill):
            return Done(task, left_out=spill(task))
        if isinstance(task, Merge):
            merge(task)
            return Done(task)
        return Done(task, gather(task))
    finally:
        # Arrow's allocator keeps what was given back, up to another shard.
        pa.default_memory_pool().release_unused()


def spill(task: Spill) -> int:
    """Lays a group's samples off; gives the number of files that belong to no sample, and are left out.

    The hashes of the keys are written last: they say that the group is done. Memory: the group's shards where they come
    from an object store, else what is mapped of them, and some 500 bytes for each sample.
    """
    given = task.group
    with ThreadPoolExecutor(1 if given.sources[0].storage.is_local else _REQUESTS) as pool:
        buffers = list(pool.map(lambda source: _load(source, task.limit), given.sources))
    places = task.order.places(given.first, given.first + given.nsamples)
    left_out = part = 0
    hashes = bytearray()
    placed: list[Placed] = []
    for source, buffer in zip(given.sources, buffers, strict=True):
        samples, strays = _samples(source, buffer)
        left_out += strays
        view = memoryview(buffer).cast("B")
        for sample in samples:
            number = len(hashes) // KEY_HASH
            placed.append(_placed(source, view, sample, places[number]))
            hashes += hashlib.blake2b(sample.key.encode("utf-8", "surrogateescape"), digest_size=KEY_HASH).digest()
            if number + 1 == given.rows(part).stop:
                write_spill(task.out, task.files[part], placed, task.cuts)
                part, placed = part + 1, []
    task.out.write(task.keys, hashes)
    return left_out


def merge(task: Merge) -> None:
    """Writes the samples of one piece of many files to one file."""
    write_spill(task.out, task.target, read_pieces(task.out, task.files, task.piece, task.pieces), task.cuts)


def gather(task: Gather) -> ShardEntry:
    """Writes an output shard and its index, and then the record that says so.

    Memory: the shard, and once more in an object store's upload.
    """
    samples = read_pieces(task.out, task.files, task.piece, task.pieces)
    samples.sort(key=lambda sample: sample.place)
    if [sample.place for sample in samples] != list(range(task.start, task.stop)):
        raise PackError(
            f"{task}: {len(samples):,} samples wait for it, {task.stop - task.start:,} should: remove "
            f"{task.out.where(FOLDER)} and run again"
        )
    pieces = joined([*(piece for sample in samples for piece in sample.pieces), END])
    offsets = list(accumulate((sample.size for sample in samples), initial=0))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    name = shard_name(task.number)
    task.out.write(name, pieces, durable=True)
    task.out.write(name + SUFFIX, encode_index(offsets), durable=True)
    entry = ShardEntry(url=name, nsamples=len(samples), bytes=offsets[-1] + len(END), sha256=digest.hexdigest())
    task.out.write(record_name(task.number), json.dumps(entry.model_dump()).encode())
    return entry


def _load(source: Source, limit: int) -> pa.Buffer:
    """An input shard as its manifest describes it: mapped, in memory, or mapped from a copy on the local disk."""
    storage, path = source.storage, source.path
    if storage.is_local or source.bytes <= limit:
        buffer = storage.view(path)
    else:
        try:
            with tempfile.NamedTemporaryFile(prefix="shards-pack-") as copy, storage.open_input(path) as remote:
                while piece := remote.read(_PIECE):
                    copy.write(piece)
                copy.flush()
                buffer = pa.memory_map(copy.name).read_buffer()
        except (OSError, pa.ArrowException) as error:
            raise explain("copy to a temporary file", source.where, error) from error
    if buffer.size != source.bytes:
        raise _damaged(source, f"{buffer.size:,} bytes, the manifest says {source.bytes:,}")
    if hashlib.sha256(buffer).hexdigest() != source.sha256:
        raise _damaged(source, "its sha256 is not the one in the manifest")
    return buffer


def _samples(source: Source, buffer: pa.Buffer) -> tuple[list[TarSample], int]:
    """A shard's samples, as many as its manifest says, and the number of files that belong to none."""
    try:
        members = list(scan(buffer))
    except TarError as error:
        raise _damaged(source, str(error)) from error
    samples = list(group(members))
    if len(samples) != source.nsamples:
        raise _damaged(source, f"{len(samples):,} samples, the manifest says {source.nsamples:,}")
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise not_unique(source, source, sample.key)
        seen.add(sample.key)
    return samples, len(members) - sum(len(sample.parts) for sample in samples)


def _placed(source: Source, view: memoryview, sample: TarSample, place: int) -> Placed:
    parts = [(name, view[member.offset : member.offset + member.size]) for name, member in sample.parts.items()]
    try:
        pieces = joined(sample_pieces(sample.key, parts))
    except ValueError as error:
        raise PackError(f"{source.where}: a sample that readers would see differently: {error}") from error
    return Placed(place, sum(map(len, pieces)), pieces)


def _damaged(source: Source, what: str) -> PackError:
    return PackError(f"{source.where}: {what}: replaced or damaged: restore it, or curate it again")
