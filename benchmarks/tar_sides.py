"""The ways of reading and writing tars that benchmarks.tars compares; one way in a process.

`read WAY TAR...` goes through all samples (the first tar is its start-up, not counted), `check WAY TAR...` gives the
hash of what it read, `write WAY TAR FOLDER N [durable]` writes the samples of a tar N times after a first time that
does not count; durable: each time onto the disk. What the work took is told as one line of JSON. The peer's interpreter
runs this too and has nothing but the peer, so everything else is imported where it is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Bytes = bytes | memoryview
# A sample alike for all: key, image, caption, JSON.
Plain = tuple[str, Bytes, Bytes, Bytes]
# A plain copy takes and gives so much at once: below and above it costs more.
PIECE = 1 << 20
# tarfile streams with blocks of 10 KiB unless told otherwise; 64 KiB is its best, 1 MiB is three times as slow.
TARFILE_BLOCK = 1 << 16


def copy(paths: Sequence[str]) -> Iterator[int]:
    """The bytes into memory, into one buffer that is used again; gives their number by file."""
    buffer = bytearray(PIECE)
    for path in paths:
        total = 0
        with open(path, "rb", buffering=0) as file:
            while read := file.readinto(buffer):
                total += read
        yield total


def stream(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Python's tarfile as a stream, its members grouped at their first dot."""
    for path in paths:
        key, parts = "", dict[str, bytes]()
        with tarfile.open(path, "r|", bufsize=TARFILE_BLOCK) as tar:
            for member in tar:
                name, _, extension = member.name.partition(".")
                if name != key:
                    if parts:
                        yield key, parts
                    key, parts = name, {}
                file = tar.extractfile(member)
                assert file is not None
                parts[extension] = file.read()
                vars(tar)["members"] = []  # else it remembers every member that it has seen
        if parts:
            yield key, parts


def webdataset(paths: Sequence[str]) -> Iterable[dict[str, Any]]:
    import webdataset as wds

    dataset: Iterable[dict[str, Any]] = wds.WebDataset(list(paths), shardshuffle=False)
    return dataset


def members(take: Callable[[memoryview], Bytes]) -> Callable[[Sequence[str]], Iterator[tuple[str, dict[str, Bytes]]]]:
    """shards.tar on mapped files. take: what is made of a member's bytes."""

    def read(paths: Sequence[str]) -> Iterator[tuple[str, dict[str, Bytes]]]:
        from shards.storage import Storage
        from shards.tar import group, scan

        for path in paths:
            folder, name = os.path.split(path)
            view = memoryview(Storage.open(folder).view(name)).cast("B")
            for sample in group(scan(view)):
                yield (
                    sample.key,
                    {
                        extension: take(view[member.offset : member.offset + member.size])
                        for extension, member in sample.parts.items()
                    },
                )

    return read


def units(take: Callable[[memoryview], Bytes]) -> Callable[[Sequence[str]], Iterator[tuple[Any, ...]]]:
    """curation.sources: rows of a unit, the caption as text, the JSON as a mapping. take: what is made of an image."""

    def read(paths: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        from curation.profile import Input, Profile
        from curation.sources import read_unit
        from curation.units import Unit
        from filters.text_length import TextLength
        from shards.storage import Storage

        for path in paths:
            folder, name = os.path.split(path)
            profile = Profile(
                name="tars",
                mappers=(),
                filters={"text_length": TextLength()},
                input=Input(path=folder, format="webdataset"),
            )
            raw = read_unit(profile, Storage.open(folder), Unit(name, name, os.path.getsize(path)))
            for key, image, caption, columns in zip(raw.keys, raw.images, raw.captions, raw.columns, strict=True):
                assert image is not None
                yield key, take(image), caption, columns

    return read


READERS: dict[str, Callable[[Sequence[str]], Iterable[Any]]] = {
    "copy": copy,
    "webdataset": webdataset,
    "tarfile": stream,
    "members": members(bytes),
    "member views": members(memoryview),
    "unit": units(bytes),
    "unit views": units(memoryview),
}


def plain(sample: Any) -> Plain:
    """A sample of any of the readers."""
    if len(sample) == 4 and isinstance(sample, tuple):
        key, image, caption, columns = sample
        return key, image, caption.encode(), json.dumps(columns).encode()
    if isinstance(sample, dict):
        key, parts = sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}
    else:
        key, parts = sample
    images = [data for name, data in parts.items() if name not in ("txt", "json")]
    assert len(images) == 1, f"{key}: {sorted(parts)}"
    return key, images[0], parts["txt"], parts["json"]


