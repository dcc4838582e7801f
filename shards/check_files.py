"""What is checked of one shard, and of any file that a manifest describes; runs in a worker.

The one decision behind this module: whatever is damaged becomes a line, never an exception. A file is first read from
end to end and its hash compared; a tar is looked into even if its hash is wrong: its reader is our own, and says where
the damage is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shards.errors import explain
from shards.index import SUFFIX, IndexDamaged, decode_index
from shards.schema import SchemaError, load_sample
from shards.storage import NotFound, Storage, StorageError
from shards.tar import TarError, TarSample, group, scan

IMAGES = frozenset(("jpg", "jpeg", "png", "webp"))
KEY_HASH = 16  # bytes
_PIECE = 1 << 22
Count = Annotated[int, Field(ge=0)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Fault(NamedTuple):
    """A file, and what is wrong with it."""

    path: str
    what: str


class Described(BaseModel):
    """Strict about what is compared; other fields are allowed."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class File(Described):
    """A file as a manifest describes it."""

    path: str
    bytes: Count
    sha256: Hash


@dataclass(frozen=True)
class ShardTask:
    """A shard of a data set without units. name: as the manifest calls it; sizes: of the tar and its index."""

    storage: Storage
    name: str
    file: File
    nsamples: int
    sizes: Mapping[str, int]
    fast: bool


@dataclass
class Checked:
    """What came out of a unit or a shard. `keys`: `KEY_HASH` bytes for each sample, in their order."""

    name: str
    faults: list[Fault] = field(default_factory=list)
    samples: int = 0
    rows: int = 0
    size: int = 0  # bytes read
    keys: bytes = b""


