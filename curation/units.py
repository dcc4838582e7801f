"""A profile's inputs -> units: the samples that are read, decided and committed together.

A unit is one input file, or a range of a file that is too large. Its id depends on the input alone, never on filters,
so that a later decision names the same units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple, Self

import pyarrow.parquet as pq

from curation.profile import Profile
from curation.tar_walk import cut_tar, samples_of
from shards.inputs import resolve_inputs
from shards.storage import Entry, Storage, StorageError

SUFFIXES = {"img2dataset": (".tar",), "webdataset": (".tar",), "parquet": (".parquet",)}
# A tar's samples are counted only where its side-car or its first megabyte says that it holds far more than a unit may.
_PROBE_BYTES = 1 << 20
_READERS = 16  # footers and first megabytes are read side by side: object stores answer in 50 ms each


@dataclass(frozen=True)
class Unit:
    """`path` relative to the input root. `start`, `stop`: bytes of a tar or rows of a Parquet file; None: all of it."""

    unit_id: str
    path: str
    size: int
    start: int | None = None
    stop: int | None = None
    # Samples inside, where planning learned it: for `--limit` and the plan; never for correctness.
    samples: int | None = None
    # For a range of a tar, what planning saw of the file: characters of its first key, and how often keys of the range
    # stand before it. None: not known, then reading looks for itself.
    key_width: int | None = field(default=None, compare=False)
    earlier: dict[str, int] | None = field(default=None, compare=False)

    @property
    def short(self) -> str:
        """Names the unit's files and begins its samples' keys. Planning refuses two units with the same."""
        return self.unit_id[:12]

    @property
    def name(self) -> str:
        """For people: the file and the range."""
        return self.path if self.start is None else f"{self.path}[{self.start}:{self.stop}]"

    @property
    def heads_file(self) -> bool:
        """Whether this unit answers for what the file's side-car lists but the tar does not hold."""
        return not self.start

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def unit_id(profile: str, path: str, size: int, start: int | None, stop: int | None) -> str:
    """sha256 hex of profile name, path relative to the input root, size and range."""
    return hashlib.sha256("\0".join((profile, path, str(size), str(start), str(stop))).encode()).hexdigest()


def plan_units(profile: Profile) -> tuple[Storage, list[Unit]]:
    """The input root and all units in the order of the files. Raises `StorageError`: no input, or none that is whole.

    Reads a Parquet file's footer and a tar's first megabyte; a tar beyond the limits is walked over
    once, which on an object store reads all of it.
    """
    try:
        storage, entries = resolve_inputs(profile.input.path, SUFFIXES[profile.input.format])
    except StorageError:
        if profile.download is not None and not Storage.open(profile.input.path).list(suffix=".tar", recursive=True):
            line = f"{profile.input.path}: holds nothing yet: run `python -m curation download {profile.name}` first"
            raise StorageError(line) from None
        raise
    split = _split_parquet if profile.input.format == "parquet" else _split_tar
    with ThreadPoolExecutor(_READERS) as pool:
        parts = pool.map(lambda entry: list(split(profile, storage, entry)), entries)
        units = [
            Unit(unit_id(profile.name, entry.path, entry.size, part.start, part.stop), entry.path, entry.size, *part)
            for entry, ranges in zip(entries, parts, strict=True)
            for part in ranges
        ]
    return storage, units


class Range(NamedTuple):
    """What a unit has of its file; the fields are those of `Unit`."""

    start: int | None = None
    stop: int | None = None
    samples: int | None = None
    key_width: int | None = None
    earlier: dict[str, int] | None = None


def _split_tar(profile: Profile, storage: Storage, entry: Entry) -> Iterator[Range]:
    limits = profile.units
    samples, complete = _sidecar_rows(profile, storage, entry), False
    if samples is None:
        samples, complete = _probe(storage, entry)
    if complete or (entry.size <= limits.max_bytes and (samples or 0) <= 1.5 * limits.max_samples):
        yield Range(samples=samples)
        return
    # The last range goes to the end of the file, so that damage behind the last whole sample is seen and told.
    ranges = cut_tar(storage, entry.path, entry.size, limits.max_samples, limits.max_bytes)
    if len(ranges) <= 1:
        yield Range(samples=samples)
        return
    for part in ranges:
        yield Range(*part)


def sidecar_path(tar: str) -> str:
    """Where img2dataset puts the Parquet of a tar."""
    return str(PurePosixPath(tar).with_suffix(".parquet"))


def _sidecar_rows(profile: Profile, storage: Storage, entry: Entry) -> int | None:
    """What img2dataset's Parquet lists for a tar, failed downloads included; None where it cannot say."""
    path = sidecar_path(entry.path)
    if profile.input.format != "img2dataset" or not storage.exists(path):
        return None
    try:
        with storage.open_input(path) as file:
            return int(pq.read_metadata(file).num_rows)
    except (OSError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        return None  # not Parquet: the unit fails with the reason


def _probe(storage: Storage, entry: Entry) -> tuple[int | None, bool]:
    """Samples in a tar, estimated from its first megabyte, and whether that was all of it. None: cannot say."""
    view = storage.view_range(entry.path, 0, min(_PROBE_BYTES, entry.size))
    samples, _ = samples_of(view)  # the megabyte mostly ends inside a member: that is no damage
    complete = entry.size <= _PROBE_BYTES
    if not samples:
        return None, complete
    return (len(samples) if complete else round(len(samples) * entry.size / samples[-1].stop)), complete


def _split_parquet(profile: Profile, storage: Storage, entry: Entry) -> Iterator[Range]:
    try:
        with storage.open_input(entry.path) as file:
            footer = pq.read_metadata(file)
    except (OSError, ValueError) as error:
        if isinstance(error, StorageError):
            raise
        yield Range()  # not Parquet: the unit fails with the reason, the others go on
        return
    limits = profile.units
    if footer.num_rows <= limits.max_samples and entry.size <= limits.max_bytes:
        yield Range(samples=footer.num_rows)
        return
    start, rows, size = 0, 0, 0
    for index in range(footer.num_row_groups):
        row_group = footer.row_group(index)
        # A row group that is itself too large is cut by rows.
        pieces = max(-(-row_group.num_rows // limits.max_samples), -(-row_group.total_byte_size // limits.max_bytes), 1)
        if rows and (
            rows + row_group.num_rows > limits.max_samples or size + row_group.total_byte_size > limits.max_bytes
        ):
            yield Range(start, start + rows, rows)
            start, rows, size = start + rows, 0, 0
        if pieces > 1:
            step = -(-row_group.num_rows // pieces)
            for offset in range(0, row_group.num_rows, step):
                count = min(step, row_group.num_rows - offset)
                yield Range(start + offset, start + offset + count, count)
            start += row_group.num_rows
        else:
            rows, size = rows + row_group.num_rows, size + row_group.total_byte_size
    if rows:
        yield Range(start, start + rows, rows)