def digest(samples: Iterable[Any]) -> str:
    """sha256 of all keys and bytes, in their order."""
    found = hashlib.sha256()
    for sample in samples:
        key, *parts = plain(sample)
        found.update(json.dumps([key, *map(len, parts)]).encode())
        for part in parts:
            found.update(part)
    return found.hexdigest()


# --- writing: each way is given the samples and the tar they came from, and gives a function that writes them once ---

Samples = Sequence[tuple[str, dict[str, bytes]]]


class Flushed(io.FileIO):
    """A file whose bytes are on the disk once it is closed."""

    def close(self) -> None:
        if not self.closed:
            os.fsync(self.fileno())
        super().close()


def write_copy(samples: Samples, tar: str, durable: bool) -> Callable[[str, int], None]:
    """The tar's bytes, which lie in memory."""
    with open(tar, "rb") as file:
        data = memoryview(file.read())

    def write(folder: str, number: int) -> None:
        with (Flushed if durable else io.FileIO)(f"{folder}/{number:05d}.tar", "w") as out:
            for start in range(0, len(data), PIECE):
                out.write(data[start : start + PIECE])

    return write


def write_webdataset(samples: Samples, tar: str, durable: bool) -> Callable[[str, int], None]:
    """Bytes as they are (`encoder=False`), in a file with a buffer of 1 MiB: its quickest."""
    from webdataset import ShardWriter

    made = [{"__key__": key, **parts} for key, parts in samples]

    def write(folder: str, number: int) -> None:
        with ShardWriter(
            f"{folder}/{number:05d}-%06d.tar",
            maxcount=len(made),
            maxsize=2**62,
            verbose=0,
            encoder=False,
            mtime=0,
            opener=lambda name: io.BufferedWriter((Flushed if durable else io.FileIO)(name, "w"), PIECE),
        ) as writer:
            for sample in made:
                writer.write(sample)

    return write


def write_shards(samples: Samples, tar: str, durable: bool) -> Callable[[str, int], None]:
    """shards.index: the tar, its index, and the sha256 that manifests hold."""
    from shards.index import write_shard
    from shards.storage import Storage

    made = [(key, list(parts.items())) for key, parts in samples]

    def write(folder: str, number: int) -> None:
        write_shard(Storage.open(folder), f"{number:05d}.tar", made, durable)

    return write


def write_unhashed(samples: Samples, tar: str, durable: bool) -> Callable[[str, int], None]:
    """The same but for the sha256: what it costs is the difference."""
    import shards.local_file

    nothing = types.SimpleNamespace(update=lambda data: None, hexdigest=lambda: "0" * 64)
    vars(shards.local_file)["hashlib"] = types.SimpleNamespace(sha256=lambda: nothing)
    return write_shards(samples, tar, durable)


WRITERS: dict[str, Callable[[Samples, str, bool], Callable[[str, int], None]]] = {
    "copy": write_copy,
    "webdataset": write_webdataset,
    "shards": write_shards,
    "unhashed": write_unhashed,
}


def main(arguments: Sequence[str]) -> int:
    what, way, *rest = arguments
    if what == "check":
        told: dict[str, Any] = {"sha256": digest(READERS[way](rest))}
    elif what == "read":
        for _ in READERS[way](rest[:1]):
            pass
        used = Used()
        with used:
            count = sum(1 for _ in READERS[way](rest[1:])) if rest[1:] else 0
        told = {"count": count, **vars(used)}
    else:
        tar, folder, times, *durable = rest
        told = vars(write(WRITERS[way](list(stream([tar])), tar, bool(durable)), folder, int(times)))
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


def write(writer: Callable[[str, int], None], folder: str, times: int) -> Used:
    """Each tar is removed before the next comes, not counted: all sides get memory that was just in use, and no disk.

    A virtual machine's free memory may cost, at its first touch, several times what the write does.
    """
    used = Used()
    for number in range(-1, times):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        if number < 0:
            writer(folder, 0)
        else:
            with used:
                writer(folder, number)
    return used


class Used:
    """Adds up what this process uses inside `with`: seconds in program, kernel and on the clock, and page faults."""

    def __init__(self) -> None:
        self.user = self.system = self.wall = 0.0
        self.faults = 0

    def __enter__(self) -> None:
        self._add(-1)

    def __exit__(self, *_: object) -> None:
        self._add(1)

    def _add(self, sign: int) -> None:
        found = resource.getrusage(resource.RUSAGE_SELF)
        self.user += sign * found.ru_utime
        self.system += sign * found.ru_stime
        self.faults += sign * found.ru_minflt
        self.wall += sign * time.perf_counter()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