class Lines:
    """Faults of one file; of those alike only the first is a line, with the number of the others."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, kind: str, what: str) -> None:
        first, more = self._found.get(kind, (what, -1))
        self._found[kind] = (first, more + 1)

    def faults(self) -> list[Fault]:
        return [
            Fault(self._path, f"{what} (and {more:,} more like it)" if more else what)
            for what, more in self._found.values()
        ]


def check_shard(task: ShardTask) -> Checked:
    """Checks a shard; never raises for what is damaged."""
    done = Checked(task.name)
    index = task.file.path + SUFFIX
    known = compare_sizes(done, task.sizes, {task.file.path: task.file.bytes, index: 8 * (task.nsamples + 1)})
    if task.fast:
        done.samples = task.nsamples
        return done
    if task.file.path in known:
        with reading(done, task.storage, task.file) as buffer:
            if buffer is not None:
                offsets = look_into(done, buffer, task.file.path, task.nsamples, None)
                if index in known and offsets is not None:
                    compare_index(done, task.storage, index, offsets)
    # A shard that lies elsewhere is called what the manifest calls it.
    done.faults = [Fault(task.name + fault.path.removeprefix(task.file.path), fault.what) for fault in done.faults]
    return done


def compare_sizes(done: Checked, listed: Mapping[str, int], expected: Mapping[str, int]) -> set[str]:
    """The files that stand; a line for every one that is missing or of another size."""
    for path, size in expected.items():
        if path not in listed:
            done.faults.append(Fault(path, "missing"))
        elif listed[path] != size:
            done.faults.append(Fault(path, f"{listed[path]:,} bytes, the manifest says {size:,}"))
    return {path for path in expected if path in listed}


@contextmanager
def reading(done: Checked, storage: Storage, file: File) -> Iterator[pa.Buffer | None]:
    """A file's bytes after its hash was compared; None if it cannot be read.

    Memory stays small: a local file is mapped, one of an object store is mapped from a copy on the local disk.
    """
    digest = hashlib.sha256()
    size = 0
    buffer: pa.Buffer | None = None
    with nullcontext() if storage.is_local else tempfile.NamedTemporaryFile(prefix="shards-check-") as copy:
        try:
            with storage.open_input(file.path) as source:
                while piece := source.read(_PIECE):
                    digest.update(piece)
                    size += len(piece)
                    if copy is not None:
                        copy.write(piece)
            if not size:
                buffer = pa.py_buffer(b"")
            elif copy is None:
                buffer = storage.view(file.path)
            else:
                copy.flush()
                buffer = pa.memory_map(copy.name).read_buffer()
        except NotFound:
            done.faults.append(Fault(file.path, "missing"))
        except (OSError, pa.ArrowException) as error:
            done.faults.append(Fault(file.path, explained(explain("read", storage.where(file.path), error))))
        done.size += size
        if buffer is not None and digest.hexdigest() != file.sha256:
            done.faults.append(Fault(file.path, "its sha256 is not the one in the manifest: replaced or damaged"))
        yield buffer


def look_into(
    done: Checked, buffer: pa.Buffer, path: str, nsamples: int, captions: Mapping[str, str | None] | None
) -> list[int] | None:
    """Compares a tar's samples with what is known of them; gives the offsets that its index must have, if it is whole.

    captions: by key, of the samples that the unit's ledger kept.
    """
    lines = Lines(path)
    keys: dict[str, None] = {}
    offsets: list[int] = []
    view = memoryview(buffer)
    end = 0
    whole = True
    try:
        for sample in group(scan(buffer)):
            if sample.key in keys:
                lines.add("twice", f"the key {sample.key!r} comes twice")
            offsets.append(sample.start)
            end = sample.stop
            keys[sample.key] = None
            _check_sample(lines, sample, view)
            if captions is None:
                continue
            if sample.key not in captions:
                lines.add("strange", f"the sample {sample.key!r} is not kept in the ledger")
            elif "txt" in sample.parts and _bytes(view, sample, "txt") != (captions[sample.key] or "").encode():
                lines.add("caption", f"the caption of {sample.key!r} is not the ledger's")
    except TarError as error:
        lines.add("tar", str(error))
        whole = False
    if len(offsets) != nsamples:
        lines.add("count", f"{len(offsets):,} samples, the manifest says {nsamples:,}")
    if captions is not None and whole:
        for key in captions.keys() - keys.keys():
            lines.add("lost", f"the sample {key!r} of the ledger is not in it")
        if captions.keys() == keys.keys() and list(captions) != list(keys):
            lines.add("order", "its samples are not in the ledger's order")
    done.samples = len(offsets)
    done.keys = b"".join(hashlib.blake2b(_name(key), digest_size=KEY_HASH).digest() for key in keys)
    done.faults += lines.faults()
    return [*offsets, end] if whole else None


def _check_sample(lines: Lines, sample: TarSample, view: memoryview) -> None:
    """A pair has an image, a text and a JSON object; a sample of a later stage, with a `task`, what its schema asks."""
    key, parts = sample.key, sample.parts
    record: Any = None
    if "json" not in parts:
        lines.add("json", f"the sample {key!r} has no .json")
    else:
        data = _bytes(view, sample, "json")
        try:
            record = json.loads(data)
            if isinstance(record, dict) and "task" in record:
                for name in load_sample(data).images:
                    if name not in parts:
                        lines.add("image", f"the sample {key!r} has no .{name}")
                return
        except SchemaError as error:
            lines.add("schema", f"the sample {key!r}: {error}")
            return
        except (ValueError, RecursionError) as error:
            lines.add("json", f"the .json of {key!r} cannot be read: {first_line(error)}")
        else:
            if not isinstance(record, dict):
                lines.add("json", f"the .json of {key!r} is no object")
            elif record.get("key", key) != key:
                lines.add("json", f"the .json of {key!r} is of {record['key']!r}")
    if "txt" not in parts:
        lines.add("txt", f"the sample {key!r} has no .txt")
    if IMAGES.isdisjoint(parts):
        lines.add("image", f"the sample {key!r} has no image")


def compare_index(done: Checked, storage: Storage, path: str, offsets: list[int]) -> None:
    try:
        found = decode_index(storage.read(path))
    except IndexDamaged as error:
        done.faults.append(Fault(path, str(error).partition(": ")[2]))
    except StorageError as error:
        done.faults.append(Fault(path, explained(error)))
    else:
        if found != offsets:
            done.faults.append(Fault(path, "its offsets are not those of the samples in the tar"))


def _bytes(view: memoryview, sample: TarSample, extension: str) -> bytes:
    member = sample.parts[extension]
    return bytes(view[member.offset : member.offset + member.size])


def _name(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def explained(error: StorageError) -> str:
    return "missing" if isinstance(error, NotFound) else str(error)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
